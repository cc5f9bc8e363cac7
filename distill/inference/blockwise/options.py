"""Options of `distill segment` that `distill stream` does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.core.choices import Method, Network
from distill.core.errors import DistillError
from distill.core.geometry import Triple


def merges_contacts(method: str) -> bool:
    """Return whether supervoxels are merged by the contacts of the whole volume rather than inside blocks."""
    return method in ("flood", "query")


def compares_pieces(method: str) -> bool:
    """Return whether instances of overlapping tiles or blocks are united by the voxels that they share."""
    return method != "flood"


@dataclass(frozen=True)
class Blocking:
    """How a volume is divided into blocks, what segments them, and which processes do so.

    Attributes:
        block: largest block in voxels; None = the decoder's depth and 1024 x 1024.
        workers: processes on this machine; 0 or 1 = this process.
        scheduler: host:port or file of a Dask scheduler, instead of `workers`.
        retries: attempts to repeat a block that fails.
        resume: continue an existing store.
        network: which of a model's two networks predicts affinities.
        method: `flood` = supervoxels merged by their contacts, `query` = shared query decoder, `waterz` = watershed and
            agglomeration of the papers, `mws` = mutex watershed, `fragments` = watershed fragments merged by a
            transformer.
        on_bad: policies for bad sections, see `distill.inference.blockwise.bad_sections.parse_bad`.
        orientations: flips and transposes of a block whose affinities the teacher averages, 1, 2, 4, 8 or 16; None =
            as the model's configuration says.
        fragments: file of the transformer, for the method `fragments` alone.
    """

    block: Triple | None = None
    workers: int = 0
    scheduler: str | None = None
    retries: int = 2
    resume: bool = False
    network: Network = "student"
    method: Method = "flood"
    on_bad: Sequence[str] = ()
    orientations: int | None = None
    fragments: Path | None = None

    def __post_init__(self) -> None:
        if self.block is not None and min(self.block) < 1:
            found = ",".join(map(str, self.block))
            raise DistillError(f"--block: found {found}, expected voxels of a block such as 17,1024,1024")


DEFAULT_BLOCKING = Blocking()
