"""Assemble decoded pieces of slabs to one volume, and merge their contacts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box, Triple, owned_boxes
from distill.core.labels import Relabelling, distinct_ids, ranks
from distill.segmentation.agglomeration import Merges, RegionGraph, contacts_across, merges_above, region_graph
from distill.segmentation.shared_voxels import Shares, unite
from distill.segmentation.stitching import Stitcher, global_ids
from students.streaming.runner import SectionOutput

Affinity = NDArray[np.float32]


@dataclass(frozen=True)
class Slab:
    """Consecutive sections that are decoded together."""

    first: int  # section number of the first
    sections: list[SectionOutput]

    @property
    def stop(self) -> int:
        """Return the number after the last section."""
        return self.first + len(self.sections)

    def stored(self) -> NDArray[np.uint8]:
        """Return (3, D, H, W) uint8 affinities of the slab's sections for the nearest offsets."""
        return np.stack([s.affinity[:3] for s in self.sections], 1)

    def affinity(self) -> Affinity:
        """Return (3, D, H, W) affinities of the slab's sections in [0, 1]."""
        return from_uint8(self.stored())


@dataclass(frozen=True)
class Piece:
    """A segmented block with its own ids."""

    box: Box
    labels: NDArray[np.uint64]


def slabs(results: Iterable[SectionOutput], depth: int) -> Iterator[Slab]:
    """Group a stream into slabs of `depth` sections; neighbouring slabs share one section.

    The last slab may be thinner, but has at least one new section.
    """
    held: list[SectionOutput] = []
    first = 0
    fresh = 0
    for result in results:
        held.append(result)
        fresh += 1
        if len(held) == depth:
            yield Slab(first, held)
            first += depth - 1
            held, fresh = held[-1:], 0
    if fresh:
        yield Slab(first, held)


class Assembly:
    """Assemble segmented blocks to one volume: supervoxel ids immediately, final ids at the end.

    Blocks of one slab are decoded independently and divide their overlaps in the middle. The mean affinity along every
    contact of the resulting supervoxels is collected, across the borders of blocks and slabs as within them. Instances
    of the query decoder are, in addition, joined by what two blocks share (`Stitcher`). Memory: faces of the last slab,
    one entry per supervoxel and per contact; no voxels.
    """

    def __init__(self, overlap: Triple | None) -> None:
        """Start empty.

        Args:
            overlap: most voxels per axis that two neighbouring blocks share; None = use contacts only.
        """
        self._stitcher = None if overlap is None else Stitcher(overlap)
        self._contacts: list[RegionGraph] = []
        self._ids: list[NDArray[np.uint64]] = []
        self._last: NDArray[np.uint64] | None = None  # (H, W) ids of the last section
        self._next = 0

    def add(self, pieces: Sequence[Piece], affinity: Affinity) -> NDArray[np.uint64]:
        """Add the blocks of one slab; slabs come in z order and share one section, which the earlier one owns.

        Args:
            pieces: blocks that cover the slab, in z, y, x order, all of the same depth.
            affinity: (3, D, H, W) of the slab.

        Returns:
            (D, H, W) supervoxel ids of the slab, unique in the whole volume.
        """
        origin = pieces[0].box.start
        shape: Triple = affinity.shape[1], affinity.shape[2], affinity.shape[3]
        numbers = range(self._next, self._next + len(pieces))
        laid = lay_blocks(self._stitcher, pieces, numbers, shape)
        self._next += len(pieces)
        if self._stitcher is not None:
            self._stitcher.retire(origin[0])
        skip = int(self._last is not None)
        own, edges = laid.ids[skip:], affinity[:, skip:]
        self._contacts.append(region_graph(own, edges))
        if self._last is not None:
            self._contacts.append(contacts_across(self._last, own[0], edges[0, 0]))
        self._ids += [distinct_ids(block) for block in laid.blocks]
        self._last = own[-1].copy()
        return laid.ids

    def finish(self, threshold: float | None) -> Relabelling:
        """Compute final segment ids.

        Args:
            threshold: merge objects whose contact has a mean affinity above this; None = use shared voxels only.

        Returns:
            For every supervoxel id its final id, 1..n.
        """
        every = np.concatenate([np.zeros(0, np.uint64), *self._ids])
        shares = Shares.joined([]) if self._stitcher is None else self._stitcher.shares()
        stitched = unite(every, shares)
        if threshold is None or not self._contacts:
            return stitched
        return merge_contacts(stitched, self._contacts, threshold)


@dataclass(frozen=True)
class UniqueBlocks:
    """Blocks of a slab under ids that are unique in the whole volume."""

    ids: NDArray[np.uint64]  # (D, H, W): blocks divide their overlaps in the middle
    blocks: list[NDArray[np.uint64]]  # (D, h, w) of each block


