"""Compiled loops of `distill.segmentation.fragment_features`: affinities inside fragments and along contacts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.compiled import compiled

Places = NDArray[np.int32]
Counts = NDArray[np.int64]
Sums = NDArray[np.float64]

_NONE = -1


@compiled
def number_by_first_voxel(labels: NDArray[Any], count: int) -> Places:
    """Number ids 1..count by their first voxel in memory order, from 1; 0 stays 0, ids without a voxel too."""
    numbers = np.zeros(count + 1, np.int32)
    last = 0
    for label in labels.ravel():
        if label != 0 and numbers[label] == 0:
            last += 1
            numbers[label] = last
    return numbers


@compiled
def sum_fragments(places: Places, affinity: NDArray[Any], count: int) -> tuple[Counts, Counts, Counts, Sums]:
    """Measure fragments, whose voxels hold their place from 1 on (0 = background).

    Args:
        places: (D, H, W).
        affinity: (3 or more, D, H, W).
        count: fragments.

    Returns:
        (N,) voxels, (N, 3) extents in voxels, (N,) sections that hold a voxel, and (N, 3) number, sum and sum of
        squares of the affinities of edges inside.
    """
    depth, height, width = places.shape
    size, sections = np.zeros(count, np.int64), np.zeros(count, np.int64)
    low, high = np.full((count, 3), 2**62, np.int64), np.full((count, 3), -1, np.int64)
    last = np.full(count, -1, np.int64)
    inner = np.zeros((count, 3), np.float64)
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                here = places[z, y, x]
                if here == 0:
                    continue
                at = here - 1
                size[at] += 1
                if last[at] != z:
                    last[at] = z
                    sections[at] += 1
                for axis, place in enumerate((z, y, x)):
                    low[at, axis] = min(low[at, axis], place)
                    high[at, axis] = max(high[at, axis], place)
                for axis in range(3):
                    if (z, y, x)[axis] == 0:
                        continue
                    there = places[z - int(axis == 0), y - int(axis == 1), x - int(axis == 2)]
                    if there == here:
                        value = affinity[axis, z, y, x]
                        inner[at, 0] += 1
                        inner[at, 1] += value
                        inner[at, 2] += value * value
    return size, high - low + 1, sections, inner


@compiled
def find_contact(first: NDArray[np.int64], second: Places, u: Any, v: Any) -> Any:
    """Return the place of the contact u, v in a list sorted by both, or -1.

    Args:
        first: (N + 1,) place of the first contact of each fragment with a later one.
        second: (E,) the later fragment.
        u: fragment.
        v: another one.
    """
    low, high = min(u, v), max(u, v)
    start, stop = first[low], first[low + 1]
    while start < stop:
        middle = (start + stop) // 2
        if second[middle] < high:
            start = middle + 1
        else:
            stop = middle
    return start if start < first[low + 1] and second[start] == high else _NONE


@compiled
def sum_edges(
    places: Places, affinity: NDArray[Any], first: NDArray[np.int64], second: Places, bins: int
) -> tuple[Counts, Sums, NDArray[np.float32], Places]:
    """Measure contacts, which are listed as in `find_contact`.

    Args:
        places: (D, H, W) places of fragments from 1 on, 0 = background.
        affinity: (3 or more, D, H, W) in [0, 1].
        first: see `find_contact`.
        second: likewise.
        bins: of the histogram of affinities.

    Returns:
        (E, 3) edges along z, y, x; (E, 2) sum and sum of squares; (E, 2) least and largest; (E, bins) histogram.
    """
    depth, height, width = places.shape
    edges = len(second)
    count, total = np.zeros((edges, 3), np.int64), np.zeros((edges, 2), np.float64)
    extremes = np.empty((edges, 2), np.float32)
    extremes[:, 0], extremes[:, 1] = np.inf, -np.inf
    histogram = np.zeros((edges, bins), np.int32)
    for axis in range(3):
        back = (int(axis == 0), int(axis == 1), int(axis == 2))
        for z in range(back[0], depth):
            for y in range(back[1], height):
                for x in range(back[2], width):
                    here, there = places[z, y, x], places[z - back[0], y - back[1], x - back[2]]
                    if here == there or here == 0 or there == 0:
                        continue
                    at = find_contact(first, second, here - 1, there - 1)
                    value = affinity[axis, z, y, x]
                    count[at, axis] += 1
                    total[at, 0] += value
                    total[at, 1] += value * value
                    extremes[at, 0] = min(extremes[at, 0], value)
                    extremes[at, 1] = max(extremes[at, 1], value)
                    histogram[at, min(bins - 1, max(0, int(value * bins)))] += 1
    return count, total, extremes, histogram


@compiled
def quantiles_of(histogram: Places, levels: Sums) -> NDArray[np.float32]:
    """Return (E, Q) quantiles of histograms (E, bins) over [0, 1], linear within a bin."""
    edges, bins = histogram.shape
    found = np.zeros((edges, len(levels)), np.float32)
    for edge in range(edges):
        whole = histogram[edge].sum()
        for number, level in enumerate(levels):
            wanted, below = level * whole, 0
            for place in range(bins):
                here = histogram[edge, place]
                if here > 0 and below + here >= wanted:
                    found[edge, number] = (place + (wanted - below) / here) / bins
                    break
                below += here
    return found


@compiled
def gather_neighbours(
    chosen: NDArray[np.int64],
    u: Places,
    v: Places,
    first: NDArray[np.int64],
    strongest: Places,
    k: int,
) -> tuple[Places, Places, Places]:
    """Return the k strongest other neighbours of the two fragments of contacts.

    Args:
        chosen: (B,) places of contacts.
        u: (E,) fragment of each contact.
        v: (E,) the later one.
        first: see `find_contact`.
        strongest: (N, k + 1) contacts of each fragment in falling order, -1 = none.
        k: neighbours on each side.

    Returns:
        (B, 2, k) each: the neighbour, its contact with the fragment of this side, its contact with the other fragment;
        -1 = none.
    """
    shape = (len(chosen), 2, k)
    others, links, shared = (
        np.full(shape, _NONE, np.int32),
        np.full(shape, _NONE, np.int32),
        np.full(shape, -1, np.int32),
    )
    for row, contact in enumerate(chosen):
        for side in range(2):
            own = u[contact] if side == 0 else v[contact]
            opposite = v[contact] if side == 0 else u[contact]
            filled = 0
            for link in strongest[own]:
                if link < 0 or filled == k:
                    break
                if link == contact:
                    continue
                other = v[link] if u[link] == own else u[link]
                others[row, side, filled], links[row, side, filled] = other, link
                shared[row, side, filled] = find_contact(first, v, other, opposite)
                filled += 1
    return others, links, shared
