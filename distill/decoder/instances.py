"""Convert the masks of one decoded block to instances.

Chen et al., ICLR 2025 (inference): resize logits to full resolution, softmax over queries, drop small queries, arg-max,
and split every object into its connected components, as the reviewers of the paper asked.

Legend: Q queries, D H W = z y x at full, h w at half resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.labels import compact
from distill.decoder.decoder import DecoderOutput
from distill.segmentation.components import label_components, nearest_labels

_STRIP = 4  # half-resolution rows upsampled together on a CPU, so that 100 queries of 272 pixels stay in its cache
_SECTION_STEP = (5.0, 1.0, 1.0)  # pixels: sections are about five times as thick as pixels are wide


def block_instances(
    output: DecoderOutput, block: int, size: tuple[int, int], *, min_voxels: int, min_piece: int = 0, fill: bool
) -> NDArray[np.uint64]:
    """Return the instances of one decoded block.

    Args:
        output: of the shared decoder.
        block: index of the block in the batch.
        size: (H, W) at full resolution.
        min_voxels: queries whose probabilities sum to fewer voxels are dropped.
        min_piece: connected components smaller than this many voxels are assigned to the nearest larger one; 0 keeps
            them.
        fill: assign every voxel to a query; otherwise the background channel competes.

    Returns:
        (D, H, W) ids 1..n, 0 = background, every instance one connected component (26 neighbours).
    """
    with torch.no_grad():
        winners = arg_max(output.masks[-1][block], size, min_voxels, fill)
        if winners.is_cuda:
            found: NDArray[np.int64] = pieces_on_device(winners, min_piece).cpu().numpy()
            return found.astype(np.uint64)
    pieces = cc3d.connected_components(winners.cpu().numpy(), connectivity=26)
    return compact(absorb(pieces, min_piece))


def pieces_on_device(winners: Tensor, min_piece: int) -> Tensor:
    """Split winners into connected components and absorb the small ones, without leaving the device.

    Numbers and voxels are those of the computation on the CPU by `cc3d`, `absorb` and `compact`.

    Args:
        winners: (D, H, W) integer, 0 = background.
        min_piece: see `block_instances`.

    Returns:
        (D, H, W) int64, ids 1..n, 0 = background.
    """
    numbers = label_components(winners.unsqueeze(0)).numbers
    flat = numbers.flatten()
    table = flat.new_zeros(flat.numel() + 1)  # as many as there may be: their number is not read from the device
    if min_piece > 1:
        small = table.scatter_add(0, flat, torch.ones_like(flat)) < min_piece
        small[:1].fill_(False)
        lost = small[flat].view_as(numbers)
        if bool(lost.any()):
            numbers = torch.where(lost, nearest_labels(numbers.masked_fill(lost, 0), _SECTION_STEP)[0], numbers)
            flat = numbers.flatten()
    there = table.scatter(0, flat, 1)
    there[:1].fill_(0)
    return (there.cumsum(0) * there)[flat].view_as(winners)


def absorb(labels: NDArray[np.integer[Any]], min_voxels: int) -> NDArray[np.integer[Any]]:
    """Assign the voxels of objects below `min_voxels` to the nearest larger object, or to background if there is none.

    Args:
        labels: (D, H, W) ids from 0, small enough for `bincount`.
        min_voxels: objects of at least this size are kept.
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
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(
        blocked, sampling=_SECTION_STEP, return_distances=False, return_indices=True
    )
    return np.where(lost, labels[tuple(nearest)], labels)


