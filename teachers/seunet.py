"""The residual 3D U-Net with squeeze and excitation of PyTorch Connectomics.

Lin et al., "PyTorch Connectomics: A Scalable and Flexible Segmentation Framework for EM Connectomics", 2021, with
squeeze and excitation (Hu et al., CVPR 2018) after the second convolution of every residual block. A gate depends on
the means of the whole block, so the output depends on where a window lies.

What differs: as for `teachers.resunet`, the same network without the gates.

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

from teachers.backbones.residual_unet import AnisotropicUNet
from teachers.teacher import AffinityTeacher


class SeUNetTeacher(AffinityTeacher):
    """Anisotropic residual U-Net with squeeze and excitation, and an affinity head."""

    def __init__(self, *, filters: Sequence[int] = (28, 36, 48, 64, 80), fused: int = 64, embedding: int = 0) -> None:
        """Build the network; the defaults are those of the publication.

        Args:
            filters: channels per scale, fine to coarse.
            fused: as for `AffinityTeacher`.
            embedding: as for `AffinityTeacher`.
        """
        super().__init__(AnisotropicUNet(filters, squeeze=True), filters[0], fused=fused, embedding=embedding)
