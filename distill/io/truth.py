"""Ground truth on the voxel grid of its image: labels that may be smaller than the image, a mask, the meaning of label
0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.core.geometry import Box, Nanometres, Triple
from distill.core.known import OTHER_ID, UNKNOWN_ID
from distill.core.notes import note
from distill.io.readers.array import Cut, Index, Opener
from distill.io.volume import Volume, every_section, open_labels, open_volume, some_sections, voxel_shift

Zero = Literal["background", "unknown", "other"]
Read = Callable[[int, Box], NDArray[Any]]  # number of a file, voxels of it

_ZERO = {"unknown": UNKNOWN_ID, "other": OTHER_ID}


@dataclass(frozen=True)
class Placed:
    """A volume positioned on the grid of another one.

    Attributes:
        volume: with its own voxels.
        shift: voxel of the other volume at the position of its voxel (0, 0, 0).
    """

    volume: Volume
    shift: Triple

    @property
    def box(self) -> Box:
        """Return the region that it covers, in voxels of the other volume."""
        return self.volume.box.shift(self.shift)


@dataclass(frozen=True)
class Truth:
    """Labels of an image, with values of `distill.core.known` where they are not ids.

    Attributes:
        labels: of the image's voxels; voxels that they do not cover are UNKNOWN.
        mask: non-zero where labels are valid; None = everywhere.
        zero: meaning of label 0.
        whole: whether every voxel of the image is known.
    """

    labels: Placed
    mask: Placed | None = None
    zero: Zero = "background"
    whole: bool = True

    @property
    def files(self) -> tuple[Volume, ...]:
        """Return the volumes that are read: labels, and the mask if there is one."""
        return (self.labels.volume,) if self.mask is None else (self.labels.volume, self.mask.volume)

    @property
    def box(self) -> Box:
        """Return the region that can be known, in voxels of the image."""
        return self.labels.box if self.mask is None else self.labels.box.intersect(self.mask.box)

    def read(self, box: Box, read: Read | None = None) -> NDArray[np.uint64]:
        """Read the labels of a box of the image.

        Args:
            box: voxels of the image; those outside the labels are UNKNOWN.
            read: function that reads a box of one of the `files`, by number; by default each file is opened.

        Raises:
            SourceError: a file cannot be read.
        """
        read = read or (lambda number, where: self.files[number].read(where))
        there = self.labels.box.intersect(box)
        if there == box and self.mask is None:
            found = read(0, box.relative_to(self.labels.shift))
        else:
            found = np.full(box.shape, UNKNOWN_ID)
            if there.voxels:
                found[there.relative_to(box.start).slices] = read(0, there.relative_to(self.labels.shift))
        if self.zero != "background":
            found[found == 0] = _ZERO[self.zero]
        if self.mask is not None:
            counts = np.zeros(box.shape, bool)
            there = self.mask.box.intersect(box)
            if there.voxels:
                counts[there.relative_to(box.start).slices] = read(1, there.relative_to(self.mask.shift)) != 0
            found[~counts] = UNKNOWN_ID
        return found


def open_truth(
    raw: Volume, labels: Volume, mask: Volume | None = None, *, every: int = 1, zero: Zero = "background", ignores: bool
) -> tuple[Volume, Truth]:
    """Place labels and mask on their image.

    Args:
        raw: the image, all its sections.
        labels: ground truth; a volume of the same size coincides with the image unless both state an offset.
        mask: non-zero where labels are valid.
        every: take every n-th section of the image.
        zero: meaning of label 0.
        ignores: whether the labels have a value that reads as UNKNOWN.

    Returns:
        The image restricted to the sections used, and its labels.

    Raises:
        ShapeError: voxel sizes differ, the positions differ by a fraction of a voxel, or the volumes do not overlap.
    """
    image = every_section(raw, every)
    placed = _placed(labels, raw, image, every)
    masked = None if mask is None else _placed(mask, raw, image, every)
    whole = mask is None and not ignores and zero == "background" and placed.box.contains(image.box)
    truth = Truth(placed, masked, zero, whole)
    if not truth.box.intersect(image.box).voxels:
        what = labels.source if mask is None else f"{labels.source} with {mask.source}"
        raise ShapeError(
            f"{what}: covers nothing of {raw.source}; expected resolution and offset (nm) that place it there"
        )
    return image, truth


def _placed(inner: Volume, raw: Volume, image: Volume, every: int) -> Placed:
    """Position a volume on the grid of the image's sections used."""
    if inner.size == raw.size and (not any(inner.offset) or not any(raw.offset)):
        note_offset(inner, raw)
        inner = replace(inner, offset=raw.offset)
    first = -voxel_shift(inner, raw)[0] % every  # its first section that is used
    if first >= inner.size[0]:
        raise ShapeError(f"{inner.source}: has none of every {every}th section of {raw.source}")
    if first:
        inner = some_sections(inner, first, inner.size[0])
    inner = every_section(inner, every)
    return Placed(inner, voxel_shift(inner, image))


