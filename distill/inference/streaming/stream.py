"""`distill stream`: the student on sections without end, into a store that grows and can be gone on with."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.core.claim import claim
from distill.core.errors import DistillError, SourceError
from distill.core.hardware import check_precision
from distill.core.pace import rate
from distill.core.timing import StageTimer
from distill.inference.aside import forget_replaced, take_back
from distill.inference.decode import by_method
from distill.inference.grey_values import check_grey, normaliser_of
from distill.inference.options import Note, Options, start
from distill.inference.rescaling.results import check_offsets as check_carried
from distill.inference.rescaling.voxel_size import grid_for, record_of
from distill.inference.streaming.begin import job_of, prepare, refuse_to_begin_again
from distill.inference.streaming.finish import finish_claimed
from distill.inference.streaming.options import Streaming, parse_policies
from distill.inference.streaming.output.manifest import (
    Journal,
    Line,
    is_stream,
    manifest_path,
    method_of,
    read_job,
    read_lines,
)
from distill.inference.streaming.output.store import Layout, StreamStore
from distill.inference.streaming.pipeline import Work, lines_that_stay
from distill.inference.streaming.pipeline import run as run_engine
from distill.inference.streaming.plan import layer_depth, share
from distill.inference.streaming.rescaled import OnRecorded, RescaledSource
from distill.inference.streaming.sections.sources import FileSource, Kind, Source, VolumeSource, in_order, listed_paths
from distill.inference.streaming.sections.watch import FollowSource
from distill.inference.streaming.slabs import most_sections
from distill.io.readers.images import section_paths
from distill.io.selection import split_selection
from distill.io.source import source_kind
from distill.io.volume import open_grey
from distill.io.writers.output import check_free, check_place
from distill.models.load import TrainedStudent, load_student
from students.streaming.runner import SectionRunner, check_stream_offsets

_SOON = 1_000_000  # sections: a limit below this is reported while the number is unknown
OnStart = Callable[[int, int | None], None]  # sections done, of how many
OnProgress = Callable[[int, int | None, str], None]  # sections done, of how many, rate


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


def stream(
    source: str,
    model: str,
    out: Path,
    options: Options,
    streaming: Streaming,
    *,
    on_progress: OnProgress,
    note: Note,
    on_start: OnStart = lambda done, total: None,
) -> Streamed:
    """Run the student over sections; write affinities and, through slabs, instances.

    Args:
        source: where the sections come from: a volume, a folder or glob of images, or `-` for paths on standard input.
        model: run folder or weights file of a student.
        out: Zarr store to make or to go on with.
        options: see `Options`.
        streaming: see `Streaming`.
        on_progress: called as layers become durable.
        note: called with lines that the user should see.
        on_start: called before the first section, with the number of those that are done already.

    Returns:
        What was done. The same store for any number of interruptions and processes.

    Raises:
        DistillError: wrong use, bad input, a bad section under the policy `fail`, or the disk refuses. What is done
            stays; a store without a finished layer is removed.
    """
    check_place(out)
    with claim(out, shared=streaming.part.of > 1):
        return _stream(source, model, out, options, streaming, on_progress, note, on_start)


def _stream(
    source: str,
    model: str,
    out: Path,
    options: Options,
    streaming: Streaming,
    on_progress: OnProgress,
    note: Note,
    on_start: OnStart,
) -> Streamed:
    """See `stream`; the caller has claimed `out`."""
    policies = parse_policies(streaming.on_bad)
    check_precision(options.precision)
    check_stream_offsets(streaming.offsets)
    fresh = not os.path.lexists(out) or not (streaming.resume or (streaming.part.of > 1 and is_stream(out)))
    if fresh:
        check_free(out, source, options.overwrite, resumable=is_stream(out))
    elif not is_stream(out):
        raise SourceError(f"{out}: found no stream to go on with, expected a store of distill stream")
    if streaming.part.of > 1 and streaming.following is not None:
        raise DistillError("--range: found --follow beside it, expected a source of known length")
    known = [] if fresh or streaming.following is None else _known(out)
    opened = None if streaming.following else _open(source, options, streaming, known, note)
    earlier = {} if fresh else read_job(out)
    begun = start(options, earlier)
    runtime = begun.runtime
    method = streaming.method or ("flood" if fresh else method_of(earlier))
    trained = by_method(load_student(model, runtime.device), method)
    streaming = replace(streaming, method=method)
    held: list[str] = []  # what is said before the settings are known to be good
    shown, note = note, held.append
    if streaming.following is not None:  # which may wait long for the first section
        _say(shown, begun.lines)
    if streaming.segment and method == "query" and trained.decoder is None:
        note(f"{trained.path} has no query decoder: affinities only. For instances: --method flood")
        streaming = replace(streaming, segment=False)
    step = trained.decoding.block[0] - 1 if streaming.segment else None
    # A folder that is followed may not have its first section yet: a wrong model is told of before that is waited for.
    sections = opened or _open(source, options, streaming, known, shown)
    trained = replace(trained, normaliser=normaliser_of(trained, options.grey))
    check_grey(trained.normaliser, sections.kind.dtype, sections.name, note)
    recorded = sections.kind
    rescaling = grid_for(
        trained.path,
        trained.notes,
        sections.name,
        recorded.size,
        recorded.resolution,
        rescale=options.rescale,
        note=note,
    )
    if rescaling is not None:
        check_carried(streaming.offsets)
        sections = RescaledSource(sections, rescaling)
    runner = SectionRunner(
        trained.student,
        trained.slab if streaming.segment else None,
        device=runtime.device,
        precision=runtime.precision,
        backend=runtime.backend,
        tile=streaming.tile,
        offsets=streaming.offsets,
        embedding=None if streaming.embedding == "none" else streaming.embedding,
        normaliser=trained.normaliser,
    )
    in_pieces = streaming.tile is not None and not streaming.segment and rescaling is None
    layout = _layout(recorded, trained, streaming, step, in_pieces=in_pieces)
    if layout.segment:
        _check_numbers(sections, trained, layout, shown)
    job = job_of(source, trained, options, streaming, sections, layout, begun, runner)
    job["rescaled"] = record_of(rescaling, recorded.resolution)
    created = prepare(out, layout, job, sections.total, streaming, options)
    _say(shown, held if streaming.following is not None else (*begun.lines, *held))
    note = shown
    stages = StageTimer()
    journal = None
    try:
        layers, last = share(streaming.part, sections.total, layout.depth)
        journal = Journal(out, layers.start)
        refuse_to_begin_again(journal, streaming, created)
        before = layers.start * layout.depth
        before += len(lines_that_stay(journal.path, layout.depth, sections.total, layout.segment))
        end = sections.total if last else layers.stop * layout.depth
        area, began = layout.size[0] * layout.size[1], time.perf_counter()
        on_start(before, end)

        def on_section(done: int) -> None:
            voxels, seconds = (done - before) * area, time.perf_counter() - began
            on_progress(done, end, rate(voxels / 1e6, seconds, "Mvoxel"))

        store = StreamStore(out, layout)
        back = None if rescaling is None else OnRecorded(rescaling, layout.offsets)
        work = Work(sections, trained, runner, runtime, store, policies, layers, last, in_pieces, back)
        run_engine(work, journal, stages, on_section)
    except BaseException as error:
        done = len(read_lines(journal.path)) if journal is not None else 0
        if created and not done and streaming.part.of == 1:
            if journal is not None:
                journal.close()
                journal = None
            take_back(out)
        elif isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{out}: {done} sections are done; go on with --resume") from None
        raise
    finally:
        if journal is not None:
            journal.close()
    chosen = begun.chosen.record()
    if streaming.part.of > 1:
        lines = read_lines(journal.path)
        bad = [one for one in lines if one.flaw]
        return Streamed(job, len(lines), bad, stages.seconds, None, False, chosen)
    with stages.timed("finish"):
        finished = finish_claimed(out, options.merge)
    forget_replaced(out)
    objects = finished.about.get("objects")
    return Streamed(finished.about, finished.sections, finished.bad, stages.seconds, objects, True, chosen)


def _check_numbers(sections: Source, trained: TrainedStudent, layout: Layout, note: Note) -> None:
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
    """Files of the sections that are done, for a folder that is followed."""
    job = read_job(out)
    lines = lines_that_stay(manifest_path(out, 0), int(job["depth"]), None, bool(job["segment"]))
    return [None if line.flaw == "missing" else line.source for line in lines]


def _open(source: str, options: Options, streaming: Streaming, known: Sequence[str | None], note: Note) -> Source:
    if streaming.following is not None:
        if options.sections is not None:
            raise DistillError("--sections: found --follow beside it, expected --until for the end of a stream")
        return FollowSource(Path(source), streaming.following, options.resolution, known=known, note=note)
    text, chosen = split_selection(source)
    nm = chosen.resolution or options.resolution
    if text == "-":
        return FileSource("standard input", listed_paths(sys.stdin), nm, options.sections, chosen.box)
    kind, path = source_kind(source)
    if kind == "images" and isinstance(path, Path):
        return FileSource(source, in_order(section_paths(path)), nm, options.sections, chosen.box)
    return VolumeSource(open_grey(source, resolution=options.resolution), options.sections)


def _layout(kind: Kind, trained: TrainedStudent, streaming: Streaming, step: int | None, *, in_pieces: bool) -> Layout:
    embedding = streaming.embedding
    channels = trained.student.embedding_channels
    layout = Layout(
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
