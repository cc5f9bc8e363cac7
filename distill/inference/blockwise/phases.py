"""Phases of a segmentation in blocks: grey values, blocks, pairs of blocks, merge, arrays, metadata."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.core.atomic import discard, sweep_folder
from distill.core.errors import DistillError
from distill.core.pace import rate
from distill.core.timing import StageTimer
from distill.core.version import VERSION
from distill.inference.aside import made_by
from distill.inference.blockwise import finish as lay
from distill.inference.blockwise import reduce
from distill.inference.blockwise.bad_sections import WITHOUT_IMAGE, bad_lines, read_bad
from distill.inference.blockwise.begin import generations, heads, undone_blocks
from distill.inference.blockwise.corrections import GROUP, join_groups, undone_groups
from distill.inference.blockwise.executor import Pool, Task, open_pool
from distill.inference.blockwise.merge import (
    mapping_folder,
    mapping_note,
    merge_blocks,
    merge_digest,
    write_mapping,
)
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.scratch import NAMES
from distill.inference.blockwise.tables import FOLDER, pair_is_of, pair_path
from distill.inference.blockwise.worker import TaskReport, Work, gather_group, reduce_contacts, solve_block, solve_pair
from distill.inference.options import Callbacks
from distill.inference.rescaling.voxel_size import record_of
from distill.inference.streaming.output.store import ome
from distill.io.writers.output import Frame
from distill.io.writers.pyramid import forget_levels
from distill.io.writers.store import write_group_attributes, writing


@dataclass
class Segmented:
    """What was done.

    Attributes:
        about: how the store was made; the same for every way of getting there.
        timer: stages of this run, summed over all workers.
        peak: bytes, the most that each process has held.
        chosen: device and precision, for run.json.
    """

    about: dict[str, Any] = field(default_factory=dict)
    timer: StageTimer = field(default_factory=StageTimer)
    peak: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    def add(self, report: TaskReport) -> None:
        """Count a completed task."""
        self.timer.add(report.seconds)
        self.peak[report.worker] = max(report.peak, self.peak.get(report.worker, 0))

    def record(self) -> dict[str, Any]:
        """Return the values for run.json."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
        return {**self.about, **self.chosen, "stages": self.timer.seconds, "peak_bytes": {"main": own, **self.peak}}


