"""Seed components against scipy, their pooling and surroundings against loops."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, sparse
from second_device import second_device
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distill.decoder import queries
from distill.decoder.queries import (
    Order,
    SeedRule,
    Seeds,
    Surroundings,
    find_seeds,
    given_seeds,
    mask_prior,
    pool_seeds,
    propagated_components,
    scanned_components,
    surroundings,
)
from distill.segmentation.components import nearest_labels

Kind = Literal["mean", "edges"]
THRESHOLDS = (0.5, 0.7, 0.9)


def affinity_block(seed: int, shape: tuple[int, ...], power: float = 0.3) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).random(shape) ** power).astype(np.float32)


def mean_oracle(affinity: NDArray[np.float32]) -> NDArray[Any]:
    mean = affinity.mean(0)
    return ndimage.label(mean > mean.mean(), structure=np.ones((3, 3, 3)))[0]


def edges_oracle(affinity: NDArray[np.float32], thresholds: tuple[float, float, float]) -> NDArray[Any]:
    """Components of the graph whose edges are those above the threshold, every voxel in one."""
    shape = affinity.shape[1:]
    number = np.arange(np.prod(shape)).reshape(shape)
    ends: tuple[list[int], list[int]] = ([], [])
    for axis in range(3):
        for point in np.ndindex(*shape):
            other = tuple(p - (a == axis) for a, p in enumerate(point))
            if min(other) >= 0 and affinity[(axis, *point)] > thresholds[axis]:
                ends[0].append(int(number[point]))
                ends[1].append(int(number[other]))
    graph = sparse.coo_array((np.ones(len(ends[0])), ends), shape=(number.size, number.size))
    return sparse.csgraph.connected_components(graph, directed=False)[1].reshape(shape) + 1


def keep_oracle(labels: NDArray[Any], min_voxels: int) -> list[set[tuple[int, ...]]]:
    """Voxels of every component that is large enough, in the order of their first voxels."""
    found: dict[int, set[tuple[int, ...]]] = {}
    for point in np.ndindex(*labels.shape):
        if labels[point]:
            found.setdefault(int(labels[point]), set()).add(point)
    return [voxels for voxels in found.values() if len(voxels) > min_voxels]


def voxels_of(components: Tensor, number: int) -> set[tuple[int, ...]]:
    return {tuple(p) for p in (components == number).nonzero().tolist()}


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from(["mean", "edges"]),
    st.integers(0, 4),
    st.sampled_from(["id", "size"]),
    st.integers(0, 5),
)
def test_seeds_are_the_components_of_the_rule(
    seed: int,
    shape: tuple[int, int, int],
    kind: Kind,
    min_voxels: int,
    order: Literal["id", "size"],
    most: int,
) -> None:
    affinity = affinity_block(seed, (2, 3, *shape))
    rule = SeedRule(kind, THRESHOLDS, min_voxels, most)
    found = find_seeds(torch.from_numpy(affinity), rule, order)
    assert found.components.dtype == torch.int64
    assert found.components.shape == (2, *shape)
    for b in range(2):
        labels = mean_oracle(affinity[b]) if kind == "mean" else edges_oracle(affinity[b], THRESHOLDS)
        wanted = keep_oracle(labels, min_voxels)
        if order == "size":
            wanted.sort(key=len, reverse=True)  # stable: equal ones by first voxel
        wanted = wanted[:most]
        assert found.counts[b] == len(wanted)
        assert int(found.components[b].max()) == len(wanted)
        for number, voxels in enumerate(wanted, 1):
            assert voxels_of(found.components[b], number) == voxels


@pytest.mark.parametrize("kind", ["mean", "edges"])
def test_a_random_order_renumbers_all_components(kind: Kind) -> None:
    affinity = torch.zeros(1, 3, 2, 15, 15)
    affinity.unfold(3, 2, 3).unfold(4, 2, 3).fill_(1)  # 5 x 5 columns, one voxel apart
    rule = SeedRule(kind, (0.6, 0.6, 0.6), 1, 100)
    plain = find_seeds(affinity, rule, "id")
    mixed = find_seeds(affinity, rule, "random", np.random.default_rng(0))
    again = find_seeds(affinity, rule, "random", np.random.default_rng(0))
    assert torch.equal(mixed.components, again.components)
    assert plain.counts == mixed.counts
    assert plain.counts == (25,)
    numbers = range(1, plain.counts[0] + 1)
    assert sorted(sorted(voxels_of(plain.components[0], n)) for n in numbers) == sorted(
        sorted(voxels_of(mixed.components[0], n)) for n in numbers
    )
    assert not torch.equal(plain.components, mixed.components)


def test_a_random_order_needs_a_generator() -> None:
    with pytest.raises(AssertionError, match="needs a generator"):
        find_seeds(torch.rand(1, 3, 2, 3, 3), SeedRule(), "random")


def test_too_many_components_leave_the_largest() -> None:
    affinity = torch.zeros(1, 3, 1, 1, 12)
    affinity[..., 1:3] = affinity[..., 4:8] = affinity[..., 9:12] = 1  # runs of 2, 4 and 3 edges along x
    rule = SeedRule("edges", (0.5, 2.0, 0.5), 2, 2)
    found = find_seeds(affinity, rule, "size")
    assert found.components.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]


def test_components_must_be_larger_than_the_least_size() -> None:
    affinity = torch.zeros(1, 3, 1, 1, 7)
    affinity[..., 1:3] = 1
    affinity[..., 4:7] = 1
    found = find_seeds(affinity, SeedRule("edges", (0.5, 2.0, 0.5), 3, 9), "id")
    assert found.components.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_no_gradient_reaches_the_affinity_through_seeds() -> None:
    affinity = torch.rand(1, 3, 2, 4, 4, requires_grad=True)
    assert not find_seeds(affinity, SeedRule(min_voxels=1), "id").components.requires_grad


def test_seeds_of_constant_affinity() -> None:
    affinity = torch.full((1, 3, 2, 4, 4), 0.5)
    assert find_seeds(affinity, SeedRule("mean", min_voxels=0), "id").counts == (0,)
    assert find_seeds(affinity, SeedRule("edges", (0.4, 0.4, 0.4), 0), "id").counts == (1,)


def test_half_precision_and_strided_affinities() -> None:
    affinity = torch.from_numpy(affinity_block(3, (1, 3, 6, 5, 4))).bfloat16()
    turned = affinity.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)
    rule = SeedRule("edges", THRESHOLDS, 2)
    plain, found = find_seeds(affinity.float(), rule, "size"), find_seeds(turned, rule, "size")
    assert plain.counts[0] > 0
    assert torch.equal(plain.components, found.components)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from(["mean", "edges"]),
    st.integers(0, 6),
    st.sampled_from(["id", "size", "random"]),
    st.sampled_from([0, 1, 3, 100]),
    st.sampled_from([0.1, 0.3, 1.0]),
)
def test_propagation_finds_the_seeds_of_the_scan(
    seed: int, shape: tuple[int, int, int], kind: Kind, min_voxels: int, order: Order, most: int, power: float
) -> None:
    affinity = torch.from_numpy(affinity_block(seed, (3, 3, *shape), power))
    affinity[1] = 0.5 + affinity[1] / 1000  # `edges` joins along z alone
    rule = SeedRule(kind, (0.4, 0.7, 0.9), min_voxels, most)
    scanned = find_seeds(affinity, rule, order, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "scanned_components", propagated_components)
        found = find_seeds(affinity, rule, order, np.random.default_rng(seed))
    assert found.counts == scanned.counts
    assert torch.equal(found.components, scanned.components)


@pytest.mark.parametrize("kind", ["mean", "edges"])
def test_propagation_equals_the_scan_on_a_block_of_real_size(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.normal(size=(1, 3, 9, 65, 65)), (0, 0, 1, 2, 2))
    affinity = torch.from_numpy(1 / (1 + np.exp(-smooth / smooth.std()))).float()
    rule = SeedRule(kind, (0.5, 0.6, 0.6), 20, 100)
    scanned, found = scanned_components(affinity, rule), propagated_components(affinity, rule)
    assert int(scanned.max()) > 5
    assert torch.equal(scanned, found)


class NoBlockLeaves(TorchFunctionMode):
    """Fails when more than a few numbers of a tensor are read on the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("cpu", "numpy", "tolist", "__array__", "nonzero", "item"):
            assert args[0].numel() <= 8, f"{func.__name__} of {tuple(args[0].shape)}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", ["id", "size", "random"])
