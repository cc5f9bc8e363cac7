"""Stitch overlapping segmented blocks into one volume.

Merging across block borders by shared voxels and by the mean affinity along the contact: Chen et al., Efficient Neuron
Segmentation in Electron Microscopy by Affinity-Guided Queries, ICLR 2025, whole volumes (blocks share one plane, border
threshold 0.3 on waterz's scale: mean affinity above 0.7; never inside a block).

The result does not depend on the order of the blocks: the evidence about two segments comes from the overlap of their
two blocks, ids are numbered by block index, and all decisions are made at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Triple, as_triple, largest_overlap, owned_boxes
from distill.core.labels import Integers, Relabelling, concatenate, distinct_ids, sum_pairs
from distill.segmentation.agglomeration import RegionGraph, agglomerate_graph
from distill.segmentation.shared_voxels import Shares, shared_voxels, unite

Affinity = NDArray[np.floating[Any]]

_LOCAL_BITS = 32
MOST_BLOCKS: int = 2 ** (64 - _LOCAL_BITS)  # numbers that blocks of one volume can have


@dataclass(frozen=True)
class _Part:
    """Part of a block: its position, global ids (Z, Y, X) and affinities (3, Z, Y, X) or None."""

    box: Box
    labels: NDArray[np.uint64]
    affinity: Affinity | None

    def cut(self, box: Box) -> _Part:
        """Return the part inside `box`, a view."""
        here = box.relative_to(self.box.start).slices
        return _Part(box, self.labels[here], None if self.affinity is None else self.affinity[(slice(None), *here)])


@dataclass(frozen=True)
class _Evidence:
    """Evidence of two blocks about pairs (a, b) of their segments: arrays (P,), a from the block of lower index.

    Attributes:
        a: uint64 global id.
        b: uint64 global id.
        overlap: float64, shared voxels relative to the larger of the two within the overlap of the blocks.
        total: float64, sum of affinities along the contact.
        count: int64, edges of the contact.
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    overlap: NDArray[np.float64]
    total: NDArray[np.float64]
    count: NDArray[np.int64]


