"""Form pairs and slabs of consecutive sections, across bad sections and slab borders.

Legend: L sections of a layer, the stride between slabs; slab k covers k L to (k + 1) L, both included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.normalisation import Correction
from distill.inference.streaming.slabs import SectionRun
from students.streaming.runner import SectionOutput, SectionRunner

LONGEST_BRIDGE = 3  # maximum number of consecutive bad sections that a pair may span


@dataclass(frozen=True)
class StreamPosition:
    """Position in the stream: its image (H, W), None for a bad section, and whether the neighbours of a bad section are
    paired.
    """

    z: int
    image: NDArray[Any] | None
    bridge: bool = False
    correction: Correction | None = None  # normalisation of the image's grey values


Pieces = Iterator[tuple[slice, slice, SectionOutput]]  # rows, columns, results


@dataclass(frozen=True)
class Step:
    """Output for a position: None for a bad section, and whether its neighbours are paired."""

    z: int
    output: SectionOutput | None
    bridged: bool = False
    pieces: Pieces | None = None  # instead of the output; consume them before the next section


class Chain:
    """Pairs consecutive good sections, in batches."""

    def __init__(self, runner: SectionRunner, *, in_pieces: bool) -> None:
        """Start before the first section.

        Args:
            runner: the student.
            in_pieces: return every section as the tiles of the runner, for sections whose outputs would not fit into
                memory.
        """
        self._runner, self._in_pieces = runner, in_pieces
        self._batch = 1 if in_pieces else runner.batch
        self._waiting: list[StreamPosition] = []
        self._gap = 0  # bad positions since the last good section

    def push(self, place: StreamPosition) -> Iterator[Step]:
        """Add the next position, and return the outputs that are ready, in order."""
        if place.image is not None:
            self._gap = 0
            self._waiting.append(place)
            if sum(one.image is not None for one in self._waiting) == self._batch:
                yield from self.flush()
            return
        self._gap += 1
        bridged = place.bridge and self._gap <= LONGEST_BRIDGE
        self._waiting.append(StreamPosition(place.z, None, bridged))
        if not bridged:
            yield from self.flush()
            self._runner.reset()

    def flush(self) -> Iterator[Step]:
        """Process an incomplete batch."""
        waiting, self._waiting = self._waiting, []
        if self._in_pieces:
            for place in waiting:
                pieces = None if place.image is None else self._runner.tiles(place.image, place.correction)
                yield Step(place.z, None, place.bridge, pieces)
            return
        outputs = iter(self._pushed([place for place in waiting if place.image is not None]))
        for place in waiting:
            yield Step(place.z, None if place.image is None else next(outputs), place.bridge)

    def _pushed(self, places: list[StreamPosition]) -> list[SectionOutput]:
        """Return the outputs of positions with an image."""
        if not places:
            return []
        corrections = [place.correction for place in places if place.correction is not None]
        images = np.stack([place.image for place in places if place.image is not None])
        return self._runner.push(images, corrections if len(corrections) == len(places) else None)

    def replay(self, before: list[StreamPosition]) -> Step | None:
        """Restore the state for a stream that continues in the middle.

        Args:
            before: the positions immediately before its next one, in order.

        Returns:
            The last good section that the next one may be paired with; None if there is none.
        """
        self._runner.reset()
        row: list[StreamPosition] = []
        self._gap = 0
        for place in before:
            if place.image is not None:
                row.append(place)
                self._gap = 0
                continue
            self._gap += 1
            if not place.bridge or self._gap > LONGEST_BRIDGE:
                row = []
        if not row:
            return None
        *earlier, last = row[-1 - self._runner.reach :]
        for one in [*earlier, last] if self._in_pieces else earlier:
            assert one.image is not None
            self._runner.prime(one.image, one.correction)
        return None if self._in_pieces else Step(last.z, self._pushed([last])[0])


@dataclass(frozen=True)
class SlabJob:
    """A complete slab: its runs of consecutive good sections, none if all of its sections belong to another slab."""

    number: int
    runs: list[SectionRun]


class SlabBuilder:
    """Collects the sections of one slab after another."""

    def __init__(self, depth: int, first: int, before: Step | None) -> None:
        """Start at section `first`, the beginning of a slab.

        Args:
            depth: L.
            first: section.
            before: the last good section before it that may be paired, if any.
        """
        self._depth, self._first, self._number = depth, first, first // depth
        self._runs: list[SectionRun] = []
        self._last = before
        self._run: SectionRun | None = None

    def add(self, step: Step) -> SlabJob | None:
        """Add the next output, and return the slab that it completes."""
        border = step.z % self._depth == 0 and step.z > 0
        if not border:
            self._append(step)
            return None
        job = None
        if step.z > self._first:
            self._append(step)
            job = self.close()
        self._begin(step)
        return job

    def close(self) -> SlabJob:
        """Return the incomplete last slab."""
        runs = [*self._runs, *([self._run] if self._run is not None else [])]
        job = SlabJob(self._number, runs)
        self._number, self._runs, self._run = self._number + 1, [], None
        return job

    def _begin(self, step: Step) -> None:
        """Start a slab with the section at its border, or with the section paired across it."""
        if step.output is not None:
            self._last = step
        elif not step.bridged:
            self._last = None
        if self._last is not None and self._last.output is not None:
            self._run = SectionRun([self._last.z], [self._last.output], shared=True)

    def _append(self, step: Step) -> None:
        if step.output is not None:
            self._last = step
            if self._run is None:
                self._run = SectionRun([], [], shared=False)
            self._run.at.append(step.z)
            self._run.sections.append(step.output)
        elif not step.bridged:
            self._last = None
            if self._run is not None:
                self._runs.append(self._run)
            self._run = None