@pytest.mark.parametrize("kind", ["mean", "edges"])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)
def test_by_propagation_only_counts_leave_the_device(
    device: str, kind: Kind, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    affinity = torch.from_numpy(affinity_block(5, (2, 3, 5, 33, 33), 0.1))
    rule = SeedRule(kind, (0.6, 0.97, 0.97), 3, 20)
    wanted = find_seeds(affinity, rule, order, np.random.default_rng(1))
    assert min(wanted.counts) > 0
    monkeypatch.setattr(queries, "scanned_components", propagated_components)
    given_ = affinity.to(device)
    with NoBlockLeaves():
        found = find_seeds(given_, rule, order, np.random.default_rng(1))
        nearest_labels(found.components, (2.5, 1.0, 1.0))
    assert found.components.device == given_.device
    assert found.counts == wanted.counts
    assert torch.equal(found.components.cpu(), wanted.components)
    around, far = surroundings(found, (2.5, 1.0, 1.0)), surroundings(wanted, (2.5, 1.0, 1.0)).distance
    torch.testing.assert_close(around.distance.cpu(), far, rtol=1e-5, atol=0)


def many_and_none(seed: int) -> Seeds:
    """Three blocks with 3, 0 and 2 seeds."""
    components = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (3, 2, 4, 5)))
    components[1] = 0
    components[2] = components[2].clamp(max=2)
    return given_seeds(components)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_pooled_seeds_are_means(seed: int) -> None:
    seeds = many_and_none(seed)
    features = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 6, 2, 4, 5)).astype(np.float32))
    found = pool_seeds(features, seeds)
    assert [len(rows) for rows in found] == list(seeds.counts)
    for b, count in enumerate(seeds.counts):
        for n in range(count):
            wanted = features[b][:, seeds.components[b] == n + 1].mean(1)
            torch.testing.assert_close(found[b][n], wanted, rtol=1e-5, atol=1e-5)


