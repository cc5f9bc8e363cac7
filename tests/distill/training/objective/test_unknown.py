"""Where nothing is known there is no loss: whatever a network says there changes neither a value nor a gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from mask_oracles import cross_entropy_oracle, random
from skimage.measure import label
from torch import Tensor

from distill.core.affinity import (
    MULTI,
    NEAREST,
    affinity_targets,
    as_label_tensor,
    embedding_affinity,
    half_resolution,
    known_voxels,
    unknown_edges,
    widen_borders,
)
from distill.core.known import OTHER, OTHER_ID, UNKNOWN, UNKNOWN_ID, as_id, counted_truth
from distill.decoder.matching import Match, dice_matrix, match
from distill.segmentation.components import compact_blocks
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
)
from distill.training.objective.query_terms import split_instances
from distill.training.objective.soft_masks import QueryPairs, pairs_by_instance, soft_mask_cross_entropy, soft_mask_dice

SHAPE = (2, 4, 6, 8)  # B, D, H, W


def truth(kinds: int = 2, seed: int = 0) -> Tensor:
    """Ids 0..3 in lumps; the first `kinds` of UNKNOWN and OTHER at scattered voxels and in one corner."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (2, 2, 3, 4)).repeat(2, 1).repeat(2, 2).repeat(2, 3)
    for kind in (UNKNOWN, OTHER)[:kinds]:
        labels[rng.random(SHAPE) < 0.2] = kind
    labels[:, :2, :3, :4] = UNKNOWN
    return torch.from_numpy(labels)


def elsewhere(values: Tensor, where: Tensor, seed: int) -> Tensor:
    """Other values where nothing is known."""
    other = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=values.dtype)
    return torch.where(where, other, values)


def check(loss: Callable[[Tensor], Tensor], values: Tensor, free: Tensor) -> None:
    """Value and gradient depend on nothing where `free`, and on something elsewhere."""
    given = values.clone().requires_grad_()
    found = loss(given)
    found.backward()
    assert given.grad is not None
    assert float(found.detach()) > 0
    assert not given.grad[free].any()
    assert given.grad.any()
    for seed in (1, 2):
        other = elsewhere(values, free, seed).requires_grad_()
        again = loss(other)
        again.backward()
        assert torch.equal(again, found)
        assert other.grad is not None
        assert torch.equal(other.grad, given.grad)


