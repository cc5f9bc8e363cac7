"""Tasks of a worker: one block, one pair of blocks, or one shard of the final arrays.

Everything that a worker needs is contained in one small `Work`; networks are loaded once per process.

Legend: D H W = z y x of a block.
"""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.core.allocator import keep_freed_memory
from distill.core.claim import claim
from distill.core.errors import CheckpointError, SourceError
from distill.core.geometry import Box, Nanometres, Triple, largest_overlap
from distill.core.labels import distinct_ids
from distill.core.normalisation import UNCHANGED, Normaliser
from distill.core.timing import StageTimer
from distill.inference.assembly import Piece, lay_blocks
from distill.inference.blockwise.bad_sections import BadSection, Policies, Remaining, remaining
from distill.inference.blockwise.corrections import Sections, read_corrections, write_group
from distill.inference.blockwise.faces import Laid, compare_blocks, faces
from distill.inference.blockwise.gpus import device_of, worker_name
from distill.inference.blockwise.networks import Cutting, Instances, Solved, StudentBlocks, TeacherBlocks
from distill.inference.blockwise.options import compares_pieces, merges_contacts
from distill.inference.blockwise.plan import Block, Plan
from distill.inference.blockwise.reduce import Part, write_part
from distill.inference.blockwise.scratch import Shelf
from distill.inference.blockwise.tables import (
    FOLDER,
    BlockTable,
    Evidence,
    none,
    pair_path,
    read_table,
    table_path,
    write_evidence,
    write_table,
)
from distill.inference.calibration import Ranges, again
from distill.inference.decode import by_method
from distill.inference.options import Runtime
from distill.inference.rescaling.results import Rescaling
from distill.inference.rescaling.sections import resampled
from distill.inference.settings import read_settings
from distill.io.volume import Volume, open_grey
from distill.models.fragment_file import FragmentModel, load_fragments
from distill.models.load import load_student, load_teacher, pick_device
from distill.segmentation.agglomeration import region_graph
from distill.segmentation.shared_voxels import Shares
from distill.segmentation.stitching import Stitcher


@dataclass(frozen=True)
class Work:
    """Description of the computation, the same for all blocks.

    Attributes:
        source: the volume.
        resolution: nm, given by the user; None: the source's own.
        first: first section of the plan in the source.
        weights: file of the network.
        weights_sha256: checksum of that file, verified by every worker.
        network: `student` or `teacher`.
        method: `flood`, `query`, `waterz`, `mws` or `fragments`.
        threshold: of the method.
        store: Zarr store.
        plan: division into blocks, on the model's grid.
        halo: (y, x) halo of the student around a block in pixels.
        device: `auto`, `cpu` or `cuda[:N]`.
        precision: of the network.
        backend: of the student.
        normaliser: of the sections.
        threads: of torch in each worker; None: torch's default.
        rescaling: mapping between the sections' grid and the model's; None: they are the same.
        created: when the store was begun, by which workers know it.
        policies: for bad sections, by kind.
        remaining: sections of the plan, where bad ones are left out.
        orientations: of a block, whose affinities the teacher averages.
        ranges: sections from which the precision `int8` takes its ranges; None for other precisions.
        fragments: file of the fragment transformer and its checksum; None for other methods.
    """

    source: str
    resolution: Nanometres | None
    first: int
    weights: str
    weights_sha256: str
    network: str
    method: str
    threshold: float | None
    store: str
    plan: Plan
    halo: tuple[int, int]
    device: str
    precision: str
    backend: str
    normaliser: Normaliser = UNCHANGED
    threads: int | None = None
    rescaling: Rescaling | None = None
    created: str = ""
    policies: Policies = ()
    remaining: Remaining | None = None
    orientations: int = 1
    ranges: Ranges | None = None
    fragments: tuple[str, str] | None = None

    @property
    def shape(self) -> Triple:
        """Return (D, H, W) of the results."""
        depth, *size = self.plan.shape
        height, width = size if self.rescaling is None else self.rescaling.recorded
        return depth if self.remaining is None else self.remaining.depth, height, width

    def without(self, bad: Sequence[BadSection]) -> Work:
        """Return the work on the sections that remain."""
        depth, height, width = self.plan.shape
        found = remaining(depth, bad)
        if found is None:
            return self
        return replace(self, plan=replace(self.plan, shape=(len(found.good), height, width)), remaining=found)

    def volume(self) -> Volume:
        """Open the sections on the model's grid."""
        found = open_grey(self.source, resolution=self.resolution)
        return found if self.rescaling is None else resampled(found, self.rescaling)

    @property
    def shelf(self) -> Shelf:
        """Return the scratch arrays that hold voxels until the last pass."""
        return Shelf(Path(self.store), self.plan)


