"""Merge regions of a part of a contact graph as the whole graph would, and keep what cannot be decided yet.

Merging by the mean affinity of contacts is reducible: a contact that becomes one with another is never stronger than
the stronger of the two. Two regions with all of their contacts in the part, each of which is the other's strongest, are
therefore merged in the whole graph too, whatever happens elsewhere; and a region without a contact above the threshold
never merges. What is left is small, and parts are joined and reduced again until the whole is known. The same property
allows clustering by chains of nearest neighbours (Murtagh, A survey of recent advances in hierarchical clustering
algorithms, The Computer Journal, 1983); reduction by chunks with frozen borders: Lu et al., Large-scale image
segmentation based on distributed clustering algorithms, arXiv:2106.10795, 2021.

Legend: E contacts, M merges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distill.core.labels import Relabelling, concatenate
from distill.segmentation.agglomeration import RegionGraph, groups_of

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class PartGraph:
    """Contacts of regions that stand for others merged into them: arrays (E,).

    Attributes:
        u: uint64 id of one region.
        v: uint64 id of the other one.
        total: float64, as in `RegionGraph`.
        count: int64, likewise.
        first_u: uint64; the smallest pair of original ids that a contact consists of decides between equal means.
        first_v: uint64, larger than `first_u`.
    """

    u: Ids
    v: Ids
    total: NDArray[np.float64]
    count: NDArray[np.int64]
    first_u: Ids
    first_v: Ids

    @classmethod
    def of(cls, graph: RegionGraph) -> PartGraph:
        """Take the contacts of regions that stand for themselves alone, u < v."""
        return cls(graph.u, graph.v, graph.total, graph.count, graph.u, graph.v)

    def renamed(self, names: Relabelling) -> PartGraph:
        """Return the contacts of the regions that ids have been merged into; ids that are not listed stay."""
        return replace(self, u=_renamed(self.u, names), v=_renamed(self.v, names))


@dataclass(frozen=True)
class Reduced:
    """A part after all merges that can be decided.

    Attributes:
        left: contacts that other parts may change.
        merged: region that each id of the part has been merged into, the smallest of its ids.
    """

    left: PartGraph
    merged: Relabelling


def reduce_part(parts: list[PartGraph], open_ids: Ids, threshold: float) -> Reduced:
    """Merge the regions of a part by the rule of `distill.segmentation.agglomeration.merges_above`.

    Args:
        parts: contacts; a pair may be listed in several of them.
        open_ids: regions that have further contacts elsewhere.
        threshold: mean affinity that a contact must exceed.

    Returns:
        What is left. With no open ids nothing is left, and the merges of this and all earlier parts are those of the
        whole graph, also for equal means.
    """
    from distill.segmentation.contact_graph import merge_strongest

    graph = _summed(concatenate(parts))
    ids, index = np.unique(np.concatenate([graph.u, graph.v]), return_inverse=True)
    first, second = (ends.copy() for ends in index.astype(np.int32).reshape(2, -1))
    total, count = graph.total.copy(), graph.count.copy()
    frozen = np.isin(ids, open_ids)
    keeps, goes, _, _, there = merge_strongest(len(ids), first, second, total, count, threshold, frozen)
    merged = Relabelling(ids, groups_of(ids, keeps, goes))
    left = np.flatnonzero(there & frozen[first] & frozen[second]) if len(ids) else np.zeros(0, np.intp)
    u, v = (merged.new[ends[left]] for ends in (first, second))
    rest = PartGraph(u, v, total[left], count[left], graph.first_u[left], graph.first_v[left])
    return Reduced(rest, merged)


def _summed(graph: PartGraph) -> PartGraph:
    """Add up the contacts of every pair, and order them by the smallest original pair of each."""
    low, high = np.minimum(graph.u, graph.v), np.maximum(graph.u, graph.v)
    order = np.lexsort((graph.first_v, graph.first_u, high, low))
    order = order[low[order] != high[order]]
    low, high = low[order], high[order]
    new = np.ones(len(order), bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    starts = np.flatnonzero(new)
    if not len(starts):
        none = np.zeros(0, np.uint64)
        return PartGraph(none, none, np.zeros(0), np.zeros(0, np.int64), none, none)
    total, count = np.add.reduceat(graph.total[order], starts), np.add.reduceat(graph.count[order], starts)
    first_u, first_v = graph.first_u[order][starts], graph.first_v[order][starts]
    ranked = np.lexsort((first_v, first_u))
    return PartGraph(
        low[starts][ranked], high[starts][ranked], total[ranked], count[ranked], first_u[ranked], first_v[ranked]
    )


def _renamed(ids: Ids, names: Relabelling) -> Ids:
    if not len(names.old):
        return ids
    where = np.minimum(np.searchsorted(names.old, ids), len(names.old) - 1)
    return np.where(names.old[where] == ids, names.new[where], ids)
