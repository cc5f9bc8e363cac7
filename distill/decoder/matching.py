"""Match queries to instances: Hungarian matching on Dice.

Chen et al., ICLR 2025 (matching): computed once on the first masks and reused in every round.

Legend: B batch, Q queries, N instances of a block, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distill.core.devices import to_device
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
    flat = instances.flatten()
    return _dice(masks, flat, int(flat.max().clamp(min=0)) if flat.numel() else 0)


def _dice(masks: Tensor, flat: Tensor, count: int) -> Tensor:
    """Compute `dice_matrix` for a known number of instances, without reading from the device."""
    known = flat != UNKNOWN
    share = masks.float().softmax(0)[1:].flatten(1).masked_fill(~known, 0.0)
    if share.device.type == "cpu":
        own = flat.clamp(min=0)  # what is unknown has no share
        overlap = share.new_zeros(count + 1, share.shape[0]).index_add(0, own, share.T)[1:].T
        sizes = torch.bincount(own, minlength=count + 1)[1:]
    else:  # one product: scattered sums of so few instances wait for each other on a GPU, in any order
        truth = (flat.unsqueeze(1) == torch.arange(1, count + 1, device=flat.device)).float()
        with torch.autocast(share.device.type, enabled=False):
            overlap = share @ truth
        sizes = truth.sum(0)
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
    counts = instances.flatten(1).amax(1).clamp(min=0).tolist()
    score = torch.stack(
        [
            F.pad(_dice(block, labels.flatten(), count), (0, max(counts) - count))
            for block, labels, count in zip(masks, instances, counts, strict=True)
        ]
    )
    real = torch.isfinite(masks[:, 1:].flatten(2).amax(2)).unsqueeze(2)
    both = torch.cat([real.to(score.dtype), torch.nan_to_num(score, nan=0.0)], 2).cpu()  # the loop reports what is nan
    pairs = []
    for block, count in zip(both, counts, strict=True):
        there = block[:, 0].nonzero().flatten().numpy()
        rows, columns = linear_sum_assignment(block[there, 1 : 1 + count].numpy(), maximize=True)
        pairs.append(np.stack([there[rows], columns + 1]))
    return [Match(query, instance) for query, instance in sent_pairs(pairs, masks.device)]


def sent_pairs(pairs: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[Tensor]:
    """Copy the pairs (2, M) of all blocks to a device in one transfer."""
    sent = to_device(np.concatenate([np.zeros((2, 0), np.int64), *pairs], 1), device)
    yield from torch.split(sent, [block.shape[1] for block in pairs], 1)
