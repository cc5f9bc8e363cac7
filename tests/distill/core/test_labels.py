"""Ids against a dictionary, a sort and flooding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.core.errors import DistillError
from distill.core.labels import Relabelling, compact, sum_pairs


@pytest.mark.parametrize("scale", [1, 2**40])
def test_sum_pairs_equals_a_dictionary(scale: int) -> None:
    rng = np.random.default_rng(5)
    u, v = rng.integers(0, 4, 300) * scale, rng.integers(0, 4, 300) * scale
    count, values = rng.integers(1, 9, 300), rng.integers(0, 256, 300) / 256
    expected: dict[tuple[int, int], tuple[int, float]] = {}
    for a, b, n, x in zip(u.tolist(), v.tolist(), count.tolist(), values.tolist(), strict=True):
        many, total = expected.get((a, b), (0, 0.0))
        expected[a, b] = many + n, total + x
    found = sum_pairs(u, v, count=count, values=values)
    keys = list(zip(found.u.tolist(), found.v.tolist(), strict=True))
    assert keys == sorted(expected)
    assert found.count.tolist() == [expected[key][0] for key in keys]
    assert found.total.tolist() == [expected[key][1] for key in keys]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_compact_ranks_ids(ids: list[int]) -> None:
    labels = np.array(ids, np.uint64).reshape(1, -1)
    rank = {value: k for k, value in enumerate(sorted(set(ids) - {0}), 1)} | {0: 0}
    assert compact(labels).tolist() == [[rank[value] for value in ids]]


def test_relabelling_refuses_unknown_ids() -> None:
    mapping = Relabelling(np.array([3, 5], np.uint64), np.array([1, 1], np.uint64))
    assert mapping.apply(np.array([[0, 5], [3, 3]], np.uint8)).tolist() == [[0, 1], [1, 1]]
    for unknown in (1, 4, 6):
        with pytest.raises(DistillError, match=f"found id {unknown}"):
            mapping.apply(np.array([0, 3, unknown]))
    assert mapping.apply(np.zeros((0, 2), np.uint8)).shape == (0, 2)
