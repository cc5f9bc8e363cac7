"""The constrained MALIS loss, which trains affinities by the pairs of voxels that they connect.

Turaga et al., "Maximin affinity learning of image segmentation", NIPS 2009; Funke et al., "Large Scale Image
Segmentation with Structured Loss Based Deep Learning for Connectome Reconstruction", IEEE TPAMI 2019 (two constrained
passes).

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.core.affinity import Targets


def malis_loss(affinity: Tensor, labels: Tensor, targets: Targets) -> Tensor:
    """Compute the constrained MALIS loss: squared errors of edges, weighted by the pairs of voxels that they decide.

    The mean over pairs of one object of (1 - a)^2 plus that over pairs of two objects of a^2, where a is the affinity
    of the edge that decides the pair. Both means are taken apart, because pairs of two objects are far more frequent.
    Which edge decides is determined on the CPU and has no gradient.

    Args:
        affinity: (B, 3, D, H, W) in [0, 1].
        labels: (B, D, H, W) int64, see `distill.core.known`.
        targets: of the labels at the nearest neighbours, (B, 3, D, H, W).

    Returns:
        Scalar; a mean without pairs is 0.
    """
    value = affinity.to(torch.promote_types(affinity.dtype, torch.float32))
    same, different = (pairs.to(value.dtype) for pairs in malis_pairs(affinity, labels, targets))
    pull, push = same * (1 - value).square(), different * value.square()
    return pull.sum() / same.sum().clamp(min=1) + push.sum() / different.sum().clamp(min=1)


def malis_pairs(affinity: Tensor, labels: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Count the pairs decided by every edge, of one object and of two, (B, 3, D, H, W) float64 each."""
    from distill.segmentation.maximin import constrained_pairs

    found = [
        constrained_pairs(*(part.numpy() for part in block))
        for block in zip(
            affinity.detach().to(torch.promote_types(affinity.dtype, torch.float32)).cpu(),
            labels.cpu(),
            (targets.target > 0.5).cpu(),
            targets.valid.cpu(),
            strict=True,
        )
    ]
    same, different = (torch.from_numpy(np.stack(part)).to(affinity.device) for part in zip(*found, strict=True))
    return same, different
