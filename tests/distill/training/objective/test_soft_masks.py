"""Masks as soft targets: against loops in plain Python, the hard losses, all assignments, and finite differences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.decoder.matching import Match
from distill.training.objective.losses import mask_cross_entropy, mask_dice
from distill.training.objective.soft_masks import (
    QueryPairs,
    pairs_by_instance,
    pairs_by_overlap,
    soft_dice_matrix,
    soft_mask_cross_entropy,
    soft_mask_dice,
)


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the losses, which compute in float32, compute in float64, so that gradients can be checked sharply."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pairs_of(*pairs: tuple[int, int]) -> QueryPairs:
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return QueryPairs(both[:, 0], both[:, 1])


def match_of(*pairs: tuple[int, int]) -> Match:
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Match(both[:, 0], both[:, 1])


def listed(pairs: QueryPairs) -> list[tuple[int, int]]:
    return list(zip(pairs.student.tolist(), pairs.teacher.tolist(), strict=True))


PAIRS = [pairs_of((2, 1), (0, 3)), pairs_of((1, 0))]


def shares(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(0).flatten(1).numpy()


def cross_entropy_oracle(masks: Tensor, taught: Tensor, pairs: list[QueryPairs]) -> float:
    total = mass = 0.0
    for own, other, both in zip(masks, taught, pairs, strict=True):
        p, q = shares(own), shares(other)
        for s, t in [(0, 0), *((1 + a, 1 + b) for a, b in listed(both))]:
            for v in range(p.shape[1]):
                total -= q[t, v] * math.log(p[s, v])
                mass += q[t, v]
    return total / mass


def dice_oracle(masks: Tensor, taught: Tensor, pairs: list[QueryPairs]) -> float:
    losses = []
    for own, other, both in zip(masks, taught, pairs, strict=True):
        p, q = shares(own), shares(other)
        for s, t in listed(both):
            inside = [1 - q[0, v] for v in range(p.shape[1])]
            common = sum(w * p[1 + s, v] * q[1 + t, v] for v, w in enumerate(inside))
            size = sum(w * (p[1 + s, v] + q[1 + t, v]) for v, w in enumerate(inside))
            losses.append(1 - 2 * common / size)
    return float(np.mean(losses)) if losses else 0.0


LOSSES = [(soft_mask_cross_entropy, cross_entropy_oracle), (soft_mask_dice, dice_oracle)]


@pytest.mark.parametrize(("loss", "oracle"), LOSSES)
def test_losses_equal_a_loop(loss: Any, oracle: Any) -> None:
    masks, taught = random(2, 4, 2, 3, 2, seed=1), random(2, 6, 2, 3, 2, seed=2)
    masks[1, 3] = -torch.inf  # a query that the second block lacks
    taught[1, 4:] = -torch.inf
    assert float(loss(masks, taught, PAIRS)) == pytest.approx(oracle(masks, taught, PAIRS), rel=1e-5)
    drawn = masks.flatten(2)[..., :5], taught.flatten(2)[..., :5]
    assert float(loss(*drawn, PAIRS)) == pytest.approx(oracle(*drawn, PAIRS), rel=1e-5)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("loss", [soft_mask_cross_entropy, soft_mask_dice])
def test_gradients(loss: Any) -> None:
    masks = random(2, 4, 1, 2, 2, seed=1, dtype=torch.float64).requires_grad_()
    taught = random(2, 5, 1, 2, 2, seed=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, t: loss(m, t, PAIRS), (masks, taught))
    assert torch.autograd.gradcheck(lambda m: loss(m, taught.detach(), PAIRS), masks)


@pytest.mark.parametrize("loss", [soft_mask_cross_entropy, soft_mask_dice])
def test_a_lacking_query_leaves_gradients_finite(loss: Any) -> None:
    masks, taught = random(2, 4, 1, 2, 3, seed=1), random(2, 5, 1, 2, 3, seed=2)
    masks[1, 3], taught[0, 3] = -torch.inf, -torch.inf
    masks.requires_grad_()
    loss(masks, taught, PAIRS).backward()
    assert masks.grad is not None
    assert bool(masks.grad.isfinite().all())
    assert bool(masks.grad.any())


def test_certain_masks_are_labels() -> None:
    labels = torch.randint(0, 4, (1, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    channel = torch.tensor([0, 3, 1, 2])[labels]  # the teacher's queries 2, 0, 1 hold the instances 1, 2, 3
    taught = 200 * F.one_hot(channel, 4).movedim(-1, 1).float()
    masks = random(1, 6, 2, 3, 4, seed=1)
    student, teacher = [match_of((4, 1), (0, 2), (2, 3))], [match_of((2, 1), (0, 2), (1, 3))]
    both = pairs_by_instance(student, teacher, taught)
    assert listed(both[0]) == [(4, 2), (0, 0), (2, 1)]
    hard = float(mask_cross_entropy(masks, labels, student)), float(mask_dice(masks, labels, student))
    soft = float(soft_mask_cross_entropy(masks, taught, both)), float(soft_mask_dice(masks, taught, both))
    assert soft == pytest.approx(hard, rel=1e-5)


def test_the_teachers_own_masks_are_the_cheapest() -> None:
    taught = random(1, 4, 2, 4, 4, seed=3) * 3
    all_pairs = [pairs_of((0, 0), (1, 1), (2, 2))]
    best = float(soft_mask_cross_entropy(taught, taught, all_pairs))
    for seed in range(20):
        other = taught + 0.1 * random(1, 4, 2, 4, 4, seed=seed)
        assert float(soft_mask_cross_entropy(other, taught, all_pairs)) > best
    certain = 30 * taught
    assert float(soft_mask_dice(certain, certain, all_pairs)) < 0.05
    assert float(soft_mask_dice(certain, certain, [pairs_of((0, 1), (1, 2), (2, 0))])) > 0.9


def test_without_pairs_the_background_alone_is_taught() -> None:
    masks, taught = random(2, 4, 1, 2, 3, seed=1), random(2, 5, 1, 2, 3, seed=2)
    none = [pairs_of(), pairs_of()]
    assert float(soft_mask_dice(masks, taught, none)) == 0
    found = float(soft_mask_cross_entropy(masks, taught, none))
    assert found == pytest.approx(cross_entropy_oracle(masks, taught, none), rel=1e-5)
    taught[:, 0] = -torch.inf  # no background either
    assert float(soft_mask_cross_entropy(masks, taught, none)) == 0


def test_pairs_stand_for_the_same_instance_and_win_a_voxel() -> None:
    taught = torch.full((1, 5, 1, 1, 4), -5.0)
    taught[0, 1, 0, 0, :2] = taught[0, 4, 0, 0, 2] = (
        5  # the teacher's queries 0 and 3 win voxels, the last is background
    )
    taught[0, 0, 0, 0, 3] = 5
    student = [match_of((7, 1), (3, 2), (5, 3))]
    teacher = [match_of((3, 3), (1, 2), (0, 4))]
    (both,) = pairs_by_instance(student, teacher, taught)
    assert listed(both) == [(5, 3)]  # instance 2's query wins nothing, 1 and 4 have only one


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_no_assignment_overlaps_more(seed: int, queries: int, teachers: int) -> None:
    masks, taught = random(1, 1 + queries, 2, 2, 3, seed=seed), random(1, 1 + teachers, 2, 2, 3, seed=seed + 1)
    score = np.zeros((queries, teachers))
    p, q = shares(masks[0])[1:], shares(taught[0])[1:]
    for s, t in itertools.product(range(queries), range(teachers)):
        score[s, t] = 2 * (p[s] * q[t]).sum() / (p[s].sum() + q[t].sum())
    np.testing.assert_allclose(soft_dice_matrix(masks[0], taught[0]), score, atol=1e-5)
    winning = sorted(set(taught[0].argmax(0).flatten().tolist()) - {0})
    there = score[:, [t - 1 for t in winning]]
    wide = there if there.shape[0] <= there.shape[1] else there.T
    best = max(
        (sum(wide[r, c] for r, c in enumerate(p)) for p in itertools.permutations(range(wide.shape[1]), wide.shape[0])),
        default=0.0,
    )
    (found,) = pairs_by_overlap(masks, taught)
    pairs = listed(found)
    assert len({s for s, _ in pairs}) == len({t for _, t in pairs}) == len(pairs) == min(there.shape)
    assert {t + 1 for _, t in pairs} <= set(winning)
    assert sum(score[s, t] for s, t in pairs) == pytest.approx(best, abs=1e-5)


def test_overlap_finds_the_same_masks_in_another_order() -> None:
    taught = 5 * random(1, 5, 2, 4, 4, seed=1)
    taught[0, 2] = -torch.inf  # a query that the block lacks
    order = [2, 0, 3, 1]
    masks = taught[:, [0, *(1 + n for n in order)]]
    (found,) = pairs_by_overlap(masks, taught)
    assert sorted(listed(found)) == sorted((s, t) for s, t in enumerate(order) if t != 1)
