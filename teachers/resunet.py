"""The anisotropic residual 3D U-Net with affinities from a head of its own.

Xiao et al., "Deep contextual residual network for electron microscopy image segmentation in connectomics", ISBI 2018,
and its 3D form in PyTorch Connectomics (Lin et al., 2021; see `teachers.backbones.residual_unet`), which comparisons
use under this name.

What differs: a single logistic cross-entropy trains the affinities, without a Dice term or deep supervision; an
embedding head for grafting and figures can be added (`embedding` above 0), which the published network lacks.

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from teachers.backbones.residual_unet import AnisotropicUNet
from teachers.teacher import AffinityHead, Teacher, TeacherOutput


class ResUNetTeacher(Teacher):
    """Anisotropic residual U-Net and an affinity head."""

    def __init__(self, *, filters: Sequence[int] = (28, 36, 48, 64, 80), fused: int = 64, embedding: int = 0) -> None:
        """Build the network; the defaults are those of the publication.

        Args:
            filters: channels per scale, fine to coarse.
            fused: channels passed to the decoder (64 in its interface).
            embedding: channels of the added embedding head; 0 = no head.
        """
        super().__init__()
        self.network = AnisotropicUNet(filters)
        self.head = AffinityHead(filters[0], embedding=embedding, fused=fused)
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1]; mapped to [-1, 1] internally.
        """
        found: TeacherOutput = self.head(self.network((volume - 0.5) / 0.5))
        return found
