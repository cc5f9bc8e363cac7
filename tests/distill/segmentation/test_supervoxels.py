"""Supervoxels against a walk over all edges, one at a time."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.segmentation.supervoxels import GrowingRule, supervoxels


def oracle(levels: NDArray[np.uint8], rule: GrowingRule) -> NDArray[np.int64]:
    """Sets of voxels, merged edge by edge."""
    shape = levels.shape[1:]
    tree = np.arange(levels[0].size).reshape(shape)
    strong, weak = [], []
    for axis in range(3):
        for point in np.ndindex(*shape):
            if point[axis]:
                other = tuple(p - (a == axis) for a, p in enumerate(point))
                level = int(levels[(axis, *point)])
                if level > 255 * rule.thresholds[axis] + 1e-9:
                    strong.append((point, other))
                else:
                    weak.append((level, point, other))
    for point, other in strong:
        tree[tree == tree[point]] = tree[other]
    seeds = {t for t in np.unique(tree) if (tree == t).sum() >= rule.min_voxels}
    for level, point, other in sorted(weak, key=lambda edge: -edge[0]):
        a, b = tree[point], tree[other]
        if a == b or (a in seeds and b in seeds):
            continue
        keeps, goes = (b, a) if b in seeds else (a, b)
        tree[tree == goes] = keeps
        size = (tree == keeps).sum()
        if size >= rule.large or (level >= 255 * rule.late - 1e-9 and size >= rule.min_voxels):
            seeds.add(keeps)
    return np.where(np.isin(tree, list(seeds)), tree + 1, 0)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[NDArray[np.uint8], GrowingRule]:
    shape = draw(st.tuples(*(st.integers(1, 5) for _ in range(3))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([2, 5, 256]))
    levels = (rng.integers(0, steps, (3, *shape)) * (255 // (steps - 1))).astype(np.uint8)
    thresholds = draw(st.tuples(*(st.sampled_from([0.4, 0.8, 0.99, 1.0]) for _ in range(3))))
    late, least = draw(st.sampled_from([0.0, 0.5, 0.9, 2.0])), draw(st.integers(1, 8))
    return levels, GrowingRule(thresholds, late, least, least + draw(st.sampled_from([0, 5, 1000])))


@given(blocks())
@settings(max_examples=150, deadline=None)
def test_equals_a_walk_over_all_edges(block: tuple[NDArray[np.uint8], GrowingRule]) -> None:
    levels, rule = block
    found, wanted = supervoxels(levels, rule), oracle(levels, rule)
    pairs = set(zip(found.ravel().tolist(), wanted.ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert ((found == 0) == (wanted == 0)).all()
    first = np.unique(found[found > 0], return_index=True)
    assert first[0].tolist() == list(range(1, len(first[0]) + 1))
    assert (np.diff(first[1]) > 0).all(), "ids in the order of first voxels"


@given(blocks())
@settings(max_examples=40, deadline=None)
def test_floats_are_taken_as_they_are_stored(block: tuple[NDArray[np.uint8], GrowingRule]) -> None:
    levels, rule = block
    floats = levels.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(supervoxels(floats, rule), supervoxels(levels, rule))
    np.testing.assert_array_equal(supervoxels(np.asfortranarray(floats), rule), supervoxels(levels, rule))


def test_every_supervoxel_is_connected_and_every_voxel_has_one() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 6, 40, 40)).astype(np.uint8)
    found = supervoxels(levels, GrowingRule((0.9, 0.9, 0.9), 0.5, 5))
    assert found.min() == 1
    assert cc3d.connected_components(found, connectivity=6).max() == found.max() > 10


def test_a_leak_does_not_join_seeds_and_thin_neurites_get_one() -> None:
    levels = np.full((3, 1, 9, 30), 255, np.uint8)
    levels[1, :, 3] = levels[1, :, 6] = 20  # membranes between three stripes
    levels[1, 0, 3, 15] = 250  # a leak
    levels[:, :, 6:] = np.minimum(levels[:, :, 6:], 240)  # a neurite without sure edges
    found = supervoxels(levels, GrowingRule((0.99, 0.99, 0.99), 0.9, 40))
    assert [np.unique(found[0, rows]).tolist() for rows in (slice(0, 3), slice(3, 6), slice(6, 9))] == [[1], [2], [3]]
    early = supervoxels(levels, GrowingRule((0.99, 0.99, 0.99), 2.0, 40))
    assert early.max() == 2, "without late seeds the neurite belongs to a neighbour"
    assert supervoxels(levels, GrowingRule((0.9, 0.9, 0.9), 0.9, 40)).max() == 2, "a lower threshold takes the leak"


def test_without_a_seed_all_is_background() -> None:
    assert not supervoxels(np.zeros((3, 2, 4, 4), np.uint8), GrowingRule()).any()


@pytest.mark.parametrize(
    ("affinity", "said"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), "3 or more channels"),
        (np.zeros((3, 4, 5), np.uint8), "3 or more channels"),
        (np.zeros((3, 1, 4, 5), np.int32), "found int32"),
        (np.full((3, 1, 4, 5), np.nan, np.float32), "not finite"),
        (np.broadcast_to(np.uint8(0), (3, 1200, 1200, 1200)), "expected at most"),
    ],
)
def test_refuses(affinity: NDArray[np.generic], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        supervoxels(affinity)