def note_offset(inner: Volume, raw: Volume) -> None:
    """Report that a volume of the image's size is placed on the image although only one of them states an offset."""
    if inner.offset != raw.offset:
        which, nm = (inner, inner.offset) if any(inner.offset) else (raw, raw.offset)
        note(
            f"{inner.source}: has the size of {raw.source} and is placed on it; the offset of {which.source}, "
            f"{', '.join(f'{value:g}' for value in nm)} nm, which the other one lacks, is not used"
        )


def masked_labels(labels: Volume, mask: Volume) -> Volume:
    """Return labels that read as UNKNOWN where a mask is 0 or has no voxel.

    Args:
        labels: as of `open_labels`.
        mask: on the same voxel grid, positioned by its offset.

    Raises:
        ShapeError: voxel sizes differ, the positions differ by a fraction of a voxel, or the mask has channels.
    """
    if mask.channels is not None:
        raise ShapeError(f"{mask.source}: found {mask.channels} channels, expected a mask z, y, x")
    truth = Truth(Placed(labels, (0, 0, 0)), Placed(mask, voxel_shift(mask, labels)))
    return replace(labels, _opener=partial(_open_masked, truth))


@dataclass(frozen=True)
class Known:
    """Region in which ground truth is valid.

    Attributes:
        ignore: stored label of voxels that are ignored.
        mask: source of a volume that is non-zero where voxels are counted.
    """

    ignore: int | None = None
    mask: str | None = None


EVERYWHERE = Known()


def open_known(source: str, known: Known, *, resolution: Nanometres | None = None, edges: bool = False) -> Volume:
    """Open ground truth for scoring.

    Args:
        source: of the labels.
        known: ignored voxels read as 0, which no segmentation score counts.
        resolution: voxel size z, y, x in nm, for files without one.
        edges: whether ignored voxels read as UNKNOWN instead, so that their edges are invalid.

    Raises:
        SourceError: a source that cannot be opened.
        ShapeError: a mask of another voxel grid.
    """
    labels = open_labels(source, resolution=resolution, ignore=known.ignore)
    if known.mask is not None:
        labels = masked_labels(labels, open_volume(known.mask, resolution=resolution, grey=False))
    if edges or known == EVERYWHERE:
        return labels
    return replace(labels, _opener=partial(_open_counted, labels._opener))


@contextmanager
def _open_counted(opener: Opener) -> Iterator[Cut]:
    with opener() as cut:

        def counted(index: Index) -> NDArray[np.uint64]:
            ids: NDArray[np.uint64] = cut(index)
            ids[ids == UNKNOWN_ID] = 0
            return ids

        yield counted


@contextmanager
def _open_masked(truth: Truth) -> Iterator[Cut]:
    with ExitStack() as stack:
        readers = [stack.enter_context(volume.reading()) for volume in truth.files]

        def cut(index: Index) -> NDArray[np.uint64]:
            z, y, x = index
            box = Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))
            return truth.read(box, lambda number, where: readers[number](where))

        yield cut
