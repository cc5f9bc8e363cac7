"""Loss terms of the query decoder's masks: against the labels, and the student's against the teacher's.

Chen et al., ICLR 2025, for the losses; all rounds use the same matching and the same drawn voxels.

Legend: B volumes, D sections, h w half resolution, P drawn voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d

from distill.config import QueryLoss
from distill.core.affinity import known_voxels
from distill.core.known import UNKNOWN
from distill.decoder.decoder import DecoderOutput
from distill.decoder.matching import Match
from distill.segmentation.components import compact_blocks, label_components
from distill.training.objective.losses import at_points, instance_discrimination, mask_cross_entropy, mask_dice
from distill.training.objective.soft_masks import QueryPairs, soft_mask_cross_entropy, soft_mask_dice


def mask_terms(
    decoded: DecoderOutput,
    part: slice,
    instances: Tensor,
    pairs: Sequence[Match],
    points: Tensor | None,
    weights: QueryLoss,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Compute the losses of a network's masks against the labels, for all rounds.

    Args:
        decoded: decoder output of a batch.
        part: the network's blocks in it.
        instances: (B, D, h, w) int64, compact in every block, UNKNOWN (`distill.core.known`) where voxels are ignored.
        pairs: one per block.
        points: (B, P) voxels to use; None = all.
        weights: of the terms; 0 disables a term.
        generator: randomness of the voxels drawn for the discrimination loss.
    """
    rounds, seen = _rounds(decoded, part, points), instances if points is None else at_points(instances, points)
    terms: dict[str, Tensor] = {}
    if weights.cross_entropy:
        terms["cross_entropy"] = weights.cross_entropy * _total(
            [mask_cross_entropy(masks, seen, pairs) for masks in rounds]
        )
    if weights.dice:
        terms["dice"] = weights.dice * _total([mask_dice(masks, seen, pairs) for masks in rounds])
    if weights.discrimination:
        terms["discrimination"] = weights.discrimination * instance_discrimination(
            decoded.mask_features[part], instances, samples=weights.samples, generator=generator
        )
    return terms


def taught_masks_term(
    decoded: DecoderOutput,
    part: slice,
    taught: Tensor,
    pairs: Sequence[QueryPairs],
    points: Tensor | None,
    weights: QueryLoss,
    known: Tensor | None = None,
) -> Tensor:
    """Compute the mask distillation loss: the student's masks of all rounds against the teacher's.

    Args:
        decoded: decoder output of a batch.
        part: the student's blocks in it.
        taught: (B, 1 + T, D, h, w) the teacher's logits, detached.
        pairs: one per block.
        points: (B, P) voxels to use; None = all.
        weights: `cross_entropy` and `dice`, not both 0.
        known: (B, D, h, w) bool, voxels that count; None = all.
    """
    target = taught if points is None else at_points(taught, points)
    there = at_points(known, points) if known is not None and points is not None else known
    terms = []
    for masks in _rounds(decoded, part, points):
        if weights.cross_entropy:
            terms.append(weights.cross_entropy * soft_mask_cross_entropy(masks, target, pairs, there))
        if weights.dice:
            terms.append(weights.dice * soft_mask_dice(masks, target, pairs, there))
    return _total(terms)


def split_instances(labels: Tensor) -> Tensor:
    """Split labels into connected components (26 neighbours), numbered compactly in every block.

    Components of one id that touch UNKNOWN voxels stay one instance, because they may be connected there.

    Args:
        labels: (B, D, H, W) int64, 0 = background.

    Returns:
        int64 of the same shape; UNKNOWN where the label is UNKNOWN or OTHER (see `distill.core.known`).
    """
    there = known_voxels(labels)
    if bool(there.all()):
        return _components(labels)
    labels = labels.masked_fill(~there, 0)
    pieces = _components(labels)
    near = max_pool3d((~there).float().unsqueeze(1), 3, 1, 1).squeeze(1) > 0
    for block, ids, touching in zip(pieces, labels, near & (pieces > 0), strict=True):
        for one in ids[touching].unique():
            same = block[touching & (ids == one)].unique()
            block.masked_fill_(torch.isin(block, same), int(same[0]))
    return compact_blocks(pieces.masked_fill(~there, UNKNOWN))


def _components(labels: Tensor) -> Tensor:
    if labels.device.type == "cuda":
        return label_components(labels).numbers
    blocks = []
    for block in labels.cpu().numpy():
        _, rank = np.unique(block, return_inverse=True)
        compact: NDArray[np.uint32] = rank.reshape(block.shape).astype(np.uint32) + np.uint32(1)
        compact[block == 0] = 0
        blocks.append(cc3d.connected_components(compact, connectivity=26).astype(np.int64))
    return torch.from_numpy(np.stack(blocks)).to(labels.device)


def _rounds(decoded: DecoderOutput, part: slice, points: Tensor | None) -> list[Tensor]:
    """Return the masks of some blocks of the batch, first round to last, at drawn voxels if there are any."""
    rounds = [masks[part] for masks in decoded.masks]
    return rounds if points is None else [at_points(masks, points) for masks in rounds]


def _total(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum()
