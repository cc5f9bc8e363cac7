"""Compiled loops that find a voxel inside every supervoxel, and one at every contact of a list.

Legend: D H W = z y x of a box, S supervoxels numbered 1..S, P listed pairs, Q groups of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distill.core.compiled import compiled
from distill.segmentation.contact_graph import place_of

Numbers = NDArray[np.uint64]
Counts = NDArray[np.int64]
Table = tuple[Numbers, Numbers, Counts]  # u < v of each pair by hash, and its group


@compiled
def measure(labels: Numbers, start: tuple[int, int, int], voxels: Counts, longest: Counts, places: Counts) -> None:
    """Count the voxels of supervoxels, and keep the middle of the longest run along x of each.

    Args:
        labels: (D, H, W) numbers of supervoxels, 0 = none.
        start: z, y, x of the box in the volume.
        voxels: (S,) counts so far, changed in place.
        longest: (S,) longest run so far, changed in place.
        places: (S, 3) z, y, x of its middle, changed in place.
    """
    depth, height, width = labels.shape
    for z in range(depth):
        for y in range(height):
            x = 0
            while x < width:
                label, first = labels[z, y, x], x
                while x < width and labels[z, y, x] == label:
                    x += 1
                if label == 0:
                    continue
                at = np.int64(label) - 1
                voxels[at] += x - first
                if x - first > longest[at]:
                    longest[at] = x - first
                    places[at, 0], places[at, 1] = start[0] + z, start[1] + y
                    places[at, 2] = start[2] + (first + x) // 2


@compiled
def listed(u: Numbers, v: Numbers, group: Counts) -> Table:
    """Hash pairs u < v (P,) with the group (P,) of each."""
    size = 64
    while size < 2 * len(u):
        size *= 2
    low, high, found = np.zeros(size, np.uint64), np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for k in range(len(u)):
        place = place_of(low, high, u[k], v[k])
        low[place], high[place], found[place] = u[k], v[k], group[k]
    return low, high, found


@compiled
def listed_edges(
    labels: Numbers, before: Numbers, start: tuple[int, int, int], table: Table
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Iterate over the edges between listed pairs; an edge is placed at its later voxel.

    Sections without any supervoxel are passed over: those on both sides of them are neighbours.

    Args:
        labels: (D, H, W) numbers of supervoxels; the first row and column belong to the box before unless start is 0.
        before: (H, W) of the last section before the box that is not empty; zeros without one.
        start: z, y, x of the box in the volume.
        table: see `listed`.

    Yields:
        The group, z, y, x of the edge in the volume, and the two supervoxels, the lower number first.
    """
    depth, height, width = labels.shape
    above = before
    for z in range(depth):
        section = labels[z]
        if not section.any():
            continue
        for y in range(int(start[1] > 0), height):
            for x in range(int(start[2] > 0), width):
                here = section[y, x]
                if here == 0:
                    continue
                for axis in range(3):
                    there = above[y, x]
                    if axis == 1:
                        there = section[y - 1, x] if y > 0 else here
                    elif axis == 2:
                        there = section[y, x - 1] if x > 0 else here
                    if there == 0 or there == here:
                        continue
                    low, high = min(here, there), max(here, there)
                    place = place_of(table[0], table[1], low, high)
                    if table[1][place] != 0:
                        yield table[2][place], start[0] + z, start[1] + y, start[2] + x, low, high
        above = section


@compiled
def add_contacts(labels: Numbers, before: Numbers, start: tuple[int, int, int], table: Table, sums: Counts) -> int:
    """Add the places of the edges between listed pairs; arguments as for `listed_edges`, and sums.

    Args:
        labels: (D, H, W).
        before: (H, W).
        start: z, y, x.
        table: of the pairs.
        sums: (Q, 4) edges, and sums of z, y, x, changed in place.

    Returns:
        The number of edges found.
    """
    found = 0
    for group, z, y, x, _low, _high in listed_edges(labels, before, start, table):
        sums[group, 0] += 1
        sums[group, 1] += z
        sums[group, 2] += y
        sums[group, 3] += x
        found += 1
    return found


@compiled
def nearest_contacts(
    labels: Numbers,
    before: Numbers,
    start: tuple[int, int, int],
    table: Table,
    middles: NDArray[np.float64],
    scale: NDArray[np.float64],
    nearest: NDArray[np.float64],
    places: Counts,
) -> None:
    """Keep, for each group, the edge nearest to the middle of its contact; arguments as for `listed_edges`, and more.

    Args:
        labels: (D, H, W).
        before: (H, W).
        start: z, y, x.
        table: of the pairs.
        middles: (Q, 3) z, y, x of the middle.
        scale: (3,) nm of a voxel.
        nearest: (Q,) squared distance so far in nm, changed in place.
        places: (Q, 5) z, y, x and the two supervoxels of the edge, changed in place.
    """
    for group, z, y, x, low, high in listed_edges(labels, before, start, table):
        distance = 0.0
        for axis, at in enumerate((z, y, x)):
            distance += ((at - middles[group, axis]) * scale[axis]) ** 2
        if distance < nearest[group]:
            nearest[group] = distance
            places[group, 0], places[group, 1], places[group, 2] = z, y, x
            places[group, 3], places[group, 4] = low, high
