"""Residual 3D U-Net of the AGQ teacher, and its convolution block.

Chen et al., "Efficient Neuron Segmentation in Electron Microscopy by Affinity-Guided Queries", ICLR 2025.

Legend: B batch, C channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.decoder.layers import Conv, resize

_GROUPS = 8


class ResidualUNet3d(nn.Module):
    """Five scales; the first two halvings act within the section only, the last two also in z."""

    def __init__(self, filters: Sequence[int] = (32, 64, 96, 128, 160)) -> None:
        """Build the backbone.

        Args:
            filters: channels per scale, fine to coarse, each a multiple of 8; the default is the published network.
        """
        super().__init__()
        f = list(filters)
        self.filters = tuple(f)
        self.conv_in = conv_block(1, f[0], (1, 5, 5))
        down = [
            (f[0], f[0], (1, 3, 3), (1, 1, 1)),
            (f[0], f[1], (1, 3, 3), (1, 2, 2)),
            (f[1], f[2], (1, 3, 3), (1, 2, 2)),
        ]
        down += [(f[2], f[3], (3, 3, 3), (2, 2, 2)), (f[3], f[4], (3, 3, 3), (2, 2, 2))]
        self.down_layers = nn.ModuleList(
            nn.Sequential(conv_block(i, o, kernel, stride), ResidualBlock(o)) for i, o, kernel, stride in down
        )
        kernels = [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]
        self.up_layers = nn.ModuleList(
            nn.Sequential(conv_block(f[j + 1], f[j], kernels[j]), ResidualBlock(f[j])) for j in range(4)
        )

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Compute decoder maps, fine to coarse: (B, 1, D, H, W) to five maps with `filters` channels."""
        level = self.conv_in(volume)
        encoded = []
        for layer in self.down_layers:
            level = layer(level)
            encoded.append(level)
        decoded = [encoded[-1]]
        for j in reversed(range(4)):
            reduce, refine = cast(nn.Sequential, self.up_layers[j])
            larger = resize(reduce(decoded[0]), encoded[j].shape[-3:], align_corners=True)
            decoded.insert(0, refine(encoded[j] + larger))
        return decoded


class ResidualBlock(nn.Module):
    """Convolution block, convolution, norm, plus identity, then ELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv_block(channels, channels, (1, 3, 3)),
            nn.Sequential(Conv(channels, channels, (1, 3, 3), bias=False), nn.GroupNorm(_GROUPS, channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        return F.elu(x + self.conv(x))


def conv_block(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    """Build a block of convolution (no bias, replicate padding), GroupNorm of 8 groups, and ELU."""
    return nn.Sequential(Conv(inputs, outputs, kernel, stride, bias=False), nn.GroupNorm(_GROUPS, outputs), nn.ELU())