@dataclass(frozen=True)
class TaskReport:
    """Statistics of a task.

    Attributes:
        index: of the block, pair or part.
        seconds: by stage.
        worker: process that ran it.
        peak: peak memory of the process so far in bytes.
    """

    index: int
    seconds: dict[str, float]
    worker: str
    peak: int


@dataclass(frozen=True)
class _Tools:
    sections: Sections
    instances: Instances


@functools.lru_cache(maxsize=1)
def _tools(work: Work) -> _Tools:
    """Return the source and the network of this process."""
    found = hashlib.sha256(Path(work.weights).read_bytes()).hexdigest()
    if found != work.weights_sha256:
        raise CheckpointError(f"{work.weights}: found SHA-256 {found} on this machine, expected {work.weights_sha256}")
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    name = worker_name()
    if name is not None:
        keep_freed_memory(whatever_is_set=True)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = pick_device(device_of(work.device, name, count))
    volume = work.volume()
    runtime = Runtime(device, work.precision, work.backend)
    corrections = read_corrections(Path(work.store), work.normaliser, volume)
    sections = Sections(volume, work.first, corrections, work.remaining)
    cut = Cutting(work.method, work.threshold, _transformer(work.fragments), device)
    if work.network == "teacher":
        teacher = load_teacher(work.weights, device)
        return _Tools(sections, TeacherBlocks(teacher, runtime, cut, work.orientations))
    student = by_method(load_student(work.weights, device), work.method)
    if work.ranges is not None:
        runtime = replace(runtime, calibration=again(work.ranges, volume, work.normaliser, student.form.stride))
    instances = StudentBlocks(student, runtime, work.plan, work.halo, cut)
    return _Tools(sections, instances)


def _transformer(of: tuple[str, str] | None) -> FragmentModel | None:
    """Load the fragment transformer of a method that has one."""
    if of is None:
        return None
    model = load_fragments(Path(of[0]))
    if model.sha256 != of[1]:
        raise CheckpointError(f"{of[0]}: found SHA-256 {model.sha256} on this machine, expected {of[1]}")
    return model


def solve_block(work: Work, index: int) -> TaskReport:
    """Read, segment and write one block; its table marks it as complete."""
    timer, block = StageTimer(), work.plan.block(index)
    with timer.timed("load"):
        tools = _tools(work)
    found = _solved(work, block, tools, timer)
    with timer.timed("stitch"):
        laid, inside = _laid(work, block, found.pieces, found.affinity)
        own = block.owned.relative_to(block.box.start).slices
        ids = np.ascontiguousarray(laid.ids[own])
        stored = np.ascontiguousarray(found.stored[(slice(None), *own)])
        names = np.concatenate([distinct_ids(piece) for _, _, piece in laid.pieces])
        seen = np.isin(names, distinct_ids(_written(work, block, ids)))
        border = faces(work.plan, block, laid, compared=compares_pieces(work.method))
        table = BlockTable(block.box, names, seen, inside, (bool(stored.any()), bool(ids.any())), border)
        table = replace(table.of(laid.ids), empty=found.empty)
    path = table_path(Path(work.store), index)
    with timer.timed("write"), claim(path, wait=True):
        _check_store(work)
        if not path.is_file():  # else a worker that was thought dead was first: voxels and table are of one of the two
            work.shelf.write(block, stored, ids)
            write_table(path, table)
    return task_report(index, timer)


def _solved(work: Work, block: Block, tools: _Tools, timer: StageTimer) -> Solved:
    """Segment a block, each run of sections without a cut on its own."""
    if work.remaining is None or len(runs := work.remaining.runs(block.box)) == 1:
        return tools.instances.solve(block, tools.sections, timer)
    parts = []
    for run in runs:
        tiles = tuple(
            (number, Box((run.start[0], *box.start[1:]), (run.stop[0], *box.stop[1:]))) for number, box in block.tiles
        )
        parts.append(
            tools.instances.solve(
                replace(block, box=run, owned=block.owned.intersect(run), tiles=tiles), tools.sections, timer
            )
        )
    pieces = []
    for of_tile in zip(*(part.pieces for part in parts), strict=True):
        number, first, _ = of_tile[0]
        box = Box((block.box.start[0], *first.start[1:]), (block.box.stop[0], *first.stop[1:]))
        pieces.append((number, box, _one_after_another([ids for _, _, ids in of_tile])))
    affinity, stored = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("affinity", "stored")
    )
    return Solved(pieces, affinity, stored, sum(part.empty for part in parts))


