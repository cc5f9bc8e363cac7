"""Mask distillation: instance masks of one network as targets of the other, by pairs of queries.

Soft cross-entropy and Dice are the soft forms of `mask_cross_entropy` and `mask_dice` in
`distill.training.objective.losses`, to which they are equal if every mask value is 0 or 1.

Legend: B batch, Q queries of the student, T queries of the teacher, M pairs, D h w = z y x, P drawn voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distill.decoder.matching import Match, sent_pairs


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
    wins = torch.stack([_wins(logits, there) for logits, there in zip(taught, _by_block(known, taught), strict=True)])
    parts = [wins.long().flatten()]
    for own, other in zip(student, teacher, strict=True):
        parts += [own.query, own.instance, other.query, other.instance]
    won, *tables = (
        part.numpy()
        for part in torch.split(torch.cat(parts).cpu(), [len(part) for part in parts])  # one look
    )
    pairs = []
    for b, block in enumerate(won.reshape(wins.shape)):
        query, instance, taught_query, taught_instance = tables[4 * b : 4 * b + 4]
        first, second = (instance[:, None] == taught_instance).nonzero()
        kept = block[taught_query[second]] > 0
        pairs.append(np.stack([query[first][kept], taught_query[second][kept]]))
    return [QueryPairs(first, second) for first, second in sent_pairs(pairs, taught.device)]


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
    scores = torch.stack([soft_dice_matrix(own, other) for own, other in zip(masks, taught, strict=True)])
    there = torch.isfinite(masks[:, 1:].flatten(2).amax(2)).unsqueeze(2)
    teachers = F.pad(torch.stack([_wins(other) for other in taught]), (1, 0)).unsqueeze(1)
    # Which queries exist and which win, and the scores, in one look for all blocks.
    both = torch.cat([teachers.float(), torch.cat([there.float(), torch.nan_to_num(scores, nan=0.0)], 2)], 1).cpu()
    pairs = []
    for block in both.numpy():
        first, second = block[1:, 0].nonzero()[0], block[0, 1:].nonzero()[0]
        score = block[1:, 1:][first[:, None], second]
        rows, columns = linear_sum_assignment(score, maximize=True)
        overlap = score[rows, columns] > 0
        pairs.append(np.stack([first[rows][overlap], second[columns][overlap]]))
    return [QueryPairs(first, second) for first, second in sent_pairs(pairs, taught.device)]


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
    for own, other, both, there in zip(masks, taught, pairs, _by_block(known, taught), strict=True):
        first, second = _with_background(both)
        log_share = own.float().log_softmax(0)[first]
        target = other.float().softmax(0)[second]
        if there is not None:
            target = target * there
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
    for own, other, both, there in zip(masks, taught, pairs, _by_block(known, taught), strict=True):
        share = own.float().softmax(0)[1 + both.student].flatten(1)
        every = other.float().softmax(0)
        inside = 1 - every[0].flatten()
        if there is not None:
            inside = inside * there.flatten()
        target = every[1 + both.teacher].flatten(1)
        common = (inside * share * target).sum(1)
        size = (inside * share).sum(1) + (inside * target).sum(1)
        losses.append(1 - 2 * common / size.clamp(min=1e-6))
    each = torch.cat(losses)
    return each.mean() if len(each) else each.sum()


def _by_block(known: Tensor | None, taught: Tensor) -> Sequence[Tensor | None]:
    """Return which voxels of each block count; None = all."""
    return [None] * len(taught) if known is None else list(known)


def _wins(logits: Tensor, known: Tensor | None = None) -> Tensor:
    """Map (1 + T, ...) to (T,) bool: queries with the largest logit at some voxel that counts."""
    best = logits.argmax(0).flatten()
    counts = torch.ones_like(best) if known is None else known.flatten().long()
    return best.new_zeros(len(logits)).scatter_add(0, best, counts)[1:] > 0


def _with_background(pairs: QueryPairs) -> tuple[Tensor, Tensor]:
    """Return the channels of both networks: the background, then the pairs."""
    background = pairs.student.new_zeros(1)
    return torch.cat([background, 1 + pairs.student]), torch.cat([background, 1 + pairs.teacher])
