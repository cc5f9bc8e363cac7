"""From sections to pairs and slabs: what follows what, over bad sections and the borders of slabs.

Legend: L sections of a layer, which a slab moves on by; slab k covers k L to (k + 1) L, both included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.normalisation import Correction
from distill.inference.streaming.slabs import Run
from students.streaming.runner import SectionOutput, SectionRunner

LONGEST_BRIDGE = 3  # bad sections in a row; over more of them nothing is paired


@dataclass(frozen=True)
class Place:
    """A section as it is taken: its image (H, W), None for a bad one, and whether to pair a bad one's neighbours."""

    z: int
    image: NDArray[Any] | None
    bridge: bool = False
    correction: Correction | None = None  # of the image's grey values


Pieces = Iterator[tuple[slice, slice, SectionOutput]]  # rows, columns, results


@dataclass(frozen=True)
class Step:
    """What came out for a place: nothing for a bad section, and whether its neighbours are paired."""

    z: int
    output: SectionOutput | None
    bridged: bool = False
    pieces: Pieces | None = None  # instead of the output, to be taken before the next section


class Chain:
    """Pairs good sections that follow each other, a batch at a time."""

    def __init__(self, runner: SectionRunner, *, in_pieces: bool) -> None:
        """Start before the first section.

        Args:
            runner: the student.
            in_pieces: give every section as the runner's tiles, for sections whose results would not fit as a whole.
        """
        self._runner, self._in_pieces = runner, in_pieces
        self._batch = 1 if in_pieces else runner.batch
        self._waiting: list[Place] = []
        self._gap = 0  # bad places since the last good one

    def push(self, place: Place) -> Iterator[Step]:
        """Take the next place; gives what is ready, in order."""
        if place.image is not None:
            self._gap = 0
            self._waiting.append(place)
            if sum(one.image is not None for one in self._waiting) == self._batch:
                yield from self.flush()
            return
        self._gap += 1
        bridged = place.bridge and self._gap <= LONGEST_BRIDGE
        self._waiting.append(Place(place.z, None, bridged))
        if not bridged:
            yield from self.flush()
            self._runner.reset()

    def flush(self) -> Iterator[Step]:
        """Run what waits for its batch to fill."""
        waiting, self._waiting = self._waiting, []
        if self._in_pieces:
            for place in waiting:
                pieces = None if place.image is None else self._runner.tiles(place.image, place.correction)
                yield Step(place.z, None, place.bridge, pieces)
            return
        outputs = iter(self._pushed([place for place in waiting if place.image is not None]))
        for place in waiting:
            yield Step(place.z, None if place.image is None else next(outputs), place.bridge)

    def _pushed(self, places: list[Place]) -> list[SectionOutput]:
        """Results of places that have an image."""
        if not places:
            return []
        corrections = [place.correction for place in places if place.correction is not None]
        images = np.stack([place.image for place in places if place.image is not None])
        return self._runner.push(images, corrections if len(corrections) == len(places) else None)

    def replay(self, before: list[Place]) -> Step | None:
        """Take up a stream in the middle.

        Args:
            before: the places right before its next one, in order.

        Returns:
            The last good section that the next one may be paired with; None where there is none.
        """
        self._runner.reset()
        row: list[Place] = []
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
    """A slab that is complete: its runs of good sections, none if all it holds is another's."""

    number: int
    runs: list[Run]


class SlabBuilder:
    """Gathers the sections of one slab after the other."""

    def __init__(self, depth: int, first: int, before: Step | None) -> None:
        """Begin at section `first`, the start of a slab.

        Args:
            depth: L.
            first: section.
            before: the last good section before it that may be paired, if any.
        """
        self._depth, self._first, self._number = depth, first, first // depth
        self._runs: list[Run] = []
        self._last = before
        self._run: Run | None = None

    def add(self, step: Step) -> SlabJob | None:
        """Take the next step; gives the slab that it completes."""
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
        """The slab so far."""
        runs = [*self._runs, *([self._run] if self._run is not None else [])]
        job = SlabJob(self._number, runs)
        self._number, self._runs, self._run = self._number + 1, [], None
        return job

    def _begin(self, step: Step) -> None:
        """Begin a slab with the section at its border, or the one that is paired over it."""
        if step.output is not None:
            self._last = step
        elif not step.bridged:
            self._last = None
        if self._last is not None and self._last.output is not None:
            self._run = Run([self._last.z], [self._last.output], shared=True)

    def _append(self, step: Step) -> None:
        if step.output is not None:
            self._last = step
            if self._run is None:
                self._run = Run([], [], shared=False)
            self._run.at.append(step.z)
            self._run.sections.append(step.output)
        elif not step.bridged:
            self._last = None
            if self._run is not None:
                self._runs.append(self._run)
            self._run = None