def edge_oracle(labels: Tensor, offset: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Target and validity, voxel by voxel, from what the words mean."""
    target, valid = torch.zeros(labels.shape), torch.zeros(labels.shape, dtype=torch.bool)
    for b, *at in np.ndindex(*labels.shape):
        there = [n + step for n, step in zip(at, offset, strict=True)]
        if any(not 0 <= n < size for n, size in zip(there, labels.shape[1:], strict=True)):
            continue
        one, other = int(labels[(b, *at)]), int(labels[(b, *there)])
        reported = UNKNOWN not in (one, other) and not one == other == OTHER
        valid[(b, *at)] = reported
        target[(b, *at)] = float(reported and one == other and one != 0)
    return target, valid


@pytest.mark.parametrize("offset", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3), (1, -2, 0)])
def test_edges_that_the_labels_do_not_tell_are_invalid(offset: tuple[int, int, int]) -> None:
    labels = truth()
    found = affinity_targets(labels, [offset])
    target, valid = edge_oracle(labels, offset)
    assert torch.equal(found.target[:, 0], target)
    assert torch.equal(found.valid[:, 0], valid)
    inside = affinity_targets(torch.zeros_like(labels), [offset]).valid
    assert torch.equal(unknown_edges(labels, [offset]), inside & ~found.valid)
    connected = affinity_targets(labels, [offset], background_connects=True)
    assert torch.equal(connected.valid, found.valid)
    assert not connected.target[~connected.valid].any()


def test_a_neurons_rim_is_known_where_all_else_is_not() -> None:
    labels = torch.tensor([[[OTHER, 7, 7, OTHER, OTHER, UNKNOWN, 7]]])
    found = affinity_targets(labels, [(0, 0, -1)])
    assert found.valid.flatten().tolist() == [False, True, True, True, False, False, False]
    assert found.target.flatten().tolist() == [0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_narrow_types_hold_no_unknown(dtype: torch.dtype) -> None:
    labels = torch.tensor([[[255, 254, 254]]]).to(dtype)
    assert bool(known_voxels(labels).all())
    assert affinity_targets(labels, [(0, 0, -1)]).valid.flatten().tolist() == [False, True, True]


def test_affinity_losses() -> None:
    labels = truth()
    targets = affinity_targets(labels)
    predicted = random(2, 3, *SHAPE[1:])
    free = ~targets.valid
    check(lambda given: affinity_loss(given, targets.target, targets.valid), predicted, free)
    check(lambda given: affinity_cross_entropy(given, targets.target, targets.valid), predicted, free)
    teacher = torch.rand(2, 3, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    check(lambda given: cross_dimension_loss(given, teacher, targets.valid), predicted, free)
    check(lambda given: cross_dimension_loss(predicted, given, targets.valid), teacher.clone(), free)


def test_the_halved_target_of_a_window_is_the_mean_of_its_known_edges() -> None:
    labels = truth()
    targets = affinity_targets(labels)
    there = half_resolution(targets.valid.float())
    half = half_resolution(targets.target) / there.clamp(min=1e-6)
    for b, k, z, y, x in np.ndindex(*half.shape):
        window = (b, k, z, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
        reported = targets.target[window][targets.valid[window]]
        assert float(there[b, k, z, y, x]) == len(reported) / 4
        if len(reported):
            assert float(half[b, k, z, y, x]) == pytest.approx(float(reported.mean()))


def pairs_free(labels: Tensor, offsets: object = None) -> Tensor:
    """Voxels that no known edge of the offsets has as an end."""
    used = torch.zeros(labels.shape, dtype=torch.bool)
    for offset in offsets or MULTI:  # type: ignore[attr-defined]
        _, valid = edge_oracle(labels, offset)
        for b, *at in valid.nonzero().tolist():
            used[(b, *at)] = True
            used[(b, *(n + step for n, step in zip(at, offset, strict=True)))] = True
    return ~used


def test_multi_offset_loss() -> None:
    labels, embedding = truth(), random(2, 3, *SHAPE[1:])
    offsets = [*NEAREST, (-2, 0, 0), (0, -3, 0)]
    free = pairs_free(labels, offsets).unsqueeze(1).expand_as(embedding)
    assert free.any()
    check(lambda given: multi_offset_loss(given, labels, offsets), embedding, free)


@pytest.mark.parametrize("of_labels", [True, False])
def test_grafting_loss(of_labels: bool) -> None:
    """Columns that are unknown in every section: no distance along z has an edge there."""
    labels = truth(1)
    labels[:, :, 3:, :3] = UNKNOWN
    unknown = (labels == UNKNOWN).all(1, keepdim=True).unsqueeze(1)
    assert unknown.any()
    before, now, teacher = (random(2, 3, d, *SHAPE[2:], seed=d + 1) for d in (3, 3, 4))
    values = {"before": before, "now": now, "teacher": teacher}
    for name, value in values.items():

        def loss(given: Tensor, name: str = name) -> Tensor:
            own = {**values, name: given}
            given_labels = labels if of_labels else None
            return grafting_loss(own["before"], own["now"], own["teacher"], given_labels, (1, 2), known=labels)

        check(loss, value, unknown.expand_as(value))


def test_half_resolution_instances_are_what_the_known_voxels_say() -> None:
    labels = torch.randint(-1, 3, (3, 4, 7, 9), generator=torch.Generator().manual_seed(0))
    found = instance_targets(labels)
    for z in np.ndindex(3, 4):
        for y, x in np.ndindex(4, 5):
            rows, columns = ([min(2 * n, size - 1), min(2 * n + 1, size - 1)] for n, size in ((y, 7), (x, 9)))
            window = labels[z][rows][:, columns].flatten().tolist()
            reported = [n for n in window if n != UNKNOWN]
            votes = {n: reported.count(n) for n in reported}
            winners = [n for n, count in votes.items() if count == max(votes.values())]
            # background wins only alone: with more votes than every id
            wanted = max(winners) if reported else UNKNOWN
            assert int(found[(*z, y, x)]) == wanted


def instances() -> Tensor:
    """Half-resolution instances 1..n, background and unknown, (2, 3, 4, 5)."""
    rng = np.random.default_rng(4)
    found = torch.from_numpy(rng.integers(0, 4, (2, 3, 4, 5)))
    return found.masked_fill(torch.from_numpy(rng.random((2, 3, 4, 5)) < 0.3), UNKNOWN)


def matches() -> list[Match]:
    return [Match(torch.tensor([0, 2]), torch.tensor([2, 1])), Match(torch.tensor([1, 3]), torch.tensor([3, 1]))]


def test_query_losses() -> None:
    labels, masks = instances(), random(2, 5, 3, 4, 5)
    free = (labels == UNKNOWN).unsqueeze(1).expand_as(masks)
    check(lambda given: mask_cross_entropy(given, labels, matches()), masks, free)
    check(lambda given: mask_dice(given, labels, matches()), masks, free)
    points = draw_points(labels, 40, torch.Generator().manual_seed(0))
    seen = at_points(labels, points)
    assert (seen == UNKNOWN).any()
    check(lambda given: mask_cross_entropy(at_points(given, points), seen, matches()), masks, free)
    check(lambda given: mask_dice(at_points(given, points), seen, matches()), masks, free)
    features = torch.nn.functional.normalize(random(2, 6, 3, 4, 5), dim=1)
    check(
        lambda given: instance_discrimination(given, labels, samples=30, generator=torch.Generator().manual_seed(5)),
        features,
        (labels == UNKNOWN).unsqueeze(1).expand_as(features),
    )


def test_cross_entropy_equals_a_loop_over_the_known_voxels() -> None:
    labels, masks = instances(), random(2, 5, 3, 4, 5)
    wanted = cross_entropy_oracle(masks, labels, matches())
    assert float(mask_cross_entropy(masks, labels, matches())) == pytest.approx(wanted, rel=1e-5)


def test_matching_looks_at_known_voxels_alone() -> None:
    labels, masks = instances(), random(2, 5, 3, 4, 5)
    free = (labels == UNKNOWN).unsqueeze(1).expand_as(masks)
    other = elsewhere(masks, free, 9)
    for one, two, block in zip(masks, other, labels, strict=True):
        found = dice_matrix(one, block)
        assert torch.equal(found, dice_matrix(two, block))
        share, at = one.softmax(0)[1:].flatten(1), block.flatten()
        for q, n in np.ndindex(*found.shape):
            inside, counted = at == n + 1, at != UNKNOWN
            wanted = 2 * share[q][inside].sum() / (share[q][counted].sum() + inside.sum())
            assert float(found[q, n]) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(match(masks, labels), match(other, labels), strict=True):
        assert torch.equal(a.query, b.query)
        assert torch.equal(a.instance, b.instance)


def test_taught_masks() -> None:
    labels, masks, taught = instances(), random(2, 5, 3, 4, 5), random(2, 4, 3, 4, 5, seed=8)
    known = labels != UNKNOWN
    pairs = [QueryPairs(torch.tensor([0, 2]), torch.tensor([1, 0]))] * 2
    for loss in (soft_mask_cross_entropy, soft_mask_dice):
        free = (~known).unsqueeze(1)
        check(lambda given, loss=loss: loss(given, taught, pairs, known), masks, free.expand_as(masks))  # type: ignore[misc]
        check(lambda given, loss=loss: loss(masks, given, pairs, known), taught, free.expand_as(taught))  # type: ignore[misc]
        assert torch.equal(loss(masks, taught, pairs, torch.ones_like(known)), loss(masks, taught, pairs))
    loud = torch.where((~known).unsqueeze(1), 9.0 * torch.eye(4)[3].view(1, 4, 1, 1, 1), taught)
    loud[:, 3] = torch.where(known, -9.0, loud[:, 3])  # the last query wins at unknown voxels alone
    both = [Match(torch.arange(3), torch.arange(1, 4))] * 2
    for found in pairs_by_instance(both, both, loud, known):
        assert 2 not in found.teacher.tolist()
    assert any(2 in found.teacher.tolist() for found in pairs_by_instance(both, both, loud))


def test_pieces_that_touch_the_unknown_are_one_instance() -> None:
    labels = torch.tensor([[[[4, UNKNOWN, 4, 0, 4, 0, 5, OTHER]]]])
    assert split_instances(labels).flatten().tolist() == [1, UNKNOWN, 1, 0, 2, 0, 3, UNKNOWN]
    plain = truth(0)[:, 2:]
    wanted = compact_blocks(
        torch.stack([torch.from_numpy(label(b, background=0, connectivity=3)) for b in plain.numpy()])
    )
    assert torch.equal(split_instances(plain), wanted)


def test_split_instances_keep_ids_apart_and_stay_compact() -> None:
    labels = truth()
    found = split_instances(labels)
    assert torch.equal(found == UNKNOWN, ~known_voxels(labels))
    assert torch.equal(found == 0, labels == 0)
    for block, ids in zip(found, labels, strict=True):
        numbers = block[block > 0].unique()
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert all(len(ids[block == n].unique()) == 1 for n in numbers)


def test_compact_blocks_leave_unknown() -> None:
    labels = torch.tensor([[[[9, 0, UNKNOWN, 4]]], [[[UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]]]])
    assert compact_blocks(labels).flatten().tolist() == [2, 0, UNKNOWN, 1, *[UNKNOWN] * 4]


def test_wider_borders_leave_unknown_and_do_not_take_it_for_a_neuron() -> None:
    labels = truth()
    found = widen_borders(labels)
    for *z, y, x in np.ndindex(*labels.shape):
        window = labels[(*z, slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2))]
        ids = {int(n) for n in window.flatten()} - {0, UNKNOWN, OTHER}
        here = int(labels[(*z, y, x)])
        wanted = here if here in (UNKNOWN, OTHER) or len(ids) < 2 else 0
        assert int(found[(*z, y, x)]) == wanted


def test_embedding_edges_at_unknown_voxels_do_not_reach_the_slice_loss() -> None:
    """The slice loss as a step computes it: student affinities of embeddings, targets of labels."""
    labels, embedding = truth(), random(2, 3, *SHAPE[1:])
    targets = affinity_targets(labels)
    free = pairs_free(labels, NEAREST).unsqueeze(1).expand_as(embedding)
    assert free.any()
    check(lambda given: affinity_loss(embedding_affinity(given), targets.target, targets.valid), embedding, free)


def test_what_scores_count() -> None:
    labels = np.array([0, 3, UNKNOWN_ID, OTHER_ID], np.uint64)
    assert counted_truth(labels).tolist() == [0, 3, 0, 0]
    assert counted_truth(labels[:2]) is not None
    assert as_label_tensor(labels).tolist() == [0, 3, UNKNOWN, OTHER]


@pytest.mark.parametrize(
    ("value", "dtype", "stored"),
    [
        (-1, "u8", 2**64 - 1),
        (2**64 - 1, "i8", -1),
        (-1, "i2", -1),
        (255, "u1", 255),
        (255, "i1", -1),
        (-1, "u1", 255),
        (300, "u1", None),
        (-129, "i1", None),
        (-129, "u1", None),
        (7, "i4", 7),
    ],
)
def test_an_id_is_found_in_the_type_of_the_file(value: int, dtype: str, stored: int | None) -> None:
    assert as_id(value, np.dtype(dtype)) == stored