class Stitcher:
    """Collects evidence block by block, and decides at the end which segments are merged.

    Two segments of different blocks are merged if (1) the voxels covered by both are at least `overlap_threshold` of
    the larger one, counted within the overlap of the two blocks (above one half, each segment has at most one partner
    in the other block, so that slivers cannot chain neurons together), and (2) if affinities were given, the mean
    affinity along their contact is above `affinity_threshold`. A contact consists of the edges between shared voxels of
    one segment and adjacent voxels of the other outside the overlap: `overlap_threshold=0` with affinities is the rule
    of the AGQ paper. Contacts of merged segments are summed as in `agglomerate_graph`; a pair without contact is
    decided by (1), and is not merged under the AGQ rule.

    Blocks form a grid (as from `tiles`) and are compared across faces only: the few voxels along an edge or at a corner
    are weak evidence, and two blocks that share them share faces with a third.

    Only the faces of a block are kept, as thick as the overlap plus one voxel; `retire` discards them.

    Args:
        overlap: maximum overlap of two blocks across a face in voxels per axis (z, y, x), see `largest_overlap`.
        overlap_threshold: fraction in [0, 1]; at 0 only the affinities decide, or any shared voxel without affinities.
        affinity_threshold: mean affinity that a contact must exceed.

    Raises:
        DistillError: a negative overlap or a threshold outside [0, 1].
    """

    def __init__(self, overlap: Triple, *, overlap_threshold: float = 0.5, affinity_threshold: float = 0.7) -> None:
        if min(overlap) < 0:
            raise DistillError(f"overlap: found {overlap}, expected voxels z, y, x, none negative")
        for name, value in (("overlap_threshold", overlap_threshold), ("affinity_threshold", affinity_threshold)):
            if not 0 <= value <= 1:
                raise DistillError(f"{name}: found {value}, expected a number from 0 to 1")
        self._overlap = overlap
        self._overlap_threshold = overlap_threshold
        self._affinity_threshold = affinity_threshold
        self._faces: dict[int, tuple[Box, list[_Part]]] = {}
        self._ids: dict[int, NDArray[np.uint64]] = {}
        self._evidence: list[_Evidence] = []
        self._with_affinity: bool | None = None
        self._retired: int | None = None

    def add(self, index: int, box: Box, labels: Integers, affinity: Affinity | None = None) -> NDArray[np.uint64]:
        """Add one block, and compare it with the neighbours already added.

        Args:
            index: number of the block; determines its ids.
            box: position of the block.
            labels: (Z, Y, X) ids of this block alone, below 2**32, 0 = background.
            affinity: (3, Z, Y, X) float in [0, 1] of this block; for all blocks or for none.

        Returns:
            (Z, Y, X) global ids, index * 2**32 + local id; 0 stays. They can be written at once and relabelled by the
            result of `finish` later.

        Raises:
            ShapeError: shapes do not match, or only some blocks have affinities.
            DistillError: an index is repeated, ids are too large, the overlap with a neighbour exceeds `overlap`, or
                the block begins where blocks were retired.
        """
        self._check(index, box, labels, affinity)
        ids = global_ids(labels, index)
        block = _Part(box, ids, affinity)
        for other in sorted(self._faces):
            other_box, faces = self._faces[other]
            if _across_face(box, other_box):
                shared = box.intersect(other_box)
                kept = self._covering(faces, shared.grow((1, 1, 1), within=other_box), box, other_box)
                pair = (kept, block) if other < index else (block, kept)
                self._evidence.append(_compare(*pair, shared))
        self._faces[index] = (box, list(self._cut_faces(block)))
        self._ids[index] = distinct_ids(ids)
        self._with_affinity = affinity is not None
        return ids

    def retire(self, z: int) -> None:
        """Discard the faces of blocks that end at or before section `z`; every later block must begin at or after it.

        Args:
            z: section, in the boxes' coordinates.
        """
        self._retired = z if self._retired is None else max(z, self._retired)
        self._faces = {index: kept for index, kept in self._faces.items() if kept[0].stop[0] > z}

    def finish(self) -> Relabelling:
        """Decide which segments are merged.

        Returns:
            For every global id its final id; final ids are 1..n, in order of the smallest global id of an object.
        """
        ids = self._all_ids()
        if not (self._evidence and self._with_affinity):
            return unite(ids, self.shares(), self._overlap_threshold)
        merged = agglomerate_graph(self.agreed(), self._affinity_threshold)
        roots = ids.copy()
        roots[np.searchsorted(ids, merged.old)] = merged.new
        return Relabelling(ids, np.unique(roots, return_inverse=True)[1].astype(np.uint64) + np.uint64(1))

    def shares(self) -> Shares:
        """Return the overlaps of the blocks so far, with or without affinities."""
        return Shares.joined(Shares(e.a, e.b, e.overlap) for e in self._evidence)

    def agreed(self) -> RegionGraph:
        """Return pairs with sufficient overlap, with their contacts; a single edge of 1 represents a missing
        contact.
        """
        if not self._evidence:
            return RegionGraph.concatenate([])
        every = concatenate(self._evidence)
        agreed = every.overlap >= self._overlap_threshold
        if self._with_affinity and self._overlap_threshold == 0:
            agreed &= every.count > 0
        total, count = np.where(every.count > 0, every.total, 1.0), np.maximum(every.count, 1)
        return RegionGraph(every.a[agreed], every.b[agreed], total[agreed], count[agreed])

    def _all_ids(self) -> NDArray[np.uint64]:
        return np.concatenate([np.zeros(0, np.uint64), *(self._ids[index] for index in sorted(self._ids))])

    def _check(self, index: int, box: Box, labels: Integers, affinity: Affinity | None) -> None:
        if index in self._ids or not 0 <= index < MOST_BLOCKS:
            raise DistillError(f"index: found {index}, expected a number from 0 that no other block has")
        if labels.dtype.kind not in "iu" or labels.shape != box.shape:
            raise ShapeError(f"labels: found {labels.dtype} {labels.shape}, expected integers {box.shape}")
        if affinity is not None and (affinity.shape != (3, *box.shape) or affinity.dtype.kind != "f"):
            found = f"{affinity.dtype} {affinity.shape}"
            raise ShapeError(f"affinity: found {found}, expected floating point {(3, *box.shape)}")
        if self._with_affinity is not None and self._with_affinity != (affinity is not None):
            raise ShapeError(
                f"affinity: found {'none' if affinity is None else 'one'} for block {index}, unlike before"
            )
        if labels.size and (labels.min() < 0 or labels.max() >= 2**_LOCAL_BITS):
            raise DistillError(
                f"labels: found ids {labels.min()} to {labels.max()}, expected 0 to {2**_LOCAL_BITS - 1}"
            )
        if self._retired is not None and box.start[0] < self._retired:
            raise DistillError(
                f"box: begins at section {box.start[0]}, but sections before {self._retired} are retired"
            )

    def _cut_faces(self, block: _Part) -> Iterator[_Part]:
        """Copy the block's faces; the whole block if the two faces of an axis meet."""
        whole = block.box
        boxes = []
        for axis, (size, overlap) in enumerate(zip(whole.shape, self._overlap, strict=True)):
            thick = overlap + 1
            if overlap and 2 * thick >= size:
                boxes = [whole]
                break
            if overlap:
                first, last = list(whole.stop), list(whole.start)
                first[axis], last[axis] = whole.start[axis] + thick, whole.stop[axis] - thick
                boxes += [Box(whole.start, as_triple(first)), Box(as_triple(last), whole.stop)]
        for box in boxes:
            part = block.cut(box)
            yield _Part(box, part.labels.copy(), None if part.affinity is None else part.affinity.copy())

    def _covering(self, faces: list[_Part], region: Box, box: Box, other: Box) -> _Part:
        for face in faces:
            if face.box.contains(region):
                return face
        raise DistillError(f"box: {box} and {other} share more than the overlap {self._overlap} of this stitcher")


