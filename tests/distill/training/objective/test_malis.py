"""The constrained MALIS loss against brute force over all pairs of voxels, and its gradient."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import Targets, affinity_targets
from distill.core.known import UNKNOWN
from distill.segmentation.maximin import constrained_pairs
from distill.training.objective.malis import malis_loss, malis_pairs

Edge = tuple[int, int, int, int]


def edges_of(shape: tuple[int, int, int]) -> list[tuple[Edge, int, int]]:
    """All edges with the numbers of their two voxels."""
    number = np.arange(np.prod(shape)).reshape(shape)
    found = []
    for axis in range(3):
        for place in np.ndindex(*shape):
            if place[axis] > 0:
                before = tuple(p - (a == axis) for a, p in enumerate(place))
                found.append(((axis, *place), int(number[place]), int(number[before])))
    return found


def decisive(strength: NDArray[np.float64], taking_part: NDArray[np.bool_], first: int, second: int) -> Edge | None:
    """The edge at which two voxels become connected as edges are taken from the strongest; None if never."""
    edges = [edge for edge in edges_of(strength.shape[1:]) if taking_part[edge[0]]]
    edges.sort(key=lambda edge: -strength[edge[0]])  # stable: by direction and place
    group = list(range(int(np.prod(strength.shape[1:]))))
    for edge, one, other in edges:
        old, new = group[one], group[other]
        group = [new if g == old else g for g in group]
        if group[first] == group[second]:
            return edge
    return None


def brute_force(
    affinity: NDArray[np.float64], labels: NDArray[np.int64], targets: Targets
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    target, known = targets.target.numpy() > 0.5, targets.valid.numpy()
    same, different = np.zeros_like(affinity), np.zeros_like(affinity)
    joined = np.where(target & known, 2.0, affinity)  # edges inside objects come first
    for first, second in combinations(range(labels.size), 2):
        one, other = labels.flat[first], labels.flat[second]
        if one <= 0 or other <= 0:
            continue
        if one == other:
            edge = decisive(affinity, target & known, first, second)
            if edge is not None:
                same[edge] += 1
        else:
            edge = decisive(joined, known, first, second)
            if edge is not None:
                different[edge] += 1
    return same, different


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), shape=st.sampled_from([(1, 3, 4), (2, 3, 2), (3, 2, 2), (1, 1, 5)]), ties=st.booleans()
)
def test_pairs_of_every_edge_equal_brute_force(seed: int, shape: tuple[int, int, int], ties: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([UNKNOWN, 0, 1, 1, 2, 2, 3], shape).astype(np.int64)
    affinity = rng.integers(0, 4, (3, *shape)) / 4 if ties else rng.random((3, *shape))
    targets = affinity_targets(torch.from_numpy(labels))
    found = constrained_pairs(affinity, labels, targets.target.numpy() > 0.5, targets.valid.numpy())
    for mine, wanted in zip(found, brute_force(affinity, labels, targets), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_one_leak_carries_all_pairs_that_it_joins() -> None:
    labels = torch.tensor([1, 1, 1, 2, 2]).view(1, 1, 1, 5)
    affinity = torch.zeros(1, 3, 1, 1, 5)
    affinity[0, 2, 0, 0] = torch.tensor([0.0, 0.9, 0.2, 0.6, 0.8])
    same, different = malis_pairs(affinity, labels, affinity_targets(labels))
    assert same[0, 2, 0, 0].tolist() == [0, 1, 2, 0, 1]
    assert different[0, 2, 0, 0].tolist() == [0, 0, 0, 6, 0]
    found = malis_loss(affinity, labels, affinity_targets(labels))
    wanted = (1 * 0.1**2 + 2 * 0.8**2 + 1 * 0.2**2) / 4 + 0.6**2
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_two_pieces_of_a_neuron_are_not_pushed_apart() -> None:
    labels = torch.tensor([1, 0, 1, 0, 2]).view(1, 1, 1, 5)
    affinity = torch.full((1, 3, 1, 1, 5), 0.5)
    same, different = malis_pairs(affinity, labels, affinity_targets(labels))
    assert float(same.sum()) == 0
    assert float(different.sum()) == 2  # of the two voxels with the third


@pytest.mark.parametrize("values", [[0, 0, 0, 0], [1, 1, 1, 1], [UNKNOWN] * 4, [1, 0, 0, 0]])
def test_blocks_without_pairs_of_one_sort(values: list[int]) -> None:
    labels = torch.tensor(values).view(1, 1, 2, 2)
    affinity = torch.full((1, 3, 1, 2, 2), 0.25, requires_grad=True)
    loss = malis_loss(affinity, labels, affinity_targets(labels))
    loss.backward()
    assert bool(affinity.grad.isfinite().all())  # type: ignore[union-attr]
    assert float(loss.detach()) == pytest.approx(0.75**2 if values == [1, 1, 1, 1] else 0)


def block(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, 4, (2, 2, 3, 3))).repeat_interleave(2, -1)
    return torch.from_numpy(rng.random((2, 3, 2, 3, 6))), labels


def test_the_gradient_is_that_of_the_weighted_errors() -> None:
    affinity, labels = block()
    targets = affinity_targets(labels)
    assert torch.autograd.gradcheck(
        lambda a: malis_loss(a, labels, targets), affinity.clone().requires_grad_(), eps=1e-7, atol=1e-6
    )
    given = affinity.clone().requires_grad_()
    malis_loss(given, labels, targets).backward()
    same, different = malis_pairs(affinity, labels, targets)
    wanted = 2 * (affinity - 1) * same / same.sum() + 2 * affinity * different / different.sum()
    torch.testing.assert_close(given.grad, wanted, rtol=1e-5, atol=1e-8)


def test_a_batch_is_its_blocks_together() -> None:
    affinity, labels = block(1)
    targets = affinity_targets(labels)
    both = malis_pairs(affinity, labels, targets)
    for b in range(2):
        part = slice(b, b + 1)
        alone = malis_pairs(affinity[part], labels[part], Targets(targets.target[part], targets.valid[part]))
        for one, two in zip(both, alone, strict=True):
            assert torch.equal(one[part], two)


def test_relabelling_changes_nothing() -> None:
    affinity, labels = block(2)
    moved = torch.where(labels > 0, labels * 7 + 100, labels)
    one, two = (
        malis_loss(affinity, labels, affinity_targets(labels)),
        malis_loss(affinity, moved, affinity_targets(moved)),
    )
    assert torch.equal(one, two)
