"""Flooding from seeds against a brute-force search of the strongest path."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from distill.segmentation import flooding
from distill.segmentation.flooding import flood, propagate
from distill.segmentation.supervoxels import spanning_forest


def strongest(components: NDArray[np.int64], affinity: NDArray[np.float32]) -> dict[int, NDArray[np.float64]]:
    """For every seed the strength of its best path to every voxel, by Dijkstra with min instead of sum."""
    found = {}
    shape = components.shape
    for seed in np.unique(components[components > 0]):
        best = np.where(components == seed, 1.0, -1.0)
        queue = [(-1.0, tuple(int(i) for i in p)) for p in np.argwhere(components == seed)]
        heapq.heapify(queue)
        while queue:
            strength, at = heapq.heappop(queue)
            for axis in range(3):
                for step in (-1, 1):
                    to = tuple(p + step * (a == axis) for a, p in enumerate(at))
                    if not all(0 <= p < n for p, n in zip(to, shape, strict=True)):
                        continue
                    holder = at if step < 0 else to
                    offered = min(-strength, float(affinity[(axis, *holder)]))
                    if components[to] in (0, seed) and offered > best[to]:
                        best[to] = offered
                        heapq.heappush(queue, (-offered, to))
        found[int(seed)] = best
    return found


@st.composite
def blocks(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    shape = draw(st.tuples(*(st.integers(1, 5) for _ in range(3))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(2, 50))
    affinity = (rng.integers(0, levels, (3, *shape)) / (levels - 1)).astype(np.float32)
    components = rng.integers(1, 5, shape) * (rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.2, 0.6])))
    return components.astype(np.int64), affinity


@given(blocks())
@settings(max_examples=80, deadline=None)
def test_every_voxel_goes_to_a_seed_whose_path_to_it_is_the_strongest(
    block: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> None:
    components, affinity = block
    by_seed = strongest(components, affinity)
    tree = spanning_forest(components, affinity)
    owner, strength = (part[0].numpy() for part in propagate(*(torch.from_numpy(part)[None] for part in block)))
    if not by_seed:
        assert not tree.any()
        assert not owner.any()
        assert (strength == -1).all()
        return
    best = np.max(list(by_seed.values()), axis=0)
    np.testing.assert_allclose(strength, best, atol=1e-6)
    for given_to in (tree, owner):
        assert (given_to[components > 0] == components[components > 0]).all()
        reached = np.select([given_to == seed for seed in by_seed], list(by_seed.values()), -2.0)
        np.testing.assert_allclose(reached, best, atol=1e-6)


def test_a_membrane_stops_the_flood_that_distance_would_let_through() -> None:
    affinity = np.ones((3, 1, 1, 9), np.float32)
    affinity[2, 0, 0, 2] = 0.1  # membrane between x = 1 and x = 2, next to the first seed
    components = np.zeros((1, 1, 9), np.int64)
    components[0, 0, 0], components[0, 0, 8] = 1, 2
    wanted = [1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert spanning_forest(components, affinity)[0, 0].tolist() == wanted
    assert flood(torch.from_numpy(components)[None], torch.from_numpy(affinity)[None])[0, 0, 0].tolist() == wanted


def test_behind_a_common_weakest_edge_the_nearer_basin_wins() -> None:
    # seed 1 reaches x = 3 through 0.9 and 0.2, seed 2 through 0.5, 0.9 and 0.2: the weakest edge is the same
    affinity = np.zeros((3, 1, 1, 5), np.float32)
    affinity[2, 0, 0] = [0, 0.5, 0.9, 0.9, 0.2]
    components = np.array([[[2, 0, 0, 1, 0]]], np.int64)
    for found in (
        spanning_forest(components, affinity),
        propagate(torch.from_numpy(components)[None], torch.from_numpy(affinity)[None])[0][0].numpy(),
    ):
        assert found[0, 0].tolist() == [2, 1, 1, 1, 1]


def test_a_batch_is_its_blocks() -> None:
    rng = np.random.default_rng(0)
    affinity = torch.from_numpy(rng.random((3, 3, 4, 9, 11)).astype(np.float32))
    components = torch.from_numpy(rng.integers(1, 6, (3, 4, 9, 11)) * (rng.random((3, 4, 9, 11)) < 0.1))
    components[1] = 0
    whole = flood(components, affinity)
    assert not whole[1].any()
    for b in range(3):
        assert torch.equal(flood(components[b : b + 1], affinity[b : b + 1])[0], whole[b])
        assert torch.equal(
            propagate(components[b : b + 1], affinity[b : b + 1])[0][0], propagate(components, affinity)[0][b]
        )
    assert torch.equal(whole, propagate(components, affinity)[0])  # no ties among random numbers


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bad", [0.5, float("nan")])
def test_propagation_has_one_order_and_an_end(bad: float) -> None:
    """Every voxel is computed by itself from values of before: nothing is summed or scattered, so a GPU, where such
    sums come in any order, repeats the result bit for bit. The longest path sets the number of rounds.
    """
    rng = np.random.default_rng(2)
    affinity = torch.from_numpy(rng.random((1, 3, 3, 20, 20)).astype(np.float32))
    affinity[0, 2, 1, 4, 4] = bad
    components = torch.from_numpy(rng.integers(1, 6, (1, 3, 20, 20)) * (rng.random((1, 3, 20, 20)) < 0.02))
    with Operations() as operations:
        propagate(components, affinity)
    alone = {"maximum", "minimum", "where", "eq", "gt", "bitwise_and", "copy_", "clone", "scalar_tensor", "full"}
    shape = {"slice", "narrow", "select", "view", "detach", "alias", "unsqueeze", "_to_copy", "equal", "resize_"}
    assert not operations.seen.keys() - alone - shape, operations.seen.keys() - alone - shape
    assert operations.seen["equal"] <= 2 * (components.numel() // flooding._ROUNDS + 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_floods_alike() -> None:
    rng = np.random.default_rng(1)
    affinity = torch.from_numpy(rng.random((2, 3, 5, 40, 41)).astype(np.float32))
    components = torch.from_numpy(rng.integers(1, 30, (2, 5, 40, 41)) * (rng.random((2, 5, 40, 41)) < 0.02))
    found = flood(components.cuda(), affinity.cuda())
    assert found.is_cuda
    assert torch.equal(found.cpu(), flood(components, affinity))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_edge_that_is_no_number_ends_and_joins_nothing(bad: float) -> None:
    """On a device a single one kept the loop from ever being steady."""
    components = torch.zeros(1, 1, 1, 8, dtype=torch.int64)
    components[0, 0, 0, 0], components[0, 0, 0, 7] = 1, 2
    affinity = torch.full((1, 3, 1, 1, 8), 0.5)
    affinity[0, 2, 0, 0, 4] = bad
    known = torch.nan_to_num(affinity, nan=-1.0)
    wanted = [1] * 4 + [2] * 4
    if not np.isposinf(bad):
        assert flood(components, affinity)[0, 0, 0].tolist() == wanted
        assert propagate(components, known)[0][0, 0, 0].tolist() == wanted
    owner, _ = propagate(components, affinity)  # whatever it is given, it comes back
    assert owner.shape == components.shape
