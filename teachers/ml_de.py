"""Metric learning with the discriminative loss: neurons are clusters of voxel embeddings.

De Brabandere et al., "Semantic Instance Segmentation with a Discriminative Loss Function", 2017: embeddings of an
instance are pulled to their mean, means of different instances are pushed apart; instances are found by clustering
(`distill.segmentation.clustering`). The loss is in `distill.training.objective.discriminative`.

What differs: a 3D network (`teachers.backbones.residual_unet`) on volumes. Affinities for the decoder, for distillation
and for methods other than clustering are derived from distances between neighbouring embeddings (Lee et al., "Learning
and Segmenting Dense Voxel Embeddings for 3D Neuron Reconstruction", IEEE TMI 2021). The embedding is not normalised;
grafting and figures use its directions.

Legend: B batch, E embedding channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distill.core.affinity import distance_affinity, half_resolution
from distill.decoder.decoder import DecoderInput
from distill.decoder.layers import Conv
from teachers.backbones.residual_unet import AnisotropicUNet
from teachers.backbones.unet3d import conv_block
from teachers.teacher import Teacher, TeacherOutput, certain_logits, half_logits


class MLDETeacher(Teacher):
    """Anisotropic residual U-Net with an embedding."""

    def __init__(
        self,
        *,
        filters: Sequence[int] = (28, 36, 48, 64, 80),
        push: float = 1.5,
        fused: int = 64,
        embedding: int = 16,
    ) -> None:
        """Build the network.

        Args:
            filters: channels per scale, fine to coarse.
            push: half the distance beyond which two means do not repel each other; neighbours at that distance or
                further apart have affinity 0.
            fused: channels passed to the decoder (64 in its interface).
            embedding: channels of the embedding.
        """
        super().__init__()
        self.network = AnisotropicUNet(filters)
        self.embed = Conv(filters[0], embedding, (1, 1, 1), bias=True)
        self.project = conv_block(filters[0], fused, (1, 1, 1))
        self.push = push
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1] internally.
        """
        levels = self.network((volume - 0.5) / 0.5)
        embedding = self.embed(levels[0])
        affinity = distance_affinity(embedding.float(), 2 * self.push)
        given = DecoderInput(self.project(half_resolution(levels[0])), half_logits(affinity))
        return TeacherOutput(given, embedding, levels, certain_logits(affinity))
