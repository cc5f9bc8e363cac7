"""The student paper's own teacher: residual symmetric 3D U-Net with a voxel embedding.

Lee et al., "Superhuman Accuracy on the SNEMI3D Connectomics Challenge", 2017: five scales whose residual modules begin
with a convolution within the section, additive skip connections, 5x5 convolutions within the section at both ends.
Liu et al., "Cross-dimension Affinity Distillation for 3D EM Neuron Segmentation", CVPR 2024: filters 28 to 80, sampling
by (1, 2, 2) between all scales, 16 embedding channels, grey values in [0, 1].

Details that the publications do not specify: max pooling that rounds sizes up, transposed 2x2 convolutions cropped to
the encoder's size, so that blocks of any size fit; batch norm and ELU after each convolution; replicate padding.

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from distill.decoder.layers import Conv
from teachers.teacher import EmbeddingHead, Teacher, TeacherOutput


class SuperHumanTeacher(Teacher):
    """Five scales, halved within the section only; only the decoder's features depend on the whole block."""

    def __init__(self, *, filters: Sequence[int] = (28, 36, 48, 64, 80), fused: int = 64, embedding: int = 16) -> None:
        """Build the network; the defaults are those of the publication.

        Args:
            filters: channels per scale, fine to coarse.
            fused: channels passed to the decoder (64 in its interface).
            embedding: channels of the voxel embedding.
        """
        super().__init__()
        f = list(filters)
        self.enter = _block(1, f[0], (1, 5, 5))
        self.down = nn.ModuleList(ResidualModule(i, o) for i, o in zip([f[0], *f[:-1]], f, strict=True))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(f[j + 1], f[j], 2, 2) for j in range(len(f) - 1))
        self.up = nn.ModuleList(ResidualModule(f[j], f[j]) for j in range(len(f) - 1))
        self.leave = _block(f[0], f[0], (1, 5, 5))
        self.head = EmbeddingHead(f[0], embedding=embedding, fused=fused)
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1].
        """
        level = self.down[0](self.enter(volume))
        encoded = [level]
        for module in self.down[1:]:
            level = module(F.max_pool3d(level, (1, 2, 2), ceil_mode=True))
            encoded.append(level)
        decoded = [level]
        for j in reversed(range(len(self.up))):
            decoded.insert(0, self.up[j](encoded[j] + _risen(self.rise[j], decoded[0], encoded[j])))
        found: TeacherOutput = self.head([self.leave(decoded[0]), *decoded[1:]])
        return found


class ResidualModule(nn.Module):
    """A convolution within the section, then two 3D convolutions with a skip connection around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enter = _block(inputs, outputs, (1, 3, 3))
        self.first = _block(outputs, outputs, (3, 3, 3))
        self.second = nn.Sequential(Conv(outputs, outputs, (3, 3, 3), bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, D, H, W) to (B, outputs, D, H, W)."""
        x = self.enter(x)
        return F.elu(x + self.second(self.first(x)))


def _risen(rise: nn.Module, coarse: Tensor, like: Tensor) -> Tensor:
    """Upsample a map to twice its size within the section, cropped to that of `like`."""
    batch, _, depth, _, _ = coarse.shape
    sections = rise(coarse.transpose(1, 2).flatten(0, 1))[..., : like.shape[-2], : like.shape[-1]]
    blocks: Tensor = sections.unflatten(0, (batch, depth))
    return blocks.transpose(1, 2)


def _block(inputs: int, outputs: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, outputs, kernel, bias=False), nn.BatchNorm3d(outputs), nn.ELU())
