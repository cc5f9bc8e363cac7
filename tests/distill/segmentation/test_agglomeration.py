"""Fragments, region graphs and merging against brute force and against waterz."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from distill.core.errors import DistillError, ShapeError
from distill.evaluation.metrics import score
from distill.segmentation.agglomeration import (
    RegionGraph,
    agglomerate_graph,
    fragments,
    merge_by_mean_affinity,
    merges_above,
    region_graph,
    waterz,
)

Labels = NDArray[np.integer[Any]]
OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def random_block(seed: int, shape: tuple[int, int, int] = (3, 10, 8)) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Patches of random ids with background, and affinities in steps of 1/1024, whose sums are exact."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 14, (shape[0], shape[1] // 2, shape[2] // 2))
    labels = patches.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint64)
    return labels, (rng.integers(0, 1025, (3, *shape)) / 1024).astype(np.float32)


def graph_oracle(
    labels: Labels, affinity: NDArray[np.float32], valid: NDArray[np.bool_]
) -> dict[tuple[int, int], tuple[float, int]]:
    edges: dict[tuple[int, int], tuple[float, int]] = {}
    for point in np.ndindex(*labels.shape):
        for k, offset in enumerate(OFFSETS):
            z, y, x = (p + o for p, o in zip(point, offset, strict=True))
            if min(z, y, x) < 0 or not valid[(k, *point)]:
                continue
            a, b = sorted((int(labels[point]), int(labels[z, y, x])))
            if a and a != b:
                total, count = edges.get((a, b), (0.0, 0))
                edges[a, b] = total + float(affinity[(k, *point)]), count + 1
    return edges


def merge_oracle(edges: dict[tuple[int, int], tuple[float, int]], threshold: float) -> dict[int, int]:
    """Root per id: scan all contacts for the strongest, of equal ones that with the smallest first pair, and merge."""
    root = {a: a for a in itertools.chain(*edges)}
    contacts = {pair: (pair, *sums) for pair, sums in edges.items()}
    while contacts:
        (a, b), (_, total, count) = min(contacts.items(), key=lambda item: (-item[1][1] / item[1][2], item[1][0]))
        if total / count <= threshold:
            break
        root = {i: a if r == b else r for i, r in root.items()}
        joined: dict[tuple[int, int], tuple[tuple[int, int], float, int]] = {}
        for pair, (first, more, many) in contacts.items():
            c, d = sorted(a if i == b else i for i in pair)
            if c != d:
                old = joined.get((c, d), (first, 0.0, 0))
                joined[c, d] = min(first, old[0]), old[1] + more, old[2] + many
        contacts = joined
    return root


@pytest.mark.parametrize("seed", range(4))
def test_region_graph_equals_a_walk_over_all_edges(seed: int) -> None:
    labels, affinity = random_block(seed)
    valid = np.random.default_rng(seed).random(affinity.shape) < 0.8
    for mask, given_mask in ((valid, valid), (np.ones_like(valid), None)):
        expected = graph_oracle(labels, affinity, mask)
        graph = region_graph(labels, affinity, given_mask)
        keys = list(zip(graph.u.tolist(), graph.v.tolist(), strict=True))
        assert keys == sorted(expected)
        assert graph.count.tolist() == [expected[k][1] for k in keys]
        np.testing.assert_allclose(graph.mean, [expected[k][0] / expected[k][1] for k in keys], rtol=1e-12)


def test_region_graph_takes_any_ids_and_memory_order() -> None:
    labels, affinity = random_block(7)
    far = np.where(labels > 0, labels + np.uint64(2**50), 0)
    graph, same = region_graph(labels, affinity), region_graph(np.asfortranarray(far), np.asfortranarray(affinity))
    np.testing.assert_array_equal(same.u, graph.u + np.uint64(2**50))
    np.testing.assert_array_equal(same.mean, graph.mean)
    assert len(region_graph(np.ones_like(labels), affinity).u) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.45, 0.5, 0.55, 0.6]))
def test_merging_equals_rescanning(seed: int, threshold: float) -> None:
    labels, affinity = random_block(seed)
    expected = merge_oracle(graph_oracle(labels, affinity, np.ones(affinity.shape, bool)), threshold)
    found = agglomerate_graph(region_graph(labels, affinity), threshold)
    assert dict(zip(found.old.tolist(), found.new.tolist(), strict=True)) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.35, 0.45, 0.5, 0.55]))
def test_merging_equals_waterz_where_nothing_ties(seed: int, threshold: float) -> None:
    labels, _ = random_block(seed)
    affinity = np.random.default_rng(seed).random((3, *labels.shape), np.float32)
    theirs = waterz(affinity, [1 - threshold], scoring="mean", fragments=labels)[1 - threshold]
    np.testing.assert_array_equal(merge_by_mean_affinity(labels, affinity, threshold), theirs)


def test_merging_stops_where_a_mean_falls_to_the_threshold() -> None:
    def chain(weak: float) -> RegionGraph:
        u, v = np.array([1, 1, 2], np.uint64), np.array([2, 3, 3], np.uint64)
        return RegionGraph(u, v, np.array([9.0, 0.5 * weak, 0.75]), np.array([10, 1, 1]))

    assert agglomerate_graph(chain(1.0), 0.625).new.tolist() == [1, 1, 3]
    assert agglomerate_graph(chain(1.1), 0.625).new.tolist() == [1, 1, 1]
    assert agglomerate_graph(chain(1.0), 0.95).new.tolist() == [1, 2, 3]
    assert agglomerate_graph(RegionGraph(*(np.zeros(0, t) for t in ("u8", "u8", "f8", "i8"))), 0.5).old.size == 0


def test_equal_means_merge_by_smallest_ids() -> None:
    u, v = np.array([1, 2, 1], np.uint64), np.array([2, 3, 3], np.uint64)
    tied = RegionGraph(u, v, np.array([0.75, 0.75, 0.0]), np.array([1, 1, 1]))
    assert agglomerate_graph(tied, 0.5).new.tolist() == [1, 1, 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_merging_does_not_depend_on_the_order_of_contacts(seed: int) -> None:
    graph, rng = region_graph(*random_block(seed)), np.random.default_rng(seed)
    order = rng.permutation(len(graph.u))
    mixed = RegionGraph(graph.u[order], graph.v[order], graph.total[order], graph.count[order])
    for threshold in (0.3, 0.5, 0.6):
        found, same = agglomerate_graph(graph, threshold), agglomerate_graph(mixed, threshold)
        np.testing.assert_array_equal(found.old, same.old)
        np.testing.assert_array_equal(found.new, same.new)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_merges_of_a_higher_threshold_are_the_first_ones(seed: int) -> None:
    graph = region_graph(*random_block(seed))
    every = merges_above(graph, 0.2)
    assert (np.diff(every.means) <= 1e-12).all()
    for threshold in (0.2, 0.45, 0.5, 0.7):
        np.testing.assert_array_equal(every.above(threshold).new, agglomerate_graph(graph, threshold).new)


def star(leaves: int) -> RegionGraph:
    """A region with the largest id that touches all others, which do not touch each other."""
    u, count = np.arange(1, leaves + 1, dtype=np.uint64), np.full(leaves, 10)
    return RegionGraph(u, np.full(leaves, leaves + 1, np.uint64), np.linspace(6, 9, leaves), count)


def trunk(pieces: int) -> RegionGraph:
    """A chain of regions whose affinity rises along it; a second region touches each of them."""
    u, v = np.arange(1, pieces, dtype=np.uint64), np.arange(2, pieces + 1, dtype=np.uint64)
    adjacent, all_of_it = np.full(pieces, 2**40, np.uint64), np.arange(1, pieces + 1, dtype=np.uint64)
    return RegionGraph(
        np.concatenate([u, all_of_it]),
        np.concatenate([v, adjacent]),
        np.concatenate([np.linspace(6, 9, pieces - 1), np.ones(pieces)]),
        np.full(2 * pieces - 1, 10),
    )


@pytest.mark.parametrize("graph", [star, trunk])
def test_hubs_and_trunks_take_few_looks_at_contacts(graph: Callable[[int], RegionGraph]) -> None:
    for size in (100, 1000, 10000):
        contacts = graph(size)
        found = merges_above(contacts, 0.5)
        assert found.looks <= 3 * len(contacts.u)  # moving the larger region would take size / 2 for each
        assert len(np.unique(found.above(0.5).new)) == {star: 1, trunk: 2}[graph]


def test_merge_keeps_background_and_regions_alone() -> None:
    labels = np.array([[[9, 9, 0, 4, 4, 70]]], np.uint32)
    affinity = np.zeros((3, 1, 1, 6), np.float32)
    affinity[2, ..., 5] = 0.8
    merged = merge_by_mean_affinity(labels, affinity, 0.7)
    assert merged.tolist() == [[[2, 2, 0, 1, 1, 1]]]
    assert merged.dtype == np.uint64
    valid = np.ones(affinity.shape, bool)
    valid[2, ..., 5] = False
    assert merge_by_mean_affinity(labels, affinity, 0.7, valid=valid).tolist() == [[[2, 2, 0, 1, 1, 3]]]


def cells(seed: int, shape: tuple[int, int, int] = (3, 64, 64)) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns through all sections, each nearest to a random point, and affinities with smooth membranes between."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, shape[1:], (8, 2))
    y, x = np.indices(shape[1:])
    nearest = np.argmin([(y - p) ** 2 + (x - q) ** 2 for p, q in points], axis=0) + 1
    membrane = ndimage.maximum_filter(nearest, 3) != ndimage.minimum_filter(nearest, 3)
    within = 1 - ndimage.gaussian_filter(ndimage.binary_dilation(membrane).astype(np.float32), 1)
    affinity = np.broadcast_to(within, (3, *shape)).copy()
    return np.broadcast_to(nearest, shape).copy(), affinity


def test_fragments_and_waterz_find_the_cells() -> None:
    labels, affinity = cells(2)
    parts = fragments(affinity)
    assert parts.dtype == np.uint64
    assert set(np.unique(parts)) == set(range(1, int(parts.max()) + 1))
    assert not set(np.unique(parts[0])) & set(np.unique(parts[1]))
    assert score(parts, labels).voi_merge < 0.3
    for scoring in ("hist50", "mean"):
        whole = waterz(affinity, [0.5], scoring=scoring)[0.5]  # type: ignore[arg-type]
        found = score(whole, labels)
        assert found.voi_sum < 0.5
        assert found.n_pred < parts.max() / 3


def highest_plateaus(height: NDArray[np.float64]) -> list[list[tuple[int, ...]]]:
    """Connected pixels of one height that no neighbour exceeds, by flooding from every pixel."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for start in np.ndindex(*height.shape):
        if start in seen:
            continue
        plateau, todo, highest = [], [start], True
        seen.add(start)
        while todo:
            y, x = todo.pop()
            plateau.append((y, x))
            for other in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if not (0 <= other[0] < height.shape[0] and 0 <= other[1] < height.shape[1]):
                    continue
                if height[other] > height[start]:
                    highest = False
                elif height[other] == height[start] and other not in seen:
                    seen.add(other)
                    todo.append(other)
        if highest:
            found.append(plateau)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_every_fragment_grows_from_one_maximum_of_the_distance(seed: int) -> None:
    _, affinity = cells(seed, (2, 40, 36))
    affinity[1] *= 0.9
    affinity[:, 1] = affinity[:, 1, ::-1, ::-1]
    parts = fragments(affinity)
    for section, edges in zip(parts, affinity.swapaxes(0, 1), strict=True):
        inside = 1 - 0.5 * (edges[1] + edges[2]) < 0.5
        peaks = highest_plateaus(ndimage.distance_transform_edt(inside))
        owners = [{int(section[p]) for p in peak} for peak in peaks]
        assert all(len(owner) == 1 for owner in owners)
        assert sorted(min(owner) for owner in owners) == sorted(np.unique(section).tolist())
        assert all(ndimage.label(section == part)[1] == 1 for part in np.unique(section))
        assert len(peaks) > 4


