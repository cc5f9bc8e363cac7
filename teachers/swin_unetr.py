"""Swin UNETR as an embedding teacher, built from MONAI's Swin transformer and convolution blocks.

Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images", BrainLes
2021: four stages of two blocks with windows of 7 voxels, 48 features, convolutional decoder.

Adapted to thin blocks of anisotropic voxels: all five halvings (patches and merges) act within the section only, as in
the student paper's own teacher. Therefore no padding is needed in z, and a single section runs as MONAI's 2D network
does.

Where a map is smaller than a window, MONAI numbers the window's relative positions by their order alone. This is
correct for fewer sections, but not for fewer rows or columns. With windows of 7, blocks of at least 112 rows and
columns are not affected.

Legend: B batch, C channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from distill.core.geometry import Triple
from teachers.backbones.monai_parts import monai_parts
from teachers.teacher import EmbeddingHead, Teacher, TeacherOutput, extended

_STRIDE = (1, 2, 2)
_WHOLE = (1, 32, 32)  # five halvings
_LEAST = (1, 64, 64)  # instance norm on the coarsest map needs more than one voxel


class SwinUNETRTeacher(Teacher):
    """Shifted-window transformer of four stages, skip connections at six scales, convolutional decoder."""

    def __init__(
        self,
        *,
        features: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: Triple = (7, 7, 7),
        fused: int = 64,
        embedding: int = 16,
    ) -> None:
        """Build the network; the defaults are those of the publication except for the strides.

        Args:
            features: channels of the finest map and of the first stage; they double with every stage.
            depths: transformer blocks of the four stages.
            heads: attention heads of the four stages, divisors of their channels.
            window: voxels of attention windows, at the stage's resolution.
            fused: channels passed to the shared decoder (64 in its interface).
            embedding: channels of the voxel embedding.

        Raises:
            DistillError: MONAI is not installed.
        """
        super().__init__()
        parts = monai_parts("swinunetr")
        f = features
        self.swin = parts.SwinTransformer(
            in_chans=1,
            embed_dim=f,
            window_size=window,
            patch_size=_STRIDE,
            depths=depths,
            num_heads=heads,
            downsample=SectionMerging,
        )

        def refine(inputs: int, outputs: int) -> nn.Module:
            block: nn.Module = parts.UnetResBlock(3, inputs, outputs, 3, 1, "instance")
            return block

        self.encoders = nn.ModuleList([refine(1, f), *(refine(n * f, n * f) for n in (1, 2, 4))])
        self.deepest = refine(16 * f, 16 * f)
        widths = [16 * f, 8 * f, 4 * f, 2 * f, f, f]
        self.decoders = nn.ModuleList(
            parts.UnetrUpBlock(3, i, o, 3, _STRIDE, "instance", res_block=True) for i, o in pairwise(widths)
        )
        self.head = EmbeddingHead(f, embedding=embedding, fused=fused)
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1], with sections extended, internally.
        """
        _, _, _, height, width = volume.shape
        whole = extended((volume - 0.5) / 0.5, _WHOLE, _LEAST)
        *stages, bridge, last = self.swin(whole)
        fine = [encoder(x) for encoder, x in zip(self.encoders, [whole, *stages], strict=True)]
        finest = self.deepest(last)
        for decoder, skip in zip(self.decoders, [bridge, *reversed(fine)], strict=True):
            finest = decoder(finest, skip)
        found: TeacherOutput = self.head([finest[..., :height, :width]])
        return found


class SectionMerging(nn.Module):
    """Patch merging of 2x2 neighbours within the section, used by MONAI's transformer."""

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm], spatial_dims: int) -> None:
        """Build the layer.

        Args:
            dim: input channels C; the output has 2 C.
            norm_layer: norm of the concatenated channels.
            spatial_dims: 3.
        """
        super().__init__()
        assert spatial_dims == 3
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W, C) with even H and W to (B, D, H / 2, W / 2, 2 C)."""
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged
