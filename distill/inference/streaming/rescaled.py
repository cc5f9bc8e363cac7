"""Stream on the model's grid: resample sections as they are read, and transfer results back before they are written.

Legend: K offsets, E embedding channels, D H W = z y x of the source, h w = y x on the model's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distill.core.geometry import Box, Triple
from distill.core.labels import distinct_ids
from distill.inference.rescaling.results import Rescaling, Scalar
from distill.inference.rescaling.sections import resample_section
from distill.inference.streaming.sections.sources import Section, Source
from distill.inference.streaming.slabs import SlabResult


class RescaledSource(Source):
    """The sections of another source, resampled to the model's grid."""

    def __init__(self, recorded: Source, rescaling: Rescaling) -> None:
        """Wrap a source whose sections have the size of the mapping."""
        super().__init__()
        self._recorded, self._rescaling = recorded, rescaling
        z, y, x = recorded.kind.resolution
        self.name, self.total = recorded.name, recorded.total
        self.kind = replace(
            recorded.kind,
            size=rescaling.model,
            resolution=(z, y * rescaling.factor[0], x * rescaling.factor[1]),
        )

    def read(self, z: int) -> Section | None:
        self._recorded.stopped = self.stopped
        section = self._recorded.read(z)
        if section is None or section.image is None or section.flaw is not None:
            return section
        return replace(section, image=resample_section(section.image, self._rescaling))


class OnRecorded:
    """Transfers the results of a stream to the pixels of the source."""

    def __init__(self, rescaling: Rescaling, offsets: Sequence[Triple]) -> None:
        """Set the mapping and the offsets.

        Args:
            rescaling: of the sections.
            offsets: K affinity offsets.
        """
        self._rescaling, self._offsets = rescaling, offsets

    def affinity(self, found: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transfer affinities from (K, h, w) to (K, H, W)."""
        box, within = self._boxes()
        return self._rescaling.affinity(found[:, None], self._offsets, box, within)[:, 0]

    def nearest(self, found: NDArray[Scalar]) -> NDArray[Scalar]:
        """Transfer ids or an embedding from (..., h, w) to (..., H, W)."""
        return self._rescaling.nearest(found, *self._boxes())

    def slab(self, found: SlabResult) -> SlabResult:
        """Transfer a slab's ids, and find which of them own a voxel on the source's grid."""
        sections = [(z, self.nearest(ids)) for z, ids in found.sections]
        there = distinct_ids(np.concatenate([distinct_ids(ids) for _, ids in sections]))
        return replace(found, sections=sections, table=replace(found.table, seen=np.isin(found.table.ids, there)))

    def _boxes(self) -> tuple[Box, Box]:
        return Box.of_shape((1, *self._rescaling.recorded)), Box.of_shape((1, *self._rescaling.model))
