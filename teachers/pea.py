"""Pixel-embedded affinity: affinities as similarities of voxel embeddings, on several scales and across two views.

Huang et al., "Learning to Model Pixel-Embedded Affinity for Homogeneous Instance Segmentation", AAAI 2022: the
self-correlation of an embedding at many offsets gives affinities, the cross-correlation with the embedding of a
transformed view must give the same ones, and embeddings of coarser maps are trained by affinities on their scale.

What differs: the network is `teachers.superhuman`, the 3D network of later work by the same group (Liu et al., CVPR
2024) with its twelve offsets; the second view is embedded by the network itself without gradients, not by a moving
average of its weights. The losses are in `distill.training.objective.pixel_embedding`.

Legend: B batch, E embedding channels, D H W = z y x, h w size of a coarser map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from distill.decoder.layers import Conv
from teachers.superhuman import SuperHumanTeacher
from teachers.teacher import Teacher, TeacherOutput


class PEATeacher(Teacher):
    """Residual symmetric U-Net whose finest and coarser maps are embedded."""

    def __init__(
        self,
        *,
        filters: Sequence[int] = (28, 36, 48, 64, 80),
        scales: int = 2,
        fused: int = 64,
        embedding: int = 16,
    ) -> None:
        """Build the network.

        Args:
            filters: channels per scale, fine to coarse.
            scales: coarser maps with an embedding of their own, each halved within the section.
            fused: channels passed to the decoder (64 in its interface).
            embedding: channels of all embeddings.
        """
        super().__init__()
        self.network = SuperHumanTeacher(filters=filters, fused=fused, embedding=embedding)
        self.pyramid = nn.ModuleList(
            Conv(channels, embedding, (1, 1, 1), bias=True) for channels in filters[1 : 1 + scales]
        )
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1].

        Returns:
            `extra` are the embeddings of the coarser maps, (B, E, D, h, w) each.
        """
        found: TeacherOutput = self.network(volume)
        coarser = tuple(embed(level) for embed, level in zip(self.pyramid, found.levels[1:], strict=False))
        return replace(found, extra=coarser)
