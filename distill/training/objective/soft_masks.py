"""Mask distillation: instance masks of one network as targets of the other, by pairs of queries.

Soft cross-entropy and Dice are the soft forms of `mask_cross_entropy` and `mask_dice` in
`distill.training.objective.losses`, to which they are equal if every mask value is 0 or 1.

Legend: B batch, Q queries of the student, T queries of the teacher, M pairs, D h w = z y x, P drawn voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distill.decoder.matching import Match


@dataclass(frozen=True)
class QueryPairs:
    """Pairs of queries of one block that represent the same instance; each query occurs at most once."""

    student: Tensor  # (M,) int64, 0-based query
    teacher: Tensor  # (M,) int64, 0-based query


@torch.no_grad()
def pairs_by_instance(
    student: Sequence[Match], teacher: Sequence[Match], taught: Tensor, known: Tensor | None = None
) -> list[QueryPairs]:
    """Pair queries that are matched to the same ground-truth instance, if the teacher's query wins a voxel.

    Args:
        student: one per block.
        teacher: one per block, with the same instances.
        taught: (B, 1 + T, D, h, w) the teacher's logits.
        known: (B, D, h, w) bool, voxels that count; None = all.
    """
    found = []
    counted = [None] * len(taught) if known is None else list(known)
    for own, other, logits, there in zip(student, teacher, taught, counted, strict=True):
        same = own.instance.unsqueeze(1) == other.instance.unsqueeze(0)
        first, second = same.nonzero(as_tuple=True)
        wins = _wins(logits, there)[other.query[second]]
        found.append(QueryPairs(own.query[first][wins], other.query[second][wins]))
    return found


@torch.no_grad()
def pairs_by_overlap(masks: Tensor, taught: Tensor) -> list[QueryPairs]:
    """Pair queries one to one with the largest total soft Dice, for teacher queries that win a voxel.

    Needs no labels.

    Args:
        masks: (B, 1 + Q, D, h, w) the student's logits, -inf for queries that a block does not have.
        taught: (B, 1 + T, D, h, w) the teacher's logits, -inf likewise.

    Returns:
        One per block; pairs without any overlap are omitted.
    """
    found = []
    for own, other in zip(masks, taught, strict=True):
        there = torch.isfinite(own[1:].flatten(1).amax(1)).nonzero().flatten()
        teachers = _wins(other).nonzero().flatten()
        score = torch.nan_to_num(soft_dice_matrix(own, other)[there][:, teachers], nan=0.0)
        rows, columns = linear_sum_assignment(score.cpu().numpy(), maximize=True)
        first, second = (torch.as_tensor(index, device=score.device) for index in (rows, columns))
        overlap = score[first, second] > 0
        found.append(QueryPairs(there[first][overlap], teachers[second][overlap]))
    return found


def soft_dice_matrix(masks: Tensor, taught: Tensor) -> Tensor:
    """Compute the soft Dice of every mask of one network with every mask of the other.

    Args:
        masks: (1 + Q, D, h, w) logits of one block, channel 0 = background.
        taught: (1 + T, D, h, w) logits.

    Returns:
        (Q, T) in [0, 1]: 2 sum(p q) / (sum p + sum q), p and q the softmax over all channels.
    """
    p, q = (logits.float().softmax(0)[1:].flatten(1) for logits in (masks, taught))
    with torch.autocast(p.device.type, enabled=False):
        overlap = p @ q.T
    return 2 * overlap / (p.sum(1, keepdim=True) + q.sum(1)).clamp(min=1e-6)


def soft_mask_cross_entropy(
    masks: Tensor, taught: Tensor, pairs: Sequence[QueryPairs], known: Tensor | None = None
) -> Tensor:
    """Compute the cross-entropy of the student's softmax over queries with the teacher's softmax as soft target.

    Background and matched queries count, with voxels weighted by the teacher's probability for them.

    Args:
        masks: (B, 1 + Q, D, h, w) logits, or (B, 1 + Q, P) at drawn voxels.
        taught: (B, 1 + T, ...) logits of the same voxels; gradients flow into it unless the caller detaches it.
        pairs: one per block.
        known: (B, D, h, w) or (B, P) bool, voxels that count; None = all.

    Returns:
        - sum q log p / sum q over all voxels of the batch that count.
    """
    total, mass = [masks.new_zeros((), dtype=torch.float32)], [masks.new_zeros((), dtype=torch.float32)]
    for own, other, both in zip(*_counted(masks, taught, known), pairs, strict=True):
        first, second = _with_background(both)
        log_share = own.float().log_softmax(0)[first]
        target = other.float().softmax(0)[second]
        total.append(-(target * log_share).sum())
        mass.append(target.sum())
    return torch.stack(total).sum() / torch.stack(mass).sum().clamp(min=1e-6)


def soft_mask_dice(masks: Tensor, taught: Tensor, pairs: Sequence[QueryPairs], known: Tensor | None = None) -> Tensor:
    """Compute 1 - soft Dice of the matched queries, with voxels weighted by the teacher's non-background probability.

    Args:
        masks: (B, 1 + Q, D, h, w) logits, or (B, 1 + Q, P) at drawn voxels.
        taught: (B, 1 + T, ...) logits of the same voxels.
        pairs: one per block.
        known: (B, D, h, w) or (B, P) bool, voxels that count; None = all.

    Returns:
        Mean over all pairs of the batch; 0 without any.
    """
    losses = [masks.new_zeros(0, dtype=torch.float32)]
    for own, other, both in zip(*_counted(masks, taught, known), pairs, strict=True):
        share = own.float().softmax(0)[1 + both.student].flatten(1)
        every = other.float().softmax(0)
        inside = 1 - every[0].flatten()
        target = every[1 + both.teacher].flatten(1)
        common = (inside * share * target).sum(1)
        size = (inside * share).sum(1) + (inside * target).sum(1)
        losses.append(1 - 2 * common / size.clamp(min=1e-6))
    each = torch.cat(losses)
    return each.mean() if len(each) else each.sum()


def _counted(masks: Tensor, taught: Tensor, known: Tensor | None) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the logits of each block, (1 + Q, ...) and (1 + T, ...), at the voxels that count."""
    if known is None or bool(known.all()):
        return list(masks), list(taught)
    rows = list(known)
    own, other = ([block[:, there] for block, there in zip(both, rows, strict=True)] for both in (masks, taught))
    return own, other


def _wins(logits: Tensor, known: Tensor | None = None) -> Tensor:
    """Map (1 + T, ...) to (T,) bool: queries with the largest logit at some voxel that counts."""
    best = logits.argmax(0)
    count = torch.bincount(best.flatten() if known is None else best[known], minlength=len(logits))
    return count[1:] > 0


def _with_background(pairs: QueryPairs) -> tuple[Tensor, Tensor]:
    """Return the channels of both networks: the background, then the pairs."""
    background = pairs.student.new_zeros(1)
    return torch.cat([background, 1 + pairs.student]), torch.cat([background, 1 + pairs.teacher])
