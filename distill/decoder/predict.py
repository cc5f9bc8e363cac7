"""Memory-efficient inference of the query decoder: all rounds in pieces of a block, returning only the last masks.

The arithmetic is that of the modules of `distill.decoder.blocks` (kind `agq`). Those modules hold several maps of all
queries over the whole block at a time, and most of their time is memory traffic. This module computes, weights and sums
the logits of a few thousand voxels before the next piece. Arrays are voxel-major: the channels of a voxel are
contiguous.

Legend: Q queries, C channels, V voxels of the block at half y/x resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.decoder.blocks import KernelUpdater, MaskPredictor, Queries, SelfAttention
from distill.decoder.queries import Pull

_PIECE = 2048  # voxels per piece; the logits of 150 queries fit into the cache of a core
_PIECE_CUDA = 1 << 18


def last_masks(
    values: Tensor,
    features: Tensor,
    instance: Tensor,
    pull: Pull | None,
    predictors: Sequence[MaskPredictor],
    updaters: Sequence[KernelUpdater],
    interactors: Sequence[SelfAttention],
) -> tuple[Tensor, Tensor]:
    """Run all rounds on one block and return the last masks.

    Args:
        values: (Q, C) initial queries, at least one.
        features: (V, C) mask features, float32.
        instance: (V, C) instance features, float32.
        pull: mask prior of this block.
        predictors: one more than rounds; in evaluation mode.
        updaters: one per round.
        interactors: one per round.

    Returns:
        Logits (V, 1 + Q) float32 of the last round, with the background logit 0 in column 0, and its kernels (Q, C).
    """
    here = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
    given = torch.cat([features, features.new_ones(len(features), 1)], 1)
    if pull is not None:
        given = torch.cat([given, pull.every.view(-1, 1)], 1)
    step = _PIECE_CUDA if given.is_cuda else _PIECE
    pieces = [slice(first, first + step) for first in range(0, len(given), step)]
    for predictor, updater, interactor in zip(predictors[:-1], updaters, interactors, strict=True):
        weights = _weights(predictor, predictor.rows(values), pull)
        pooled = torch.zeros(values.shape, dtype=torch.float32, device=values.device)
        with torch.autocast(values.device.type, enabled=False):
            for piece in pieces:
                share = _logits(given, weights, pull, piece).softmax(1)
                pooled.addmm_(share.T, instance[piece])
        values = interactor(Queries(updater.update(values, pooled)[None], here, len(values)))[0]
    last = predictors[-1]
    kernels = last.rows(values)
    weights = _weights(last, kernels, pull)
    masks = features.new_empty(len(features), 1 + len(values))
    masks[:, 0] = 0
    with torch.autocast(values.device.type, enabled=False):
        for piece in pieces:
            masks[piece, 1:] = _logits(given, weights, pull, piece)
    return masks, kernels


def _weights(predictor: MaskPredictor, kernels: Tensor, pull: Pull | None) -> Tensor:
    """Return the weights that multiply the columns of a voxel: (C + 1 or C + 2, Q)."""
    factor, summand = predictor.scale()
    rows = [kernels.float().T * factor, summand.expand(1, len(kernels))]
    if pull is not None:
        guided = torch.arange(len(kernels), device=kernels.device) < pull.counts[0]
        rows.append(guided.unsqueeze(0).to(rows[0].dtype))
    return torch.cat(rows)


def _logits(given: Tensor, weights: Tensor, pull: Pull | None, piece: slice) -> Tensor:
    """Compute the logits (v, Q) of a piece."""
    found = given[piece] @ weights
    if pull is not None:
        found.scatter_add_(1, pull.owner.view(-1, 1)[piece] - 1, pull.own.view(-1, 1)[piece])
    return found


def by_voxel(x: Tensor) -> Tensor:
    """Rearrange (1, C, D, h, w) to (V, C) float32."""
    return x[0].flatten(1).T.float().contiguous()
