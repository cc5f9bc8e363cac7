"""Compiled loops of `distill.segmentation.agglomeration`: contacts of regions, and the order in which they merge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.compiled import compiled

Ids = NDArray[np.uint64]
Numbers = NDArray[np.int32]
Sums = NDArray[np.float64]
Counts = NDArray[np.int64]
Contacts = tuple[Ids, Ids, Sums, Counts]

_NONE = -1


@compiled
def mixed(first: Any, second: Any) -> Any:
    """Hash an ordered pair of numbers."""
    value = np.uint64(first) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(second) * np.uint64(0xC2B2AE3D27D4EB4F)
    value ^= value >> np.uint64(29)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((value ^ (value >> np.uint64(32))) & np.uint64(0x7FFFFFFFFFFFFFFF))


@compiled
def place_of(low: Ids, high: Ids, u: Any, v: Any) -> Any:
    """Return the slot of a pair in an open-addressing table, or its free slot; `high` is 0 in free slots."""
    mask = len(low) - 1
    place = mixed(u, v) & mask
    while high[place] != 0 and (low[place] != u or high[place] != v):
        place = (place + 1) & mask
    return place


@compiled
def doubled(table: Contacts) -> Contacts:
    """Copy the pairs to a table of twice the size."""
    low, high, total, count = table
    size = 2 * len(low)
    made = (np.zeros(size, np.uint64), np.zeros(size, np.uint64), np.zeros(size, np.float64), np.zeros(size, np.int64))
    for old in range(len(low)):
        if high[old] != 0:
            new = place_of(made[0], made[1], low[old], high[old])
            made[0][new], made[1][new], made[2][new], made[3][new] = low[old], high[old], total[old], count[old]
    return made


@compiled
def sum_contacts(labels: NDArray[Any], affinity: NDArray[Any], valid: NDArray[np.bool_]) -> Contacts:
    """Sum affinities and count edges of every pair of regions that touch, background (0) left out.

    Args:
        labels: (D, H, W) integers from 0.
        affinity: (3 or more, D, H, W).
        valid: of the affinity's shape, or empty: all edges count.

    Returns:
        u < v, sums and counts, in no order.
    """
    depth, height, width = labels.shape
    table = (np.zeros(64, np.uint64), np.zeros(64, np.uint64), np.zeros(64, np.float64), np.zeros(64, np.int64))
    used = 0
    all_valid = valid.size == 0
    for axis in range(3):
        back = (int(axis == 0), int(axis == 1), int(axis == 2))
        for z in range(back[0], depth):
            for y in range(back[1], height):
                for x in range(back[2], width):
                    here, there = labels[z, y, x], labels[z - back[0], y - back[1], x - back[2]]
                    if here == there or here == 0 or there == 0:
                        continue
                    if not all_valid and not valid[axis, z, y, x]:
                        continue
                    u, v = np.uint64(min(here, there)), np.uint64(max(here, there))
                    place = place_of(table[0], table[1], u, v)
                    if table[1][place] == 0:
                        if 2 * used >= len(table[0]):
                            table = doubled(table)
                            place = place_of(table[0], table[1], u, v)
                        table[0][place], table[1][place] = u, v
                        used += 1
                    table[2][place] += affinity[axis, z, y, x]
                    table[3][place] += 1
    found = np.flatnonzero(table[1])
    return table[0][found], table[1][found], table[2][found], table[3][found]


@compiled
def slot_of(table: Numbers, first: Numbers, second: Numbers, a: Any, b: Any) -> Any:
    """Return the slot of the contact between regions a and b, or -1 - its free slot if there is none."""
    mask = len(table) - 1
    slot = mixed(min(a, b), max(a, b)) & mask
    while table[slot] >= 0:
        edge = table[slot]
        if (first[edge] == a and second[edge] == b) or (first[edge] == b and second[edge] == a):
            return slot
        slot = (slot + 1) & mask
    return -1 - slot


@compiled
def empty_slot(table: Numbers, first: Numbers, second: Numbers, slot: int) -> None:
    """Free a slot and move up later entries that were put behind it (backward-shift deletion)."""
    mask = len(table) - 1
    following = slot
    while True:
        table[slot] = _NONE
        while True:
            following = (following + 1) & mask
            edge = table[following]
            if edge < 0:
                return
            home = mixed(min(first[edge], second[edge]), max(first[edge], second[edge])) & mask
            between = slot < home <= following if slot <= following else home > slot or home <= following
            if not between:
                break
        table[slot] = edge
        slot = following


@compiled
def comes_before(score: Sums, edge: int, other: int) -> bool:
    """Return whether a contact has a higher score, or the same score and a lower number."""
    return score[edge] > score[other] or (score[edge] == score[other] and edge < other)


@compiled
def sift_up(heap: Numbers, place: Numbers, score: Sums, at: int) -> None:
    """Move an entry of the heap up to where it belongs."""
    edge = heap[at]
    while at > 0 and comes_before(score, edge, heap[(at - 1) >> 1]):
        heap[at] = heap[(at - 1) >> 1]
        place[heap[at]] = at
        at = (at - 1) >> 1
    heap[at] = edge
    place[edge] = at


@compiled
def sift_down(heap: Numbers, place: Numbers, score: Sums, at: int, size: int) -> None:
    """Move an entry of the heap down to where it belongs."""
    edge = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and comes_before(score, heap[child + 1], heap[child]):
            child += 1
        if not comes_before(score, heap[child], edge):
            break
        heap[at] = heap[child]
        place[heap[at]] = at
        at = child
    heap[at] = edge
    place[edge] = at


@compiled
def taken_out(heap: Numbers, place: Numbers, score: Sums, edge: int, size: int) -> int:
    """Remove a contact from the heap if it is in it, and return the heap's new size."""
    at = place[edge]
    if at < 0:
        return size
    place[edge] = _NONE
    size -= 1
    if at < size:
        moved = heap[size]
        heap[at] = moved
        place[moved] = at
        sift_up(heap, place, score, at)
        sift_down(heap, place, score, place[moved], size)
    return size


