"""Affinities learnt together with local shape descriptors, by one network or by auto-context.

Sheridan et al., "Local shape descriptors for neuron segmentation", Nature Methods 2023: descriptors of the object
around each voxel as an auxiliary task (MtLSD), or predicted first and passed to a second network that predicts
affinities (AcLSD; with the grey values AcrLSD). The descriptors are in `distill.training.objective.descriptors`, the
U-Net in `teachers.backbones.mala_unet`.

What differs: both networks of auto-context are trained together, the second without gradients into the first, instead
of one after the other; affinities are trained by a logistic cross-entropy. An embedding head for grafting and figures
can be added (`embedding` above 0).

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from distill.decoder.layers import Conv
from teachers.backbones.mala_unet import MalaUNet
from teachers.teacher import AffinityHead, Teacher, TeacherOutput

DESCRIPTORS = 10


class LSDTeacher(Teacher):
    """U-Net with heads for affinities and descriptors; with auto-context two U-Nets with one head each."""

    def __init__(
        self,
        *,
        filters: Sequence[int] = (12, 60, 300, 1500),
        auto_context: Literal["none", "descriptors", "descriptors+grey"] = "none",
        fused: int = 64,
        embedding: int = 0,
    ) -> None:
        """Build the network; the defaults are those of MtLSD.

        Args:
            filters: channels per scale, fine to coarse, of every U-Net.
            auto_context: input of a second network for affinities; `none` = one network.
            fused: channels passed to the decoder (64 in its interface).
            embedding: channels of the added embedding head; 0 = no head.
        """
        super().__init__()
        self.network = MalaUNet(filters)
        self.describe = Conv(filters[0], DESCRIPTORS, (1, 1, 1), bias=True)
        self.with_grey = auto_context == "descriptors+grey"
        inputs = DESCRIPTORS + self.with_grey
        self.second = MalaUNet(filters, inputs=inputs) if auto_context != "none" else None
        self.head = AffinityHead(filters[0], embedding=embedding, fused=fused)
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1] internally.

        Returns:
            `extra` holds the descriptors (B, 10, D, H, W) in [0, 1].
        """
        grey = (volume - 0.5) / 0.5
        levels = self.network(grey)
        descriptors = self.describe(levels[0]).sigmoid()
        if self.second is not None:
            given = descriptors.detach()
            levels = self.second(torch.cat([grey, given], 1) if self.with_grey else given)
        found: TeacherOutput = self.head(levels)
        return replace(found, extra=(descriptors,))