def global_ids(labels: Integers, index: int) -> NDArray[np.uint64]:
    """Return index * 2**32 + local id of every voxel of block number `index`; 0 stays."""
    ids = labels.astype(np.uint64)
    np.add(ids, np.uint64(index << _LOCAL_BITS), out=ids, where=ids != 0)
    return ids


def stitch(
    blocks: Iterable[tuple[Box, Integers]],
    whole: Box,
    *,
    affinity: Affinity | None = None,
    overlap_threshold: float = 0.5,
    affinity_threshold: float = 0.7,
) -> NDArray[np.uint64]:
    """Stitch segmented blocks in memory, by the rule of `Stitcher`.

    Args:
        blocks: boxes and their (Z, Y, X) ids, 0 = background, in any order.
        whole: region of the result.
        affinity: (3, Z, Y, X) float in [0, 1] of the whole region, or None to use shared voxels only.
        overlap_threshold: see `Stitcher`.
        affinity_threshold: see `Stitcher`.

    Returns:
        (Z, Y, X) ids 1..n; blocks divide their overlaps in the middle (`owned_boxes`). The same bytes for any order of
        blocks.

    Raises:
        ShapeError: shapes do not match.
        DistillError: a block lies outside the region, or two blocks have the same box.
    """
    ordered = sorted(blocks, key=lambda block: block[0])
    boxes = [box for box, _ in ordered]
    if affinity is not None and affinity.shape != (3, *whole.shape):
        raise ShapeError(f"affinity: found shape {affinity.shape}, expected {(3, *whole.shape)}")
    for box in boxes:
        if not whole.contains(box):
            raise DistillError(f"blocks: found {box}, expected it inside {whole}")
    stitcher = Stitcher(
        largest_overlap(boxes), overlap_threshold=overlap_threshold, affinity_threshold=affinity_threshold
    )
    parts = []
    for index, (box, labels) in enumerate(ordered):
        edges = None if affinity is None else affinity[(slice(None), *box.relative_to(whole.start).slices)]
        parts.append((box, stitcher.add(index, box, labels, edges)))
    return assemble(parts, whole, stitcher.finish())


