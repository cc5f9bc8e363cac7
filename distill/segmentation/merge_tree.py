"""Compiled loops over the order of merges: when two regions become one, and how large both sides are by then.

Legend: R regions, M merges, E contacts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.core.compiled import compiled

Numbers = NDArray[np.int32]
Sizes = NDArray[np.int64]

NEVER = -1


@compiled
def linked(keeps: Numbers, goes: Numbers, sizes: Sizes) -> tuple[Numbers, Numbers, Sizes]:
    """Link regions to a forest of depth log2(R) whose links carry the number of their merge.

    Args:
        keeps: (M,) region of one side of each merge, in order.
        goes: (M,) region of the other side.
        sizes: (R,) of each region.

    Returns:
        parent (R,), -1 at roots; merge (R,) of the link to the parent; smaller (M,) size of the smaller side.
    """
    parent = np.full(len(sizes), -1, np.int32)
    when = np.full(len(sizes), NEVER, np.int32)
    members = np.ones(len(sizes), np.int32)
    held = sizes.copy()
    smaller = np.empty(len(keeps), np.int64)
    for merge in range(len(keeps)):
        a, b = keeps[merge], goes[merge]
        while parent[a] >= 0:
            a = parent[a]
        while parent[b] >= 0:
            b = parent[b]
        smaller[merge] = min(held[a], held[b])
        if members[a] < members[b]:
            a, b = b, a
        parent[b], when[b] = a, merge
        members[a] += members[b]
        held[a] += held[b]
    return parent, when, smaller


@compiled
def joined_at(parent: Numbers, when: Numbers, first: Numbers, second: Numbers) -> Numbers:
    """Return the merge by which the two regions of each contact become one, -1 if none does.

    Links towards the root are of ever later merges, so the path climbs along the earlier of two links.

    Args:
        parent: see `linked`.
        when: see `linked`.
        first: (E,) one region of each contact.
        second: (E,) the other one.
    """
    found = np.full(len(first), NEVER, np.int32)
    for contact in range(len(first)):
        a, b, last = first[contact], second[contact], NEVER
        while a != b:
            if parent[a] < 0 and parent[b] < 0:
                last = NEVER
                break
            if parent[b] < 0 or (parent[a] >= 0 and when[a] < when[b]):
                last = when[a]
                a = parent[a]
            else:
                last = when[b]
                b = parent[b]
        found[contact] = last
    return found
