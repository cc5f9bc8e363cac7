"""Numbers and a loop that tests of losses compare with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from distill.decoder.matching import Match


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw from a normal distribution, the same numbers for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cross_entropy_oracle(masks: Tensor, instances: Tensor, matches: list[Match]) -> float:
    """Cross-entropy of masks (B, 1 + Q, D, h, w), voxel by voxel; instances that nothing is matched to do not count."""
    total, count = 0.0, 0
    for logits, labels, pairs in zip(masks.double(), instances, matches, strict=True):
        channel = {0: 0, **{int(n): 1 + int(q) for q, n in zip(pairs.query, pairs.instance, strict=True)}}
        for point in np.ndindex(*labels.shape):
            wanted = channel.get(int(labels[point]))
            if wanted is not None:
                shares = [math.exp(float(logits[(c, *point)])) for c in range(len(logits))]
                total -= math.log(shares[wanted] / sum(shares))
                count += 1
    return total / max(1, count)
