"""What stream and segment leave behind: a Zarr v3 store with `affinity` and `segmentation`, and a record beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.affinity import NEAREST, attributes
from distill.errors import SourceError
from distill.geometry import Box, Nanometres, Triple
from distill.ids import Relabelling
from distill.store import ZarrArray, create_zarr, write_group_attributes
from distill.volume import Volume


@dataclass(frozen=True)
class Frame:
    """Place of a result: the sections of a source that were worked on."""

    shape: Triple
    resolution: Nanometres
    offset: Nanometres  # nm
    first: int  # section of the source


def frame_of(source: Volume, sections: tuple[int, int | None] | None) -> Frame:
    """Frame of some sections of a volume, all by default.

    Raises:
        SourceError: the volume has channels, or the sections are not there.
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


def check_free(out: Path, overwrite: bool) -> None:
    """Make sure that `out` can be made.

    Raises:
        SourceError: it exists and may not be overwritten, or is something else than a Zarr store.
    """
    if not out.exists():
        return
    if not overwrite:
        raise SourceError(f"{out}: exists already; expected a new path, or --overwrite")
    if not (out / "zarr.json").is_file():
        raise SourceError(f"{out}: is not a Zarr store; it will not be overwritten")


class Output:
    """The store while it is being written: under a temporary name until it is complete."""

    def __init__(self, out: Path, frame: Frame, *, segmentation: bool, overwrite: bool) -> None:
        check_free(out, overwrite)
        self.out, self.frame = out, frame
        self.work = out.with_name(out.name + ".writing")
        if self.work.exists():
            shutil.rmtree(self.work)
        self.affinity = create_zarr(
            self.work,
            "affinity",
            shape=(3, *frame.shape),
            dtype=np.uint8,
            resolution=frame.resolution,
            offset=frame.offset,
            attributes=attributes(NEAREST),
        )
        self.segmentation: ZarrArray | None = None
        if segmentation:
            self.segmentation = create_zarr(
                self.work,
                "segmentation",
                shape=frame.shape,
                dtype=np.uint64,
                resolution=frame.resolution,
                offset=frame.offset,
            )

    def write_affinity(self, z: int, affinity: NDArray[np.uint8]) -> None:
        """One section (3, H, W)."""
        _, height, width = self.frame.shape
        self.affinity.write(Box((z, 0, 0), (z + 1, height, width)), affinity[:, None])

    def write_segmentation(self, first: int, labels: NDArray[np.uint64]) -> None:
        """Sections from `first` on, (D, H, W)."""
        assert self.segmentation is not None
        _, height, width = self.frame.shape
        self.segmentation.write(Box((first, 0, 0), (first + len(labels), height, width)), labels)

    def relabel(self, mapping: Relabelling) -> None:
        """Replace supervoxel ids by final ones, section by section."""
        assert self.segmentation is not None
        volume = self.segmentation.volume()
        for z, section in enumerate(volume.sections()):
            self.write_segmentation(z, mapping.apply(section)[None])

    def complete(self, about: dict[str, object]) -> None:
        """Note how it was made and take the final name."""
        write_group_attributes(self.work, {"made_by": about})
        if self.out.exists():
            shutil.rmtree(self.out)
        self.work.rename(self.out)

    def discard(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.work, ignore_errors=True)
