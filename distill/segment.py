"""One block: from the decoder's masks to instances.

Chen et al., ICLR 2025 (inference): logits to full resolution, softmax over queries, small queries dropped, arg-max,
and, as the paper's reviewers asked, every object split into its connected components.

Legend: Q queries, D H W = z y x at full, h w at half resolution.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from distill.decoder import DecoderOutput
from distill.ids import compact

_SECTION_STEP = (5.0, 1.0, 1.0)  # pixels: sections are about five times as thick as pixels are wide


def block_instances(
    output: DecoderOutput, block: int, size: tuple[int, int], *, min_voxels: int, min_piece: int = 0, fill: bool
) -> NDArray[np.uint64]:
    """Instances of one decoded block.

    Args:
        output: of the shared decoder.
        block: which block of the batch.
        size: (H, W) at full resolution.
        min_voxels: queries whose summed probability is below this many voxels are dropped.
        min_piece: connected components smaller than this many voxels go to the nearest larger one; 0 keeps them.
        fill: give every voxel to a query; off keeps the background channel.

    Returns:
        (D, H, W) ids 1..n, 0 = background, every instance one connected component (26 neighbours).
    """
    with torch.no_grad():
        winners = arg_max(output.masks[-1][block], size, min_voxels, fill)
    pieces = cc3d.connected_components(winners.cpu().numpy().astype(np.uint32), connectivity=26)
    return compact(absorb(pieces, min_piece))


def absorb(labels: NDArray[np.integer[Any]], min_voxels: int) -> NDArray[np.integer[Any]]:
    """Give the voxels of objects below `min_voxels` to the nearest larger object, background where there is none.

    Args:
        labels: (D, H, W) ids from 0, small enough to count.
        min_voxels: objects of at least this size stay.
    """
    sizes = np.bincount(labels.ravel())
    small = sizes < min_voxels
    small[0] = False
    lost = small[labels]
    if not lost.any():
        return labels
    blocked = lost | (labels == 0)
    if blocked.all():
        return np.zeros_like(labels)
    nearest = ndimage.distance_transform_edt(
        blocked, sampling=_SECTION_STEP, return_distances=False, return_indices=True
    )
    return np.where(lost, labels[tuple(nearest)], labels)


def arg_max(logits: Tensor, size: tuple[int, int], min_voxels: int, fill: bool) -> Tensor:
    """Winning channel of every full-resolution voxel, section by section so that memory stays small.

    Args:
        logits: (1 + Q, D, h, w), channel 0 = background, -inf for queries that the block does not have.
        size: (H, W).
        min_voxels: see `block_instances`.
        fill: see `block_instances`.

    Returns:
        (D, H, W) int64: 0 = background, q = query q - 1. All 0 if no query is left.
    """
    there = torch.isfinite(logits.flatten(1)).all(1)
    if fill:
        there[0] = False
    if not bool(there[1:].any()):
        return torch.zeros((logits.shape[1], *size), dtype=torch.int64, device=logits.device)
    number = there.nonzero().flatten()
    logits = logits[number].float()
    mass = logits.new_zeros(len(number))
    winners = []
    for section in logits.transpose(0, 1):
        larger = _upsample(section, size)
        mass += larger.softmax(0).sum((1, 2))
        winners.append(larger.argmax(0))
    best = torch.stack(winners)
    dropped = (mass < min_voxels) & (number > 0)
    if bool(dropped.any()) and bool(dropped[best].any()):
        if bool((dropped | (number == 0)).all()):
            return torch.zeros_like(best)
        kept = logits[~dropped]
        number = number[~dropped]
        best = torch.stack([_upsample(section, size).argmax(0) for section in kept.transpose(0, 1)])
    return number[best]


def _upsample(section: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, H, W); half resolution is rounded up, so the doubled map is cut to an odd size."""
    height, width = 2 * section.shape[-2], 2 * section.shape[-1]
    larger = F.interpolate(section.unsqueeze(0), (height, width), mode="bilinear", align_corners=False)[0]
    return larger[:, : size[0], : size[1]]
