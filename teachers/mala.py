"""MALA: a 3D U-Net whose affinities are trained by the constrained MALIS loss.

Funke et al., "Large Scale Image Segmentation with Structured Loss Based Deep Learning for Connectome Reconstruction",
IEEE TPAMI 2019. The loss is in `distill.training.objective.malis`, the network and what differs in it in
`teachers.backbones.mala_unet`. An embedding head for grafting and figures can be added (`embedding` above 0).

A first phase trains by errors of single edges, as the authors' own scripts do for 10,000 steps: MALIS gives gradients
to few edges, and from random weights affinities stay near 0.5 for more than a thousand steps.
A narrow network falls back there in the second phase unless `loss.affinity` is above 0, as in `configs/teachers/`.

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

from teachers.backbones.mala_unet import MalaUNet
from teachers.teacher import AffinityTeacher


class MALATeacher(AffinityTeacher):
    """The U-Net and an affinity head."""

    def __init__(self, *, filters: Sequence[int] = (12, 60, 300, 1500), fused: int = 64, embedding: int = 0) -> None:
        """Build the network; the defaults are those of the publication.

        Args:
            filters: channels per scale, fine to coarse.
            fused: as for `AffinityTeacher`.
            embedding: as for `AffinityTeacher`.
        """
        super().__init__(MalaUNet(filters), filters[0], fused=fused, embedding=embedding)
