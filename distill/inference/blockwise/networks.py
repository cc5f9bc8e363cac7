"""Compute affinities and instances of a block: the student on regions, the teacher in windows.

Legend: D H W = z y x of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box
from distill.core.timing import StageTimer
from distill.inference.assembly import Slab
from distill.inference.blockwise.corrections import Sections
from distill.inference.blockwise.options import merges_contacts
from distill.inference.blockwise.plan import Block, Plan
from distill.inference.decode import decode_slab, decode_tile
from distill.inference.fragments import segment_fragments
from distill.inference.options import Runtime
from distill.models.fragment_file import FragmentModel
from distill.models.load import TrainedStudent, TrainedTeacher
from distill.segmentation.agglomeration import waterz
from distill.segmentation.mutex_watershed import mutex_watershed
from distill.segmentation.supervoxels import supervoxels
from students.streaming.runner import SectionRunner
from students.streaming.tiling import Tile, around
from teachers.sliding_window import run_teacher
from teachers.teacher import TeacherOutput

Ids = NDArray[np.uint64]
Affinity = NDArray[np.float32]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Solved:
    """Result of one block.

    Attributes:
        pieces: number, position in the volume and ids (D, h, w) of each piece, in order.
        affinity: (3, D, H, W) in [0, 1].
        stored: (3, D, H, W) uint8.
        empty: number of voxels of value 0 that the block owns.
    """

    pieces: list[tuple[int, Box, Ids]]
    affinity: Affinity
    stored: NDArray[np.uint8]
    empty: int


class Instances(Protocol):
    """A network with a segmentation method."""

    def solve(self, block: Block, sections: Sections, timer: StageTimer) -> Solved:
        """Segment a block.

        Args:
            block: of the plan.
            sections: of the plan.
            timer: of the stages.
        """


@dataclass(frozen=True)
class Cutting:
    """How affinities become instances.

    Attributes:
        method: see `distill.inference.blockwise.options.Blocking`.
        threshold: of the method.
        fragments: the transformer of the method `fragments`.
        device: of the transformer.
    """

    method: str
    threshold: float | None
    fragments: FragmentModel | None = None
    device: torch.device = _CPU


class StudentBlocks:
    """Run the student on regions of sections, with the same affinities and decoder inputs as on whole sections."""

    def __init__(
        self,
        trained: TrainedStudent,
        runtime: Runtime,
        plan: Plan,
        halo: tuple[int, int],
        cut: Cutting,
    ) -> None:
        self._trained, self._runtime, self._cut = trained, runtime, cut
        self._runner = SectionRunner(
            trained.network,
            trained.slab,
            device=runtime.device,
            precision=runtime.precision,
            backend=runtime.backend,
            calibration=runtime.calibration,
        )
        self._size = plan.shape[1:]
        self._regions = regions(plan, halo, trained.form.stride)

    def solve(self, block: Block, sections: Sections, timer: StageTimer) -> Solved:
        """Segment a block; see `Instances.solve`."""
        region = self._regions[block.row, block.column]
        begin, stop = block.box.start[0], block.box.stop[0]
        before = min(sections.before(begin), self._runner.reach)  # previous section for pairing the first one
        rows, columns = region.window(self._size)
        with timer.timed("read"):
            at = Box((begin - before, rows.start, columns.start), (stop, rows.stop, columns.stop))
            read, empty = sections.read_counted(at, block.owned)
            grey = region.filled(read, self._size)
        with timer.timed("network"):
            self._runner.at(region, self._size)
            for section in grey[:before]:
                self._runner.prime(section)
            outputs = self._runner.push(grey[before:])
            self._runner.reset()
        stored = np.stack([output.affinity for output in outputs], 1)
        affinity = from_uint8(stored)
        with timer.timed("decode"):
            if merges_contacts(self._cut.method):
                tiles = [box.relative_to(block.box.start) for _, box in block.tiles]
                pieces = decode_slab(self._trained, Slab(0, outputs), self._runtime, tiles)
                numbers = [number for number, _ in block.tiles]
                boxes = [box for _, box in block.tiles]
                found = list(zip(numbers, boxes, [piece.labels for piece in pieces], strict=True))
            else:
                labels = instances_of(self._cut, affinity)
                found = [(block.index, block.box, labels)]
        return Solved(found, affinity, stored, empty)


class TeacherBlocks:
    """The teacher in windows of its decoder's tiles, with affinities blended within a block."""

    def __init__(self, trained: TrainedTeacher, runtime: Runtime, cut: Cutting, orientations: int) -> None:
        self._trained, self._runtime, self._cut, self._orientations = trained, runtime, cut, orientations

    def solve(self, block: Block, sections: Sections, timer: StageTimer) -> Solved:
        """Segment a block; see `Instances.solve`."""
        trained, runtime, method = self._trained, self._runtime, self._cut.method
        with timer.timed("read"):
            unit, empty = sections.read_counted(block.box, block.owned)
        labels: list[Ids] = []

        def decode(window: Box, output: TeacherOutput, own: Affinity) -> None:
            with timer.timed("decode"):
                labels.append(
                    decode_tile(trained.decoder, output.decoder_input, window, trained.config.decoder, runtime)
                )

        windows = [box.relative_to(block.box.start) for _, box in block.tiles]
        with timer.timed("network"):
            on_block: Callable[[Box, TeacherOutput, Affinity], None] | None = decode if method == "query" else None
            affinity = run_teacher(
                trained.teacher,
                unit,
                windows,
                device=runtime.device,
                precision=runtime.precision,
                orientations=self._orientations,
                on_block=on_block,
            ).affinity
        if method == "flood":
            with timer.timed("decode"):
                found = [(block.index, block.box, supervoxels(as_uint8(affinity)).astype(np.uint64))]
        elif method == "query":
            found = [(number, box, ids) for (number, box), ids in zip(block.tiles, labels, strict=True)]
        else:
            with timer.timed("decode"):
                found = [(block.index, block.box, instances_of(self._cut, affinity))]
        return Solved(found, affinity, as_uint8(affinity), empty)


def instances_of(cut: Cutting, affinity: Affinity) -> Ids:
    """Segment a block (D, H, W) from its affinities (3, D, H, W) only.

    Raises:
        DistillError: the method's package is missing.
    """
    threshold = cut.threshold
    assert threshold is not None, "methods without a decoder have a threshold"
    if cut.fragments is not None:
        return segment_fragments(affinity, cut.fragments, [threshold], cut.device)[threshold]
    if cut.method == "waterz":
        return waterz(affinity, [threshold])[threshold]
    return mutex_watershed(affinity, NEAREST, bias=threshold)


def regions(plan: Plan, halo: tuple[int, int], stride: int) -> dict[tuple[int, int], Tile]:
    """Return the student's region of every row and column of blocks."""
    rows, columns = ([(group.start, group.stop) for group in groups] for groups in (plan.rows, plan.columns))
    tiles = iter(around(plan.shape[1:], rows, columns, halo, stride))
    return {(row, column): next(tiles) for row in range(len(rows)) for column in range(len(columns))}


def as_uint8(affinity: Affinity) -> NDArray[np.uint8]:
    """Convert [0, 1] to 0..255, rounded to nearest."""
    return np.asarray(np.rint(np.clip(affinity, 0, 1) * 255), dtype=np.uint8)
