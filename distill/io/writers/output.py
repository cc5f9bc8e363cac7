"""Position of a result in its source, and checks that the output can be written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from distill.core.errors import SourceError
from distill.core.geometry import Nanometres, Triple
from distill.io.volume import Volume
from distill.io.writers.ours import check_only, is_store_file
from distill.io.writers.target import check_writable, other_format


@dataclass(frozen=True)
class Frame:
    """Position of a result: the sections of the source that were processed."""

    shape: Triple
    resolution: Nanometres
    offset: Nanometres  # nm
    first: int  # section of the source


def frame_of(source: Volume, sections: tuple[int, int | None] | None) -> Frame:
    """Return the frame of some sections of a volume; default: all.

    Raises:
        SourceError: the volume has channels, or the sections do not exist.
    """
    if source.channels is not None:
        raise SourceError(f"{source.source}: found {source.channels} channels, expected one grey-value volume z, y, x")
    depth, height, width = source.size
    first, last = sections or (0, None)
    last = depth if last is None else last
    if not 0 <= first < last <= depth:
        raise SourceError(f"--sections: found {first}:{last}, expected a range within 0:{depth} of {source.source}")
    z, y, x = source.offset
    return Frame((last - first, height, width), source.resolution, (z + first * source.resolution[0], y, x), first)


def check_free(out: Path, source: str, overwrite: bool, *, resumable: bool = False) -> None:
    """Check, before a long computation, that `out` can be created.

    Args:
        out: the store.
        source: that is to be read.
        overwrite: whether a store that is there may be replaced.
        resumable: whether the same command could resume what is there.

    Raises:
        SourceError: it exists and may not be overwritten, is not a Zarr store, contains the source, or lies in a
            location that cannot be written.
    """
    check_place(out)
    if (form := other_format(out)) is not None:
        raise SourceError(
            f"{out}: found the extension of {form}, expected a folder such as {out.with_suffix('.zarr').name}; distill "
            f"copy {out.with_suffix('.zarr').name}:segmentation {out.name} writes {form} from it"
        )
    if not os.path.lexists(out):
        return
    if not overwrite:
        hint = ", or --resume to continue it" if resumable else ""
        raise SourceError(f"{out}: exists already; expected a new path, or --overwrite{hint}")
    if not (out / "zarr.json").is_file():
        raise SourceError(f"{out}: is not a Zarr store; it will not be overwritten")
    check_only(out, out, is_store_file)
    read = os.path.realpath(source)
    for gone in (out, replaced(out)):
        written = os.path.realpath(gone)
        if read == written or read.startswith((f"{written}:", f"{written}{os.sep}")):
            raise SourceError(f"{gone}: holds the source {source}; it will not be overwritten, expected another path")


def replaced(out: Path) -> Path:
    """Return where the store is that another is to replace."""
    return out.with_name(out.name + ".replaced")


_FILES = {
    ".safetensors": "weights",
    ".pt": "weights",
    ".pth": "weights",
    ".onnx": "weights",
    ".csv": "a table",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".svg": "a figure",
    ".pdf": "a figure",
    ".html": "a page",
    ".md": "text",
    ".txt": "text",
    ".swc": "a skeleton",
    ".zip": "an archive",
    ".ipynb": "a notebook",
}


def check_folder(out: Path) -> None:
    """Check that a folder can be made at `out`, and that its name does not promise a file.

    Raises:
        SourceError: see `check_place`, or the name has the extension of a file format.
    """
    check_place(out)
    if (form := other_format(out) or _FILES.get(out.suffix.lower())) is not None:
        raise SourceError(f"{out}: found the extension of {form}, expected a folder such as {out.with_suffix('').name}")


def check_place(out: Path) -> None:
    """Check that `out` can be written.

    Raises:
        SourceError: the path has no name of its own, or the nearest folder above it is a file or not writable.
    """
    if out.name in ("", ".."):
        raise SourceError(f"--out: found {str(out)!r}, expected a path with a name of its own")
    check_writable(out)
