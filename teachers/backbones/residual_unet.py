"""Anisotropic residual 3D U-Net of `resunet`, `seunet` and `ml-de`, with or without squeeze and excitation.

Lin et al., "PyTorch Connectomics: A Scalable and Flexible Segmentation Framework for EM Connectomics", 2021: filters
28, 36, 48, 64, 80; the first two halvings act within the section with kernels of one section, the last two also in z
with kernels of three; strided convolutions, additive skip connections, 5x5 convolutions within the section at both
ends, batch norm and ELU.

Legend: B batch, C channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.geometry import Triple
from distill.decoder.layers import Conv, resize

_FLAT, _CUBE = (1, 3, 3), (3, 3, 3)
_KERNELS: tuple[Triple, ...] = (_FLAT, _FLAT, _FLAT, _CUBE, _CUBE)
_STRIDES: tuple[Triple, ...] = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
_REDUCTION = 4  # of the channels between squeeze and excitation, as published


class AnisotropicUNet(nn.Module):
    """Five scales of residual blocks."""

    def __init__(self, filters: Sequence[int] = (28, 36, 48, 64, 80), *, squeeze: bool = False) -> None:
        """Build the network.

        Args:
            filters: channels per scale, fine to coarse; the default is the published network.
            squeeze: whether residual blocks have squeeze and excitation.
        """
        super().__init__()
        f = list(filters)
        self.enter = norm_block(1, f[0], (1, 5, 5))
        self.down = nn.ModuleList(
            nn.Sequential(norm_block(i, o, kernel, stride), ResidualBlock(o, kernel, squeeze=squeeze))
            for i, o, kernel, stride in zip([f[0], *f[:-1]], f, _KERNELS, _STRIDES, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(
                [norm_block(f[j + 1], f[j], _KERNELS[j + 1]), ResidualBlock(f[j], _KERNELS[j], squeeze=squeeze)]
            )
            for j in range(len(f) - 1)
        )
        self.leave = norm_block(f[0], f[0], (1, 5, 5))

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Compute decoder maps, fine to coarse: (B, 1, D, H, W) to five maps with `filters` channels."""
        level = self.enter(volume)
        encoded = []
        for module in self.down:
            level = module(level)
            encoded.append(level)
        decoded = [level]
        for j in reversed(range(len(self.up))):
            reduce, refine = cast(nn.ModuleList, self.up[j])
            risen = resize(reduce(decoded[0]), encoded[j].shape[-3:], align_corners=False)
            decoded.insert(0, refine(encoded[j] + risen))
        return [self.leave(decoded[0]), *decoded[1:]]


class ResidualBlock(nn.Module):
    """Two convolutions, optionally squeeze and excitation, plus identity, then ELU."""

    def __init__(self, channels: int, kernel: Triple, *, squeeze: bool) -> None:
        super().__init__()
        self.first = norm_block(channels, channels, kernel)
        self.second = nn.Sequential(Conv(channels, channels, kernel, bias=False), nn.BatchNorm3d(channels))
        self.squeeze = SqueezeExcitation(channels) if squeeze else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        return F.elu(x + self.squeeze(self.second(self.first(x))))


class SqueezeExcitation(nn.Module):
    """Scale channels by a gate that depends on their means over the block (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // _REDUCTION)
        self.gate = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ELU(), nn.Linear(inner, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        gate: Tensor = self.gate(x.mean((2, 3, 4)))
        return x * gate[:, :, None, None, None]


def norm_block(inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> nn.Sequential:
    """Build a block of convolution (no bias, replicate padding), batch norm and ELU."""
    return nn.Sequential(Conv(inputs, outputs, kernel, stride, bias=False), nn.BatchNorm3d(outputs), nn.ELU())
