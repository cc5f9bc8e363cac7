"""Segment a volume of any size in blocks, in bounded memory, on one process or many (`distill segment`).

Blocks are processed in any order and write voxels and a table each; pairs of blocks are compared; one merge over all
tables gives final ids; the last pass writes them. Completed work is never repeated.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from distill.config.networks import DecoderConfig
from distill.core.affinity import NEAREST
from distill.core.claim import claim
from distill.core.errors import CheckpointError, DistillError, SourceError
from distill.core.geometry import Triple
from distill.core.hardware import check_precision
from distill.core.notes import Note
from distill.inference.aside import forget_replaced, take_back
from distill.inference.blockwise.bad_sections import USE, parse_bad
from distill.inference.blockwise.begin import is_blocks, prepare, settings_of
from distill.inference.blockwise.options import DEFAULT_BLOCKING, Blocking
from distill.inference.blockwise.phases import BlockPhases, Segmented
from distill.inference.blockwise.plan import Plan, make_plan
from distill.inference.blockwise.ranges import with_ranges
from distill.inference.blockwise.tables import FOLDER
from distill.inference.blockwise.worker import Work
from distill.inference.decode import by_method
from distill.inference.fragments import fragments_for, named, threshold_note
from distill.inference.grey_values import check_grey, normaliser_of
from distill.inference.options import SILENT, Callbacks, Options, Start, start, threshold_of
from distill.inference.rescaling.voxel_size import grid_for
from distill.inference.settings import read_settings
from distill.io.volume import Volume, open_grey
from distill.io.writers.output import Frame, check_free, check_place, frame_of
from distill.models.load import TrainedStudent, TrainedTeacher, load_student, load_teacher
from students.streaming.receptive_field import receptive_field
from students.streaming.tiling import halo
from teachers.orientations import ORIENTATIONS

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SegmentRequest:
    """Arguments of `segment`."""

    source: str
    model: str
    out: Path
    options: Options
    blocking: Blocking


def segment(
    source: str,
    model: str,
    out: Path,
    options: Options,
    blocking: Blocking = DEFAULT_BLOCKING,
    callbacks: Callbacks = SILENT,
) -> Segmented:
    """Segment a volume.

    Args:
        source: the volume.
        model: run folder, weights file or bundled model.
        out: Zarr store to create or to continue.
        options: see `Options`.
        blocking: see `Blocking`.
        callbacks: see `Callbacks`; blocks are counted.

    Returns:
        Statistics. The store is the same for any number of workers, interruptions and order of blocks.

    Raises:
        DistillError: wrong options, bad input, a block that fails repeatedly, or the disk refuses. Completed blocks
            are kept; a store without any is removed.
    """
    check_place(out)
    with claim(out):
        return _segment(SegmentRequest(source, model, out, options, blocking), callbacks)


def _segment(request: SegmentRequest, callbacks: Callbacks) -> Segmented:
    """See `segment`; the caller has claimed the store."""
    out, options, blocking = request.out, request.options, request.blocking
    check_precision(options.precision)
    resumed = blocking.resume and os.path.lexists(out)
    if not resumed:
        check_free(out, request.source, options.overwrite, resumable=is_blocks(out))
    elif not is_blocks(out):
        raise SourceError(f"{out}: found no blocks to continue, expected a store of distill segment")
    volume = open_grey(request.source, resolution=options.resolution)
    frame = frame_of(volume, options.sections)
    earlier = read_settings(out, FOLDER, "segment") if resumed else {}
    begun = start(options, earlier, elsewhere=blocking.scheduler is not None)
    held: list[str] = []  # lines that are shown once the settings are known to be valid
    work = _work(request, volume, frame, begun, held.append)
    settings = settings_of(work, frame, volume, begun.chosen, datetime.now().astimezone().isoformat())
    created = prepare(out, work, settings, frame, resume=blocking.resume)
    kept = read_settings(out, FOLDER, "segment")
    policies = work.policies if "on_bad" in kept else parse_bad([USE])  # of a store from before they were looked for
    work = replace(work, created=str(kept["created"]), policies=policies)
    for line in (*begun.lines, *held):
        callbacks.note(line)
    found = Segmented(chosen=begun.chosen.record())
    try:
        BlockPhases(out, blocking, work, frame, callbacks, found).all()
    except BaseException as error:
        done = sum(1 for _ in (out / FOLDER / "tables").glob("*.npz"))
        if created and not done:
            take_back(out)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"{out}: {done} of {work.plan.count} blocks are done; continue with --resume"
            ) from None
        raise
    forget_replaced(out)
    return found


def _work(request: SegmentRequest, volume: Volume, frame: Frame, begun: Start, note: Note) -> Work:
    """Load the model and describe the work on blocks for all processes."""
    options, blocking, method = request.options, request.blocking, request.blocking.method
    trained, decoding = load_network(request)
    digest = hashlib.sha256(trained.path.read_bytes()).hexdigest()
    scorer = fragments_for(method, blocking.fragments, digest, str(trained.path))
    normaliser = normaliser_of(trained, options.grey)
    check_grey(normaliser, volume.dtype, volume.source, note)
    rescaling = grid_for(
        trained.path,
        trained.notes,
        volume.source,
        frame.shape[1:],
        volume.resolution,
        rescale=options.rescale,
        note=note,
    )
    shape = frame.shape if rescaling is None else (frame.shape[0], *rescaling.model)
    plan, around = block_plan(trained, decoding, shape, blocking)
    single = blocking.workers > 1 and blocking.scheduler is None
    work = Work(
        source=request.source,
        resolution=options.resolution,
        first=frame.first,
        weights=str(trained.path),
        weights_sha256=digest,
        network=blocking.network,
        method=method,
        threshold=threshold_of(method, options, trained.notes | threshold_note(scorer)),
        store=str(request.out.absolute()),
        plan=plan,
        halo=around,
        device=options.device,
        precision=begun.chosen.precision,
        backend=begun.backend,
        normaliser=normaliser,
        threads=max(1, usable_cores() // blocking.workers) if single else None,
        rescaling=rescaling,
        policies=parse_bad(blocking.on_bad),
        orientations=_orientations(trained, blocking.orientations),
        fragments=named(scorer),
    )
    return with_ranges(work, trained, note)


def _orientations(trained: TrainedStudent | TrainedTeacher, asked: int | None) -> int:
    """Return the number of orientations that are averaged.

    Raises:
        DistillError: a number that there is not, or one for a student.
    """
    if asked is not None and asked not in ORIENTATIONS:
        raise DistillError(f"--orientations: found {asked}, expected {', '.join(map(str, ORIENTATIONS))}")
    if isinstance(trained, TrainedTeacher):
        return asked or trained.config.orientations
    if asked not in (None, 1):
        raise DistillError(f"--orientations: found {asked} with --network student, expected --network teacher")
    return 1


def load_network(request: SegmentRequest) -> tuple[TrainedStudent | TrainedTeacher, DecoderConfig]:
    """Load the network, and the configuration of its decoder.

    Raises:
        CheckpointError: no weights, or no query decoder for the method `query`.
    """
    method, block = request.blocking.method, request.blocking.block
    if request.blocking.network == "teacher":
        teacher = load_teacher(request.model, _CPU)
        return teacher, teacher.config.decoder
    student = by_method(load_student(request.model, _CPU), method, block)
    if method == "query" and student.decoder is None:
        raise CheckpointError(f"{student.path}: has no query decoder, expected --method flood for this model")
    return student, student.decoding


def block_plan(
    trained: TrainedStudent | TrainedTeacher, decoding: DecoderConfig, shape: Triple, blocking: Blocking
) -> tuple[Plan, tuple[int, int]]:
    """Divide a volume into blocks, and return the halo in pixels with which the student reads them.

    Raises:
        DistillError: the model cannot process blocks of the requested size.
    """
    block = blocking.block
    if blocking.method == "query" and block is not None and block[0] != decoding.block[0]:
        raise DistillError(f"--block: found {block[0]} sections, expected {decoding.block[0]} as this model's decoder")
    plan = make_plan(shape, decoding, block)
    if not isinstance(trained, TrainedStudent) or len(plan.rows) * len(plan.columns) == 1:
        return plan, (0, 0)
    if receptive_field(trained.student).radius is not None:
        return plan, halo(trained.student, NEAREST)
    if block is not None:
        raise DistillError(
            "--block: this student's encoder pools or attends over the whole section; expected blocks of whole "
            f"sections, {shape[1]} x {shape[2]}"
        )
    return make_plan(shape, decoding, (plan.depth, *shape[1:])), (0, 0)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