class BlockPhases:
    """Run the phases of a segmentation; each continues where it was interrupted."""

    def __init__(
        self, out: Path, blocking: Blocking, work: Work, frame: Frame, callbacks: Callbacks, found: Segmented
    ) -> None:
        self._out, self._blocking = out, blocking
        self._work, self._frame, self._callbacks, self._found = work, frame, callbacks, found
        self._empty: int | None = None  # voxels whose grey value is 0; known with the digest

    def all(self) -> None:
        """Run the unfinished phases."""
        out, blocking = self._out, self._blocking
        with ExitStack() as stack:
            pool: Pool | None = None

            def opened() -> Pool:
                nonlocal pool
                if pool is None:
                    found = open_pool(blocking.workers, blocking.scheduler, blocking.retries, self._callbacks.note)
                    pool = stack.enter_context(found)
                return pool

            about = made_by(out)
            self._look(opened)
            blocks = undone_blocks(out, self._work, self._callbacks.note) if about is None or self._shelved() else []
            if about is None or blocks or not self._is_result(about):
                self._all(opened(), blocks)
        self._clear()
        self._found.about = made_by(out) or {}

    def _look(self, opened: Callable[[], Pool]) -> None:
        """Compute the statistics of whole sections and find bad ones, before the blocks are known."""
        work, volume = self._work, self._work.volume()
        depth, policies = work.plan.shape[0], dict(work.policies)
        groups = undone_groups(self._out, work.normaliser, volume, depth, policies)
        if groups:
            self._gather(opened(), groups)
        join_groups(self._out, work.normaliser, volume, depth, policies)
        bad = read_bad(self._out) or []
        for line in bad_lines(bad):
            self._callbacks.note(line)
        self._work = work.without(bad)

    def _digest(self) -> str:
        """Return the digest of what the final ids are computed from, once all blocks are finished."""
        found = heads(self._out, self._work.plan)
        empty = [head.empty for head in found if head.empty is not None]
        self._empty = sum(empty) if len(empty) == len(found) else None
        return merge_digest(self._work.method, self._work.threshold, [head.generation for head in found])

    def _is_result(self, about: dict[str, Any]) -> bool:
        """Return whether arrays and metadata of the store belong to the current settings."""
        same: bool = about.get("merge_threshold") == self._work.threshold
        return same and about.get("made_from") == lay.laid(self._out)  # neither has one in stores of earlier versions

    def _all(self, pool: Pool, blocks: list[int]) -> None:
        out = self._out
        self._blocks(pool, blocks)
        digest = self._digest()
        note = mapping_note(out, digest)
        if note is None:
            self._pairs(pool)
            self._merge(pool, digest)
        if not lay.begun(out, digest):
            self._begin_laying(digest)
        parts = lay.undone(out, digest, self._work.shape)
        tasks = (Task(f"part {number} of the arrays", lay.lay_part, (self._work, digest, number)) for number in parts)
        self._run(pool, tasks, "parts of the arrays", self._found.add)
        forget_levels(out)
        lay.put_all_in_place(out, digest)
        self._finish(digest)

    def _clear(self) -> None:
        """Remove files that are no longer needed; scratch arrays are renamed before they are deleted."""
        folder, kept = self._out / FOLDER, lay.laid(self._out)
        keep = None if kept is None else mapping_folder(self._out, kept)
        with writing(self._out):
            for name in reversed(NAMES):  # the scratch arrays exist as long as their supervoxels do
                discard(folder / name)
            for other in (*folder.glob("merged*"), *folder.glob("finishing*"), *folder.glob("reduced*")):
                if other != keep:
                    discard(other)
            for leftover in (*folder.glob("*/*.writing"), *folder.glob("*/.*.lock")):  # of a worker that was killed
                leftover.unlink(missing_ok=True)
            for place in (self._out, folder, folder / "tables", folder / "pairs"):
                sweep_folder(place)

    def _gather(self, pool: Pool, groups: Iterable[int]) -> None:
        """Compute the statistics of groups of whole sections."""
        work, depth = self._work, self._work.plan.shape[0]
        tasks = (
            Task(
                f"grey values of sections {number * GROUP} to {min(depth, (number + 1) * GROUP) - 1}",
                gather_group,
                (work, number),
            )
            for number in groups
        )
        failed = pool.run(tasks, self._found.add)
        if failed:
            error = failed[0].error
            raise error if isinstance(error, DistillError) else DistillError(f"{self._out}: {failed[0]}") from error

    def _shelved(self) -> bool:
        return (self._out / FOLDER / NAMES[-1]).is_dir()

    def _blocks(self, pool: Pool, blocks: list[int]) -> None:
        plan, began = self._work.plan, time.perf_counter()
        done, voxels = plan.count - len(blocks), 0
        self._callbacks.on_start(done, plan.count)

        def on_done(result: TaskReport) -> None:
            nonlocal done, voxels
            self._found.add(result)
            done, voxels = done + 1, voxels + plan.block(result.index).owned.voxels
            self._callbacks.on_progress(done, plan.count, rate(voxels / 1e6, time.perf_counter() - began, "Mvoxel"))

        tasks = (Task(str(plan.block(index)), solve_block, (self._work, index)) for index in blocks)
        self._run(pool, tasks, f"{plan.count} blocks", on_done)

    def _pairs(self, pool: Pool) -> None:
        of = generations(self._out, self._work.plan)
        pairs = (
            (axis, first, second)
            for axis, first, second in self._work.plan.pairs()
            if not pair_is_of(pair_path(self._out, axis, first, second), (of[first], of[second]))
        )
        tasks = (
            Task(f"blocks {pair[1]} and {pair[2]}", solve_pair, (self._work, number, *pair))
            for number, pair in enumerate(pairs)
        )
        self._run(pool, tasks, "pairs of blocks", self._found.add)

    def _run(self, pool: Pool, tasks: Iterable[Task], of: str, on_done: Callable[[TaskReport], None]) -> None:
        failed = pool.run(tasks, on_done)
        if failed:
            more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            raise DistillError(
                f"{self._out}: {failed[0]}{more}; of {of} the others are kept; --resume repeats those that failed"
            ) from failed[0].error

    def _merge(self, pool: Pool, digest: str) -> None:
        out, work = self._out, self._work
        in_parts = work.method == "flood" and work.threshold is not None and work.plan.count >= reduce.FROM_BLOCKS
        if in_parts:
            reduce.begin_parts(out, digest)
            for level in range(reduce.levels(work.plan)):
                tasks = (
                    Task(f"contacts of part {part.place} of level {level}", reduce_contacts, (work, digest, n, part))
                    for n, part in enumerate(reduce.parts_of(work.plan, level))
                )
                self._run(pool, tasks, "parts of the contacts", self._found.add)
        with self._found.timer.timed("merge"):
            if in_parts:
                mapping = reduce.final_ids_of_parts(out, work.plan, digest)
            else:
                mapping = merge_blocks(out, work.plan, work.method, work.threshold)
            write_mapping(out, digest, mapping, work.threshold)

    def _begin_laying(self, digest: str) -> None:
        names = lay.NAMES if self._shelved() else ("segmentation",)
        lay.begin(self._out, digest, self._work.shape, names, self._frame.resolution, self._frame.offset)

    def _finish(self, digest: str) -> None:
        work, note = self._work, mapping_note(self._out, digest)
        assert note is not None, "merged before"
        about = {
            "version": VERSION,
            "source": work.source,
            "model": work.weights,
            "network": work.network,
            "precision": work.precision,
            "backend": work.backend,
            "method": work.method,
            "merge_threshold": work.threshold,
            "blocks": list(work.plan.grid),
            "rescaled": record_of(work.rescaling, self._frame.resolution),
            "objects": note["objects"],
            "made_from": digest,
        }
        bad = read_bad(self._out) or []
        if self._empty is not None:
            section = math.prod(work.plan.shape[1:])
            without = sum(one.flaw in WITHOUT_IMAGE for one in bad) * section
            about["empty"] = round((self._empty + without) / (work.shape[0] * section), 6)
        if bad:
            about |= {"sections": work.shape[0], "bad_sections": {str(one.section): one.flaw for one in bad}}
        metadata = ome(lay.NAMES, self._frame.resolution, self._frame.offset)
        write_group_attributes(self._out, {"made_by": about, "ome": metadata})
