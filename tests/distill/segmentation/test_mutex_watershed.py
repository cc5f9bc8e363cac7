"""The mutex watershed against Kruskal's algorithm with a list of mutexes, and what it says of wrong input."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple
from distill.core.labels import compact
from distill.segmentation.mutex_watershed import mutex_watershed

pytest.importorskip("mwatershed", reason="needs the baselines extra")

LONG: tuple[Triple, ...] = (*NEAREST, (-2, 0, 0), (0, -3, 1), (0, 0, -4))


segments = partial(mutex_watershed, min_voxels=0)  # the watershed alone


def noise(seed: int, count: int, shape: Triple) -> NDArray[np.float32]:
    """Affinities of which no two are equally far from any of the zeros."""
    return np.random.default_rng(seed).random((count, *shape), np.float32)


def kruskal(affinity: NDArray[np.float32], offsets: Sequence[Triple], bias: float) -> NDArray[np.uint64]:
    """Voxel sets and pairs of them that must stay apart; edges one by one, the strongest first."""
    shape = affinity.shape[1:]
    alone = all(sum(map(abs, offset)) == 1 for offset in offsets)
    edges = []
    for k, offset in enumerate(offsets):
        for p in np.ndindex(*shape):
            q = tuple(a + b for a, b in zip(p, offset, strict=True))
            if not all(0 <= c < n for c, n in zip(q, shape, strict=True)):
                continue
            a = float(affinity[(k, *p)])
            if alone:
                edges.append((abs(a - bias), a > bias, p, q))
            elif sum(map(abs, offset)) == 1:
                edges.append((a - (bias - 0.5), True, p, q))
            else:
                edges.append((1 - a + (bias - 0.5), False, p, q))
    cluster = {p: frozenset([p]) for p in np.ndindex(*shape)}
    apart: set[frozenset[frozenset[tuple[int, ...]]]] = set()
    for weight, attracts, p, q in sorted(edges, reverse=True):
        one, other = cluster[p], cluster[q]
        pair = frozenset([one, other])
        if weight <= 0 or one == other or pair in apart:
            continue
        if not attracts:
            apart.add(pair)
            continue
        joint = one | other
        apart = {frozenset(joint if part in pair else part for part in two) for two in apart}
        cluster.update(dict.fromkeys(joint, joint))
    found = np.zeros(shape, np.uint64)
    for number, group in enumerate({id(c): c for c in cluster.values()}.values(), 1):
        for p in group if len(group) > 1 else ():
            found[p] = number
    return found


def same_partition(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> bool:
    """Equal but for the ids; 0 is 0 in both."""
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs}) and all(
        (one == 0) == (other == 0) for one, other in pairs
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([NEAREST, LONG, LONG[3:], NEAREST[1:]]), st.floats(0, 1))
def test_equals_kruskal_with_mutexes(seed: int, offsets: tuple[Triple, ...], bias: float) -> None:
    affinity = noise(seed, len(offsets), (3, 5, 6))
    found = segments(affinity, offsets, bias=bias)
    assert found.dtype == np.uint64
    assert same_partition(found, kruskal(affinity, offsets, bias))
    np.testing.assert_array_equal(found, compact(found))


def test_one_leak_in_a_membrane_joins_nothing() -> None:
    affinity = np.full((3, 1, 12, 12), 0.9, np.float32)
    affinity[2, 0, :, 6] = 0.02
    affinity[2, 0, 5, 6] = 0.85  # a leak between x = 5 and x = 6
    found = segments(affinity, NEAREST)
    assert len(set(found[..., :6].ravel().tolist())) == len(set(found[..., 6:].ravel().tolist())) == 1
    assert found[0, 0, 0] != found[0, 0, 11]


def test_a_bias_splits_more_the_higher_it_is() -> None:
    affinity = noise(3, len(LONG), (4, 12, 12)) * 0.2 + 0.4
    for offsets in (NEAREST, LONG):
        found = [segments(affinity[: len(offsets)], offsets, bias=bias) for bias in (0.1, 0.5, 0.9)]
        pieces = [int(one.max()) + int((one == 0).sum()) for one in found]
        assert pieces[0] == 1 < pieces[1] < pieces[2]
    assert (segments(affinity[:3], NEAREST, bias=0.39) == 1).all()
    assert not segments(affinity[:3], NEAREST, bias=0.61).any()


def test_small_pieces_go_where_the_strongest_path_leads() -> None:
    affinity = np.full((3, 2, 12, 12), 0.9, np.float32)
    affinity[2, :, :, 6] = 0.1
    affinity[2, :, :, 7] = 0.3  # the column x = 6 is a piece of its own, nearer to the right
    three, two = (np.repeat([1, 2, 3], [6, 1, 5]), np.repeat([1, 3], [6, 6]))
    for min_voxels, expected in ((0, three), (24, three), (25, two), (1000, three)):
        found = mutex_watershed(affinity, NEAREST, min_voxels=min_voxels)
        assert same_partition(found, np.broadcast_to(expected, found.shape).astype(np.uint64))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_flooding_moves_only_small_pieces(seed: int) -> None:
    affinity = noise(seed, 3, (3, 8, 8))
    before, after = segments(affinity, NEAREST), mutex_watershed(affinity, NEAREST, min_voxels=8)
    sizes = np.bincount(before.ravel().astype(int))
    kept = (sizes >= 8) & (np.arange(len(sizes)) > 0)
    if not kept.any():
        np.testing.assert_array_equal(after, before)
        return
    stays = kept[before]
    assert same_partition(before[stays], after[stays])
    assert set(after.ravel().tolist()) == set(after[stays].tolist())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (2, 1, 5), (0, 3, 3)])
def test_offsets_beyond_a_thin_block_have_no_edges(shape: Triple) -> None:
    affinity = noise(1, len(LONG), shape)
    assert same_partition(segments(affinity, LONG), kruskal(affinity, LONG, 0.5))


def test_takes_any_memory_order_and_leaves_its_input() -> None:
    affinity = noise(5, 3, (3, 6, 6))
    kept = affinity.copy()
    expected = mutex_watershed(affinity, NEAREST, min_voxels=8)
    np.testing.assert_array_equal(affinity, kept)
    np.testing.assert_array_equal(mutex_watershed(np.asfortranarray(affinity), NEAREST, min_voxels=8), expected)
    np.testing.assert_array_equal(mutex_watershed(affinity.astype(np.float64), NEAREST, min_voxels=8), expected)


def test_turned_edges_give_the_same_segments() -> None:
    affinity = noise(6, len(LONG), (4, 6, 6))
    turned = np.zeros_like(affinity)
    for k, offset in enumerate(LONG):
        for p in itertools.product(*map(range, affinity.shape[1:])):
            q = tuple(a + b for a, b in zip(p, offset, strict=True))
            if all(0 <= c < n for c, n in zip(q, affinity.shape[1:], strict=True)):
                turned[(k, *q)] = affinity[(k, *p)]
    back = [(-z, -y, -x) for z, y, x in LONG]
    assert same_partition(segments(turned, back), segments(affinity, LONG))


def test_wrong_input_is_named() -> None:
    good = noise(0, 3, (2, 4, 4))
    with pytest.raises(ShapeError, match=r"found shape \(3, 2, 4, 4\), expected \(2, z, y, x\)"):
        mutex_watershed(good, NEAREST[:2])
    with pytest.raises(ShapeError, match=r"found shape \(3, 4, 4\)"):
        mutex_watershed(good[:, 0], NEAREST)
    with pytest.raises(ShapeError, match="found uint8"):
        mutex_watershed((good * 255).astype(np.uint8), NEAREST)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="not finite"):
        mutex_watershed(np.where(good > 0.9, np.nan, good), NEAREST)
    with pytest.raises(DistillError, match=r"offset \(0, 0, -1\) is missing"):
        mutex_watershed(good[:2], NEAREST[:2])
    with pytest.raises(DistillError, match=r"bias: found 1\.5"):
        mutex_watershed(good, NEAREST, bias=1.5)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mwatershed", None)
    with pytest.raises(DistillError, match=r"mwatershed: not installed, expected `pip install"):
        mutex_watershed(noise(0, 3, (2, 4, 4)), NEAREST)
