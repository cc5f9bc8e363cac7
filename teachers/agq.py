"""The AGQ teacher: residual 3D U-Net, fusion at half resolution, affinity branch.

Chen et al., "Efficient Neuron Segmentation in Electron Microscopy by Affinity-Guided Queries", ICLR 2025. Its mask
branch and query decoder are in `distill.decoder.decoder`, which teacher and student share.

An embedding head on the finest map is added (absent from the published network). It provides affinities and voxel
embeddings of a 3D network at full resolution for distillation (Liu et al., CVPR 2024) and figures.

Legend: B batch, E embedding channels, D H W = z y x, h w = half resolution, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.decoder.decoder import DecoderInput
from distill.decoder.layers import Conv, ConvStack, coordinates, resize
from teachers.backbones.unet3d import ResidualUNet3d, conv_block
from teachers.teacher import Teacher, TeacherOutput


class FusingTeacher(Teacher):
    """A teacher with the fusion block and the affinity branch of AGQ."""

    def add_branches(self, channels: Sequence[int], *, fused: int, branch_width: int, branch_depth: int) -> None:
        """Build both for maps of these channels, fine to coarse; the other arguments are those of `AGQTeacher`."""
        self.pre_convs = nn.ModuleList(conv_block(count, fused, (1, 3, 3)) for count in channels)
        self.post_conv = conv_block(fused, fused, (1, 3, 3))
        self.affinity_branch = ConvStack(3 + fused, branch_width, branch_depth, 3, kernel=(3, 3, 3))

    def fuse(self, levels: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fuse maps at one size and compute affinity logits from them.

        Args:
            levels: (B, C, ...) maps in the order of `add_branches`.
            size: D, h, w.

        Returns:
            Features (B, fused, D, h, w) and logits (B, 3, D, h, w).
        """
        fused = torch.zeros((), device=levels[0].device)
        for pre, level in zip(self.pre_convs, levels, strict=True):
            fused = fused + resize(pre(level), size, align_corners=True)
        features: Tensor = self.post_conv(fused)
        return features, self.affinity_branch(torch.cat([coordinates(features), features], 1))


class AGQTeacher(FusingTeacher):
    """Backbone, fusion block and affinity branch; the adapter to the decoder is the identity."""

    def __init__(
        self,
        *,
        filters: Sequence[int] = (32, 64, 96, 128, 160),
        fused: int = 64,
        branch_width: int = 64,
        branch_depth: int = 4,
        embedding: int = 0,
    ) -> None:
        """Build the network; the defaults are those of the publication.

        Args:
            filters: backbone channels, fine to coarse, multiples of 8.
            fused: channels passed to the decoder (64 in its interface).
            branch_width: channels of the affinity branch.
            branch_depth: number of its 3x3x3 layers before the projection.
            embedding: channels of the embedding head on the finest map; 0 = no head.
        """
        super().__init__()
        self.backbone = ResidualUNet3d(filters)
        self.add_branches(filters, fused=fused, branch_width=branch_width, branch_depth=branch_depth)
        self.embedding_head = Conv(filters[0], embedding, (1, 1, 1), bias=True) if embedding else None
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1] internally, as published.
        """
        levels = self.backbone((volume - 0.5) / 0.5)
        features, logits = self.fuse(levels, levels[1].shape[-3:])
        embedding = self.embedding_head(levels[0]) if self.embedding_head is not None else None
        return TeacherOutput(DecoderInput(features, logits), embedding, levels)
