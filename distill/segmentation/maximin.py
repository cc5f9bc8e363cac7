"""Count, for every edge of a maximum spanning forest, the pairs of voxels whose best path it decides.

The best path between two voxels is the one whose weakest edge is strongest; that edge is in the maximum spanning tree,
and Kruskal's algorithm meets it when it joins the trees of the two voxels (Turaga et al., NIPS 2009).

Legend: D H W = z y x, N voxels. Edge k of an axis is k = axis * N + p, from voxel p to its predecessor p - step[axis].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.core.compiled import compiled
from distill.segmentation.growing import root, unite_trees

Counts = NDArray[np.float64]  # pairs exceed 2**31


def constrained_pairs(
    affinity: NDArray[np.floating], labels: NDArray[np.int64], target: NDArray[np.bool_], known: NDArray[np.bool_]
) -> tuple[Counts, Counts]:
    """Count pairs of the same and of different labels by the edge that decides them, in two constrained passes.

    In the first pass edges between objects are cut, so that pairs of one object are decided by edges inside it. In the
    second pass edges inside objects are joined first, so that pairs of different objects are decided by edges between
    objects (Funke et al., IEEE TPAMI 2019).

    Args:
        affinity: (3, D, H, W); channel k at p = edge to p's predecessor along z, y, x.
        labels: (D, H, W), above 0 inside objects; voxels of other values form no pairs but lie on paths.
        target: (3, D, H, W), edges inside objects.
        known: (3, D, H, W), edges that take part.

    Returns:
        Same and different pairs by edge, (3, D, H, W) each; equal affinities are taken by direction and place.
    """
    shape = labels.shape
    step = np.array([shape[1] * shape[2], shape[2], 1], np.int64)
    order = np.argsort(-np.ascontiguousarray(affinity).reshape(-1), kind="stable")
    inside = np.ascontiguousarray(target & known).reshape(-1)
    between = np.ascontiguousarray(known & ~target).reshape(-1)
    flat = np.ascontiguousarray(labels).reshape(-1)
    parent = np.full(flat.size, -1, np.int32)
    same = _same_pairs(parent, order[inside[order]], step, 3 * flat.size)
    different = _different_pairs(parent, flat, order[between[order]], step, 3 * flat.size)
    return same.reshape(3, *shape), different.reshape(3, *shape)


@compiled
def _same_pairs(parent: NDArray[np.int32], edges: NDArray[np.int64], step: NDArray[np.int64], channels: int) -> Counts:
    """Join voxels along edges inside objects; each decides the pairs of the trees that it joins."""
    pairs = np.zeros(channels, np.float64)
    count = len(parent)
    for edge in edges:
        axis = edge // count
        voxel = edge - axis * count
        first, second = root(parent, voxel), root(parent, voxel - step[axis])
        if first == second:
            continue
        pairs[edge] = float(parent[first]) * float(parent[second])  # sizes, both negative
        unite_trees(parent, first, second)
    return pairs


@compiled
def _different_pairs(
    parent: NDArray[np.int32],
    labels: NDArray[np.int64],
    edges: NDArray[np.int64],
    step: NDArray[np.int64],
    channels: int,
) -> Counts:
    """Join the objects of the first pass along edges between them; each decides the pairs of different labels.

    A tree keeps its objects as a chain, so that every two objects are compared once, when their trees are joined.
    """
    pairs = np.zeros(channels, np.float64)
    count = len(parent)
    size = np.zeros(count, np.float64)  # of the object whose root this is; none outside objects
    following = np.full(count, -1, np.int64)
    last = np.arange(count)
    head = np.full(count, -1, np.int64)  # first object of a tree, by root
    for voxel in range(count):
        if labels[voxel] > 0 and parent[voxel] < 0:
            size[voxel] = -parent[voxel]
            head[voxel] = voxel
    for edge in edges:
        axis = edge // count
        voxel = edge - axis * count
        first, second = root(parent, voxel), root(parent, voxel - step[axis])
        if first == second:
            continue
        one, other = head[first], head[second]
        found = 0.0
        mine = one
        while mine >= 0:
            theirs = other
            while theirs >= 0:
                if labels[mine] != labels[theirs]:
                    found += size[mine] * size[theirs]
                theirs = following[theirs]
            mine = following[mine]
        pairs[edge] = found
        joint = unite_trees(parent, first, second)
        head[joint] = one if one >= 0 else other
        if one >= 0 and other >= 0:
            following[last[one]] = other
            last[one] = last[other]
    return pairs
