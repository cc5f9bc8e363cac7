"""The discriminative loss and the losses of pixel-embedded affinity, against their formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.core.affinity import affinity_targets, class_balance
from distill.core.known import UNKNOWN
from distill.training.objective.discriminative import discriminative_loss
from distill.training.objective.losses import multi_offset_loss
from distill.training.objective.pixel_embedding import View, pyramid_loss


def by_hand(embedding: Tensor, labels: Tensor, pull: float, push: float) -> float:
    total = 0.0
    for block, ids in zip(embedding, labels, strict=True):
        means = {int(i): block[:, ids == i].mean(1) for i in ids.unique() if i > 0}
        variance = np.mean(
            [
                np.mean([max(0.0, float((e - mean).norm()) - pull) ** 2 for e in block[:, ids == i].T])
                for i, mean in means.items()
            ]
        )
        pairs = [max(0.0, 2 * push - float((means[a] - means[b]).norm())) ** 2 for a in means for b in means if a < b]
        total += (
            variance + (np.mean(pairs) if pairs else 0.0) + 1e-3 * np.mean([float(m.norm()) for m in means.values()])
        )
    return total / len(embedding)


def test_the_discriminative_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    embedding, labels = torch.randn(2, 3, 2, 4, 4), torch.randint(-1, 4, (2, 2, 4, 4))
    assert int(labels.min()) == UNKNOWN
    found = discriminative_loss(embedding, labels, pull=0.3, push=1.2)
    assert float(found) == pytest.approx(by_hand(embedding, labels, 0.3, 1.2), rel=1e-4)


def test_clusters_within_the_margins_cost_their_length_only() -> None:
    labels = torch.tensor([1, 1, 9, 9]).view(1, 1, 1, 4)
    embedding = torch.tensor([[1.9, 2.1, -2.0, -2.0], [0.0, 0.0, 0.0, 0.0]]).view(1, 2, 1, 1, 4)
    assert float(discriminative_loss(embedding, labels)) == pytest.approx(2e-3, rel=1e-4)


def test_gradients_of_the_discriminative_loss() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1, 1, 3, 4))
    embedding = torch.randn(1, 2, 1, 3, 4, requires_grad=True)
    discriminative_loss(embedding, labels).backward()
    grad = embedding.grad
    assert grad is not None
    assert not grad[:, :, labels[0] == 0].any()
    assert torch.autograd.gradcheck(
        lambda e: discriminative_loss(e, labels, pull=0.3, push=1.1), embedding.detach().double().requires_grad_()
    )
    same = torch.zeros(1, 2, 1, 3, 4, requires_grad=True)  # every mean at the same place
    discriminative_loss(same, labels).backward()
    assert bool(same.grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [0, UNKNOWN])
def test_without_instances_the_discriminative_loss_is_0(value: int) -> None:
    labels = torch.full((2, 1, 2, 2), value)
    assert float(discriminative_loss(torch.randn(2, 3, 1, 2, 2), labels)) == 0


def test_the_pyramid_takes_every_second_label() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (1, 3, 9, 10)).repeat_interleave(1, 1)
    coarse, coarser = torch.randn(1, 4, 3, 5, 5), torch.randn(1, 4, 3, 3, 3)
    wanted = (
        multi_offset_loss(coarse, labels[:, :, ::2, ::2]) + multi_offset_loss(coarser, labels[:, :, ::4, ::4])
    ) / 2
    torch.testing.assert_close(pyramid_loss([coarse, coarser], labels), wanted)


def test_the_loss_across_views_is_its_formula() -> None:
    torch.manual_seed(0)
    one, two, labels = torch.randn(1, 3, 2, 4, 5), torch.randn(1, 3, 2, 4, 5), torch.randint(0, 3, (1, 2, 4, 5))
    targets = affinity_targets(labels, [(0, -1, 0)])
    weight = class_balance(targets.target[:, 0], targets.valid[:, 0])
    cosine = torch.nn.functional.cosine_similarity(one[:, :, :, 1:], two[:, :, :, :-1])
    error = weight[:, :, 1:] * (cosine - targets.target[:, 0, :, 1:]).square()
    found = multi_offset_loss(one, labels, [(0, -1, 0)], other=two)
    torch.testing.assert_close(found, 10 * error.mean())
    torch.testing.assert_close(multi_offset_loss(one, labels, other=one), multi_offset_loss(one, labels))


def test_a_view_comes_back_onto_the_voxels_of_the_block() -> None:
    raw = torch.rand(2, 1, 3, 4, 5)
    drawn = [View.drawn(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {axis for view in drawn for axis in view.axes} == {2, 3, 4}
    assert any(not view.axes for view in drawn)
    for view in drawn:
        seen = view.of(raw)
        assert 0.75 <= view.contrast <= 1.25
        assert abs(view.brightness) <= 0.1
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1
        wanted = ((raw - 0.5) * view.contrast + 0.5 + view.brightness).clamp(0, 1)
        torch.testing.assert_close(view.back(seen), wanted)
    assert View.drawn(torch.Generator().manual_seed(3)) == View.drawn(torch.Generator().manual_seed(3))
