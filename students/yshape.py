"""The Y-shape student: two neighbouring sections in, one embedding for each out.

Liu et al., "Cross-dimension Affinity Distillation for 3D EM Neuron Segmentation", CVPR 2024. With the
default widths this is the published network (900,816 parameters).

Legend: B pairs, H W = y x, E embedding channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 16


@dataclass(frozen=True)
class SectionFeatures:
    """What one section leaves behind for the pairs that it belongs to (padded to the stride)."""

    full: Tensor  # (B, 16, H', W')
    half: Tensor  # (B, 32, H'/2, W'/2)
    size: tuple[int, int]  # (H, W) before padding


@dataclass(frozen=True)
class PairOutput:
    """Embeddings of a pair, and the current branch's features for the query decoder."""

    previous: Tensor  # (B, E, H, W)
    current: Tensor  # (B, E, H, W)
    half: Tensor  # (B, 16, ceil(H/2), ceil(W/2)): current branch at half resolution
    full: Tensor  # (B, 32, H, W): current branch at full resolution


class YShape(nn.Module):
    """Shared encoder, fused trunk, one decoder branch for each of the two sections."""

    def __init__(self, *, width: int = 16, embedding: int = 16) -> None:
        """Build the network.

        Args:
            width: channels of the first stage; the paper's 16 gives its 900,816 parameters.
            embedding: channels of each embedding.
        """
        super().__init__()
        w = width
        self.inc = _double_conv(1, w)
        self.down = nn.ModuleList(
            _double_conv(i, o) for i, o in ((w, 2 * w), (4 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w))
        )
        self.up1 = _double_conv(16 * w, 4 * w)
        self.up2 = _double_conv(8 * w, 2 * w)
        self.up3_t, self.up3_tn = _double_conv(4 * w, w), _double_conv(4 * w, w)
        self.up4_t, self.up4_tn = _double_conv(2 * w, 2 * w), _double_conv(2 * w, 2 * w)
        self.outc_t, self.outc_tn = nn.Conv2d(2 * w, embedding, 1), nn.Conv2d(2 * w, embedding, 1)
        self.half_channels, self.full_channels, self.embedding_channels = w, 2 * w, embedding

    def encode(self, section: Tensor) -> SectionFeatures:
        """Per-section stages, shared by every pair that the section belongs to.

        Args:
            section: (B, 1, H, W), grey values in [0, 1], any size (reflected up to a multiple of 16).
        """
        height, width = section.shape[-2:]
        full = self.inc(pad_to_stride(section, STRIDE))
        half = self.down[0](F.max_pool2d(full, 2))
        return SectionFeatures(full, half, (height, width))

    def decode(self, previous: SectionFeatures, current: SectionFeatures) -> PairOutput:
        """Fuse two encoded sections of one size and give each its embedding."""
        stage2 = self.down[1](F.max_pool2d(torch.cat([previous.half, current.half], 1), 2))
        stage3 = self.down[2](F.max_pool2d(stage2, 2))
        stage4 = self.down[3](F.max_pool2d(stage3, 2))
        trunk = self.up2(_join(stage2, self.up1(_join(stage3, stage4))))
        height, width = current.size
        half_previous = self.up3_t(_join(previous.half, trunk))
        half_current = self.up3_tn(_join(current.half, trunk))
        full_previous = self.up4_t(_join(previous.full, half_previous))
        full_current = self.up4_tn(_join(current.full, half_current))
        return PairOutput(
            previous=self.outc_t(full_previous)[..., :height, :width],
            current=self.outc_tn(full_current)[..., :height, :width],
            half=half_current[..., : (height + 1) // 2, : (width + 1) // 2],
            full=full_current[..., :height, :width],
        )

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


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _join(skip: Tensor, deep: Tensor) -> Tensor:
    larger = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=True)
    return torch.cat([skip, larger], 1)
