"""What `stream` and `segment` return: their summary, and the store that holds the neurons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.core.errors import SourceError
from distill.core.geometry import Box
from distill.inference.blockwise.phases import Segmented
from distill.inference.streaming.stream import Streamed
from distill.io.volume import open_labels
from distill.python.pictures import SHOWN, ids_html


@dataclass(frozen=True, repr=False)
class StoredStream(Streamed):
    """What a stream did, and its store.

    Attributes:
        out: store.
    """

    out: Path

    def __repr__(self) -> str:
        """Describe the stream in one line."""
        objects = "no neurons" if self.objects is None else f"{self.objects} objects"
        state = "finished" if self.finished else "to be completed by finish"
        return f"StoredStream({str(self.out)!r}, {self.sections} sections, {len(self.bad)} bad, {objects}, {state})"

    def _repr_html_(self) -> str | None:
        return _middle(self.out, repr(self))


@dataclass(repr=False, kw_only=True)
class StoredBlocks(Segmented):
    """What a segmentation in blocks did, and its store.

    Attributes:
        out: store.
    """

    out: Path

    def __repr__(self) -> str:
        """Describe the segmentation in one line."""
        about = self.about
        blocks = " x ".join(str(number) for number in about["blocks"])
        return f"StoredBlocks({str(self.out)!r}, {about['objects']} objects by {about['method']}, {blocks} blocks)"

    def _repr_html_(self) -> str | None:
        return _middle(self.out, repr(self))


def _middle(store: Path, text: str) -> str | None:
    """Show the middle of the middle section in a notebook; None, which shows the text, where there are no neurons."""
    try:
        ids = open_labels(f"{store}:segmentation")
    except SourceError:
        return None
    depth, height, width = ids.size
    start = (depth // 2, max(0, (height - SHOWN) // 2), max(0, (width - SHOWN) // 2))
    stop = (start[0] + 1, min(height, start[1] + SHOWN), min(width, start[2] + SHOWN))
    return ids_html(ids.read(Box(start, stop))[0], f"section {start[0]} of {text}")