def arg_max(logits: Tensor, size: tuple[int, int], min_voxels: int, fill: bool) -> Tensor:
    """Return the winning channel of every full-resolution voxel.

    The softmax needs all queries of a voxel but only few voxels at a time: at most a strip of one section is held at
    full resolution. Sections in which a dropped query wins are recomputed.

    Args:
        logits: (1 + Q, D, h, w), channel 0 = background, -inf for queries that the block does not have; fastest if the
            channels of a voxel are contiguous in memory.
        size: (H, W).
        min_voxels: see `block_instances`.
        fill: see `block_instances`.

    Returns:
        (D, H, W) int32: 0 = background, q = query q - 1. All 0 if no query is left.
    """
    by_voxel = logits.movedim(0, -1)
    winners = torch.zeros((len(by_voxel), *size), dtype=torch.int32, device=logits.device)
    low, high = by_voxel.amin((0, 1, 2)), by_voxel.amax((0, 1, 2))
    there = low.isfinite() & high.isfinite()
    if fill:
        there[0] = False
    channels = there.nonzero().flatten()
    if not bool(there[1:].any()):
        return winners
    mass = torch.zeros(len(channels), device=logits.device)
    chosen = _Channels(channels)
    for z, section in enumerate(by_voxel):
        for rows, larger in _upsampled(section, chosen, size):
            mass += larger.softmax(-1).sum((0, 1))
            winners[z, rows] = channels[_largest(larger)].int()
    dropped = torch.zeros_like(there)
    dropped[channels] = mass < min_voxels
    dropped[0] = False
    kept = (there & ~dropped).nonzero().flatten()
    if not len(kept):
        return torch.zeros_like(winners)
    chosen = _Channels(kept)
    for z in dropped[winners.long()].flatten(1).any(1).nonzero().flatten().tolist():
        for rows, larger in _upsampled(by_voxel[z], chosen, size):
            winners[z, rows] = kept[_largest(larger)].int()
    return winners


class _Channels:
    """Ascending channels, looked at once: every look makes a GPU wait."""

    def __init__(self, places: Tensor) -> None:
        numbers = places.tolist()
        first, last = numbers[0], numbers[-1]
        self._places, self._run = places, slice(first, last + 1) if last - first + 1 == len(numbers) else None

    def __len__(self) -> int:
        """Number of channels."""
        return len(self._places)

    def of(self, x: Tensor) -> Tensor:
        """Select them from (h, w, C), without a copy if they are contiguous."""
        return x.index_select(-1, self._places) if self._run is None else x[..., self._run]


def _upsampled(section: Tensor, channels: _Channels, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over strips of a section (h, w, 1 + Q) at full resolution, with their rows: (rows, W, channels) float32.

    Half resolution is rounded up: for an odd size, the last row or column is cropped.
    """
    step = len(section) if section.is_cuda else _STRIP
    for first in range(0, len(section), step):
        stop = min(first + step, len(section))
        low, high = max(first - 1, 0), min(stop + 1, len(section))  # neighbours of the outermost rows
        larger = _doubled(_doubled(channels.of(section[low:high]).float(), 0), 1)
        rows = slice(2 * first, min(2 * stop, size[0]))
        yield rows, larger[rows.start - 2 * low : rows.stop - 2 * low, : size[1]]


def _doubled(x: Tensor, axis: int) -> Tensor:
    """Double the samples along an axis, linear between the centres and constant beyond the outermost.

    Equals `F.interpolate` without aligned corners; with the channels last, it takes a quarter of its time on a CPU.
    """
    count = x.shape[axis]
    pairs = x.new_empty(*x.shape[:axis], count, 2, *x.shape[axis + 1 :])
    before, after = pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
    torch.mul(x, 0.75, out=before)
    torch.mul(x, 0.75, out=after)
    before.narrow(axis, 1, count - 1).add_(x.narrow(axis, 0, count - 1), alpha=0.25)
    before.narrow(axis, 0, 1).add_(x.narrow(axis, 0, 1), alpha=0.25)
    after.narrow(axis, 0, count - 1).add_(x.narrow(axis, 1, count - 1), alpha=0.25)
    after.narrow(axis, count - 1, 1).add_(x.narrow(axis, count - 1, 1), alpha=0.25)
    return pairs.flatten(axis, axis + 1)


def _largest(x: Tensor) -> Tensor:
    """Return the index of the first maximum along the last axis; numpy is faster than torch on a CPU."""
    return x.argmax(-1) if x.is_cuda else torch.from_numpy(x.numpy().argmax(-1))
