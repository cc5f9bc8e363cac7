"""Find the decisions of an agglomeration that are the least certain, without ground truth.

Merging by the mean affinity of whole contacts is a list of merges, strongest first, that ends at the threshold. The
last merges before the threshold and the first ones that would follow are the doubtful ones. How much a wrong one costs
is bounded by the size of its smaller side.

Legend: M merges, Q entries of the queue, E contacts of supervoxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.inference.review.graph import StoredGraph
from distill.segmentation.agglomeration import Merges


@dataclass(frozen=True, eq=False)
class DoubtfulMerges:
    """Doubtful merges, the most important one first.

    Attributes:
        merge: (Q,) int32 number of the merge.
        score: (Q,) float64 mean affinity of the contact between its two sides, as merged by then.
        merged: (Q,) bool, whether it is above the threshold, and both sides are one segment.
        smaller: (Q,) int64 voxels of its smaller side.
        area: (Q,) int64 voxel edges of the contact.
        weight: (Q,) float64, `smaller` times 1 at the threshold, falling linearly to 0 at the ends of the band.
        contacts: (E,) int64 entry that each contact of two supervoxels belongs to; -1 for none.
        found: doubtful merges before the queue was cut to its length.
    """

    merge: NDArray[np.int32]
    score: NDArray[np.float64]
    merged: NDArray[np.bool_]
    smaller: NDArray[np.int64]
    area: NDArray[np.int64]
    weight: NDArray[np.float64]
    contacts: NDArray[np.int64]
    found: int


def doubtful_merges(
    graph: StoredGraph, merges: Merges, voxels: NDArray[np.int64], within: float, most: int
) -> DoubtfulMerges:
    """Rank the merges near the threshold by the size of their smaller side and their distance from the threshold.

    Args:
        graph: of the store.
        merges: of its objects, computed for `graph.threshold - within` or below.
        voxels: (S,) of each supervoxel that owns one, in the order of `graph.numbers`.
        within: half the width of the band around the threshold.
        most: entries to keep.
    """
    from distill.segmentation.merge_tree import joined_at, linked

    sizes = _object_sizes(graph, merges, voxels)
    parent, when, smaller = linked(merges.keeps, merges.goes, sizes)
    distance = np.abs(merges.means - graph.threshold)
    weight = smaller * np.maximum(0, 1 - distance / within)
    chosen = np.flatnonzero((distance < within) & (smaller > 0))
    order = chosen[np.lexsort((chosen, -weight[chosen]))][:most]
    entry = np.full(len(merges.means) + 1, -1, np.int64)  # the last one is that of contacts that nothing joins
    entry[order] = np.arange(len(order))
    ends = [_positions(merges, graph.stitched.apply(ids)) for ids in (graph.contacts.u, graph.contacts.v)]
    contacts = entry[joined_at(parent, when, *ends)]
    contacts[ends[0] == ends[1]] = -1  # joined by shared voxels
    area = np.bincount(contacts[contacts >= 0], graph.contacts.count[contacts >= 0], minlength=len(order))
    return DoubtfulMerges(
        order.astype(np.int32),
        merges.means[order],
        merges.means[order] > graph.threshold,
        smaller[order],
        area.astype(np.int64),
        np.asarray(weight[order], np.float64),
        contacts,
        len(chosen),
    )


def _object_sizes(graph: StoredGraph, merges: Merges, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the voxels of the objects of `merges.ids`."""
    touching = np.isin(graph.stitched.new, merges.ids) & graph.seen
    where = np.searchsorted(merges.ids, graph.stitched.new[touching])
    counted = np.bincount(where, voxels[touching[graph.seen]], minlength=len(merges.ids))
    return counted.astype(np.int64)


def _positions(merges: Merges, objects: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Return the places of objects in `merges.ids`; 0 for objects without a contact to another one."""
    where = np.minimum(np.searchsorted(merges.ids, objects), max(0, len(merges.ids) - 1))
    found = np.where(merges.ids[where] == objects, where, 0) if len(merges.ids) else np.zeros(len(objects), np.intp)
    return np.asarray(found, np.int32)
