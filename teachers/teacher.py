"""Interface of all 3D teachers, and the output head of embedding networks.

Legend: B batch, C channels, E embedding channels, D H W = z y x, h w = half resolution, rounded up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.affinity import embedding_affinity, half_resolution
from distill.core.geometry import Triple
from distill.decoder.decoder import DecoderInput
from distill.decoder.layers import Conv
from teachers.unet3d import conv_block

_CERTAIN = 1e-3


@dataclass(frozen=True)
class TeacherOutput:
    """Output of a teacher for a block."""

    decoder_input: DecoderInput
    embedding: Tensor | None  # (B, E, D, H, W), not normalised; None without the head
    levels: list[Tensor]  # the network's decoder maps from P0 (finest, full resolution) on


class Teacher(nn.Module, ABC):
    """A 3D network with its adapter to the decoder."""

    embedding_channels: int  # 0 = no embedding

    @abstractmethod
    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block of any size: (B, 1, D, H, W), grey values in [0, 1]."""


class EmbeddingHead(nn.Module):
    """Output head that computes embedding and decoder input from an embedding network's finest map.

    The affinities are the cosines of the embedding (Liu et al., CVPR 2024), so there is no affinity branch. The
    features are the finest map, averaged to half resolution and projected like a map of the AGQ fusion block.
    """

    def __init__(self, channels: int, *, embedding: int, fused: int) -> None:
        """Build the head.

        Args:
            channels: of the finest map.
            embedding: channels of the voxel embedding.
            fused: channels passed to the decoder, a multiple of 8.
        """
        super().__init__()
        self.embed = Conv(channels, embedding, (1, 1, 1), bias=True)
        self.project = conv_block(channels, fused, (1, 1, 1))

    def forward(self, levels: list[Tensor]) -> TeacherOutput:
        """Compute the output for a block.

        Args:
            levels: decoder maps, the first (B, C, D, H, W) at the block's own size.

        Returns:
            Logits are clipped at 1e-3 from certainty. Edges that leave the block are 0 before averaging to half
            resolution, as in the targets of the affinity loss.
        """
        finest = levels[0]
        embedding = self.embed(finest)
        affinity = half_resolution(embedding_affinity(embedding.float()))
        logits = torch.logit(affinity.clamp(_CERTAIN, 1 - _CERTAIN))
        features = self.project(half_resolution(finest))
        return TeacherOutput(DecoderInput(features, logits), embedding, levels)


def extended(volume: Tensor, step: Triple, least: Triple = (1, 1, 1)) -> Tensor:
    """Repeat the last section, row and column until the sizes are multiples of `step` and at least `least`.

    Args:
        volume: (B, C, D, H, W); it keeps its position at the first corner.
        step: multiples z, y, x.
        least: minimum sizes z, y, x, multiples of `step`.
    """
    missing = [max(low, -(-n // s) * s) - n for n, s, low in zip(volume.shape[-3:], step, least, strict=True)]
    z, y, x = missing
    return F.pad(volume, (0, x, 0, y, 0, z), mode="replicate") if any(missing) else volume
