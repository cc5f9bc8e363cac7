"""Locate the worst objects of an evaluation: a section and a voxel at which the error is visible."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Triple
from distill.evaluation.aligned import Aligned, OnBlock, chunk_blocks, over_blocks
from distill.evaluation.metrics import ObjectError, WorstObjects
from distill.evaluation.worst_objects.pieces import PieceRows, collect, pieces_in
from distill.io.volume import Volume, voxel_shift

if TYPE_CHECKING:
    from distill.evaluation.worst_objects.connected import Pieces

ErrorKind = Literal["split", "merge"]

_MOST, _SHARE = 6, 0.05  # fragments of an object to report: maximum number, and minimum fraction of the object
_NEAR = 2048  # pixels along an axis for distance measurements; larger objects are subsampled


@dataclass(frozen=True)
class Spot:
    """Location of one erroneous object, in voxels of the segmentation.

    Attributes:
        kind: `split` = a ground-truth object in several segments, `merge` = a segment that joins several objects.
        error: the object; its id is the ground truth's for a split, the segmentation's for a merge.
        pieces: ids of the other labelling with the largest overlap, in descending order.
        voxel: z, y, x in the second largest fragment, where it comes closest to the largest.
        extent: bounding box of both fragments in the voxel's section.
        piece: bounding box of the second largest fragment (or of the only one).
        piece_voxels: number of its voxels.
        name: the id as it is shown, with the number of the piece where a neuron has several; empty: the id alone.
    """

    kind: ErrorKind
    error: ObjectError
    pieces: tuple[int, ...]
    voxel: Triple
    extent: Box
    piece: Box
    piece_voxels: int
    name: str = ""

    def of_piece(self, pieces: Pieces) -> Spot:
        """Return the same error with ids of neurons in place of those of their connected pieces."""
        if self.kind == "split":
            return replace(self, error=pieces.named(self.error), name=pieces.name(self.error.id))
        return self

    def moved(self, by: Triple) -> Spot:
        """Return the same place in a volume that begins this many voxels into the volume of this one."""
        z, y, x = (a + b for a, b in zip(self.voxel, by, strict=True))
        return replace(self, voxel=(z, y, x), extent=self.extent.shift(by), piece=self.piece.shift(by))

    @property
    def short(self) -> str:
        """Describe the error in a few words."""
        what = "object" if self.kind == "split" else "segment"
        return f"{self.kind} {self.error.bits:.3f} bits: {what} {self.name or self.error.id}"

    @property
    def text(self) -> str:
        """Describe the error in one line."""
        does = "lies in {} segments" if self.kind == "split" else "covers {} objects"
        return f"{self.short} {does.format(self.error.pieces)}"


def find_spots(
    segmentation: Volume,
    labels: Volume,
    worst: WorstObjects,
    on_block: OnBlock = lambda done, total: None,
    workers: int = 1,
) -> list[Spot]:
    """Locate the objects of an evaluation, holding one block in memory at a time.

    Args:
        segmentation: as it was evaluated.
        labels: ground truth on the same voxel grid, of the same size or larger.
        worst: objects to locate.
        on_block: called with the number of blocks read and their total.
        workers: number of reading processes; the result does not depend on it.

    Returns:
        One spot per object, largest error first.

    Raises:
        ShapeError: the labels do not cover the segmentation, voxel on voxel.
        DistillError: an object does not occur.
    """
    both = Aligned(segmentation, labels, voxel_shift(segmentation, labels))
    if not labels.box.contains(both.box):
        raise ShapeError(f"{labels.source}: does not cover the voxels of {segmentation.source}, expected it to")
    wanted: list[tuple[ErrorKind, ObjectError]] = [
        *(("split", error) for error in worst.split),
        *(("merge", error) for error in worst.merged),
    ]
    if not wanted:
        return []
    split, merged = (np.array([error.id for error in errors], np.uint64) for errors in (worst.split, worst.merged))
    search = partial(pieces_in, both, split, merged)
    with closing(over_blocks(search, chunk_blocks(segmentation), workers, on_block)) as parts:
        rows = collect(parts)
    return sorted((_spot(both, kind, error, rows) for kind, error in wanted), key=lambda spot: -spot.error.bits)


def _spot(both: Aligned, kind: ErrorKind, error: ObjectError, rows: PieceRows) -> Spot:
    own, other = (rows.u, rows.v) if kind == "split" else (rows.v, rows.u)
    at = np.flatnonzero(own == np.uint64(error.id))
    if not len(at):
        where = both.truth if kind == "split" else both.found
        raise DistillError(f"{where.source}: found no voxel of id {error.id}, expected the volumes that were evaluated")
    counts: dict[int, Counter[int]] = {}
    for k in at:
        counts.setdefault(int(rows.z[k]), Counter())[int(other[k])] += int(rows.count[k])
    ranked = _main_pieces(counts)
    z = _clearest(counts, ranked)
    two = np.array(ranked[:2], np.uint64)
    here = at[(rows.z[at] == z) & np.isin(other[at], two)]
    window = rows.hull(here)
    found, truth = both.found.read(window)[0], both.labels(window)[0]
    pieces, second = _masks(kind, error.id, ranked, found, truth)
    y, x = _closest(pieces & ~second, second)
    whole = at[other[at] == two[-1]]
    _, top, left = window.start
    extent = _extent(z, pieces).shift((0, top, left))
    voxels = int(rows.count[whole].sum())
    return Spot(kind, error, tuple(ranked), (z, y + top, x + left), extent, rows.hull(whole), voxels)


def _main_pieces(counts: dict[int, Counter[int]]) -> list[int]:
    """Return the two largest fragments, and further ones above a minimum fraction of the object."""
    totals = sum(counts.values(), Counter[int]())
    least = _SHARE * totals.total()
    return [piece for k, (piece, count) in enumerate(totals.most_common(_MOST)) if k < 2 or count >= least]


def _clearest(counts: dict[int, Counter[int]], ranked: Sequence[int]) -> int:
    """Return the section with most of both largest fragments, or else one where the second is closest to the first."""
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
    """Return the pixels of the two largest fragments of an object, and those of the second (or of the only one)."""
    own, other = (truth, found) if kind == "split" else (found, truth)
    at = (own == wanted) & np.isin(other, np.array(ranked[:2], dtype=other.dtype))
    return at, at & (other == ranked[min(1, len(ranked) - 1)])


def _closest(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel of `second` closest to `first`, or farthest from its own border without a first."""
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
