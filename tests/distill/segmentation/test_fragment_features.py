"""Features of fragments and contacts against a walk over all voxels, and under other ids."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.segmentation.agglomeration import merge_by_mean_affinity
from distill.segmentation.fragment_features import (
    CONTACT_FEATURES,
    FRAGMENT_FEATURES,
    FragmentGraph,
    fragment_graph,
    merged_by_scores,
    neighbourhoods,
)

BINS = 32


def random_block(seed: int, shape: tuple[int, int, int] = (3, 10, 8)) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Patches of random ids with background; affinities in steps of 1/1024, whose sums are exact."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 14, (shape[0], shape[1] // 2, shape[2] // 2))
    labels = 7 * patches.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint64)
    return labels, (rng.integers(0, 1025, (3, *shape)) / 1024).astype(np.float32)


def edges_of(labels: NDArray[Any]) -> list[tuple[int, tuple[int, ...], int, int]]:
    """Axis, voxel and both ids of every edge between two voxels that are no background."""
    found = []
    for axis, point in itertools.product(range(3), np.ndindex(*labels.shape)):
        back = list(point)
        back[axis] -= 1
        if back[axis] >= 0 and labels[point] and labels[tuple(back)]:
            found.append((axis, point, int(labels[tuple(back)]), int(labels[point])))
    return found


def quantile(values: list[float], level: float) -> float:
    """Linear within one of 32 bins of [0, 1]."""
    histogram = np.bincount([min(BINS - 1, int(value * BINS)) for value in values], minlength=BINS)
    below = np.cumsum(histogram) - histogram
    place = int(np.flatnonzero((histogram > 0) & (below + histogram >= level * len(values)))[0])
    return float((place + (level * len(values) - below[place]) / histogram[place]) / BINS)


def row(features: NDArray[np.float32], at: int, names: tuple[str, ...]) -> dict[str, float]:
    return dict(zip(names, map(float, features[at]), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_features_equal_a_walk_over_all_voxels(seed: int) -> None:
    labels, affinity = random_block(seed)
    graph = fragment_graph(labels, affinity, 3)
    edges = edges_of(labels)
    first = {int(one): int(np.flatnonzero(labels == one)[0]) for one in np.unique(labels[labels > 0])}
    assert graph.ids.tolist() == sorted(first, key=lambda one: first[one])
    along: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for axis, point, one, two in edges:
        if one != two:
            along.setdefault((min(one, two), max(one, two)), []).append((axis, float(affinity[(axis, *point)])))
    area = {one: sum(len(values) for pair, values in along.items() if one in pair) for one in first}
    size = {one: int((labels == one).sum()) for one in first}
    for at, own in enumerate(graph.ids.tolist()):
        found = row(graph.fragments, at, FRAGMENT_FEATURES)
        places = np.argwhere(labels == own)
        extent = np.ptp(places, axis=0) + 1
        inner = [float(affinity[(axis, *point)]) for axis, point, one, two in edges if one == two == own]
        expected = {
            "size": np.log(size[own]),
            **{f"extent {name}": np.log(n) for name, n in zip("zyx", extent, strict=True)},
            "sections": np.log(len(np.unique(places[:, 0]))),
            "filled share of the extents": size[own] / np.prod(extent),
            "mean inner affinity": np.mean(inner),
            "deviation of inner affinities": np.std(inner),
            "contact area": np.log1p(area[own]),
            "contacts": np.log1p(sum(own in pair for pair in along)),
        }
        assert found == pytest.approx(expected, abs=1e-5)
    assert len(graph.u) == len(along)
    assert list(zip(graph.u, graph.v, strict=True)) == sorted(zip(graph.u, graph.v, strict=True))
    for at, (u, v) in enumerate(zip(graph.u, graph.v, strict=True)):
        one, two = (int(graph.ids[end]) for end in (u, v))
        of = along[min(one, two), max(one, two)]
        values, counts = [value for _, value in of], [sum(axis == k for axis, _ in of) for k in range(3)]
        small, large = sorted((size[one], size[two]))
        areas = sorted((area[one], area[two]))
        expected = {
            **{"mean": np.mean(values), "deviation": np.std(values), "least": min(values), "largest": max(values)},
            **{"quantile 0.1": quantile(values, 0.1), "median": quantile(values, 0.5)},
            "quantile 0.9": quantile(values, 0.9),
            **{f"edges along {name}": np.log1p(n) for name, n in zip("zyx", counts, strict=True)},
            "share of the smaller contact area": len(of) / areas[0],
            "share of the larger contact area": len(of) / areas[1],
            "overlap along z of the smaller": counts[0] / small,
            "overlap along z of the larger": counts[0] / large,
            "size ratio": np.log(small / large),
        }
        assert u < v
        assert graph.count[at] == len(of)
        assert row(graph.contacts, at, CONTACT_FEATURES) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_the_strongest_others(seed: int) -> None:
    labels, affinity = random_block(seed)
    k = 3
    graph = fragment_graph(labels, affinity, k)
    chosen = np.random.default_rng(seed).permutation(len(graph.u))[:20]
    around = neighbourhoods(graph, chosen)
    contact = {frozenset(pair): at for at, pair in enumerate(zip(graph.u.tolist(), graph.v.tolist(), strict=True))}
    mean = graph.contacts[:, CONTACT_FEATURES.index("mean")]
    for at, own in enumerate(chosen):
        ends = int(graph.u[own]), int(graph.v[own])
        np.testing.assert_array_equal(around.contact[at], graph.contacts[own])
        for side in range(2):
            here, opposite = ends[side], ends[1 - side]
            np.testing.assert_array_equal(around.ends[at, side], graph.fragments[here])
            links = [edge for pair, edge in contact.items() if here in pair and edge != own]
            links.sort(key=lambda edge: (-mean[edge], -graph.count[edge]))
            assert int(around.there[at, side].sum()) == min(k, len(links))
            for place, link in enumerate(links[:k]):
                other = next(iter({int(graph.u[link]), int(graph.v[link])} - {here}))
                np.testing.assert_array_equal(around.links[at, side, place], graph.contacts[link])
                np.testing.assert_array_equal(around.others[at, side, place], graph.fragments[other])
                third = contact.get(frozenset((other, opposite)))
                assert around.touching[at, side, place] == (third is not None)
                expected = np.zeros(len(CONTACT_FEATURES)) if third is None else graph.contacts[third]
                np.testing.assert_array_equal(around.shared[at, side, place], expected)
            empty = ~around.there[at, side]
            assert not around.others[at, side][empty].any()
            assert not around.links[at, side][empty].any()


def same(one: FragmentGraph, two: FragmentGraph) -> None:
    for field in fields(one):
        if field.name != "ids":
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


def test_features_do_not_depend_on_ids_or_memory() -> None:
    labels, affinity = random_block(5, (4, 12, 14))
    graph = fragment_graph(labels, affinity, 2)
    ids = np.unique(labels[labels > 0])
    renamed = np.random.default_rng(0).permutation(len(ids)).astype(np.uint64) * 11 + 2**40
    other = np.zeros_like(labels)
    other[labels > 0] = renamed[np.searchsorted(ids, labels[labels > 0])]
    found = fragment_graph(other, affinity, 2)
    same(graph, found)
    np.testing.assert_array_equal(renamed[np.searchsorted(ids, graph.ids)], found.ids)
    same(graph, fragment_graph(np.asfortranarray(labels.astype(np.int32)), np.asfortranarray(affinity), 2))


def test_merging_by_means_is_that_of_the_mean_affinity() -> None:
    labels, affinity = random_block(2)
    graph = fragment_graph(labels, affinity, 1)
    mean = graph.contacts[:, 0].astype(np.float64)
    for threshold in (0.3, 0.5, 0.7):
        found = merged_by_scores(labels, graph, mean, threshold)
        expected = merge_by_mean_affinity(labels, affinity, threshold)
        np.testing.assert_array_equal(np.unique(found[found > 0]), np.unique(expected[expected > 0]))
        pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
        assert len(pairs[0]) == len(np.unique(found)) == len(np.unique(expected)), "the same partition"


@pytest.mark.parametrize("ids", [0, 1])
def test_a_block_without_contacts(ids: int) -> None:
    labels = np.full((2, 4, 4), ids, np.uint64)
    graph = fragment_graph(labels, np.full((3, 2, 4, 4), 0.5, np.float32), 4)
    assert (len(graph.ids), len(graph.u), graph.contacts.shape) == (ids, 0, (0, len(CONTACT_FEATURES)))
    assert np.isfinite(graph.fragments).all()
    np.testing.assert_array_equal(merged_by_scores(labels, graph, np.zeros(0), 0.5), labels)


def test_shapes_that_do_not_go_together() -> None:
    labels, affinity = random_block(0)
    with pytest.raises(ShapeError, match="affinity"):
        fragment_graph(labels, affinity[:, 1:], 2)
    with pytest.raises(ShapeError, match="floating point"):
        fragment_graph(labels, np.zeros(affinity.shape, np.uint8), 2)
