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

from teachers.backbones.residual_unet import AnisotropicUNet
from teachers.teacher import AffinityTeacher


class ResUNetTeacher(AffinityTeacher):
    """Anisotropic residual U-Net and an affinity head."""

    def __init__(self, *, filters: Sequence[int] = (28, 36, 48, 64, 80), fused: int = 64, embedding: int = 0) -> None:
        """Build the network; the defaults are those of the publication.

        Args:
            filters: channels per scale, fine to coarse.
            fused: as for `AffinityTeacher`.
            embedding: as for `AffinityTeacher`.
        """
        super().__init__(AnisotropicUNet(filters), filters[0], fused=fused, embedding=embedding)
