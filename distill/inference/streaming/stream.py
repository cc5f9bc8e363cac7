"""Run the student over a stream of sections and append to a resumable Zarr store (`distill stream`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.core.claim import claim
from distill.core.errors import DistillError, SourceError
from distill.core.hardware import INT8, check_precision
from distill.core.notes import Note
from distill.core.pace import rate
from distill.core.timing import StageTimer
from distill.inference.aside import forget_replaced, take_back
from distill.inference.calibration import from_stream, int8_line
from distill.inference.decode import by_method
from distill.inference.grey_values import check_grey, normaliser_of
from distill.inference.options import SILENT, Callbacks, Options, Runtime, start
from distill.inference.rescaling.results import Rescaling
from distill.inference.rescaling.results import check_offsets as check_carried
from distill.inference.rescaling.voxel_size import grid_for, record_of
from distill.inference.streaming.begin import job_of, prepare_stream, refuse_to_begin_again
from distill.inference.streaming.finish import finish_claimed
from distill.inference.streaming.options import DEFAULT_STREAMING, Streaming, parse_policies
from distill.inference.streaming.output.manifest import (
    Journal,
    Line,
    is_stream,
    manifest_path,
    method_of,
    read_job,
    read_lines,
)
from distill.inference.streaming.output.store import StreamLayout, StreamStore
from distill.inference.streaming.pipeline import StreamWork, lines_that_stay
from distill.inference.streaming.pipeline import run as run_engine
from distill.inference.streaming.plan import layer_depth, share
from distill.inference.streaming.rescaled import OnRecorded, RescaledSource
from distill.inference.streaming.sections.sources import (
    SectionFiles,
    SectionKind,
    Source,
    VolumeSource,
    in_order,
    listed_paths,
)
from distill.inference.streaming.sections.watch import FollowSource
from distill.inference.streaming.slabs import most_sections
from distill.io.readers.images import section_paths
from distill.io.selection import split_selection
from distill.io.source import source_kind
from distill.io.volume import open_grey
from distill.io.writers.output import check_free, check_place
from distill.models.load import TrainedStudent, load_student
from students.backends.int8 import check_parts, key_of
from students.streaming.runner import SectionRunner, check_stream_offsets

_SOON = 1_000_000  # sections: a limit below this is reported while the number is unknown


@dataclass(frozen=True)
class Streamed:
    """What a stream did.

    Attributes:
        about: how the store was made; the same for every way of getting there.
        sections: number of sections that are done.
        bad: lines of the bad ones.
        seconds: by stage, of this process.
        objects: number of final ids; None where there is no segmentation or it is not finished.
        finished: whether nothing is left to do, not even `distill finish`.
        chosen: device and precision of this process, for run.json.
    """

    about: dict[str, Any]
    sections: int
    bad: list[Line]
    seconds: dict[str, float]
    objects: int | None
    finished: bool
    chosen: dict[str, str]


@dataclass(frozen=True)
class StreamRequest:
    """Arguments of `stream`."""

    source: str
    model: str
    out: Path
    options: Options
    streaming: Streaming


def stream(
    source: str,
    model: str,
    out: Path,
    options: Options,
    streaming: Streaming = DEFAULT_STREAMING,
    callbacks: Callbacks = SILENT,
) -> Streamed:
    """Run the student over sections; write affinities and, in slabs, segments.

    Args:
        source: source of the sections: a volume, a folder or glob of images, or `-` for paths on standard input.
        model: run folder, weights file or bundled model.
        out: Zarr store to create or to continue.
        options: see `Options`.
        streaming: see `Streaming`.
        callbacks: see `Callbacks`; sections are counted.

    Returns:
        Summary. The store is the same for any number of interruptions and processes.

    Raises:
        DistillError: wrong options, bad input, a bad section under the policy `fail`, or the disk refuses. Completed
            sections are kept; a store without a complete layer is removed.
    """
    check_place(out)
    with claim(out, shared=streaming.part.of > 1):
        return _stream(StreamRequest(source, model, out, options, streaming), callbacks)


@dataclass(frozen=True)
class _Job:
    """A stream whose source and model are open and whose store exists.

    Attributes:
        sections: source, at the pixel size of the model.
        trained: model, with the normaliser of the source.
        runner: of the student.
        runtime: device, precision and backend.
        layout: of the store.
        settings: recorded in the store.
        rescaling: from the pixel size of the source; None if equal.
        created: whether the store is new.
        chosen: device and precision, for run.json.
    """

    sections: Source
    trained: TrainedStudent
    runner: SectionRunner
    runtime: Runtime
    layout: StreamLayout
    settings: dict[str, Any]
    rescaling: Rescaling | None
    created: bool
    chosen: dict[str, str]


def _stream(request: StreamRequest, callbacks: Callbacks) -> Streamed:
    """See `stream`; the caller has claimed the store."""
    job, stages = _open_job(request, callbacks.note), StageTimer()
    lines = _run(request, job, callbacks, stages)
    if request.streaming.part.of > 1:
        bad = [one for one in lines if one.flaw]
        return Streamed(job.settings, len(lines), bad, stages.seconds, None, False, job.chosen)
    with stages.timed("finish"):
        finished = finish_claimed(request.out, request.options.merge)
    forget_replaced(request.out)
    objects = finished.about.get("objects")
    return Streamed(finished.about, finished.sections, finished.bad, stages.seconds, objects, True, job.chosen)


def _open_job(request: StreamRequest, note: Note) -> _Job:
    """Open source and model, check that they fit, and create the store or check that it belongs to the same stream."""
    out, options, streaming = request.out, request.options, request.streaming
    fresh = _check_request(request)
    following = streaming.following is not None
    known = _known(out) if following and not fresh else []
    opened = None if following else _open(request, known, note)
    earlier = {} if fresh else read_job(out)
    begun = start(options, earlier)
    runtime = begun.runtime
    method = streaming.method or ("flood" if fresh else method_of(earlier))
    trained = by_method(load_student(request.model, runtime.device), method)
    streaming = replace(streaming, method=method)
    held: list[str] = []  # lines that are shown once the settings are known to be valid
    if following:  # the first section may arrive much later
        _say(note, begun.lines)
    if streaming.segment and method == "query" and trained.decoder is None:
        held.append(f"{trained.path} has no query decoder: affinities only. For instances: --method flood")
        streaming = replace(streaming, segment=False)
    # A followed folder may still be empty: errors of the model are reported before the first section is waited for.
    sections = opened or _open(request, known, note)
    trained = replace(trained, normaliser=normaliser_of(trained, options.grey))
    recorded = sections.kind
    check_grey(trained.normaliser, recorded.dtype, sections.name, held.append)
    rescaling = grid_for(
        trained.path,
        trained.notes,
        sections.name,
        recorded.size,
        recorded.resolution,
        rescale=options.rescale,
        note=held.append,
    )
    if rescaling is not None:
        check_carried(streaming.offsets)
        sections = RescaledSource(sections, rescaling)
    if runtime.precision == INT8:
        if streaming.segment and method == "query":
            raise DistillError(f"--method: found query with --precision {INT8}, expected --method flood")
        if streaming.tile is not None:
            check_parts(trained.form)
        runtime = replace(runtime, calibration=from_stream(sections, trained.normaliser, trained.form.stride))
    runner = _runner(trained, runtime, streaming)
    if runner.difference is not None and runtime.calibration is not None:
        held.append(int8_line(runner.difference, runtime.calibration))
    layout = _layout(
        recorded,
        trained,
        streaming,
        in_pieces=streaming.tile is not None and not streaming.segment and rescaling is None,
    )
    if layout.segment:
        _check_numbers(sections, trained, layout, note)
    settings = job_of(request.source, trained, options, streaming, sections, layout, begun, runner)
    settings |= key_of(runtime.calibration)
    settings["rescaled"] = record_of(rescaling, recorded.resolution)
    created = prepare_stream(out, layout, settings, sections.total, streaming, options)
    _say(note, held if following else (*begun.lines, *held))
    return _Job(sections, trained, runner, runtime, layout, settings, rescaling, created, begun.chosen.record())


def _check_request(request: StreamRequest) -> bool:
    """Check options and output, and return whether a new store is to be created.

    Raises:
        DistillError: options that exclude each other, or an output that can be neither created nor continued.
    """
    out, options, streaming = request.out, request.options, request.streaming
    parse_policies(streaming.on_bad)
    check_precision(options.precision)
    check_stream_offsets(streaming.offsets)
    fresh = not os.path.lexists(out) or not (streaming.resume or (streaming.part.of > 1 and is_stream(out)))
    if fresh:
        check_free(out, request.source, options.overwrite, resumable=is_stream(out))
    elif not is_stream(out):
        raise SourceError(f"{out}: found no stream to continue, expected a store of distill stream")
    if streaming.part.of > 1 and streaming.following is not None:
        raise DistillError("--range: found --follow as well, expected a source of known length")
    return fresh


def _run(request: StreamRequest, job: _Job, callbacks: Callbacks, stages: StageTimer) -> list[Line]:
    """Process all sections that are not done, and return the lines of the manifest of this range."""
    out, streaming, layout = request.out, request.streaming, job.layout
    total, journal = job.sections.total, None
    try:
        layers, last = share(streaming.part, total, layout.depth)
        journal = Journal(out, layers.start)
        refuse_to_begin_again(journal, streaming, job.created)
        before = layers.start * layout.depth
        before += len(lines_that_stay(journal.path, layout.depth, total, layout.segment))
        end = total if last else layers.stop * layout.depth
        area, began = layout.size[0] * layout.size[1], time.perf_counter()
        callbacks.on_start(before, end)

        def on_section(done: int) -> None:
            voxels, seconds = (done - before) * area, time.perf_counter() - began
            callbacks.on_progress(done, end, rate(voxels / 1e6, seconds, "Mvoxel"))

        work = StreamWork(
            job.sections,
            job.trained,
            job.runner,
            job.runtime,
            StreamStore(out, layout),
            parse_policies(streaming.on_bad),
            layers,
            last,
            streaming.tile is not None and not layout.segment and job.rescaling is None,
            None if job.rescaling is None else OnRecorded(job.rescaling, layout.offsets),
        )
        run_engine(work, journal, stages, on_section)
    except BaseException as error:
        done = len(read_lines(journal.path)) if journal is not None else 0
        if job.created and not done and streaming.part.of == 1:
            if journal is not None:
                journal.close()
                journal = None
            take_back(out)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{out}: {done} sections are done; continue with --resume") from None
        raise
    finally:
        if journal is not None:
            journal.close()
    return read_lines(journal.path)


def _runner(trained: TrainedStudent, runtime: Runtime, streaming: Streaming) -> SectionRunner:
    return SectionRunner(
        trained.network,
        trained.slab if streaming.segment else None,
        device=runtime.device,
        precision=runtime.precision,
        backend=runtime.backend,
        calibration=runtime.calibration,
        tile=streaming.tile,
        offsets=streaming.offsets,
        embedding=None if streaming.embedding == "none" else streaming.embedding,
        normaliser=trained.normaliser,
    )


def _check_numbers(sections: Source, trained: TrainedStudent, layout: StreamLayout, note: Note) -> None:
    """Make sure that ids do not run out on the way.

    Raises:
        SourceError: they would.
    """
    size, total = sections.kind.size, sections.total
    most = most_sections(size, trained.decoding, layout.depth)
    if total is not None and total > most:
        raise SourceError(
            f"{sections.name}: found {total:,} sections of {size[0]} x {size[1]} pixels, expected at most {most:,} "
            "with segmentation: ids do not reach further; stream them in parts by --sections, or with --no-segment"
        )
    if total is None and most < _SOON:
        note(f"ids reach {most:,} sections of {size[0]} x {size[1]} pixels; end the stream before, or use --no-segment")


def _say(note: Note, lines: Iterable[str]) -> None:
    for line in lines:
        note(line)


def _known(out: Path) -> list[str | None]:
    """Return the files of completed sections of a followed folder."""
    job = read_job(out)
    lines = lines_that_stay(manifest_path(out, 0), int(job["depth"]), None, bool(job["segment"]))
    return [None if line.flaw == "missing" else line.source for line in lines]


def _open(request: StreamRequest, known: Sequence[str | None], note: Note) -> Source:
    source, options, streaming = request.source, request.options, request.streaming
    if streaming.following is not None:
        if options.sections is not None:
            raise DistillError("--sections: found --follow as well, expected --until for the end of a stream")
        return FollowSource(Path(source), streaming.following, options.resolution, known=known, note=note)
    text, chosen = split_selection(source)
    nm = chosen.resolution or options.resolution
    if text == "-":
        return SectionFiles("standard input", listed_paths(sys.stdin), nm, options.sections, chosen.box)
    kind, path = source_kind(source)
    if kind == "images" and isinstance(path, Path):
        return SectionFiles(source, in_order(section_paths(path)), nm, options.sections, chosen.box)
    return VolumeSource(open_grey(source, resolution=options.resolution), options.sections)


def _layout(kind: SectionKind, trained: TrainedStudent, streaming: Streaming, *, in_pieces: bool) -> StreamLayout:
    step = trained.decoding.block[0] - 1 if streaming.segment else None
    embedding = streaming.embedding
    channels = trained.form.embedding_channels
    layout = StreamLayout(
        size=kind.size,
        depth=1,
        offsets=tuple(streaming.offsets),
        embedding=embedding,
        channels=channels,
        segment=streaming.segment,
        resolution=kind.resolution,
        offset=kind.offset,
    )
    return replace(layout, depth=1 if in_pieces else layer_depth(layout.section_bytes, step))
