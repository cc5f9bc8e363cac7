"""Offsets, shapes and brute-force partners for the tests of affinities."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from distill.core.geometry import Triple

shapes = st.tuples(*[st.integers(1, 4)] * 3)


offsets = st.tuples(*[st.integers(-5, 5)] * 3)


seeds = st.integers(0, 2**32 - 1)


def partner(point: Triple, offset: Triple, shape: Triple) -> Triple | None:
    """The voxel at the other end of an edge; None outside the array."""
    z, y, x = (p + o for p, o in zip(point, offset, strict=True))
    inside = 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]
    return (z, y, x) if inside else None


def points(shape: Triple) -> list[Triple]:
    return list(itertools.product(*(range(n) for n in shape)))
