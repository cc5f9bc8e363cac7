"""Interface of all 2D students: encode a section once, decode pairs of neighbours.

Legend: B pairs, H W = y x, E embedding channels, L levels, N map length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SectionFeatures:
    """Features of one section for the pairs that it belongs to (padded to the stride)."""

    maps: tuple[Tensor, ...]  # fine to coarse, (B, C, H', W'), each with its own channels and stride
    size: tuple[int, int] | None  # (H, W) before padding; None if an exported function accepts whole strides only
    samples: tuple[Samples, ...] = ()  # of a tile, fine to coarse: see `Student.aligned_levels`

    def rows(self, index: Tensor) -> SectionFeatures:
        """Select the features of some sections of a batch, in this order."""
        return SectionFeatures(tuple(part[index] for part in self.maps), self.size, self.samples)


@dataclass(frozen=True)
class Samples:
    """Sampling positions of a tile's upsampled map in the smaller map, for each axis (y, x): between `lower` and the
    next.
    """

    lower: tuple[Tensor, Tensor]  # (2 N,) int64, index in the tile
    weight: tuple[Tensor, Tensor]  # (2 N,) float32, weight of the next index


@dataclass(frozen=True)
class PairOutput:
    """Embeddings of a pair, and the current branch's features for the query decoder."""

    previous: Tensor  # (B, E, H, W)
    current: Tensor  # (B, E, H, W)
    half: Tensor  # (B, half_channels, ceil(H/2), ceil(W/2)): current branch at half resolution
    full: Tensor  # (B, full_channels, H, W): current branch at full resolution


class Student(nn.Module, ABC):
    """A 2D network for streaming: `encode` once per section, `decode` once per pair."""

    stride: int  # sections are padded to multiples of this
    half_channels: int
    full_channels: int
    embedding_channels: int
    entry: str | None = None  # convolution of grey values that is kept in float32: see `students.backends.fuse.Exact`
    aligned_levels: int = 0  # finest upsampling steps whose sampling positions depend on the size of the whole map

    @abstractmethod
    def encode(self, section: Tensor) -> SectionFeatures:
        """Run the per-section stages, which are shared by every pair that the section belongs to.

        Args:
            section: (B, 1, H, W), grey values in [0, 1], any size (reflected up to a multiple of the stride).
        """

    @abstractmethod
    def decode(self, previous: SectionFeatures, current: SectionFeatures) -> PairOutput:
        """Fuse two encoded sections of the same size and compute an embedding for each."""

    def forward(self, previous: Tensor, current: Tensor) -> PairOutput:
        """Run both sections, (B, 1, H, W) each; exactly `decode(encode(previous), encode(current))`."""
        return self.decode(self.encode(previous), self.encode(current))


def pad_to_stride(section: Tensor, stride: int) -> Tensor:
    """Reflect the lower and right border until both sides are multiples of `stride`.

    Sections smaller than the stride are reflected repeatedly.
    """
    for axis in (-2, -1):
        if section.shape[axis] % stride != 0:
            size = int(section.shape[axis])  # a Python number, not part of a trace
            wanted = -(-size // stride) * stride
            section = section.index_select(axis, reflected(torch.arange(wanted, device=section.device), size))
    return section


def reflected(position: Tensor, size: int) -> Tensor:
    """Return the index of the pixel at a position from 0 on when an axis of this size is reflected repeatedly."""
    period = max(1, 2 * (size - 1))
    within = position % period
    return torch.where(within < size, within, period - within)


def without_padding(
    size: tuple[int, int] | None, *, previous: Tensor, current: Tensor, half: Tensor, full: Tensor
) -> PairOutput:
    """Crop padded maps to a section of this size; None: a size that needs no padding."""
    if size is None:
        return PairOutput(previous, current, half, full)
    height, width = size
    return PairOutput(
        previous=previous[..., :height, :width],
        current=current[..., :height, :width],
        half=half[..., : (height + 1) // 2, : (width + 1) // 2],
        full=full[..., :height, :width],
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Build two blocks of convolution 3x3, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def join(skip: Tensor, deep: Tensor, *, align_corners: bool) -> Tensor:
    """Upsample the deeper map to twice its size and concatenate it after the skip connection."""
    larger = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=align_corners)
    return torch.cat([skip, larger], 1)


def join_samples(skip: Tensor, deep: Tensor, samples: Samples) -> Tensor:
    """Join maps as `join` with aligned corners, but for a tile: sampled at the positions of the whole section."""
    for axis, (lower, weight) in enumerate(zip(samples.lower, samples.weight, strict=True), start=2):
        upper = (lower + 1).clamp(max=deep.shape[axis] - 1)
        along = weight.to(deep.dtype).view(-1, 1) if axis == 2 else weight.to(deep.dtype)
        before, after = deep.index_select(axis, lower), deep.index_select(axis, upper)
        deep = before * (1 - along) + after * along
    return torch.cat([skip, deep], 1)


def tile_samples(
    origin: Sequence[int], size: Sequence[int], section: Sequence[int], levels: int, device: torch.device
) -> tuple[Samples, ...]:
    """Compute the sampling positions of a tile's upsampling steps, fine to coarse, with the aligned corners of the
    whole
    section.

    The arithmetic is that of torch's own upsampling in float32, so that weights agree to the last bit.

    Args:
        origin: (y, x) of the tile in the padded section, multiples of the student's stride.
        size: (H, W) of the tile, multiples of the student's stride.
        section: (H, W) of the padded section.
        levels: number of steps; the finest one doubles a map of stride 2.
        device: of the positions.
    """
    found = []
    for level in range(1, levels + 1):
        lower, weight = [], []
        for first, length, whole in zip(origin, size, section, strict=True):
            start, count, total = first >> level, length >> level, whole >> level
            scale = torch.tensor(total - 1, dtype=torch.float32, device="cpu") / max(1, 2 * total - 1)
            position = torch.arange(2 * start, 2 * (start + count), dtype=torch.float32, device="cpu") * scale
            below = position.floor().clamp(max=total - 1)
            lower.append((below.long() - start).clamp(0, count - 1).to(device))
            weight.append((position - below).to(device))
        found.append(Samples((lower[0], lower[1]), (weight[0], weight[1])))
    return tuple(found)