def test_a_membrane_parts_fragments() -> None:
    affinity = np.ones((3, 1, 9, 30), np.float32)
    affinity[1:, :, :, 14] = 0
    (parts,) = fragments(affinity)
    assert not set(np.unique(parts[:, :14])) & set(np.unique(parts[:, 15:]))


@pytest.mark.parametrize("value", [0.0, 0.4, 0.6, 1.0])
def test_a_section_without_structure_is_one_fragment(value: float) -> None:
    parts = fragments(np.full((3, 2, 6, 5), value, np.float32))
    assert parts.tolist() == [[[1] * 5] * 6, [[2] * 5] * 6]


def test_waterz_results_are_copies_in_any_order_of_thresholds() -> None:
    labels, affinity = random_block(4)
    before = labels.copy()
    found = waterz(affinity, [0.7, 0.3], scoring="mean", fragments=labels)
    assert list(found) == [0.3, 0.7]
    assert found[0.3].max() > found[0.7].max() >= 1
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(found[0.3] == 0, labels == 0)
    far = np.where(labels > 0, labels << np.uint64(40), 0)
    np.testing.assert_array_equal(waterz(affinity, [0.3], scoring="mean", fragments=far)[0.3], found[0.3])


def test_waterz_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    _, affinity = random_block(1)
    sys.stdout.write("before ")
    waterz(affinity[:, :, ::-1], [0.5])
    sys.stdout.write("after")
    assert capfd.readouterr().out == "before after"


def test_waterz_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "waterz", None)
    with pytest.raises(DistillError, match=r"pip install 'affinity-distill\[baselines\]'"):
        waterz(np.zeros((3, 1, 4, 4), np.float32), [0.5])


def test_refuses() -> None:
    labels, affinity = random_block(0)
    with pytest.raises(DistillError, match="found 'median', expected one of hist50, mean"):
        waterz(affinity, [0.5], scoring="median")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"found shape \(3, 3, 10, 8\), expected \('3 or more', 2, 10, 8\)"):
        region_graph(labels[:2], affinity)
    with pytest.raises(ShapeError, match="valid: found shape"):
        region_graph(labels, affinity, np.ones(labels.shape, bool))
    with pytest.raises(ShapeError, match="found uint8, expected floating point"):
        fragments((affinity * 255).astype(np.uint8))
    with pytest.raises(ShapeError, match=r"found shape \(2, 3, 10, 8\)"):
        fragments(affinity[:2])
