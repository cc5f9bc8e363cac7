"""UNETR as an embedding teacher, built from MONAI's vision transformer and convolution blocks.

Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022: 12 layers of width 768 (ViT-B)
on patches of 16 voxels, convolutional decoder of 16 features.

Adapted to thin blocks of anisotropic voxels: a patch spans `patch_depth` sections instead of 16 (4 sections of 30 nm by
16 pixels of 6 nm are nearly a cube), and only the corresponding coarse steps of the decoder's four act in z. With a
depth of 16, this is MONAI's own UNETR. The position embedding is learnt for one block size and interpolated for others.

Legend: B batch, C channels, N patches in the order z y x, D H W = z y x, d g g = grid of patches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.geometry import Triple
from teachers.backbones.monai_parts import MonaiParts, monai_parts
from teachers.teacher import EmbeddingHead, Teacher, TeacherOutput, extended

_PATCH = 16


class UNETRTeacher(Teacher):
    """Vision transformer, four skip connections, convolutional decoder at full resolution."""

    def __init__(
        self,
        *,
        features: int = 16,
        hidden: int = 768,
        mlp: int = 3072,
        heads: int = 12,
        layers: int = 12,
        patch_depth: int = 4,
        block: Triple = (18, 160, 160),
        fused: int = 64,
        embedding: int = 16,
    ) -> None:
        """Build the network; the defaults are those of the publication except for the patch depth.

        Args:
            features: channels of the finest map.
            hidden: width of the transformer, a multiple of `heads`.
            mlp: width of its inner layers.
            heads: attention heads.
            layers: a multiple of 4; three skip connections start at the quarters.
            patch_depth: sections of a patch: 1, 2, 4, 8 or 16.
            block: block size z, y, x in voxels for which the position embedding is learnt.
            fused: channels passed to the shared decoder (64 in its interface).
            embedding: channels of the voxel embedding.

        Raises:
            DistillError: MONAI is not installed.
        """
        super().__init__()
        parts = monai_parts("unetr")
        self.patch = (patch_depth, _PATCH, _PATCH)
        self.grid = tuple(-(-n // p) for n, p in zip(block, self.patch, strict=True))
        self.vit = parts.ViT(
            in_channels=1,
            img_size=tuple(g * p for g, p in zip(self.grid, self.patch, strict=True)),
            patch_size=self.patch,
            hidden_size=hidden,
            mlp_dim=mlp,
            num_layers=layers,
            num_heads=heads,
        )
        for layer in self.vit.blocks:  # parameters that MONAI creates but does not use without a second input
            layer.norm_cross_attn = layer.cross_attn = nn.Identity()
        self.taps = [layers // 4 * quarter for quarter in (1, 2, 3)]
        f, in_z = features, patch_depth.bit_length() - 1
        strides = [(2 if step < in_z else 1, 2, 2) for step in range(4)]
        self.encoder1 = parts.UnetResBlock(3, 1, f, 3, 1, "instance")
        self.encoder2 = _encoder(parts, hidden, 2 * f, strides[:3])
        self.encoder3 = _encoder(parts, hidden, 4 * f, strides[:2])
        self.encoder4 = _encoder(parts, hidden, 8 * f, strides[:1])
        widths = [hidden, 8 * f, 4 * f, 2 * f, f]
        self.decoders = nn.ModuleList(
            parts.UnetrUpBlock(3, i, o, 3, stride, "instance", res_block=True)
            for i, o, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.head = EmbeddingHead(f, embedding=embedding, fused=fused)
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1] and extended to whole patches internally.
        """
        _, _, depth, height, width = volume.shape
        whole = extended((volume - 0.5) / 0.5, self.patch)
        shallow, middle, deep, last = self._transformed(whole)
        skips = [self.encoder4(deep), self.encoder3(middle), self.encoder2(shallow), self.encoder1(whole)]
        finest = last
        for decoder, skip in zip(self.decoders, skips, strict=True):
            finest = decoder(finest, skip)
        found: TeacherOutput = self.head([finest[..., :depth, :height, :width]])
        return found

    def _transformed(self, whole: Tensor) -> list[Tensor]:
        """Return maps (B, hidden, d, g, g) at three depths of the transformer and at its end."""
        patches = self.vit.patch_embedding.patch_embeddings(whole)
        grid = patches.shape[-3:]
        tokens = patches.flatten(2).transpose(1, 2) + self._positions(grid)
        tapped = []
        for index, layer in enumerate(self.vit.blocks):
            tokens = layer(tokens)
            if index in self.taps:
                tapped.append(tokens)
        return [t.transpose(1, 2).unflatten(2, grid) for t in (*tapped, self.vit.norm(tokens))]

    def _positions(self, grid: torch.Size) -> Tensor:
        """Interpolate the position embedding (1, N, hidden) to another grid of patches."""
        learnt: Tensor = self.vit.patch_embedding.position_embeddings
        if tuple(grid) == self.grid:
            return learnt
        maps: Tensor = learnt.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-untyped-call]
        return F.interpolate(maps, grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


def _encoder(parts: MonaiParts, inputs: int, outputs: int, strides: list[Triple]) -> nn.Sequential:
    """Build the path from the transformer's grid up by `strides`, with a residual block after each step except the
    first.
    """
    steps: list[Any] = [_doubled(inputs, outputs, strides[0])]
    for stride in strides[1:]:
        steps += [_doubled(outputs, outputs, stride), parts.UnetResBlock(3, outputs, outputs, 3, 1, "instance")]
    return nn.Sequential(*steps)


def _doubled(inputs: int, outputs: int, stride: Triple) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(inputs, outputs, stride, stride, bias=False)
