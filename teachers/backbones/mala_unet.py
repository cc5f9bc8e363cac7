"""The 3D U-Net of MALA and of local shape descriptors, padded.

Funke et al., "Large Scale Image Segmentation with Structured Loss Based Deep Learning for Connectome Reconstruction",
IEEE TPAMI 2019: four scales of 12, 60, 300 and 1,500 channels, max pooling by 3 within the section, two 3x3x3
convolutions per scale, skip connections by concatenation, no norm.

What differs: convolutions are padded by replication instead of valid, so that outputs have the size of the block; maps
are upsampled by repetition after a 1x1x1 convolution; the rectifier is leaky (0.005), so that no channel of a narrow
network can be lost for good.

Legend: B batch, C channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.decoder.layers import Conv

_FACTOR = 3  # of the pooling within the section
_LEAK = 0.005


class MalaUNet(nn.Module):
    """Scales at a third of the resolution within the section of the next finer one."""

    def __init__(self, filters: Sequence[int] = (12, 60, 300, 1500), *, inputs: int = 1) -> None:
        """Build the network.

        Args:
            filters: channels per scale, fine to coarse; the default is the published network.
            inputs: channels of the input.
        """
        super().__init__()
        f = list(filters)
        self.down = nn.ModuleList(_twice(i, o) for i, o in zip([inputs, *f[:-1]], f, strict=True))
        self.reduce = nn.ModuleList(Conv(f[j + 1], f[j], (1, 1, 1), bias=True) for j in range(len(f) - 1))
        self.up = nn.ModuleList(_twice(2 * f[j], f[j]) for j in range(len(f) - 1))
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.kaiming_normal_(module.weight, _LEAK)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Compute decoder maps, fine to coarse: (B, inputs, D, H, W) to maps with `filters` channels."""
        level = self.down[0](volume)
        encoded = [level]
        for module in self.down[1:]:
            level = module(F.max_pool3d(level, (1, _FACTOR, _FACTOR), ceil_mode=True))
            encoded.append(level)
        decoded = [level]
        for j in reversed(range(len(self.up))):
            skip = encoded[j]
            coarse = self.reduce[j](decoded[0])
            risen = coarse.repeat_interleave(_FACTOR, -2).repeat_interleave(_FACTOR, -1)
            risen = risen[..., : skip.shape[-2], : skip.shape[-1]]
            decoded.insert(0, self.up[j](torch.cat([skip, risen], 1)))
        return decoded


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    first, second = Conv(inputs, outputs, (3, 3, 3), bias=True), Conv(outputs, outputs, (3, 3, 3), bias=True)
    return nn.Sequential(first, nn.LeakyReLU(_LEAK), second, nn.LeakyReLU(_LEAK))
