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
    pieces = cc3d.connected_components(winners.cpu().numpy(), connectivity=26)
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
    """Winning channel of every full-resolution voxel.

    Section by section, because the softmax needs all queries of a voxel but one section at a time: no more than two
    maps of one section's channels at full resolution exist together. Sections in which a dropped query wins are done
    again.

    Args:
        logits: (1 + Q, D, h, w), channel 0 = background, -inf for queries that the block does not have.
        size: (H, W).
        min_voxels: see `block_instances`.
        fill: see `block_instances`.

    Returns:
        (D, H, W) int32: 0 = background, q = query q - 1. All 0 if no query is left.
    """
    winners = torch.zeros((logits.shape[1], *size), dtype=torch.int32, device=logits.device)
    low, high = logits.flatten(1).aminmax(dim=1)
    there = low.isfinite() & high.isfinite()
    if fill:
        there[0] = False
    channels = there.nonzero().flatten()
    if not bool(there[1:].any()):
        return winners
    mass = torch.zeros(len(channels), device=logits.device)
    for z in range(len(winners)):
        larger = _upsample(logits[channels, z])
        mass += larger.softmax(-1)[: size[0], : size[1]].sum((0, 1))
        winners[z] = channels[larger.argmax(-1)[: size[0], : size[1]]]
    dropped = torch.zeros_like(there)
    dropped[channels] = mass < min_voxels
    dropped[0] = False
    kept = (there & ~dropped).nonzero().flatten()
    if not len(kept):
        return torch.zeros_like(winners)
    for z in dropped[winners.long()].flatten(1).any(1).nonzero().flatten().tolist():
        winners[z] = kept[_upsample(logits[kept, z]).argmax(-1)[: size[0], : size[1]]]
    return winners


def _upsample(section: Tensor) -> Tensor:
    """(C, h, w) -> (2h, 2w, C) float32, the channels of a voxel side by side, which the sums over them want.

    Half resolution is rounded up: the last row and column of an odd size are for the caller to cut off.
    """
    channels_last = section.float().unsqueeze(0).contiguous(memory_format=torch.channels_last)
    larger = F.interpolate(channels_last, scale_factor=2.0, mode="bilinear", align_corners=False)
    return larger[0].movedim(0, -1)