def _one_after_another(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Join parts along z under ids that none of them share."""
    found, last = [], 0
    for ids in parts:
        found.append(np.where(ids == 0, ids, ids + np.uint64(last)))
        last += int(ids.max(initial=0))
    return np.concatenate(found)


def gather_group(work: Work, number: int) -> TaskReport:
    """Compute the grey-value statistics of a group of whole sections, and find those that are bad."""
    timer, policies = StageTimer(), dict(work.policies)
    with timer.timed("grey values"):
        write_group(Path(work.store), work.normaliser, work.volume(), work.first, work.plan.shape[0], number, policies)
    return task_report(number, timer)


def _check_store(work: Work) -> None:
    """Refuse to write into a store that took the place of the one that this was computed for."""
    found = read_settings(Path(work.store), FOLDER, "segment").get("created")
    if work.created and found != work.created:
        raise SourceError(f"{work.store}: was begun at {found}, expected the one of {work.created}: it was replaced")


def solve_pair(work: Work, number: int, axis: int, first: int, second: int) -> TaskReport:
    """Compare two completed blocks."""
    timer = StageTimer()
    with timer.timed("stitch"):
        sides = []
        for index, side in ((first, "high"), (second, "low")):
            table = read_table(table_path(Path(work.store), index), f"{'zyx'[axis]}_{side}")
            sides.append((work.plan.block(index), table))
        try:
            found = compare_blocks(work.plan, axis, sides[0], sides[1], work.method)
        except KeyError as error:
            raise SourceError(
                f"{work.store}: the tables of blocks {first} and {second} have no {error}, as written by an earlier "
                "version; expected tables of this one: start again with --overwrite"
            ) from None
        of = sides[0][1].generation, sides[1][1].generation
        write_evidence(pair_path(Path(work.store), axis, first, second), found, of)
    return task_report(number, timer)


def reduce_contacts(work: Work, digest: str, number: int, part: Part) -> TaskReport:
    """Merge the contacts of a part of the blocks as far as they can be decided."""
    assert work.threshold is not None, "flood has a threshold"
    timer = StageTimer()
    with timer.timed("merge"):
        write_part(Path(work.store), work.plan, digest, part, work.threshold)
    return task_report(number, timer)


def _laid(
    work: Work, block: Block, pieces: list[tuple[int, Box, NDArray[np.uint64]]], affinity: NDArray[np.float32]
) -> tuple[Laid, Evidence]:
    """Give the pieces of a block their ids in the volume, and compare them."""
    stitcher = Stitcher(largest_overlap([box for _, box, _ in pieces])) if compares_pieces(work.method) else None
    laid = lay_blocks(
        stitcher, [Piece(box, ids) for _, box, ids in pieces], [number for number, _, _ in pieces], block.box.shape
    )
    named = [(number, box, ids) for (number, box, _), ids in zip(pieces, laid.blocks, strict=True)]
    if not merges_contacts(work.method):
        return Laid(laid.ids, named, affinity), none()
    own = block.owned.relative_to(block.box.start).slices
    contacts = region_graph(laid.ids[own], affinity[(slice(None), *own)])
    shares = Shares.joined([]) if stitcher is None else stitcher.shares()
    return Laid(laid.ids, named, affinity), Evidence(shares, contacts)


def _written(work: Work, block: Block, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the ids of owned voxels that are used by a voxel of the result."""
    if work.rescaling is None:
        return ids
    (_, y, x), (_, y_stop, x_stop) = block.owned.start, block.owned.stop
    rows, columns = work.rescaling.used(0, y, y_stop) - y, work.rescaling.used(1, x, x_stop) - x
    return np.take(np.take(ids, rows, 1), columns, 2)


def task_report(index: int, timer: StageTimer) -> TaskReport:
    """Return the statistics of a task that this process has completed."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    return TaskReport(index, timer.seconds, f"{socket.gethostname()}:{os.getpid()}", peak)
