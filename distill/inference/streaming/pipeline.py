"""Processing of a stream between source and store: read, inspect, pair, decode, and pass to the writer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distill.core.errors import ShapeError, SourceError
from distill.core.grey import empty_pixels
from distill.core.normalisation import Correction, Normaliser
from distill.core.timing import StageTimer
from distill.inference.options import Runtime
from distill.inference.streaming.output.manifest import Journal, Line, read_lines
from distill.inference.streaming.output.store import StreamStore
from distill.inference.streaming.output.writer import Commit, Done, End, Event, PieceDone, Writer
from distill.inference.streaming.pairing import (
    LONGEST_BRIDGE,
    Chain,
    Pieces,
    SlabBuilder,
    SlabJob,
    Step,
    StreamPosition,
)
from distill.inference.streaming.rescaled import OnRecorded
from distill.inference.streaming.sections.quality import PAST, Flaw, Inspector
from distill.inference.streaming.sections.sources import Section, Source
from distill.inference.streaming.slabs import solve_slab
from distill.inference.streaming.threads import Pipe, Threads
from distill.models.load import TrainedStudent
from students.streaming.runner import SectionRunner

_QUEUED_BYTES = 256 * 2**20
_QUEUED = 8

Policies = Mapping[str, str]  # kind of flaw -> fail, skip or bridge


@dataclass(frozen=True)
class StreamWork:
    """Components and settings of a stream."""

    source: Source
    trained: TrainedStudent
    runner: SectionRunner
    runtime: Runtime
    store: StreamStore
    policies: Policies
    layers: range  # layers of this process; the last of them may end the stream
    last: bool  # whether the stream ends with them
    in_pieces: bool  # whether sections are processed and written in tiles, never as a whole
    recorded: OnRecorded | None = None  # transfers results to the grid of the store, if the model uses another


@dataclass(frozen=True)
class _Judged:
    section: Section
    flaw: Flaw | None
    checksum: str
    correction: Correction | None  # normalisation of its grey values; None without an image
    empty: float  # share of its pixels without an image


def lines_that_stay(path: Path, depth: int, total: int | None, segment: bool) -> list[Line]:
    """Return the lines of a manifest from which a stream resumes: whole layers, or all of it.

    If the stream may have ended earlier and now continues, its last layer is recomputed, because it was not full, or
    its slab lacks the section that it shares with the next one.

    Args:
        path: the manifest of one process.
        depth: sections per layer.
        total: number of sections of the stream; None if unknown.
        segment: whether there are slabs.
    """
    lines = read_lines(path)
    if lines and lines[-1].section + 1 == total:
        return lines
    whole = len(lines) - len(lines) % depth
    if total is None and segment and whole == len(lines):
        whole = max(0, whole - depth)
    return lines[:whole]


def run(work: StreamWork, journal: Journal, stages: StageTimer, on_section: Callable[[int], None]) -> int | None:
    """Process the layers that are not complete.

    Args:
        work: components and settings.
        journal: manifest of this process, locked.
        stages: timer of the stages.
        on_section: called with the number of sections that are complete and on disk.

    Returns:
        The number of sections of the stream if its end was reached.

    Raises:
        SourceError: a bad section under the policy `fail`, or a write error.
    """
    layout, total = work.store.layout, work.source.total
    lines = lines_that_stay(journal.path, layout.depth, total, layout.segment)
    journal.keep(len(lines))
    first = work.layers.start * layout.depth + len(lines)
    stop = None if work.last else work.layers.stop * layout.depth
    if first == (total if stop is None else stop):
        return total
    end = total if stop is None else stop
    work.store.clear(_from(first // layout.depth, work.layers, end is None), _owned(first, stop, end))
    return _Stream(work, journal, stages, on_section, lines, first, stop).run()


def _from(layer: int, layers: range, endless: bool) -> range:
    return range(layer, 2**62 if endless else layers.stop)


def _owned(first: int, stop: int | None, end: int | None) -> range:
    """Return the sections whose supervoxels this process has yet to write."""
    return range(first + int(first > 0), 2**62 if end is None else end + int(stop is not None))


class _Stream:
    def __init__(
        self,
        work: StreamWork,
        journal: Journal,
        stages: StageTimer,
        on_section: Callable[[int], None],
        lines: Sequence[Line],
        first: int,
        stop: int | None,
    ) -> None:
        self._work, self._journal, self._stages, self._on_section = work, journal, stages, on_section
        self._lines = {line.section: line for line in lines}
        self._first, self._stop = first, stop
        self._depth = work.store.layout.depth
        self._segment = work.store.layout.segment
        reach = work.runner.reach
        self._replayed = (LONGEST_BRIDGE + 1) * (reach + 1)
        self._judged: deque[_Judged] = deque()  # positions with pending results
        work.runner.time_stages(stages.timed)
        self._chain = Chain(work.runner, in_pieces=work.in_pieces)

    def run(self) -> int | None:
        with Threads() as threads:
            self._work.source.stopped = lambda: threads.stopped
            kind = self._work.source.kind
            each = kind.size[0] * kind.size[1] * kind.dtype.itemsize
            room = max(1, min(_QUEUED, _QUEUED_BYTES // max(1, each)))
            given: Pipe[_Judged | None] = Pipe(threads, room)
            self._events: Pipe[Event] = Pipe(threads, max(1, min(_QUEUED, room // 2)))
            writer = Writer(
                self._work.store,
                self._journal,
                self._first,
                self._stages,
                self._on_section,
                grows=self._work.source.total is None,
                in_pieces=self._work.in_pieces,
                recorded=self._work.recorded,
            )
            threads.start("read", lambda: self._read(given))
            threads.start("write", lambda: writer.run(self._events))
            try:
                total = self._compute(given)
            except BaseException:
                self._events.close(End(None))
                raise
            self._events.put(End(total))
        return total

    def _read(self, given: Pipe[_Judged | None]) -> None:
        """Read sections from shortly before the first one, each with its defect if any."""
        inspector, normaliser = Inspector(), self._work.trained.normaliser
        normalises = normaliser.normalisation.kind != "none"
        z = max(0, self._first - 2 * PAST - self._replayed)
        while True:
            with self._stages.timed("read"):
                section = self._work.source.read(z)
            if section is None:
                return given.put(None)
            with self._stages.timed("check"):
                image = section.image
                good = section.flaw is None  # a section of another type or size may be skipped
                correction = _correction(normaliser, image, section.name) if image is not None and good else None
                flaw = inspector.look(image, section.flaw, correction if normalises else None)
                checksum = section.checksum
                empty = 1.0 if image is None else round(empty_pixels(image) / max(1, image.size), 6)
            given.put(_Judged(section, flaw, checksum, correction, empty))
            if self._stop is not None and z == self._stop:
                return given.put(None)
            z += 1

    def _compute(self, given: Pipe[_Judged | None]) -> int | None:
        before = self._begin(given)
        builder = SlabBuilder(self._depth, self._first, before) if self._segment else None
        z = self._first
        while (judged := given.get()) is not None:
            closing = self._stop is not None and z == self._stop
            if closing and not self._segment:
                break
            self._judged.append(judged)
            for step in self._chain.push(self._place(judged)):
                self._finish_step(step, builder)
            z += 1
        for step in self._chain.flush():
            self._finish_step(step, builder)
        if self._stop is None:
            if builder is not None:
                self._solve(builder.close())
            self._events.put(Commit())
            return z
        if not self._segment:
            self._events.put(Commit())
        return self._work.source.total

    def _begin(self, given: Pipe[_Judged | None]) -> Step | None:
        """Process the sections before the first one to restore the state of the network."""
        before: list[StreamPosition] = []
        for z in range(max(0, self._first - 2 * PAST - self._replayed), self._first):
            judged = given.get()
            if judged is None:
                raise SourceError(f"{self._work.source.name}: found {z} sections, expected those that were done before")
            if z < self._first - self._replayed:
                continue
            line = self._lines.get(z)
            if line is not None and line.checksum != judged.checksum:
                raise SourceError(
                    f"{judged.section.name}: is not what it was when section {z} was done, as {line.source}; "
                    "expected the same, the next section is paired with it"
                )
            if line is None:
                before.append(self._place(judged))
            else:
                image = None if line.flaw else judged.section.image
                before.append(StreamPosition(z, image, line.taken == "bridge", judged.correction))
        return self._chain.replay(before)

    def _place(self, judged: _Judged) -> StreamPosition:
        section, flaw = judged.section, judged.flaw
        if flaw is None:
            return StreamPosition(section.z, section.image, correction=judged.correction)
        policy = self._work.policies[flaw.kind]
        if policy == "fail":
            raise SourceError(
                f"{section.name}: section {section.z} is bad: {flaw.kind} ({flaw.why}); fix it and continue with "
                f"--resume, or use --resume --on-bad {flaw.kind}=skip (or bridge)"
            )
        return StreamPosition(section.z, None, policy == "bridge")

    def _finish_step(self, step: Step, builder: SlabBuilder | None) -> None:
        border = step.z % self._depth == 0 and step.z > self._first
        job = builder.add(step) if builder is not None else None
        if border:
            if job is not None:
                self._solve(job)
            self._events.put(Commit())
        if self._stop is not None and step.z == self._stop:
            return
        judged = self._judged.popleft()
        flaw = judged.flaw
        taken = None if flaw is None else "bridge" if step.bridged else "skip"
        line = Line(
            step.z,
            judged.section.name,
            judged.checksum,
            flaw.kind if flaw else None,
            flaw.why if flaw else None,
            taken,
            "",
            judged.empty,
        )
        if step.pieces is not None:
            self._send_pieces(step.z, step.pieces)
        output = step.output
        self._events.put(Done(line, None, None) if output is None else Done(line, output.affinity, output.embedding))

    def _send_pieces(self, z: int, pieces: Pieces) -> None:
        for rows, columns, output in pieces:
            self._events.put(PieceDone(z, rows, columns, output.affinity, output.embedding))

    def _solve(self, job: SlabJob) -> None:
        with self._stages.timed("instances"):
            result = solve_slab(self._work.trained, self._work.runtime, job.number, self._depth, job.runs)
        if result is not None:
            self._events.put(result)


def _correction(normaliser: Normaliser, image: NDArray[Any], name: str) -> Correction:
    """Compute the normalisation of a section.

    Raises:
        SourceError: its grey values cannot be normalised.
    """
    try:
        return normaliser.of(image)
    except ShapeError as error:
        raise SourceError(f"{name}: {error}") from None
