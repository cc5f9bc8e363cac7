"""Match queries to instances: Hungarian matching on Dice.

Chen et al., ICLR 2025 (matching): computed once on the first masks and reused in every round.

Legend: B batch, Q queries, N instances of a block, V voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distill.core.known import UNKNOWN


@dataclass(frozen=True)
class Match:
    """Matched pairs of one block; every query and every instance occurs at most once."""

    query: Tensor  # (M,) int64, 0-based query
    instance: Tensor  # (M,) int64, 1-based instance id


def dice_matrix(masks: Tensor, instances: Tensor) -> Tensor:
    """Compute the Dice score of every query's mask with every instance.

    Args:
        masks: (1 + Q, D, h, w) logits of one block, channel 0 = background.
        instances: (D, h, w) int64, 1..N compact, 0 = background, UNKNOWN (`distill.core.known`) = ignored.

    Returns:
        (Q, N) in [0, 1]: 2 sum(p t) / (sum p + sum t) over all known voxels, p = softmax over all channels.
    """
    share = masks.float().softmax(0)[1:].flatten(1)
    flat = instances.flatten()
    if flat.numel() and bool((flat == UNKNOWN).any()):
        share, flat = share[:, flat != UNKNOWN], flat[flat != UNKNOWN]
    count = int(flat.max()) if flat.numel() else 0
    overlap = share.new_zeros(count + 1, share.shape[0]).index_add(0, flat, share.T)[1:].T
    sizes = torch.bincount(flat, minlength=count + 1)[1:]
    return 2 * overlap / (share.sum(1, keepdim=True) + sizes).clamp(min=1e-6)


@torch.no_grad()
def match(masks: Tensor, instances: Tensor) -> list[Match]:
    """Assign queries to instances one to one with the largest total Dice, for each block.

    Args:
        masks: (B, 1 + Q, D, h, w) logits of the first masks, -inf for queries that a block does not have.
        instances: (B, D, h, w) int64, compact in every block, UNKNOWN where there is no ground truth.

    Returns:
        One `Match` per block with min(Q of the block, N) pairs.
    """
    found = []
    for block, labels in zip(masks, instances, strict=True):
        there = torch.isfinite(block[1:].flatten(1).amax(1)).nonzero().flatten()
        score = torch.nan_to_num(dice_matrix(block, labels)[there], nan=0.0)  # the loop tells of what is not finite
        rows, columns = linear_sum_assignment(score.cpu().numpy(), maximize=True)
        query = there[torch.as_tensor(rows, device=there.device)]
        found.append(Match(query, torch.as_tensor(columns, device=there.device) + 1))
    return found
