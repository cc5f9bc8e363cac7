"""Measure the overlap of segments of neighbouring blocks, and merge segments by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.core.labels import Integers, Relabelling, concatenate, ranks, sum_pairs


@dataclass(frozen=True)
class Shares:
    """Overlap fractions of pairs (a, b) of segments of two blocks: arrays (P,).

    Attributes:
        a: uint64 id in one block.
        b: uint64 id in the other block.
        share: float64, voxels covered by both relative to the larger of the two within the shared voxels of the blocks.
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    share: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Iterable[Shares]) -> Shares:
        """Concatenate pairs, in order."""
        none = np.zeros(0, np.uint64)
        return concatenate([cls(none, none, np.zeros(0)), *parts])


def shared_voxels(a: Integers, b: Integers) -> Shares:
    """Find pairs of segments that cover the same voxels.

    Args:
        a: ids of one block in the shared voxels of both, any shape, 0 = background.
        b: ids of the other block, same shape.
    """
    inside = sum_pairs(a, b)
    sizes = []
    for ids in (inside.u, inside.v):
        where = np.unique(ids, return_inverse=True)[1]
        sizes.append(np.bincount(where, weights=inside.count)[where])
    both = (inside.u != 0) & (inside.v != 0)
    return Shares(inside.u[both], inside.v[both], (inside.count / np.maximum(*sizes))[both])


def unite(ids: NDArray[np.uint64], shares: Shares, threshold: float = 0.5) -> Relabelling:
    """Merge segments whose overlap fraction is at least `threshold` (rule (1) of `Stitcher`, without affinities).

    Args:
        ids: (N,) all ids, ascending.
        shares: pairs of them.
        threshold: minimum overlap fraction.

    Returns:
        For every id its final id; final ids are 1..n, in order of the smallest id of an object.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    agreed = shares.share >= threshold
    a, b = (np.searchsorted(ids, ends[agreed]) for ends in (shares.a, shares.b))
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(ids), len(ids)))
    members = connected_components(graph, directed=False)[1]
    _, first, where = np.unique(members, return_index=True, return_inverse=True)
    return Relabelling(ids, ranks(first[where].astype(np.uint64)))
