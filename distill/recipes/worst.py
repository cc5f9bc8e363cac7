"""Where the worst objects of an evaluation lie: a section and a voxel at which the error can be seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.errors import DistillError, ShapeError
from distill.geometry import Box, Triple
from distill.metrics import ObjectError, WorstObjects
from distill.volume import Volume, voxel_shift

_MOST, _SHARE = 6, 0.05  # pieces of an object that are named: so many, with so much of it
_NEAR = 2048  # pixels along an axis that distances are measured on; larger objects are thinned out


@dataclass(frozen=True)
class Spot:
    """One wrong object and where to look at it, in voxels of the segmentation.

    Attributes:
        kind: `split` = a ground-truth object in several segments, `merge` = a segment that joins several objects.
        error: the object; its id is the ground truth's for a split, the segmentation's for a merge.
        pieces: ids of the other labelling that hold most of it, largest first.
        voxel: z, y, x on the second largest piece, where it comes closest to the largest.
        extent: both pieces in the voxel's section.
    """

    kind: Literal["split", "merge"]
    error: ObjectError
    pieces: tuple[int, ...]
    voxel: Triple
    extent: Box

    @property
    def short(self) -> str:
        """What is wrong, in a few words."""
        what = "object" if self.kind == "split" else "segment"
        return f"{self.kind} {self.error.bits:.3f} bits: {what} {self.error.id}"

    @property
    def text(self) -> str:
        """What is wrong, in a line."""
        does = "lies in {} segments" if self.kind == "split" else "covers {} objects"
        return f"{self.short} {does.format(self.error.pieces)}"


def find_spots(
    segmentation: Volume, labels: Volume, worst: WorstObjects, on_section: Callable[[int, int], None] | None = None
) -> list[Spot]:
    """Look up the objects of an evaluation, holding one section at a time.

    Args:
        segmentation: as it was evaluated.
        labels: ground truth on the same voxel grid, the same size or larger.
        worst: ids to look for.
        on_section: called with sections done and their number.

    Returns:
        One spot an object, the most expensive first.

    Raises:
        ShapeError: the labels do not cover the segmentation, voxel on voxel.
        DistillError: an object is not there.
    """
    origin = voxel_shift(segmentation, labels)
    if not labels.box.contains(segmentation.box.shift(origin)):
        raise ShapeError(f"{labels.source}: does not cover the voxels of {segmentation.source}, expected it to")
    wanted: list[tuple[Literal["split", "merge"], ObjectError]] = [
        *(("split", error) for error in worst.split),
        *(("merge", error) for error in worst.merged),
    ]
    seen: list[dict[int, Counter[int]]] = [{} for _ in wanted]
    depth, height, width = segmentation.size
    inside = slice(origin[1], origin[1] + height), slice(origin[2], origin[2] + width)
    sections = zip(segmentation.sections(), labels.sections(origin[0], origin[0] + depth), strict=True)
    for z, (found, truth) in enumerate(sections):
        for (kind, error), counts in zip(wanted, seen, strict=True):
            pieces = _pieces(kind, error.id, found, truth[inside])
            if pieces:
                counts[z] = pieces
        if on_section is not None:
            on_section(z + 1, depth)
    spots = []
    for (kind, error), counts in zip(wanted, seen, strict=True):
        if not counts:
            where = labels if kind == "split" else segmentation
            raise DistillError(
                f"{where.source}: found no voxel of id {error.id}, expected the volumes that were evaluated"
            )
        ranked = _main_pieces(counts)
        z = _clearest(counts, ranked)
        found = segmentation.read(Box((z, 0, 0), (z + 1, height, width)))[0]
        here = Box((z, 0, 0), (z + 1, height, width)).shift(origin)
        at, second = _masks(kind, error.id, ranked, found, labels.read(here)[0])
        y, x = _closest(at & ~second, second)
        spots.append(Spot(kind, error, tuple(ranked), (z, y, x), _extent(z, at)))
    return sorted(spots, key=lambda spot: -spot.error.bits)


def _pieces(kind: str, wanted: int, found: NDArray[Any], truth: NDArray[Any]) -> Counter[int]:
    """Pixels of each piece of an object in one section; ground truth 0 is no piece."""
    own, other = (truth, found) if kind == "split" else (found, truth)
    inside = other[own == wanted]
    ids, counts = np.unique(inside if kind == "split" else inside[inside != 0], return_counts=True)
    return Counter(dict(zip(ids.tolist(), counts.tolist(), strict=True)))


def _main_pieces(counts: dict[int, Counter[int]]) -> list[int]:
    """The largest two pieces, and the next ones that hold some share of the object."""
    totals = sum(counts.values(), Counter[int]())
    least = _SHARE * totals.total()
    return [piece for k, (piece, count) in enumerate(totals.most_common(_MOST)) if k < 2 or count >= least]


def _clearest(counts: dict[int, Counter[int]], ranked: Sequence[int]) -> int:
    """The section with most of both of the largest pieces, else one with the second nearest to the first."""
    first, second = ranked[0], ranked[min(1, len(ranked) - 1)]
    with_first = [z for z, pieces in counts.items() if pieces[first]]

    def clear(z: int) -> tuple[int, float, int]:
        distance = min(abs(z - other) for other in with_first)
        return (
            min(counts[z][first], counts[z][second]),
            -distance if counts[z][second] else -math.inf,
            counts[z][second],
        )

    return max(counts, key=clear)


def _masks(
    kind: str, wanted: int, ranked: Sequence[int], found: NDArray[Any], truth: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of the two largest pieces of an object, and those of the second (of the only one)."""
    own, other = (truth, found) if kind == "split" else (found, truth)
    at = (own == wanted) & np.isin(other, np.array(ranked[:2], dtype=other.dtype))
    return at, at & (other == ranked[min(1, len(ranked) - 1)])


def _closest(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int]:
    """Pixel of `second` closest to `first`, or farthest from its own border where there is no first."""
    where = ndimage.find_objects((first | second).astype(np.uint8))[0]
    step = 1 + max(s.stop - s.start - 1 for s in where) // _NEAR
    a, b = (mask[where][::step, ::step] for mask in (first, second))
    if not b.any():
        y, x = np.argwhere(second)[0]
        return int(y), int(x)
    depth = -ndimage.distance_transform_edt(~a) if a.any() else ndimage.distance_transform_edt(np.pad(b, 1))[1:-1, 1:-1]
    depth = np.where(b, depth, -np.inf)
    best = np.argwhere(depth == depth.max())
    y, x = best[np.argmin(np.linalg.norm(best - best.mean(axis=0), axis=1))]  # the middle of a long contact
    return int(y) * step + where[0].start, int(x) * step + where[1].start


def _extent(z: int, at: NDArray[np.bool_]) -> Box:
    y, x = ndimage.find_objects(at.astype(np.uint8))[0]
    return Box((z, y.start, x.start), (z + 1, y.stop, x.stop))
