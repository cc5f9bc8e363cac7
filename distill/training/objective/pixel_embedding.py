"""Losses of pixel-embedded affinity beyond the offsets of one map: on coarser maps, and across two views.

Huang et al., "Learning to Model Pixel-Embedded Affinity for Homogeneous Instance Segmentation", AAAI 2022.

Legend: B batch, E embedding channels, D H W = z y x, h w size of a coarser map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.training.objective.losses import multi_offset_loss


def pyramid_loss(embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Compute the multi-offset loss of coarser embeddings against labels taken at every 2nd, 4th, ... voxel.

    Args:
        embeddings: (B, E, D, h, w) each, at half the size within the section of the one before; the first at half the
            size of the labels, rounded up.
        labels: (B, D, H, W) int64.

    Returns:
        Mean over the scales; offsets are in voxels of the scale, and those that exceed the map have no share.
    """
    losses = []
    for scale, embedding in enumerate(embeddings, start=1):
        step = 2**scale
        losses.append(multi_offset_loss(embedding, labels[:, :, ::step, ::step]))
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class View:
    """A transformation of a block: axes that are reversed, and grey values scaled and shifted.

    Attributes:
        axes: of (B, C, D, H, W), among 2, 3, 4.
        contrast: factor of the grey values around 0.5.
        brightness: added to them.
    """

    axes: tuple[int, ...]
    contrast: float
    brightness: float

    @classmethod
    def drawn(cls, generator: torch.Generator) -> View:
        """Draw a view: each axis reversed with probability 0.5, contrast 0.75 to 1.25, brightness -0.1 to 0.1."""
        flips = torch.rand(3, generator=generator, device="cpu") < 0.5
        contrast, brightness = (torch.rand(2, generator=generator, device="cpu") - 0.5).tolist()
        return cls(
            tuple(axis for axis, flip in zip((2, 3, 4), flips.tolist(), strict=True) if flip),
            1 + contrast / 2,
            brightness / 5,
        )

    def of(self, raw: Tensor) -> Tensor:
        """Transform grey values (B, 1, D, H, W) in [0, 1]."""
        return self.back(((raw - 0.5) * self.contrast + 0.5 + self.brightness).clamp(0, 1))

    def back(self, values: Tensor) -> Tensor:
        """Move values (B, C, D, H, W) of the view back onto the block's voxels; reversing is its own inverse."""
        return values.flip(self.axes) if self.axes else values
