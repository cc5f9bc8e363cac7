"""Compiled loops of `distill.segmentation.supervoxels`: trees of voxels that grow along the strongest edges.

Kruskal's algorithm over the edges to nearest neighbours, strongest first, with one exception: two trees that both hold
a seed stay apart. What results is a maximum spanning forest rooted in the seeds.

A forest is one array `parent` (N,) int32: the parent's number, or minus the size of the tree at its root.
Edge k of an axis is k = axis * N + p, from voxel p to its predecessor p - step[axis].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.compiled import compiled

Numbers = NDArray[np.int32]
Edges = NDArray[np.uint32]
Levels = NDArray[np.uint8]
Flags = NDArray[np.bool_]


@compiled
def root(parent: Numbers, voxel: int) -> int:
    """Return the root of a voxel's tree, and shorten the path to it."""
    found = voxel
    while parent[found] >= 0:
        found = parent[found]
    while parent[voxel] >= 0:
        following = parent[voxel]
        parent[voxel] = found
        voxel = following
    return found


@compiled
def unite_trees(parent: Numbers, first: int, second: int) -> int:
    """Attach the smaller of two trees, given by their roots, to the larger one, and return the common root."""
    if parent[first] > parent[second]:
        first, second = second, first
    parent[first] += parent[second]
    parent[second] = first
    return first


@compiled
def join_strong(levels: Levels, above: NDArray[np.int64]) -> Numbers:
    """Build the forest of all edges with a level above `above[axis]`; levels (3, D, H, W)."""
    depth, height, width = levels.shape[1:]
    count = depth * height * width
    parent = np.full(count, -1, np.int32)
    for axis in range(3):
        step = (height * width, width, 1)[axis]
        for z in range(int(axis == 0), depth):
            for y in range(int(axis == 1), height):
                for x in range(int(axis == 2), width):
                    if levels[axis, z, y, x] > above[axis]:
                        voxel = (z * height + y) * width + x
                        here, there = root(parent, voxel), root(parent, voxel - step)
                        if here != there:
                            unite_trees(parent, here, there)
    return parent


@compiled
def large_trees(parent: Numbers, min_voxels: int) -> Flags:
    """Flag roots of trees with at least `min_voxels`, and let every voxel point to its root."""
    seeded = np.zeros(len(parent), np.bool_)
    for voxel in range(len(parent)):
        if parent[voxel] < 0:
            seeded[voxel] = -parent[voxel] >= min_voxels
        else:
            parent[voxel] = root(parent, voxel)
    return seeded


@compiled
def given_trees(components: NDArray[np.int64], most: int) -> tuple[Numbers, Flags]:
    """Build trees of given seeds (N,), numbered 1..most, 0 = none: every voxel points to the first of its seed."""
    first = np.full(most + 1, -1, np.int64)
    parent = np.full(len(components), -1, np.int32)
    seeded = np.zeros(len(components), np.bool_)
    for voxel in range(len(components)):
        seed = components[voxel]
        if seed == 0:
            continue
        if first[seed] < 0:
            first[seed] = voxel
            seeded[voxel] = True
        else:
            parent[voxel] = first[seed]
            parent[first[seed]] -= 1
    return parent, seeded


@compiled
def open_edges(parent: Numbers, seeded: Flags, shape: tuple[int, int, int]) -> tuple[int, Edges]:
    """Find edges between trees that are not both seeded, by axis and position; voxels point to their roots."""
    depth, height, width = shape
    count = depth * height * width
    found = np.empty(1024, np.uint32)
    number = 0
    for axis in range(3):
        step = (height * width, width, 1)[axis]
        for z in range(int(axis == 0), depth):
            for y in range(int(axis == 1), height):
                for x in range(int(axis == 2), width):
                    voxel = (z * height + y) * width + x
                    here = parent[voxel] if parent[voxel] >= 0 else voxel
                    there = parent[voxel - step] if parent[voxel - step] >= 0 else voxel - step
                    if here == there or (seeded[here] and seeded[there]):
                        continue
                    if number == len(found):
                        grown = np.empty(2 * number, np.uint32)
                        grown[:number] = found
                        found = grown
                    found[number] = axis * count + voxel
                    number += 1
    return number, found


@compiled
def strongest_first(edges: Edges, levels: Levels) -> Edges:
    """Sort edges by falling level, stable; levels (3 * N,)."""
    start = np.zeros(257, np.int64)
    for edge in edges:
        start[256 - levels[edge]] += 1
    for k in range(256):
        start[k + 1] += start[k]
    ordered = np.empty_like(edges)
    for edge in edges:
        place = 255 - levels[edge]
        ordered[start[place]] = edge
        start[place] += 1
    return ordered


@compiled
def grow(
    parent: Numbers,
    seeded: Flags,
    edges: Edges,
    levels: NDArray[Any],
    step: NDArray[np.int64],
    floor: float,
    min_voxels: int,
    large: int,
) -> None:
    """Join trees along edges in the order given, unless both are seeded.

    Args:
        parent: forest, changed in place.
        seeded: flags of roots, changed in place.
        edges: in the order to be taken.
        levels: (3 * N,) of all edges.
        step: (3,) distance in memory of neighbours along z, y, x.
        floor: a tree without a seed becomes a seed when it reaches `min_voxels` by an edge of at least this level.
        min_voxels: see `floor`.
        large: size at which a tree without a seed becomes one by any edge.
    """
    count = len(parent)
    for edge in edges:
        axis = edge // count
        voxel = edge - axis * count
        first, second = root(parent, voxel), root(parent, voxel - step[axis])
        if first == second or (seeded[first] and seeded[second]):
            continue
        either = seeded[first] or seeded[second]
        joint = unite_trees(parent, first, second)
        enough = min_voxels if levels[edge] >= floor else large
        seeded[joint] = either or -parent[joint] >= enough


@compiled
def numbered(parent: Numbers, seeded: Flags) -> tuple[NDArray[np.uint32], int]:
    """Number seeded trees 1..n in the order of their first voxels, (N,); 0 = trees without a seed."""
    ids = np.zeros(len(parent), np.uint32)
    last = 0
    for voxel in range(len(parent)):
        tree = root(parent, voxel)
        if not seeded[tree]:
            continue
        if ids[tree] == 0:
            last += 1
            ids[tree] = last
        ids[voxel] = ids[tree]
    return ids, last
