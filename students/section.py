"""What every 2D student has in common: it encodes a section once and decodes pairs of neighbours.

Legend: B pairs, H W = y x, E embedding channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SectionFeatures:
    """What one section leaves behind for the pairs that it belongs to (padded to the stride)."""

    maps: tuple[Tensor, ...]  # fine to coarse, (B, C, H', W') each with its own channels and stride
    size: tuple[int, int]  # (H, W) before padding

    def rows(self, index: Tensor) -> SectionFeatures:
        """The features of some sections of a batch, in this order."""
        return SectionFeatures(tuple(part[index] for part in self.maps), self.size)

    def followed_by(self, others: SectionFeatures, count: int) -> SectionFeatures:
        """These features and then those of the first `count` of others of the same size."""
        if count == 0:
            return self
        both = zip(self.maps, others.maps, strict=True)
        return SectionFeatures(tuple(torch.cat([mine, theirs[:count]]) for mine, theirs in both), self.size)


@dataclass(frozen=True)
class PairOutput:
    """Embeddings of a pair, and the current branch's features for the query decoder."""

    previous: Tensor  # (B, E, H, W)
    current: Tensor  # (B, E, H, W)
    half: Tensor  # (B, half_channels, ceil(H/2), ceil(W/2)): current branch at half resolution
    full: Tensor  # (B, full_channels, H, W): current branch at full resolution


class Student(nn.Module, ABC):
    """A 2D network that streams: `encode` once a section, `decode` once a pair."""

    stride: int  # sections are padded to multiples of this
    half_channels: int
    full_channels: int
    embedding_channels: int

    @abstractmethod
    def encode(self, section: Tensor) -> SectionFeatures:
        """Per-section stages, shared by every pair that the section belongs to.

        Args:
            section: (B, 1, H, W), grey values in [0, 1], any size (reflected up to a multiple of the stride).
        """

    @abstractmethod
    def decode(self, previous: SectionFeatures, current: SectionFeatures) -> PairOutput:
        """Fuse two encoded sections of one size and give each its embedding."""

    def forward(self, previous: Tensor, current: Tensor) -> PairOutput:
        """Both sections at once: exactly `decode(encode(previous), encode(current))`; (B, 1, H, W) each."""
        return self.decode(self.encode(previous), self.encode(current))


def pad_to_stride(section: Tensor, stride: int) -> Tensor:
    """Reflect the lower and right border until both sides are multiples of `stride`.

    Works for sections smaller than the stride too: the reflection goes back and forth.
    """
    for axis in (-2, -1):
        size = section.shape[axis]
        wanted = -(-size // stride) * stride
        if wanted != size:
            period = max(1, 2 * (size - 1))
            position = torch.arange(wanted, device=section.device) % period
            section = section.index_select(axis, torch.where(position < size, position, period - position))
    return section


def cropped(size: tuple[int, int], *, previous: Tensor, current: Tensor, half: Tensor, full: Tensor) -> PairOutput:
    """Padded maps cut back to a section of this size."""
    height, width = size
    return PairOutput(
        previous=previous[..., :height, :width],
        current=current[..., :height, :width],
        half=half[..., : (height + 1) // 2, : (width + 1) // 2],
        full=full[..., :height, :width],
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Twice convolution 3x3, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def join(skip: Tensor, deep: Tensor, *, align_corners: bool) -> Tensor:
    """The deeper map at twice its size behind the skipped one."""
    larger = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=align_corners)
    return torch.cat([skip, larger], 1)
