"""Run the student on a stream of sections: each section is encoded once and paired with the previous one.

Results do not depend on how a stream is divided into calls. For sections of one size, a step always has the same number
of sections (padded if necessary), because kernels may sum in a different order in a batch of another size.

Legend: N sections, K offsets, E embedding channels, H W = y x, h w half resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.errors import DistillError
from distill.core.geometry import Triple
from distill.core.normalisation import UNCHANGED, Correction, Normaliser
from students.backends.choose import make_backend
from students.backends.functions import ExtraOutputs
from students.backends.int8 import Calibration
from students.deferred import DeferredStudent, form_of, network_of
from students.slab_adapter import SlabAdapter
from students.streaming.modes import SectionRegion, Steps, TiledSections, WholeSections
from students.streaming.outputs import EmbeddingType, SectionOutput
from students.streaming.tiling import Tile, halo
from students.streaming.transfer import Transfer
from students.student import Student

__all__ = ["EmbeddingType", "SectionOutput", "SectionRunner", "check_stream_offsets"]


class SectionRunner:
    """Process sections in order: whole, one region of each, or in tiles (see `students.streaming.modes`).

    With offsets that reach further back than one section, the embeddings of those earlier sections are kept as well:
    those of the branch for the previous section, as in the edge to the nearest section.
    """

    def __init__(
        self,
        student: Student | DeferredStudent,
        slab: SlabAdapter | None,
        *,
        device: torch.device,
        precision: str,
        backend: str = "auto",
        tile: int | None = None,
        offsets: Sequence[Triple] = NEAREST,
        embedding: EmbeddingType | None = None,
        batch: int | None = None,
        normaliser: Normaliser = UNCHANGED,
        calibration: Calibration | None = None,
    ) -> None:
        """Start before the first section.

        Args:
            student: in evaluation mode, on the device.
            slab: adapter to the query decoder, or None if only affinities are needed.
            device: computing device.
            precision: see `distill.core.hardware`.
            backend: see `students.backends.choose.make_backend`.
            tile: side of the tiles of `tiles`, in pixels.
            offsets: K offsets (z, y, x), the three nearest neighbours first; others within the section or to earlier
                sections.
            embedding: also return the current section's embedding, in this type.
            batch: maximum number of sections at once; by default chosen for the device.
            normaliser: normalises whole sections as in training. Regions of sections (`at`) must be given normalised,
                because the correction does not follow from their pixels alone.
            calibration: sections from which the precision `int8` takes its ranges.

        Raises:
            DistillError: the offsets do not begin with the nearest neighbours, one leads to a later section, or the
                backend is not available.
        """
        check_stream_offsets(offsets)
        further = tuple(offsets[3:])
        earlier = any(z < 0 for z, _, _ in further)
        wanted = ExtraOutputs(bool(embedding or further), earlier, slab is not None)
        self._steps = Steps(
            make_backend(backend, student, slab, wanted, device=device, precision=precision, calibration=calibration),
            Transfer(device),
            normaliser,
            further,
            embedding,
            form_of(student).stride,
            form_of(student).aligned_levels,
            samples_edges=wanted.features,
        )
        self.halo = None if tile is None else halo(network_of(student), offsets)
        most = self._steps.backend.batch
        if batch is not None and not 1 <= batch <= most:
            raise DistillError(f"batch: found {batch}, expected 1 to {most} with {self.backend}")
        self.batch = batch or most
        whole = WholeSections(self._steps, self.batch)
        self._mode: WholeSections | TiledSections = (
            whole if tile is None or self.halo is None else TiledSections(self._steps, tile, self.halo)
        )

    @property
    def backend(self) -> str:
        """Name of the backend, never `auto`."""
        return self._steps.backend.name

    @property
    def difference(self) -> float | None:
        """Return the mean absolute difference of affinities from float32 that was measured for `int8`; None for other
        precisions.
        """
        return self._steps.backend.difference

    @property
    def reach(self) -> int:
        """Return how many sections back the offsets reach."""
        return self._steps.reach

    def time_stages(self, timed: Callable[[str], AbstractContextManager[None]]) -> None:
        """Measure stages from now on.

        Args:
            timed: returns a context manager for the block of code of a stage, given its name.
        """
        self._steps.timed = timed

    def at(self, region: Tile | None, section: tuple[int, int] | None = None) -> None:
        """Process one region of the sections from now on, or whole sections again; discards the previous section.

        Sections are then given as the region's own pixels (`Tile.filled`). Results are those of its core, and equal the
        results of the whole section there.

        Args:
            region: the region; None: whole sections.
            section: (H, W) of the sections that contain it.
        """
        if region is None or section is None:
            self._mode = WholeSections(self._steps, self.batch)
        else:
            self._mode = SectionRegion(self._steps, self.batch, region, section)

    def reset(self) -> None:
        """Discard the previous section: the next one has none."""
        self._mode.reset()

    def prime(self, section: NDArray[Any], correction: Correction | None = None) -> None:
        """Set the previous section without returning results: to resume, to start a range, or to bridge a gap.

        With offsets that reach `reach` sections back, prime this many sections in order.

        Args:
            section: (H, W) grey values as recorded.
            correction: of its grey values, if already known.

        Raises:
            ShapeError: its size differs from that of the previous section, or its type cannot be normalised.
        """
        self._mode.prime(section, correction)

    def push(self, sections: NDArray[Any], corrections: Sequence[Correction] | None = None) -> list[SectionOutput]:
        """Process the next sections.

        Args:
            sections: (N, H, W) grey values as recorded.
            corrections: of their grey values, if already known.

        Raises:
            ShapeError: their size differs from that of the previous section, their type cannot be normalised, or there
                are none.
        """
        return self._mode.push(sections, corrections)

    def tiles(
        self, section: NDArray[Any], correction: Correction | None = None
    ) -> Iterator[tuple[slice, slice, SectionOutput]]:
        """Process the next section tile by tile; it becomes the previous one when the last tile has been consumed.

        All results equal those of the whole section. Each tile encodes both sections again, because features of a whole
        section would not fit into memory.

        Args:
            section: (H, W) grey values as recorded; referenced until the next one, so do not modify it.
            correction: of its grey values, if already known.

        Returns:
            Rows and columns of each tile in the section, and its results, in order of y, then x.

        Raises:
            DistillError: the runner was made without `tile`.
            ShapeError: its size or type differs from that of the previous section.
        """
        if not isinstance(self._mode, TiledSections):
            raise DistillError("tile: found none, expected the side of a tile, in pixels")
        return self._mode.tiles(section, correction)


def check_stream_offsets(offsets: Sequence[Triple]) -> None:
    """Check that a stream can compute these affinities.

    Raises:
        DistillError: they do not begin with the nearest neighbours, or one is zero, repeated, or leads to a later
            section.
    """
    if tuple(offsets[:3]) != NEAREST:
        raise DistillError(f"offsets: found {[list(o) for o in offsets[:3]]} first, expected the three nearest ones")
    for offset in offsets[3:]:
        if offset[0] > 0 or offset == (0, 0, 0):
            raise DistillError(f"offset {list(offset)}: expected one within the section or to an earlier one (z <= 0)")
        if list(offsets).count(offset) > 1:
            raise DistillError(f"offset {list(offset)}: found more than once")
