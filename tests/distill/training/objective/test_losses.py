"""The losses against loops in plain Python, their gradients, their masks, and what they are at the goal."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_oracles import cross_entropy_oracle, random
from numpy.typing import NDArray
from torch import Tensor

from distill.config import load_pair
from distill.core.affinity import MULTI, affinity_targets, as_label_tensor, class_balance, embedding_affinity
from distill.decoder.matching import Match, dice_matrix, match
from distill.training.objective import objective as joint
from distill.training.objective import query_terms
from distill.training.objective.losses import (
    affinity_cross_entropy,
    affinity_loss,
    at_points,
    cross_dimension_loss,
    draw_points,
    grafting_loss,
    instance_discrimination,
    instance_targets,
    mask_cross_entropy,
    mask_dice,
    multi_offset_loss,
    student_offset_loss,
    weighted_mse,
)
from distill.training.objective.soft_masks import (
    QueryPairs,
    soft_dice_matrix,
    soft_mask_cross_entropy,
    soft_mask_dice,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the losses, which compute in float32, compute in float64, so that gradients can be checked sharply."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def match_of(*pairs: tuple[int, int]) -> Match:
    """Pairs of (query from 0, instance from 1)."""
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Match(both[:, 0], both[:, 1])


def balance(target: list[float]) -> list[float]:
    share = min(0.99, max(0.05, sum(t > 0.5 for t in target) / max(1, len(target))))
    positive, negative = (1.0, share / (1 - share)) if share > 0.5 else ((1 - share) / share, 1.0)
    return [positive if t > 0.5 else negative for t in target]


def channel_oracle(predicted: Tensor, target: Tensor, valid: Tensor) -> float:
    """Class-balanced MSE of one channel: the balance per sample, the mean over the valid entries of the batch."""
    total, count = 0.0, 0
    for p, t, v in zip(predicted, target, valid, strict=True):
        ps, ts = p[v].tolist(), t[v].tolist()
        total += sum(w * (a - b) ** 2 for w, a, b in zip(balance(ts), ps, ts, strict=True))
        count += len(ps)
    return total / max(1, count)


# Affinities


def test_weighted_mse_is_a_mean_over_valid_entries() -> None:
    predicted, target, weight = uniform(2, 5, seed=1), uniform(2, 5, seed=2), uniform(2, 5, seed=3)
    valid = integers(2, 2, 5, seed=4).bool()
    found = weighted_mse(predicted, target, weight, valid)
    wanted = sum(float(weight[i] * (predicted[i] - target[i]) ** 2) for i in np.ndindex(2, 5) if valid[i]) / int(
        valid.sum()
    )
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert float(weighted_mse(predicted, target, weight, torch.zeros_like(valid))) == 0


@pytest.mark.parametrize("loss", [affinity_loss, cross_dimension_loss])
def test_affinity_losses_equal_a_loop(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    predicted, target = uniform(2, 3, 2, 4, 3, seed=1), uniform(2, 3, 2, 4, 3, seed=2) ** 0.3
    valid = integers(4, 2, 3, 2, 4, 3, seed=3) > 0
    wanted = [channel_oracle(predicted[:, k], target[:, k], valid[:, k]) for k in range(3)]
    assert float(loss(predicted, target, valid)) == pytest.approx(sum(wanted) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [affinity_loss, cross_dimension_loss, affinity_cross_entropy])
def test_affinity_losses_see_valid_edges_alone(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    predicted, target = uniform(1, 3, 2, 4, 3, seed=1), integers(2, 1, 3, 2, 4, 3, seed=2).float()
    valid = integers(2, 1, 3, 2, 4, 3, seed=3).bool()
    plain = loss(predicted, target, valid)
    assert torch.equal(plain, loss(torch.where(valid, predicted, 7.0), torch.where(valid, target, 1.0), valid))
    assert not torch.equal(plain, loss(torch.where(valid, 0.9, predicted), target, valid))
    assert float(loss(predicted, target, torch.zeros_like(valid))) == 0


@pytest.mark.parametrize("loss", [affinity_loss, cross_dimension_loss])
def test_the_right_affinities_cost_nothing(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    targets = affinity_targets(integers(3, 1, 3, 4, 4))
    assert float(loss(targets.target, targets.target, targets.valid)) == 0


def test_affinity_cross_entropy_equals_a_loop() -> None:
    logits, target = random(2, 3, 4, seed=1), uniform(2, 3, 4, seed=2)
    valid = integers(3, 2, 3, 4, seed=3) > 0
    terms = []
    for i in np.ndindex(2, 3, 4):
        p, t = 1 / (1 + math.exp(-float(logits[i]))), float(target[i])
        if valid[i]:
            terms.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
    assert float(affinity_cross_entropy(logits, target, valid)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    sure = affinity_cross_entropy((target.round() - 0.5) * 60, target.round(), valid)
    assert float(sure) < 1e-6


def test_multi_offset_loss_equals_a_loop() -> None:
    embedding, labels = random(2, 3, 3, 4, 4), integers(3, 2, 3, 4, 4)
    wanted = 0.0
    for k, offset in enumerate(MULTI):
        targets = affinity_targets(labels, [offset])
        cosine = embedding_affinity(embedding, [offset], clamp=False)
        wanted += (10 if k < 3 else 1) * channel_oracle(cosine[:, 0], targets.target[:, 0], targets.valid[:, 0])
    assert float(multi_offset_loss(embedding, labels)) == pytest.approx(wanted, rel=1e-5)


def one_hot(labels: Tensor, ids: int) -> Tensor:
    """(B, D, H, W) -> (B, ids, D, H, W): embeddings whose cosine is 1 within an id and 0 between two."""
    return F.one_hot(labels, ids).movedim(-1, 1).float()


def test_multi_offset_loss_of_one_direction_per_id_is_zero() -> None:
    labels = integers(3, 1, 3, 5, 5) + 1
    assert float(multi_offset_loss(one_hot(labels, 4) * 3, labels)) == pytest.approx(0, abs=1e-6)
    assert float(multi_offset_loss(one_hot(4 - labels.flip(1), 4), labels)) > 0.1


@pytest.mark.usefixtures("in_double")
def test_gradients_of_the_affinity_losses() -> None:
    shape = (1, 2, 2, 3, 2)
    target, valid = integers(2, *shape, seed=2).double(), integers(3, *shape, seed=3) > 0
    predicted = uniform(*shape, seed=1, dtype=torch.float64).requires_grad_()
    taught = uniform(*shape, seed=4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: affinity_loss(p, target, valid), predicted)
    assert torch.autograd.gradcheck(lambda p: affinity_cross_entropy(p, target, valid), predicted)
    assert torch.autograd.gradcheck(lambda p, t: cross_dimension_loss(p, t, valid), (predicted, taught))
    embedding = random(1, 2, 2, 3, 3, dtype=torch.float64).requires_grad_()
    labels = integers(3, 1, 2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda e: multi_offset_loss(e, labels), embedding)


def test_a_detached_teacher_gets_no_gradient() -> None:
    valid = torch.ones(1, 3, 2, 3, 3, dtype=torch.bool)
    student, teacher = uniform(1, 3, 2, 3, 3, seed=1), uniform(1, 3, 2, 3, 3, seed=2)
    student.requires_grad_()
    teacher.requires_grad_()
    cross_dimension_loss(student, teacher.detach(), valid).backward()
    assert teacher.grad is None
    assert student.grad is not None
    cross_dimension_loss(student, teacher, valid).backward()
    assert teacher.grad is not None
    assert bool(teacher.grad.any())


# Grafting


def grafting_oracle(
    previous: Tensor, current: Tensor, teacher: Tensor, labels: Tensor, distances: tuple[int, ...]
) -> float:
    """Every (branch, distance): all its section pairs together, balanced per sample."""
    batch, depth = labels.shape[:2]
    losses = []
    for k, (branch, first) in itertools.product(distances, ((previous, 0), (current, 1))):
        total, count = 0.0, 0
        for b in range(batch):
            predicted, target = [], []
            for i in range(depth - 1):
                own, other = i + first, i + first + k  # sections
                if other >= depth:
                    continue
                cosine = F.cosine_similarity(branch[b, :, i], teacher[b, :, other], dim=0).clamp(0, 1)
                same = (labels[b, own] == labels[b, other]) & (labels[b, own] != 0)
                predicted += cosine.flatten().tolist()
                target += same.float().flatten().tolist()
            total += sum(w * (p - t) ** 2 for w, p, t in zip(balance(target), predicted, target, strict=True))
            count += len(predicted)
        if count:
            losses.append(total / count)
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("distances", [(1,), (4,), (1, 2, 3, 4), (2, 3), (9,)])
def test_grafting_equals_a_loop(distances: tuple[int, ...]) -> None:
    previous, current = random(2, 3, 4, 2, 3, seed=1), random(2, 3, 4, 2, 3, seed=2)
    teacher, labels = random(2, 3, 5, 2, 3, seed=3), integers(3, 2, 5, 2, 3)
    wanted = grafting_oracle(previous, current, teacher, labels, distances)
    assert (wanted > 0) == (distances != (9,))
    assert float(grafting_loss(previous, current, teacher, labels, distances)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("distances", [(1,), (1, 2, 3, 4), (9,)])
def test_grafting_on_the_teachers_own_cosines_equals_a_loop(distances: tuple[int, ...]) -> None:
    previous, current = random(2, 3, 4, 2, 3, seed=1), random(2, 3, 4, 2, 3, seed=2)
    teacher = random(2, 3, 5, 2, 3, seed=3)
    losses = []
    for k, (branch, first) in itertools.product(distances, ((previous, 0), (current, 1))):
        total, count = 0.0, 0
        for b in range(2):
            predicted, target = [], []
            for i in range(4):
                own, other = i + first, i + first + k
                if other < 5:
                    far = teacher[b, :, other]
                    predicted += F.cosine_similarity(branch[b, :, i], far, dim=0).clamp(0, 1).flatten().tolist()
                    target += F.cosine_similarity(teacher[b, :, own], far, dim=0).clamp(0, 1).flatten().tolist()
            if target:  # the balance counts all edges of the volume at this distance
                total += sum(w * (p - t) ** 2 for w, p, t in zip(balance(target), predicted, target, strict=True))
            count += len(predicted)
        if count:
            losses.append(total / count)
    wanted = sum(losses) / len(losses) if losses else 0.0
    found = grafting_loss(previous, current, teacher, None, distances)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert (wanted > 0) == (distances != (9,))


def test_grafting_on_the_teachers_own_cosines_is_free_for_the_teachers_embeddings() -> None:
    teacher = random(1, 3, 5, 2, 3)
    previous, current = 2 * teacher[:, :, :-1], 3 * teacher[:, :, 1:]
    assert float(grafting_loss(previous, current, teacher, None)) == pytest.approx(0, abs=1e-9)
    assert float(grafting_loss(current, previous, teacher, None)) > 1e-3


@pytest.mark.usefixtures("in_double")
def test_gradients_of_grafting_without_labels_spare_the_targets() -> None:
    tensors = [random(1, 2, n, 2, 2, seed=n + 5, dtype=torch.float64).requires_grad_() for n in (2, 2, 3)]
    fixed = tensors[2].detach()
    assert torch.autograd.gradcheck(lambda p, c: grafting_loss(p, c, fixed, None), tensors[:2])
    grafting_loss(*tensors, None).backward()
    through = tensors[2].grad
    assert through is not None
    labels = torch.ones(1, 3, 2, 2, dtype=torch.int64)
    assert bool(through.any())  # as the student's partner alone: with the student equal to it nothing pulls
    (flat,) = torch.autograd.grad(
        grafting_loss(fixed[:, :, :-1], fixed[:, :, 1:], tensors[2], None), tensors[2], allow_unused=True
    )
    assert float(flat.abs().max()) < 1e-9
    (pulled,) = torch.autograd.grad(grafting_loss(fixed[:, :, :-1], fixed[:, :, 1:], tensors[2], labels), tensors[2])
    assert float(pulled.abs().max()) > 1e-3


def four_sections() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids that change from section to section, the student's right embeddings and the teacher's."""
    labels = torch.tensor([[1, 1, 2, 3, 2, 0], [1, 2, 2, 3, 1, 0], [2, 2, 2, 1, 1, 3], [1, 2, 3, 3, 2, 3]])
    labels = labels.view(1, 4, 1, 6)
    taught = one_hot(torch.where(labels == 0, 4, labels), 6)  # background has a direction of its own ...
    shown = one_hot(torch.where(labels == 0, 5, labels), 6)  # ... and so it has for the student: 0 with itself
    return labels, shown[:, :, :-1], shown[:, :, 1:], taught