def lay_blocks(
    stitcher: Stitcher | None, pieces: Sequence[Piece], numbers: Iterable[int], shape: Triple
) -> UniqueBlocks:
    """Number the blocks of a slab, compare them, and lay them into one array.

    Args:
        stitcher: compares the blocks; None = they are not compared.
        pieces: blocks that cover the slab, in z, y, x order.
        numbers: of the blocks, ascending.
        shape: (D, H, W) of the slab.
    """
    origin = pieces[0].box.start
    ids = np.zeros(shape, dtype=np.uint64)
    blocks = []
    for number, piece, own in zip(numbers, pieces, owned_boxes([piece.box for piece in pieces]), strict=True):
        labels = piece.labels
        unique = global_ids(labels, number) if stitcher is None else stitcher.add(number, piece.box, labels)
        ids[own.relative_to(origin).slices] = unique[own.relative_to(piece.box.start).slices]
        blocks.append(unique)
    return UniqueBlocks(ids, blocks)


def merge_contacts(stitched: Relabelling, contacts: Sequence[RegionGraph], threshold: float) -> Relabelling:
    """Merge objects whose contact has a mean affinity above a threshold, strongest first.

    Args:
        stitched: final ids by shared voxels alone.
        contacts: of supervoxels; contacts of the same pair are added.
        threshold: mean affinity that a contact must exceed.

    Returns:
        For every supervoxel id its final id, 1..n.
    """
    merges = merges_above(contacts_of_objects(stitched, contacts), threshold)
    return final_ids_above(stitched, merges, threshold)


def contacts_of_objects(stitched: Relabelling, contacts: Sequence[RegionGraph]) -> RegionGraph:
    """Sum the contacts of supervoxels between the objects that they are joined to."""
    every = RegionGraph.concatenate(contacts)
    return replace(every, u=stitched.apply(every.u), v=stitched.apply(every.v)).summed()


def final_ids_above(stitched: Relabelling, merges: Merges, threshold: float) -> Relabelling:
    """Return the final ids after all merges of objects with a mean above the threshold; see `merge_contacts`."""
    merged = merges.above(threshold)
    roots = stitched.new.copy()
    touched = np.isin(roots, merged.old)
    roots[touched] = merged.new[np.searchsorted(merged.old, roots[touched])]
    return Relabelling(stitched.old, np.unique(roots, return_inverse=True)[1].astype(np.uint64) + np.uint64(1))


class SupervoxelTables:
    """Supervoxels of all slabs or blocks, the voxels that they share, and their contacts."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        self._seen: list[NDArray[np.bool_]] = [np.zeros(0, bool)]
        self._shares: list[Shares] = []
        self._contacts: list[RegionGraph] = []

    def add(self, ids: NDArray[np.uint64], seen: NDArray[np.bool_], shares: Shares, contacts: RegionGraph) -> None:
        """Add a slab or block.

        Args:
            ids: (N,) its supervoxels, which no other slab or block has.
            seen: (N,) whether each owns a voxel.
            shares: overlaps of its supervoxels.
            contacts: of its supervoxels.
        """
        self._ids.append(ids)
        self._seen.append(seen)
        self.join(shares, contacts)

    def join(self, shares: Shares, contacts: RegionGraph) -> None:
        """Add the overlaps and contacts between two slabs or blocks."""
        self._shares.append(shares)
        self._contacts.append(contacts)

    def by_contacts(self, threshold: float | None) -> Relabelling:
        """Unite supervoxels that share voxels, then merge by contact; frees the tables of contacts.

        Args:
            threshold: see `merge_contacts`; None = use shared voxels only.

        Returns:
            For every supervoxel that owns a voxel its final id, 1..n.
        """
        mapping, seen = self.united()
        if threshold is not None and self._contacts:
            joined = self.contacts()
            self._contacts.clear()
            mapping = merge_contacts(mapping, [joined], threshold)
        return Relabelling(mapping.old[seen], ranks(mapping.new[seen]))

    def united(self) -> tuple[Relabelling, NDArray[np.bool_]]:
        """Return the objects of all supervoxels by shared voxels alone, and whether each supervoxel owns a voxel."""
        ids, seen = self._supervoxels()
        return unite(ids, self.shares()), seen

    def shares(self) -> Shares:
        """Return the overlaps of all supervoxels."""
        return Shares.joined(self._shares)

    def contacts(self) -> RegionGraph:
        """Return the contacts of all supervoxels; a pair is listed once for every table that has it."""
        return RegionGraph.concatenate(self._contacts)

    def _supervoxels(self) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return all ids in ascending order, which is not that of the tiles of a row of blocks, and whether seen."""
        ids = np.concatenate(self._ids)
        order = np.argsort(ids, kind="stable")
        return ids[order], np.concatenate(self._seen)[order]
