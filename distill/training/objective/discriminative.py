"""The discriminative loss: embeddings of a neuron are pulled to their mean, means of neurons are pushed apart.

De Brabandere et al., "Semantic Instance Segmentation with a Discriminative Loss Function", 2017.

Legend: B batch, E embedding channels, N instances, D H W = z y x.
"""

from __future__ import annotations

import torch
from torch import Tensor

_REGULARISATION = 1e-3


def discriminative_loss(embedding: Tensor, labels: Tensor, *, pull: float = 0.5, push: float = 1.5) -> Tensor:
    """Compute the discriminative loss, averaged over the blocks that hold an instance; 0 if none does.

    The sum of three terms: mean over instances of the mean of max(0, |m - e| - pull)^2; mean over pairs of instances of
    max(0, 2 push - |m - m'|)^2; 0.001 times the mean of |m|. e is an embedding, m the mean of its instance.

    Args:
        embedding: (B, E, D, H, W), not normalised.
        labels: (B, D, H, W) int64; instances are the values above 0, other voxels do not count.
        pull: distance within which embeddings are not pulled.
        push: half the distance beyond which means are not pushed.
    """
    losses = []
    for block, ids in zip(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), labels, strict=True):
        inside = ids > 0
        if not inside.any():
            continue
        number = torch.unique(ids[inside], return_inverse=True)[1]
        losses.append(_of_block(block[:, inside].T, number, pull, push))
    return torch.stack(losses).mean() if losses else embedding.new_zeros((), dtype=torch.float32)


def _of_block(points: Tensor, number: Tensor, pull: float, push: float) -> Tensor:
    """Compute the loss of the points (P, E) of instances 0..N-1, given by `number` (P,)."""
    count = torch.bincount(number)
    instances = len(count)
    means = points.new_zeros(instances, points.shape[1]).index_add(0, number, points) / count.unsqueeze(1)
    spread = (_length(points - means[number]) - pull).clamp(min=0).square()
    variance = (spread.new_zeros(instances).index_add(0, number, spread) / count).mean()
    first, second = torch.triu_indices(instances, instances, 1, device=points.device)
    apart = (2 * push - _length(means[first] - means[second])).clamp(min=0).square()
    distance = apart.mean() if instances > 1 else apart.sum()
    return variance + distance + _REGULARISATION * _length(means).mean()


def _length(vectors: Tensor) -> Tensor:
    """Return the lengths of vectors (..., E), with a finite gradient at 0."""
    return vectors.square().sum(-1).clamp(min=1e-12).sqrt()