def test_only_the_right_pairing_of_sections_grafts_for_free() -> None:
    labels, previous, current, teacher = four_sections()
    for distances in ((1,), (2,), (3,), (1, 2, 3, 4)):
        assert float(grafting_loss(previous * 2, current * 5, teacher * 3, labels, distances)) < 1e-9
        wrong = {
            "branches exchanged": (current, previous, teacher, labels),
            "teacher one section off": (previous, current, teacher.roll(1, 2), labels),
            "labels one section off": (previous, current, teacher, labels.roll(1, 1)),
            "previous branch one section off": (previous.roll(1, 2), current, teacher, labels),
            "teacher in reverse": (previous, current, teacher.flip(2), labels),
        }
        for name, arguments in wrong.items():
            assert float(grafting_loss(*arguments, distances)) > 1e-3, (name, distances)
    only = grafting_loss(previous, current.roll(1, 2), teacher, labels, (1,))
    assert float(only) > 1e-3


def test_no_distance_that_fits_costs_nothing() -> None:
    labels, previous, current, teacher = four_sections()
    assert float(grafting_loss(previous, current, teacher, labels, (4, 7))) == 0
    assert float(grafting_loss(previous, current, teacher, labels, ())) == 0


@pytest.mark.usefixtures("in_double")
def test_gradients_of_grafting() -> None:
    labels = integers(2, 1, 3, 2, 2)
    tensors = [random(1, 2, n, 2, 2, seed=n + 5, dtype=torch.float64).requires_grad_() for n in (2, 2, 3)]
    assert torch.autograd.gradcheck(lambda p, c, t: grafting_loss(p, c, t, labels), tensors)