@compiled
def put_in(heap: Numbers, place: Numbers, score: Sums, edge: int, size: int, threshold: float) -> int:
    """Insert, move or remove a contact according to its score, and return the heap's new size."""
    if not score[edge] > threshold:
        return taken_out(heap, place, score, edge, size)
    if place[edge] < 0:
        heap[size] = edge
        place[edge] = size
        size += 1
    sift_up(heap, place, score, place[edge])
    sift_down(heap, place, score, place[edge], size)
    return size


@compiled
def merge_strongest(
    regions: int,
    first: Numbers,
    second: Numbers,
    total: Sums,
    count: Counts,
    threshold: float,
    frozen: NDArray[np.bool_],
) -> tuple[Numbers, Numbers, Sums, int, NDArray[np.bool_]]:
    """Merge regions along the contact of the highest mean until none is above the threshold.

    Contacts of a merged region with a common neighbour become one and keep the lower of their two numbers; of equal
    means the lowest number goes first. The region with fewer contacts moves into the other, so that a contact moves at
    most log2(contacts) times; each contact hangs in a list of either of its regions, and in a hash table by its pair.

    A frozen region has contacts that are not listed, and takes no part. A region whose strongest contact is with a
    frozen one is frozen by then: whether it merges there has to be known first.

    Args:
        regions: they are numbered from 0.
        first: (E,) one region of each contact; changed in place, as are the next three.
        second: (E,) the other one.
        total: (E,) sum.
        count: (E,) what the sum is divided by.
        threshold: a mean must exceed it.
        frozen: (R,) flags of regions, changed in place; none if all contacts are listed.

    Returns:
        What stays, what goes into it, and at which mean, in order; how many contacts were moved or looked at; and (E,)
        flags of the contacts that are left.
    """
    edges = len(first)
    size = 2
    while size < 2 * edges:
        size *= 2
    table = np.full(size, _NONE, np.int32)
    head = np.full(regions, _NONE, np.int32)
    degree = np.zeros(regions, np.int32)
    after = np.full(
        2 * edges, _NONE, np.int32
    )  # in the lists: 2 * edge at its first region, 2 * edge + 1 at the second
    there = np.ones(edges, np.bool_)
    score = total / count
    heap, place = np.empty(edges, np.int32), np.full(edges, _NONE, np.int32)
    waiting = 0
    for edge in range(edges):
        table[-1 - slot_of(table, first, second, first[edge], second[edge])] = edge
        for end in range(2):
            region = second[edge] if end else first[edge]
            after[2 * edge + end] = head[region]
            head[region] = 2 * edge + end
            degree[region] += 1
        if score[edge] > threshold:
            heap[waiting] = edge
            place[edge] = waiting
            waiting += 1
    for at in range(waiting // 2 - 1, -1, -1):
        sift_down(heap, place, score, at, waiting)
    keeps, goes = np.empty(max(regions - 1, 0), np.int32), np.empty(max(regions - 1, 0), np.int32)
    means = np.empty(max(regions - 1, 0), np.float64)
    merges = looks = 0
    while waiting:
        edge = heap[0]
        waiting = taken_out(heap, place, score, edge, waiting)
        u, v = first[edge], second[edge]
        if frozen[u] or frozen[v]:
            frozen[u] = frozen[v] = True
            continue
        if degree[u] < degree[v]:
            u, v = v, u
        keeps[merges], goes[merges], means[merges] = u, v, score[edge]
        merges += 1
        empty_slot(table, first, second, slot_of(table, first, second, u, v))
        there[edge] = False
        degree[u] -= 1
        link = head[v]
        while link >= 0:
            following, moved, end = after[link], link >> 1, link & 1
            looks += 1
            if there[moved]:
                region = first[moved] if end else second[moved]
                empty_slot(table, first, second, slot_of(table, first, second, v, region))
                slot = slot_of(table, first, second, u, region)
                if end:
                    second[moved] = u
                else:
                    first[moved] = u
                if slot < 0:
                    table[-1 - slot] = moved
                    after[link] = head[u]
                    head[u] = link
                    degree[u] += 1
                else:
                    other = table[slot]
                    low, high = min(moved, other), max(moved, other)
                    total[low] += total[high]
                    count[low] += count[high]
                    score[low] = total[low] / count[low]
                    there[high] = False
                    table[slot] = low
                    waiting = taken_out(heap, place, score, high, waiting)
                    waiting = put_in(heap, place, score, low, waiting, threshold)
                    degree[region] -= 1
                    if low == moved:
                        after[link] = head[u]
                        head[u] = link
            link = following
        head[v] = _NONE
    return keeps[:merges], goes[:merges], means[:merges], looks, there
