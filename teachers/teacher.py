"""Interface of all 3D teachers, and the output heads of embedding and of affinity networks.

Legend: B batch, C channels, E embedding channels, D H W = z y x, h w = half resolution, rounded up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.affinity import affinity_targets, embedding_affinity, half_resolution
from distill.core.geometry import Triple
from distill.decoder.decoder import DecoderInput
from distill.decoder.layers import Conv
from teachers.backbones.unet3d import conv_block

_CERTAIN = 1e-3


@dataclass(frozen=True)
class TeacherOutput:
    """Output of a teacher for a block."""

    decoder_input: DecoderInput
    embedding: Tensor | None  # (B, E, D, H, W), not normalised; None without the head
    levels: list[Tensor]  # the network's decoder maps from P0 (finest, full resolution) on
    affinity_logits: Tensor | None = None  # (B, 3, D, H, W) of a head at full resolution; None: the embedding's cosines
    extra: tuple[Tensor, ...] = ()  # outputs for the kind's own loss (`distill.training.objective.own_terms`)


class Teacher(nn.Module, ABC):
    """A 3D network with its adapter to the decoder."""

    embedding_channels: int  # 0 = no embedding

    @abstractmethod
    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block of any size: (B, 1, D, H, W), grey values in [0, 1]."""


class AffinityTeacher(Teacher):
    """A backbone with decoder maps and an affinity head on the finest one."""

    def __init__(self, network: nn.Module, channels: int, *, fused: int, embedding: int) -> None:
        """Build the head.

        Args:
            network: maps grey values in [-1, 1], (B, 1, D, H, W), to decoder maps, the finest at the block's own size.
            channels: of the finest map.
            fused: channels passed to the decoder (64 in its interface).
            embedding: channels of the added embedding head; 0 = no head.
        """
        super().__init__()
        self.network = network
        self.head = AffinityHead(channels, embedding=embedding, fused=fused)
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1] internally.
        """
        found: TeacherOutput = self.head(self.network((volume - 0.5) / 0.5))
        return found


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
        logits = half_logits(embedding_affinity(embedding.float()))
        features = self.project(half_resolution(finest))
        return TeacherOutput(DecoderInput(features, logits), embedding, levels)


class AffinityHead(nn.Module):
    """Output head that computes affinities at full resolution, decoder input and, optionally, an embedding."""

    def __init__(self, channels: int, *, embedding: int, fused: int) -> None:
        """Build the head.

        Args:
            channels: of the finest map.
            embedding: channels of the added embedding for grafting and figures; 0 = none.
            fused: channels passed to the decoder, a multiple of 8.
        """
        super().__init__()
        self.affinity = Conv(channels, 3, (1, 1, 1), bias=True)
        self.embed = Conv(channels, embedding, (1, 1, 1), bias=True) if embedding else None
        self.project = conv_block(channels, fused, (1, 1, 1))

    def forward(self, levels: list[Tensor]) -> TeacherOutput:
        """Compute the output for a block.

        Args:
            levels: decoder maps, the first (B, C, D, H, W) at the block's own size.

        Returns:
            The decoder's logits are those of `half_logits`.
        """
        finest = levels[0]
        logits = self.affinity(finest)
        embedding = self.embed(finest) if self.embed is not None else None
        given = DecoderInput(self.project(half_resolution(finest)), half_logits(inside(logits.float().sigmoid())))
        return TeacherOutput(given, embedding, levels, logits)


def half_logits(affinity: Tensor) -> Tensor:
    """Average affinities (B, 3, D, H, W) to half resolution and return their logits, clipped at 1e-3 from certainty."""
    return certain_logits(half_resolution(affinity))


def certain_logits(affinity: Tensor) -> Tensor:
    """Return the logits of affinities, clipped at 1e-3 from certainty."""
    return torch.logit(affinity.clamp(_CERTAIN, 1 - _CERTAIN))


def inside(affinity: Tensor) -> Tensor:
    """Set edges that leave the block to 0, as in the targets of the affinity loss, (B, 3, D, H, W)."""
    exists = affinity_targets(torch.zeros(affinity.shape[-3:], dtype=torch.int64, device=affinity.device)).valid
    return affinity * exists


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