def test_grafting_reaches_both_branches_and_the_teacher_unless_detached() -> None:
    labels, previous, current, teacher = four_sections()
    noisy = [(t + 0.3 * random(*t.shape, seed=i)).requires_grad_() for i, t in enumerate((previous, current, teacher))]
    grafting_loss(noisy[0], noisy[1], noisy[2].detach(), labels).backward()
    assert noisy[2].grad is None
    grafting_loss(noisy[0], noisy[1], noisy[2], labels).backward()
    assert all(t.grad is not None and bool(t.grad.any()) for t in noisy)


# Instances


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_half_resolution_instances_are_the_majority(seed: int, height: int, width: int, ids: int) -> None:
    labels = np.random.default_rng(seed).integers(0, ids, (2, height, width))
    found = instance_targets(torch.from_numpy(labels))
    assert found.shape == (2, (height + 1) // 2, (width + 1) // 2)
    padded = np.pad(labels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    for z, y, x in np.ndindex(*found.shape):
        votes = Counter(padded[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist())
        most = max(votes.values())
        assert int(found[z, y, x]) == max(id_ for id_, count in votes.items() if count == most)


def test_half_resolution_instances_of_large_ids_win_a_tie_against_background() -> None:
    labels = as_label_tensor(np.array([[0, 2**63 + 5], [0, 2**63 + 5]], np.uint64))
    assert torch.equal(instance_targets(labels), labels[:1, 1:])


def dice_oracle(masks: Tensor, instances: Tensor, matches: list[Match]) -> float:
    losses = []
    for logits, labels, pairs in zip(masks.double(), instances, matches, strict=True):
        share, truth = logits.softmax(0).numpy(), labels.numpy()
        inside = truth > 0
        if not inside.any():
            continue
        for q, n in zip(pairs.query.tolist(), pairs.instance.tolist(), strict=True):
            p, t = share[1 + q][inside], (truth == n)[inside]
            losses.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
    return float(np.mean(losses)) if losses else 0.0


MATCHES = [match_of((2, 1), (0, 3)), match_of((1, 2), (3, 1), (0, 3))]


@pytest.mark.parametrize(("loss", "oracle"), [(mask_cross_entropy, cross_entropy_oracle), (mask_dice, dice_oracle)])
def test_mask_losses_equal_a_loop(loss: Any, oracle: Any) -> None:
    masks, instances = random(2, 5, 2, 3, 4, seed=1), integers(4, 2, 2, 3, 4)
    masks[0, 2] = -torch.inf  # a query that the first block lacks
    assert float(loss(masks, instances, MATCHES)) == pytest.approx(oracle(masks, instances, MATCHES), rel=1e-5)


@pytest.mark.parametrize("loss", [mask_cross_entropy, mask_dice])
def test_the_right_masks_cost_nothing(loss: Any) -> None:
    instances = integers(4, 1, 2, 3, 4)
    masks = torch.stack([instances == n for n in (0, 2, 3, 1)], 1).float() * 60
    assert float(loss(masks, instances, [match_of((0, 2), (1, 3), (2, 1))])) == pytest.approx(0, abs=1e-6)
    assert float(loss(masks, instances, [match_of((1, 2), (0, 3), (2, 1))])) > 0.3


def test_instances_without_a_query_are_left_out_of_cross_entropy() -> None:
    masks, instances = random(1, 3, 1, 2, 4, seed=1), torch.tensor([[1, 1, 2, 0], [1, 2, 2, 0]]).view(1, 1, 2, 4)
    pairs = [match_of((1, 1))]
    changed = torch.where(instances.unsqueeze(1) == 2, masks * 9, masks)
    assert torch.equal(mask_cross_entropy(masks, instances, pairs), mask_cross_entropy(changed, instances, pairs))


def test_background_is_left_out_of_dice() -> None:
    masks, instances = random(1, 3, 1, 2, 4, seed=1), torch.tensor([[1, 1, 2, 0], [1, 2, 2, 0]]).view(1, 1, 2, 4)
    pairs = [match_of((1, 1), (0, 2))]
    changed = torch.where(instances.unsqueeze(1) == 0, masks * 9, masks)
    assert torch.equal(mask_dice(masks, instances, pairs), mask_dice(changed, instances, pairs))


@pytest.mark.parametrize("loss", [mask_cross_entropy, mask_dice])
def test_mask_losses_of_degenerate_blocks(loss: Any) -> None:
    masks, empty = random(2, 4, 1, 2, 2), torch.zeros(2, 1, 2, 2, dtype=torch.int64)
    none = [match_of(), match_of()]
    background = float(loss(masks, empty, none))  # no instance
    assert background == pytest.approx(cross_entropy_oracle(masks, empty, none) if loss is mask_cross_entropy else 0.0)
    full = torch.ones_like(empty)
    assert float(loss(masks, full, none)) == 0  # no query matched, no background
    assert float(loss(masks[:, :1], full, none)) == 0  # no query at all
    mixed = torch.stack([empty[0], full[0]])
    assert math.isfinite(float(loss(masks, mixed, [match_of(), match_of((0, 1))])))


@pytest.mark.usefixtures("in_double")
def test_gradients_of_the_mask_losses() -> None:
    instances = integers(4, 2, 1, 2, 3)
    masks = random(2, 5, 1, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mask_cross_entropy(m, instances, MATCHES), masks)
    assert torch.autograd.gradcheck(lambda m: mask_dice(m, instances, MATCHES), masks)


@pytest.mark.parametrize("loss", [mask_cross_entropy, mask_dice])
def test_a_lacking_query_leaves_gradients_finite(loss: Any) -> None:
    masks, instances = random(2, 5, 1, 2, 3), integers(4, 2, 1, 2, 3)
    masks[0, 2] = -torch.inf
    masks.requires_grad_()
    loss(masks, instances, MATCHES).backward()
    assert masks.grad is not None
    assert bool(masks.grad.isfinite().all())
    assert bool(masks.grad.any())


# Mask losses at drawn voxels


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawn_voxels_are_distinct_and_repeat_with_their_generator() -> None:
    instances = torch.zeros(3, 2, 4, 5)
    found = draw_points(instances, 7, seeded(1))
    assert found.shape == (3, 7)
    assert found.dtype == torch.int64
    assert 0 <= int(found.min()) <= int(found.max()) < 40
    assert all(len(row.unique()) == 7 for row in found)
    assert len(found.unique(dim=0)) == 3  # every block its own
    assert torch.equal(found, draw_points(instances, 7, seeded(1)))
    assert not torch.equal(found, draw_points(instances, 7, seeded(2)))
    assert torch.equal(draw_points(instances, 99, seeded(1)).sort().values, torch.arange(40).expand(3, -1))


def test_voxels_are_drawn_alike() -> None:
    rows = torch.stack([draw_points(torch.zeros(1, 2, 3, 4), 6, seeded(i))[0] for i in range(2000)])
    counts = rows.flatten().bincount(minlength=24)
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_values_at_drawn_voxels() -> None:
    masks, instances, points = random(2, 3, 2, 3, 4), integers(4, 2, 2, 3, 4), draw_points(torch.zeros(2, 2, 3, 4), 5)
    found, labels = at_points(masks, points), at_points(instances, points)
    assert found.shape == (2, 3, 5)
    for b, p in np.ndindex(2, 5):
        point = np.unravel_index(int(points[b, p]), (2, 3, 4))
        assert labels[b, p] == instances[(b, *point)]
        assert torch.equal(found[b, :, p], masks[(b, slice(None), *point)])


@pytest.mark.parametrize(("loss", "oracle"), [(mask_cross_entropy, cross_entropy_oracle), (mask_dice, dice_oracle)])
def test_mask_losses_at_drawn_voxels_equal_a_loop(loss: Any, oracle: Any) -> None:
    masks, instances = random(2, 5, 2, 3, 4, seed=1), integers(4, 2, 2, 3, 4)
    masks[0, 2] = -torch.inf
    every = draw_points(instances, 24, seeded(0))
    whole = loss(masks, instances, MATCHES)
    torch.testing.assert_close(loss(at_points(masks, every), at_points(instances, every), MATCHES), whole, **CLOSE)
    some = every[:, :12]
    drawn, labels = at_points(masks, some), at_points(instances, some)
    assert all(set(range(4)) == set(row.tolist()) for row in labels)
    assert float(loss(drawn, labels, MATCHES)) == pytest.approx(oracle(drawn, labels, MATCHES), rel=1e-5)


def test_the_mean_gradient_of_drawn_cross_entropy_is_the_whole_one() -> None:
    instances = integers(4, 2, 2, 3, 4)
    masks = random(2, 5, 2, 3, 4).requires_grad_()
    pairs = [match_of((2, 1), (0, 3), (3, 2)), match_of((1, 2), (3, 1), (0, 3))]  # every instance has a query
    whole = torch.autograd.grad(mask_cross_entropy(masks, instances, pairs), masks)[0]
    grads = []
    for seed in range(600):
        points = draw_points(instances, 6, seeded(seed))
        loss = mask_cross_entropy(at_points(masks, points), at_points(instances, points), pairs)
        grads.append(torch.autograd.grad(loss, masks)[0])
    every = torch.stack(grads)
    off = (every.mean(0) - whole) / (every.std(0) / math.sqrt(len(grads)))
    assert float(off.abs().max()) < 5
    assert float(off.square().mean()) < 1.5  # 1 if the mean is right
    assert float((every[0] - whole).abs().max()) > 0.01


def test_drawn_dice_tends_to_the_whole_one() -> None:
    instances = torch.zeros(1, 4, 16, 16, dtype=torch.int64)
    instances[..., :8], instances[..., 9:] = 1, 2
    masks = random(1, 3, 4, 16, 16, seed=2) + 2 * torch.stack([instances == n for n in (0, 1, 2)], 1)
    pairs = [match_of((0, 1), (1, 2))]
    whole = float(mask_dice(masks, instances, pairs))
    errors = []
    for count in (16, 128, 960, 1024):
        points = [draw_points(instances, count, seeded(i)) for i in range(20)]
        found = [float(mask_dice(at_points(masks, p), at_points(instances, p), pairs)) for p in points]
        errors.append(np.mean(np.abs(np.subtract(found, whole))))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[3] == pytest.approx(0, abs=1e-6)


def test_pairs_without_a_drawn_voxel_are_left_out_of_dice() -> None:
    masks, instances = random(1, 4, 1, 2, 4, seed=1), torch.tensor([[1, 1, 2, 0], [1, 2, 3, 0]]).view(1, 1, 2, 4)
    pairs = [match_of((1, 1), (0, 2), (2, 3))]
    points = torch.tensor([[0, 1, 2, 3]])  # none of instance 3
    drawn, labels = at_points(masks, points), at_points(instances, points)
    assert torch.equal(mask_dice(drawn, labels, pairs), mask_dice(drawn, labels, [match_of((1, 1), (0, 2))]))
    assert float(mask_dice(drawn[..., 3:], labels[..., 3:], pairs)) == 0  # background alone


@pytest.fixture
def build(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Callable[..., joint.Joint]:
    """The demo's tiny pair with further words."""
    folder = Path(__file__).resolve().parents[4] / "configs" / "phantom_cpu"
    monkeypatch.setenv("PHANTOM", "phantom.h5")

    def module(*words: str) -> joint.Joint:
        pair = load_pair(folder / "teacher.yaml", folder / "student.yaml", [*tiny, *words])
        torch.manual_seed(0)
        return joint.Joint(pair, (30.0, 6.0, 6.0))

    return module


def volume() -> tuple[Tensor, Tensor]:
    """A batch of two volumes of 3 x 16 x 16."""
    labels = integers(4, 2, 1, 2, 2).repeat_interleave(3, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return uniform(2, 1, 3, 16, 16), labels


def test_all_rounds_of_a_step_share_their_drawn_voxels(
    build: Callable[..., joint.Joint], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {"mask_cross_entropy": [], "mask_dice": [], "match": []}
    for name, seen in calls.items():
        module = joint if name == "match" else query_terms
        kept = getattr(module, name)

        def spy(masks: Tensor, instances: Tensor, *rest: Any, to: Any = seen, call: Any = kept) -> Any:
            to.append((masks, instances))
            return call(masks, instances, *rest)

        monkeypatch.setattr(module, name, spy)
    terms = build("teacher.queries.points=50")(volume(), 0)
    assert all(math.isfinite(float(term.detach())) for term in terms.values())
    masks, instances = calls["match"][0]
    assert instances.shape == (4, 2, 8, 8)  # matched on all voxels, both networks at once
    assert len(calls["match"]) == 1
    for name in ("mask_cross_entropy", "mask_dice"):
        assert [tuple(labels.shape) for _, labels in calls[name]] == [(2, 50)] * 4  # two networks, two rounds each
        assert torch.equal(calls[name][0][1], calls[name][1][1])
        assert calls[name][0][0].shape == (2, masks.shape[1], 50)
    assert torch.equal(calls["mask_dice"][0][1], calls["mask_cross_entropy"][0][1])


def test_drawing_all_voxels_changes_no_mask_loss(build: Callable[..., joint.Joint]) -> None:
    whole, drawn = (build(f"teacher.queries.points={n}")(volume(), 0) for n in (0, 128))
    assert set(whole) == set(drawn)
    for name in whole:
        if not name.endswith("discrimination"):  # the same generator draws its voxels
            torch.testing.assert_close(drawn[name], whole[name], **CLOSE)


def test_targets_are_split_into_components_before_they_are_halved(
    build: Callable[..., joint.Joint], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(joint, "match", lambda masks, instances: seen.append(instances) or match(masks, instances))
    raw, labels = volume()
    labels[:] = 0
    labels[0, :, 4:8, 0:2] = labels[0, :, 4:8, 3:6] = 7  # a gap of one voxel that halving closes
    labels[1, :, 4:8, 0:4] = labels[1, :, 4:8, 6:10] = 5
    labels[1, :, 4, 4:6] = 5  # a bridge
    labels[1, :, 8:, 4:6] = 3
    labels[1, :, 0, 0] = 9  # too small to stay: no gap in the ids
    build()((raw, labels), 0)
    assert seen[0].flatten(1).amax(1).tolist() == [2, 2, 2, 2]  # for the teacher and for the student
    assert seen[0][0, 0, 2].tolist() == [1, 2, 2, 0, 0, 0, 0, 0]
    assert seen[0][1, 0, 2].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert seen[0][1, 0, 4].tolist() == [0, 0, 2, 0, 0, 0, 0, 0]


# Discrimination


def discrimination_oracle(features: Tensor, labels: Tensor) -> list[float]:
    """All voxels of one block."""
    rows = features.double().flatten(1).T[labels.flatten() > 0].numpy()
    ids: NDArray[Any] = labels[labels > 0].numpy()
    losses = []
    for i in range(len(rows)):
        share = {j: math.exp(float(rows[i] @ rows[j]) / 0.3) for j in range(len(rows)) if j != i}
        partners = [j for j in share if ids[j] == ids[i]]
        if partners:
            losses.append(-sum(math.log(share[j] / sum(share.values())) for j in partners) / len(partners))
    return losses


def test_discrimination_of_all_voxels_equals_a_loop() -> None:
    features = F.normalize(random(2, 4, 2, 3, 3), dim=1)
    instances = integers(4, 2, 2, 3, 3)
    wanted = [x for b in range(2) for x in discrimination_oracle(features[b], instances[b])]
    found = instance_discrimination(features, instances, samples=99)
    assert float(found) == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def test_discrimination_prefers_features_that_tell_instances_apart() -> None:
    instances = integers(3, 1, 2, 4, 4) + 1
    good = instance_discrimination(one_hot(instances, 4), instances, samples=99)
    flat = instance_discrimination(torch.ones_like(one_hot(instances, 4)) / 2, instances, samples=99)
    own = [int((instances == n).sum()) - 1 for n in instances.flatten()]
    floor = sum(math.log(n + (31 - n) * math.exp(-1 / 0.3)) for n in own) / len(own)
    assert float(good) == pytest.approx(floor, rel=1e-5)
    assert float(flat) == pytest.approx(math.log(31), rel=1e-5)


def test_sampling_favours_small_instances_and_repeats_with_its_generator() -> None:
    instances = torch.ones(1, 1, 40, 40, dtype=torch.int64)
    instances[..., :4, :4] = 2
    features = torch.zeros(1, 2, 1, 40, 40)
    features[:, 0] = 1
    features.requires_grad_()
    noise = 1e-3 * random(1, 2, 1, 40, 40)
    small = 0
    for seed in range(20):
        losses = [
            instance_discrimination(
                features + noise, instances, samples=100, generator=torch.Generator().manual_seed(seed)
            )
            for _ in range(2)
        ]
        assert torch.equal(losses[0], losses[1])
        (grad,) = torch.autograd.grad(losses[0], features)
        picked = grad[0, 1, 0] != 0
        assert int(picked.sum()) <= 100
        small += int(picked[:4, :4].sum())
    # rarity 0.6: weight 16^0.4 against 1584^0.4, so about 14 of 100 instead of 1
    assert 20 * 6 < small < 20 * 16


def test_discrimination_without_pairs_costs_nothing() -> None:
    features = F.normalize(random(1, 4, 1, 2, 2), dim=1).requires_grad_()
    for labels in ([[0, 0], [0, 0]], [[0, 1], [0, 0]], [[1, 2], [3, 4]]):
        found = instance_discrimination(features, torch.tensor(labels).view(1, 1, 2, 2), samples=9)
        assert float(found.detach()) == 0


def test_background_is_left_out_of_discrimination() -> None:
    instances = integers(3, 1, 2, 3, 3)
    features = F.normalize(random(1, 4, 2, 3, 3), dim=1)
    changed = torch.where(instances.unsqueeze(1) == 0, -features, features)
    a, b = (
        instance_discrimination(f, instances, samples=99, generator=torch.Generator().manual_seed(0))
        for f in (features, changed)
    )
    assert torch.equal(a, b)


@pytest.mark.usefixtures("in_double")
def test_gradient_of_discrimination() -> None:
    instances = integers(3, 1, 1, 3, 3)
    features = random(1, 2, 1, 3, 3, dtype=torch.float64).requires_grad_()

    def loss(f: Tensor) -> Tensor:
        return instance_discrimination(f, instances, samples=6, generator=torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(loss, features)


def test_the_balance_holds_per_sample_and_channel() -> None:
    target = torch.zeros(2, 1, 1, 1, 10)
    target[0, ..., :8] = 1
    target[1, ..., :2] = 1
    valid = torch.ones_like(target, dtype=torch.bool)
    weight = torch.stack([class_balance(target[b : b + 1, 0], valid[b : b + 1, 0])[0] for b in range(2)])
    wanted = weighted_mse(torch.zeros_like(target[:, 0]), target[:, 0], weight, valid[:, 0])
    assert float(affinity_loss(torch.zeros_like(target), target, valid)) == pytest.approx(float(wanted))
    assert float(wanted) == pytest.approx((8 + 2 * 4) / 20)


def test_losses_stay_float32_under_autocast() -> None:
    """Matrix products of float32 values would be rounded to bfloat16."""
    masks, other = 4 * uniform(2, 5, 3, 4, 4) - 2, 4 * uniform(2, 4, 3, 4, 4, seed=1) - 2
    instances = integers(4, 2, 3, 4, 4)
    embedding, target = uniform(2, 6, 3, 8, 8), integers(3, 2, 3, 8, 8)
    features = F.normalize(uniform(2, 6, 3, 4, 4) - 0.5, dim=1)
    pairs = [QueryPairs(torch.tensor([0, 2]), torch.tensor([1, 2]))] * 2
    valid = torch.ones(2, 3, 2, 8, 8, dtype=torch.bool)
    soft = uniform(2, 3, 2, 8, 8, seed=2), uniform(2, 3, 2, 8, 8, seed=3)

    def losses() -> list[Tensor]:
        matches = match(masks, instances)
        generator = torch.Generator().manual_seed(0)
        return [
            *(dice_matrix(block, labels) for block, labels in zip(masks, instances, strict=True)),
            *(soft_dice_matrix(a, b) for a, b in zip(masks, other, strict=True)),
            mask_cross_entropy(masks, instances, matches),
            mask_dice(masks, instances, matches),
            soft_mask_cross_entropy(masks, other, pairs),
            soft_mask_dice(masks, other, pairs),
            instance_discrimination(features, instances, samples=40, generator=generator),
            multi_offset_loss(embedding, target),
            student_offset_loss(embedding[:, :, 1:], embedding[:, :, :-1], target, ((-2, 0, 0), (0, 3, 0))),
            cross_dimension_loss(*soft, valid),
            grafting_loss(embedding[:, :, 1:], embedding[:, :, :-1], embedding, target),
            affinity_cross_entropy(soft[0], soft[1], valid),
        ]

    wanted = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses()
    assert {one.dtype for one in found} == {torch.float32}
    assert [torch.equal(a, b) for a, b in zip(found, wanted, strict=True)] == [True] * len(wanted)
