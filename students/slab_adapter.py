"""Convert consecutive sections of the student to decoder input.

The student processes pairs of sections; the query decoder processes blocks. The adapter reduces the current branch's
features and the three affinity channels of every section to half resolution, mixes them within the section, then
combines each section with its two neighbours.

Legend: B batch, D sections, H W full and h w half resolution (rounded up).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.affinity import half_resolution
from distill.decoder.decoder import DecoderInput
from distill.decoder.layers import Conv

_CERTAIN = 1e-3


class SlabAdapter(nn.Module):
    """Per-section mixing (3x3), then a convolution over three neighbouring sections."""

    def __init__(self, *, half: int, full: int, features: int = 64) -> None:
        """Build the adapter.

        Args:
            half: channels of the student's half-resolution features.
            full: channels of its full-resolution features.
            features: channels of the decoder input (64 in its interface).
        """
        super().__init__()
        self.within = nn.Sequential(
            Conv(half + full + 3, features, (1, 3, 3), bias=False), nn.GroupNorm(8, features), nn.ELU()
        )
        self.across = nn.Sequential(Conv(features, features, (3, 1, 1), bias=False), nn.GroupNorm(8, features))

    def joined(self, half: Tensor, full: Tensor, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate features and affinities at half resolution; pixel-wise, so once per section and for any part of
        it.

        Args:
            half: (N, C, h, w) features of N sections at half resolution.
            full: (N, C, H, W) features at full resolution.
            affinity: (N, 3, H, W) in [0, 1].

        Returns:
            Concatenated features (N, J, h, w) and affinity logits (N, 3, h, w).
        """
        small = half_resolution(affinity)
        sure = small.float().clamp(_CERTAIN, 1 - _CERTAIN)
        logits = torch.log(sure / (1 - sure))
        pooled = F.avg_pool2d(full, 2, ceil_mode=True, count_include_pad=False)
        return torch.cat([half, pooled, small.to(half.dtype)], 1), logits

    def mix(self, joined: Tensor) -> Tensor:
        """Mix the output of `joined` to features (N, 64, h, w), normalised over its extent: that of a decoder tile."""
        mixed: Tensor = self.within(joined.unsqueeze(2)).squeeze(2)
        return mixed

    def section(self, half: Tensor, full: Tensor, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mixed features (N, 64, h, w) and affinity logits (N, 3, h, w); arguments as for `joined`."""
        joined, logits = self.joined(half, full, affinity)
        return self.mix(joined), logits

    def slab(self, mixed: Tensor, logits: Tensor) -> DecoderInput:
        """Combine the outputs of `section` for the sections of a slab into its decoder input.

        Args:
            mixed: (B, 64, D, h, w).
            logits: (B, 3, D, h, w).
        """
        return DecoderInput(F.elu(mixed + self.across(mixed)), logits)

    def forward(self, half: Tensor, full: Tensor, affinity: Tensor, sections: int) -> DecoderInput:
        """Run both steps for B slabs of `sections` consecutive sections along the first axis."""
        mixed, logits = self.section(half, full, affinity)
        mixed_slab: Tensor = mixed.unflatten(0, (-1, sections))  # type: ignore[no-untyped-call]
        logits_slab: Tensor = logits.unflatten(0, (-1, sections))  # type: ignore[no-untyped-call]
        return self.slab(mixed_slab.transpose(1, 2), logits_slab.transpose(1, 2))