def assemble(blocks: Sequence[tuple[Box, Integers]], whole: Box, mapping: Relabelling) -> NDArray[np.uint64]:
    """Write blocks of global ids into one volume under their final ids.

    Args:
        blocks: boxes and (Z, Y, X) global ids; they form a grid and divide their overlaps in the middle.
        whole: region of the result; voxels of no block are 0.
        mapping: result of `Stitcher.finish`.

    Returns:
        (Z, Y, X) final ids.
    """
    result = np.zeros(whole.shape, np.uint64)
    for (box, ids), own in zip(blocks, owned_boxes([box for box, _ in blocks]), strict=True):
        result[own.relative_to(whole.start).slices] = mapping.apply(ids[own.relative_to(box.start).slices])
    return result


def _across_face(a: Box, b: Box) -> bool:
    """Return whether two blocks of a grid overlap across a face, not only along an edge or at a corner."""
    same = [a.start[k] == b.start[k] and a.stop[k] == b.stop[k] for k in range(3)]
    return sum(same) >= 2 and all(a.start[k] < b.stop[k] and b.start[k] < a.stop[k] for k in range(3))


def _compare(a: _Part, b: _Part, shared: Box) -> _Evidence:
    """Compute the evidence of two parts that each contain `shared` and, where their blocks continue, one voxel around
    it.
    """
    inside = shared_voxels(a.cut(shared).labels, b.cut(shared).labels)
    b_ids, a_ids, first = _contact(b, a, shared)
    more_a, more_b, second = _contact(a, b, shared)
    contact = sum_pairs(
        np.concatenate([a_ids, more_a]), np.concatenate([b_ids, more_b]), values=np.concatenate([first, second])
    )

    u, v = np.concatenate([inside.a, contact.u]), np.concatenate([inside.b, contact.v])
    count = np.concatenate([np.zeros(len(inside.a), np.int64), contact.count])
    joint = sum_pairs(u, v, count=count, values=np.concatenate([np.zeros(len(inside.a)), contact.total]))
    shares = sum_pairs(u, v, values=np.concatenate([inside.share, np.zeros(len(contact.u))]))
    return _Evidence(joint.u, joint.v, shares.total, joint.total, joint.count)


def _contact(
    inner: _Part, outer: _Part, shared: Box
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]:
    """Find the edges between a shared voxel, labelled by `inner`, and its neighbour where only `outer` continues.

    Returns:
        (N,) id from `inner`, id from `outer` and the affinity of the edge from `outer`; no edge touches background.
    """
    inner_ids, outer_ids = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    values = [np.zeros(0)]
    for axis in range(3):
        step = as_triple([-(k == axis) for k in range(3)])
        low, beyond = list(shared.stop), list(shared.start)
        low[axis], beyond[axis] = shared.start[axis] + 1, shared.stop[axis]
        end = list(shared.stop)
        end[axis] += 1
        sides = (Box(shared.start, as_triple(low)), True), (Box(as_triple(beyond), as_triple(end)), False)
        for (
            edges,
            ends_inside,
        ) in sides:  # the edge (p, p + step) is stored at p, which is shared only on the low side
            here, there = (inner, outer) if ends_inside else (outer, inner)
            if outer.affinity is None or not outer.box.contains(edges) or not outer.box.contains(edges.shift(step)):
                continue
            p, q = here.cut(edges).labels, there.cut(edges.shift(step)).labels
            touch = (p != 0) & (q != 0)
            affinity = outer.affinity[(axis, *edges.relative_to(outer.box.start).slices)]
            inner_ids.append((p if ends_inside else q)[touch])
            outer_ids.append((q if ends_inside else p)[touch])
            values.append(affinity[touch].astype(np.float64))
    return np.concatenate(inner_ids), np.concatenate(outer_ids), np.concatenate(values)
