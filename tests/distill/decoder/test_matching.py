"""Hungarian matching against a search through all assignments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.decoder.matching import dice_matrix, match


def block(seed: int, queries: int, instances: int) -> tuple[Tensor, Tensor]:
    """Masks of 1 + Q channels and compact instances; every instance has a voxel."""
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.normal(0, 2, (1 + queries, 2, 3, 4)).astype(np.float32))
    labels = rng.integers(0, instances + 1, 24)
    labels[rng.permutation(24)[:instances]] = np.arange(1, instances + 1)
    return masks, torch.from_numpy(labels.reshape(2, 3, 4))


def dice_oracle(masks: Tensor, labels: Tensor) -> np.ndarray:
    share = masks.double().softmax(0).numpy()[1:]
    truth = labels.numpy()
    count = int(truth.max(initial=0))
    found = np.zeros((len(share), count))
    for q, n in itertools.product(range(len(share)), range(count)):
        t = truth == n + 1
        found[q, n] = 2 * share[q][t].sum() / (share[q].sum() + t.sum())
    return found


def best_sum(score: np.ndarray) -> float:
    """Largest sum over all one-to-one assignments."""
    score = score if score.shape[0] <= score.shape[1] else score.T
    rows, columns = score.shape
    return max(sum(score[r, c] for r, c in enumerate(p)) for p in itertools.permutations(range(columns), rows))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 5))
def test_dice_equals_a_loop(seed: int, queries: int, instances: int) -> None:
    masks, labels = block(seed, queries, instances)
    found = dice_matrix(masks, labels)
    assert found.shape == (queries, int(labels.max()))
    np.testing.assert_allclose(found, dice_oracle(masks, labels), atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_no_assignment_has_a_larger_dice(seed: int, queries: int, instances: int) -> None:
    masks, labels = block(seed, queries, instances)
    (found,) = match(masks.unsqueeze(0), labels.unsqueeze(0))
    assert len(found.query) == len(found.instance) == min(queries, instances)
    assert len(found.query.unique()) == len(found.query)
    assert len(found.instance.unique()) == len(found.instance)
    score = dice_oracle(masks, labels)
    own = sum(score[q, n - 1] for q, n in zip(found.query.tolist(), found.instance.tolist(), strict=True))
    assert own == pytest.approx(best_sum(score), abs=1e-5)


def test_every_instance_gets_the_query_that_covers_it() -> None:
    _, labels = block(3, 4, 4)
    order = torch.tensor([3, 1, 4, 2])  # query q covers instance order[q]
    masks = torch.stack([labels == 0, *[labels == n for n in order]]).float() * 20
    (found,) = match(masks.unsqueeze(0), labels.unsqueeze(0))
    assert torch.equal(order[found.query], found.instance)


def test_a_query_that_a_block_lacks_is_never_matched() -> None:
    masks, labels = block(4, 5, 4)
    several, truths = torch.stack([masks, masks, masks]), torch.stack([labels] * 3)
    several[0, [2, 5]] = -torch.inf
    several[1, 1:] = -torch.inf
    found = match(several, truths)
    assert [len(pairs.query) for pairs in found] == [3, 0, 4]
    assert not {1, 4} & set(found[0].query.tolist())
    alone = match(several[:1][:, [0, 1, 3, 4]], truths[:1])[0]
    assert torch.equal(torch.tensor([0, 2, 3])[alone.query], found[0].query)
    assert torch.equal(alone.instance, found[0].instance)


def test_blocks_without_instances_or_queries_have_no_pairs() -> None:
    masks, labels = block(5, 3, 2)
    nothing = match(masks.unsqueeze(0), torch.zeros_like(labels).unsqueeze(0))[0]
    assert len(nothing.query) == len(nothing.instance) == 0
    nobody = match(masks[:1].unsqueeze(0), labels.unsqueeze(0))[0]
    assert len(nobody.query) == len(nobody.instance) == 0
    assert nothing.query.dtype == nobody.instance.dtype == torch.int64


def test_matching_needs_no_gradient() -> None:
    masks, labels = block(6, 3, 2)
    (found,) = match(masks.unsqueeze(0).requires_grad_(), labels.unsqueeze(0))
    assert len(found.query) == 2


def test_masks_that_are_no_numbers_are_matched_somehow() -> None:
    """The loop tells of a loss that is not finite; the matching before it must not fail."""
    masks = torch.randn(1, 4, 2, 4, 4)
    masks[0, 2] = float("nan")
    instances = torch.ones(1, 2, 4, 4, dtype=torch.int64)
    assert len(match(masks, instances)[0].query) <= 1
    assert len(match(torch.full_like(masks, float("nan")), instances)[0].query) == 0
