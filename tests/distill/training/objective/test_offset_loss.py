"""Auxiliary affinities at longer offsets: against a loop over edges, and as a switch of the configuration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from distill.config.training import LONG_RANGE, DistillLoss
from distill.core.affinity import MULTI, class_balance, unit
from distill.core.geometry import Triple
from distill.core.known import UNKNOWN
from distill.training.objective.losses import student_offset_loss, weighted_mse

OFFSETS: tuple[Triple, ...] = ((-2, 0, 0), (-4, 0, 0), (0, -3, 0), (0, 0, 2), (0, 2, -1))


def embeddings(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Previous and current branch (2, 3, 4, 6, 7) and labels (2, 5, 6, 7), some voxels of which are unknown."""
    drawing = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (2, 5, 6, 7), generator=drawing)
    labels[torch.rand(labels.shape, generator=drawing) < 0.1] = UNKNOWN
    previous, current = (torch.randn(2, 3, 4, 6, 7, generator=drawing, dtype=torch.float64) for _ in range(2))
    return previous, current, labels


def by_edge(
    previous: Tensor, current: Tensor, labels: Tensor, offsets: Sequence[Triple], grid: int, phase: tuple[int, int]
) -> float:
    """The loss with one edge after another."""
    before, now, total = unit(previous), unit(current), []
    for offset in offsets:
        cosine, target = torch.zeros(labels.shape), torch.zeros(labels.shape)
        valid = torch.zeros(labels.shape, dtype=torch.bool)
        for z, y, x in itertools.product(*(range(size) for size in labels.shape[1:])):
            there = (z + offset[0], y + offset[1], x + offset[2])
            # the grid begins at the first pixel whose partner lies inside
            first = tuple(max(0, -step) + start for step, start in zip(offset[1:], phase, strict=True))
            drawn = all(p >= f and (p - f) % grid == 0 for p, f in zip((y, x), first, strict=True))
            inside = all(0 <= p < size for p, size in zip(there, labels.shape[1:], strict=True))
            if z == 0 or not (drawn and inside):
                continue
            partner = before[:, :, there[0]] if offset[0] else now[:, :, z - 1]
            cosine[:, z, y, x] = (now[:, :, z - 1, y, x] * partner[:, :, there[1], there[2]]).sum(1).float()
            one, other = labels[:, z, y, x], labels[:, there[0], there[1], there[2]]
            target[:, z, y, x] = ((one == other) & (one > 0)).float()
            valid[:, z, y, x] = (one != UNKNOWN) & (other != UNKNOWN)
        total.append(float(weighted_mse(cosine, target, class_balance(target, valid), valid)))
    return sum(total) / len(total)


@pytest.mark.parametrize(("grid", "phase"), [(1, (0, 0)), (2, (1, 0)), (3, (0, 2))])
def test_the_loss_equals_a_loop_over_edges(grid: int, phase: tuple[int, int]) -> None:
    previous, current, labels = embeddings()
    found = student_offset_loss(previous, current, labels, OFFSETS, grid=grid, phase=phase)
    assert float(found) == pytest.approx(by_edge(previous, current, labels, OFFSETS, grid, phase), rel=1e-5)


def test_offsets_that_leave_the_block_cost_nothing() -> None:
    previous, current, labels = embeddings()
    assert float(student_offset_loss(previous, current, labels, [(-5, 0, 0), (0, -6, 0), (0, 0, 9)])) == 0
    both = student_offset_loss(previous, current, labels, [(0, 0, 9), (0, -3, 0)])
    assert float(both) == float(student_offset_loss(previous, current, labels, [(0, -3, 0)]))


def test_gradients_reach_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the loss computes in float32, too coarse here
    previous, current, labels = embeddings(1)
    previous.requires_grad_()
    current.requires_grad_()
    offsets = [(-2, 0, 0), (0, -3, 0)]
    assert torch.autograd.gradcheck(
        lambda one, other: student_offset_loss(one, other, labels, offsets), (previous, current)
    )
    student_offset_loss(previous, current, labels, offsets).backward()
    for branch in (previous, current):
        assert branch.grad is not None
        assert float(branch.grad.abs().sum()) > 0


def test_one_direction_for_each_neuron_costs_nothing() -> None:
    labels = torch.randint(1, 4, (1, 5, 6, 7), generator=torch.Generator().manual_seed(2))
    exact = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).double()
    assert float(student_offset_loss(exact[:, :, :-1], exact[:, :, 1:], labels, OFFSETS)) == pytest.approx(0)
    assert float(student_offset_loss(exact[:, :, 1:], exact[:, :, 1:], labels, OFFSETS)) > 0.1  # sections confused


def test_the_offsets_are_the_teachers_beyond_the_nearest() -> None:
    assert MULTI[3:] == LONG_RANGE


@pytest.mark.parametrize("wrong", [(0, 0, 0), (1, 0, 0), (-1, 1, 0)])
def test_offsets_that_no_pair_of_embeddings_can_have_are_refused(wrong: Triple) -> None:
    with pytest.raises(ValueError, match=r"expected \[-k, 0, 0\] with k > 0, or \[0, y, x\]"):
        DistillLoss(offsets=((0, -3, 0), wrong))