def test_pooling_without_any_seed() -> None:
    seeds = given_seeds(torch.zeros(2, 2, 3, 3, dtype=torch.int64))
    assert seeds.counts == (0, 0)
    assert [tuple(rows.shape) for rows in pool_seeds(torch.randn(2, 5, 2, 3, 3), seeds)] == [(0, 5), (0, 5)]


def test_pooling_passes_gradients_to_the_seeds_voxels_alone() -> None:
    seeds = many_and_none(7)
    features = torch.randn(3, 2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.cat(pool_seeds(features, seeds)).sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad[:, 0] != 0, seeds.components > 0)


def test_pooling_half_precision_sums_in_full() -> None:
    features = torch.full((1, 1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    features[..., 0] = 0
    seeds = given_seeds(torch.ones(1, 1, 64, 64, dtype=torch.int64))
    (found,) = pool_seeds(features, seeds)
    assert found.dtype == torch.bfloat16
    assert float(found) == pytest.approx(63 / 64, rel=4e-3)


def distance_oracle(components: NDArray[Any], sampling: tuple[float, ...]) -> NDArray[Any]:
    """Distance of every voxel to every seed, (N + 1, D, H, W); row 0 unused."""
    count = int(components.max())
    found = np.full((count + 1, *components.shape), np.inf)
    for point, (n, voxels) in itertools.product(
        np.ndindex(*components.shape), ((n, np.argwhere(components == n)) for n in range(1, count + 1))
    ):
        if len(voxels):
            found[(n, *point)] = np.sqrt((((voxels - np.array(point)) * sampling) ** 2).sum(1)).min()
    return found


def sparse_seeds(seed: int) -> Seeds:
    """Three blocks with 3, 0 and 1 seeds of few voxels."""
    rng = np.random.default_rng(seed)
    components = np.zeros((3, 2, 5, 6), np.int64)
    for n, at in enumerate(rng.permutation(60)[:6]):
        components[0].ravel()[at] = n // 2 + 1
    components[2, 1, 2, 3] = 1
    return given_seeds(torch.from_numpy(components))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_surroundings_name_a_nearest_seed_and_its_distance(seed: int) -> None:
    seeds, sampling = sparse_seeds(seed), (2.5, 1.0, 1.0)
    found = surroundings(seeds, sampling)
    assert not found.nearest[1].any()
    assert not found.distance[1].any()
    for b in (0, 2):
        wanted = distance_oracle(seeds.components[b].numpy(), sampling)
        np.testing.assert_allclose(found.distance[b], wanted.min(0), rtol=1e-5)
        nearest = np.take_along_axis(wanted, found.nearest[b].numpy()[None], 0)[0]
        np.testing.assert_allclose(nearest, wanted.min(0), rtol=1e-5)
        inside = seeds.components[b] > 0
        assert torch.equal(found.nearest[b][inside], seeds.components[b][inside])


@pytest.mark.parametrize("queries", [3, 5])
def test_mask_prior_equals_a_loop(queries: int) -> None:
    seeds = sparse_seeds(11)
    around = surroundings(seeds, (2.5, 1.0, 1.0))
    inside, near, fade = torch.tensor(4.0), torch.tensor(3.0), torch.tensor(2.0)
    found = mask_prior(seeds, around, queries, inside, near, fade)
    assert found.shape == (3, queries, 2, 5, 6)
    for b, q, *point in np.ndindex(3, queries, 2, 5, 6):
        own, wanted = int(seeds.components[(b, *point)]), 0.0
        if q < seeds.counts[b]:
            if own:
                wanted = 4.0 if own == q + 1 else -4.0
            elif int(around.nearest[(b, *point)]) == q + 1:
                wanted = 3.0 * float(torch.exp(-around.distance[(b, *point)] / 2))
        assert float(found[(b, q, *point)]) == pytest.approx(wanted, rel=1e-5)


def test_mask_prior_is_differentiable_in_its_three_numbers() -> None:
    seeds = sparse_seeds(12)
    around = surroundings(seeds, (2.5, 1.0, 1.0))
    around = Surroundings(around.nearest, around.distance.double())
    numbers = [torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in (4.0, 3.0, 2.0)]
    weights = torch.randn(3, 4, 2, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *n: (mask_prior(seeds, around, 4, *n) * weights).sum(), numbers)


def test_mask_prior_makes_one_map_per_query_on_the_device() -> None:
    """Comparisons of every voxel with every query, masks and sums used to be maps of their own."""
    seeds = sparse_seeds(13)
    around, numbers = surroundings(seeds, (2.5, 1.0, 1.0)), (torch.tensor(4.0), torch.tensor(3.0), torch.tensor(2.0))
    wanted = mask_prior(seeds, around, 5, *numbers)
    with second_device() as (device, mode):
        there = Seeds(seeds.components.to(device), seeds.counts)
        near = Surroundings(around.nearest.to(device), around.distance.to(device))
        strengths = [number.to(device) for number in numbers]
        mode.read = mode.sent = 0
        mode.made.clear()
        found = mask_prior(there, near, 5, *strengths)
        assert (mode.read, mode.sent) == (0, 0)
        assert sum(size >= wanted.numel() for size in mode.made) <= 2  # what all queries get, and the sum
    assert torch.equal(found.values, wanted)
