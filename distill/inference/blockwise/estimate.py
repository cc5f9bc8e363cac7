"""Estimate what a segmentation costs, from a block in the middle of the volume that is segmented for real."""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.plan import Plan
from distill.inference.blockwise.segment import SegmentRequest, block_plan, load_network, segment, usable_cores
from distill.inference.options import Options
from distill.inference.rescaling.results import Rescaling
from distill.inference.rescaling.voxel_size import grid_for
from distill.io.selection import split_selection, with_selection
from distill.io.volume import open_grey
from distill.io.writers.output import frame_of


@dataclass(frozen=True)
class Trial:
    """A block that was segmented.

    Attributes:
        box: its voxels in the volume.
        threads: of the process.
        seconds: by stage, without the start.
        start: seconds until the first stage and between stages.
        peak: bytes that the process held.
        stored: bytes on disk.
    """

    box: Box
    threads: int
    seconds: dict[str, float]
    start: float
    peak: int
    stored: int

    @property
    def work(self) -> float:
        """Return the seconds in all stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Estimate:
    """What a whole volume takes, from trials with the threads of one process and of one of several workers.

    Attributes:
        shape: (D, H, W) of the volume.
        blocks: number of blocks.
        computed: voxels of all blocks; neighbours overlap.
        alone: trial with all threads.
        shared: trial with the threads of a worker; None without workers.
        workers: processes.
    """

    shape: Triple
    blocks: int
    computed: int
    alone: Trial
    shared: Trial | None
    workers: int

    @property
    def voxels(self) -> int:
        """Number of voxels of the volume."""
        z, y, x = self.shape
        return z * y * x

    @property
    def one_process(self) -> float:
        """Return the seconds that one process takes."""
        return self.alone.start + self.alone.work * self.computed / self.alone.box.voxels

    @property
    def with_workers(self) -> float | None:
        """Return the seconds that the workers take if none slows another down; None without workers."""
        if self.shared is None:
            return None
        busy = min(self.workers, self.blocks)
        return self.shared.start + self.shared.work * self.computed / self.shared.box.voxels / busy

    @property
    def disk(self) -> int:
        """Return the bytes of the finished store."""
        return round(self.alone.stored * self.voxels / self.alone.box.voxels)

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain values; sizes in bytes, times in seconds."""
        return {
            "shape": list(self.shape),
            "blocks": self.blocks,
            "one_process_s": round(self.one_process, 1),
            "workers": self.workers,
            "with_workers_s": None if self.with_workers is None else round(self.with_workers, 1),
            "peak_bytes": self.alone.peak,
            "disk_bytes": self.disk,
            "trials": [
                {
                    "start": list(one.box.start),
                    "stop": list(one.box.stop),
                    "threads": one.threads,
                    "start_s": round(one.start, 3),
                    "stages_s": {name: round(seconds, 3) for name, seconds in one.seconds.items()},
                    "peak_bytes": one.peak,
                    "stored_bytes": one.stored,
                }
                for one in (self.alone, self.shared)
                if one is not None
            ],
        }


def estimate(
    source: str,
    model: str,
    options: Options,
    blocking: Blocking,
    note: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """Segment a block in the middle of a volume in a temporary folder, and extrapolate.

    Args:
        source: the volume.
        model: run folder, weights file or bundled model.
        options: as of the segmentation that is planned.
        blocking: likewise; with `workers` above 1 a second trial runs with the threads of one of them.
        note: called with lines for the user.

    Returns:
        Times are proportional to computed voxels, the store to voxels; workers are taken not to slow each other down,
        as they do where memory or disk is the limit.

    Raises:
        DistillError: as for `segment`.
    """
    if blocking.scheduler is not None:
        raise DistillError("--scheduler: found one, expected --workers: another machine's blocks cannot be timed here")
    volume = open_grey(source, resolution=options.resolution)
    frame = frame_of(volume, options.sections)
    single = replace(blocking, workers=0, resume=False)
    trained, decoding = load_network(SegmentRequest(source, model, Path(), options, single))
    size, nm = frame.shape[1:], volume.resolution
    grid = grid_for(trained.path, trained.notes, source, size, nm, rescale=options.rescale, note=note)
    plan, _ = block_plan(trained, decoding, frame.shape if grid is None else (frame.shape[0], *grid.model), single)
    box = _middle(plan)
    chosen = split_selection(source)[1].box
    z, y, x = (0, 0, 0) if chosen is None else chosen.start
    recorded = (box if grid is None else _recorded(box, grid)).shift((z + frame.first, y, x))
    part = with_selection(source, box=_text(recorded))
    note(f"trial: {' x '.join(map(str, box.shape))} voxels in the middle of the volume")
    cores, trials = usable_cores(), []
    shared = [max(1, cores // blocking.workers)] if blocking.workers > 1 else []
    for threads in (cores, *shared):
        options = replace(options, sections=None, overwrite=False)
        trials.append(_trial(part, model, options, replace(single, block=blocking.block and box.shape), box, threads))
    alone, *others = trials
    return Estimate(plan.shape, plan.count, _computed(plan), alone, others[0] if others else None, blocking.workers)


def _middle(plan: Plan) -> Box:
    slabs, rows, columns = plan.grid
    return plan.at((slabs - 1) // 2, (rows - 1) // 2, (columns - 1) // 2).box


def _computed(plan: Plan) -> int:
    """Return the voxels of all blocks."""
    slabs, _, _ = plan.grid
    depth = plan.shape[0] + slabs - 1  # neighbouring slabs share a section
    height, width = (sum(group.stop - group.start for group in axis) for axis in (plan.rows, plan.columns))
    return depth * height * width


def _recorded(box: Box, grid: Rescaling) -> Box:
    """Return the source voxels of a box on the model's grid."""
    (z, *first), (stop, *last) = box.start, box.stop
    sides = zip(first, last, grid.factor, grid.recorded, strict=True)
    (y, y_stop), (x, x_stop) = ((int(a * f), min(n, math.ceil(b * f))) for a, b, f, n in sides)
    return Box((z, y, x), (stop, y_stop, x_stop))


def _text(box: Box) -> str:
    return ":".join(",".join(map(str, corner)) for corner in (box.start, box.stop))


def _trial(part: str, model: str, options: Options, blocking: Blocking, box: Box, threads: int) -> Trial:
    """Segment a part in a temporary folder with this many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="distill-plan-") as folder:
            out, began = Path(folder) / "trial.zarr", time.perf_counter()
            found = segment(part, model, out, options, blocking)
            took = time.perf_counter() - began
            stored = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    finally:
        torch.set_num_threads(before)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    seconds = dict(found.timer.seconds)
    return Trial(
        box, threads, seconds, max(0.0, took - sum(seconds.values())), max(own, *found.peak.values(), 0), stored
    )
