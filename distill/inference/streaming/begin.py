"""Create the store of a stream, or open it for resuming."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from distill.core.atomic import new_folder, sweep_leftovers
from distill.core.claim import claim
from distill.core.errors import SourceError
from distill.inference.aside import set_aside
from distill.inference.grey_values import grey_settings
from distill.inference.options import Options, Start, threshold_of
from distill.inference.streaming.options import Streaming, parse_policies
from distill.inference.streaming.output.manifest import (
    STREAM_FOLDER,
    Journal,
    check_job,
    is_stream,
    now,
    read_job,
    read_lines,
    write_job,
)
from distill.inference.streaming.output.store import StreamLayout, StreamStore
from distill.inference.streaming.sections.sources import Source
from distill.io.writers.store import writing
from distill.models.load import TrainedStudent
from students.streaming.runner import SectionRunner

STREAM_FORMAT = 1


def job_of(
    source: str,
    trained: TrainedStudent,
    options: Options,
    streaming: Streaming,
    sections: Source,
    layout: StreamLayout,
    begun: Start,
    runner: SectionRunner,
) -> dict[str, Any]:
    """Return the settings that determine the contents of the store, and some that do not."""
    return {
        "format": STREAM_FORMAT,
        "created": now(),
        "source": source,
        "model": str(trained.path),
        "model_sha256": hashlib.sha256(trained.path.read_bytes()).hexdigest(),
        "device": begun.device.type,
        "hardware": begun.chosen.device,
        "precision": begun.chosen.precision,
        "precision_by": begun.chosen.reason,
        "backend": runner.backend,
        "batch": runner.batch,
        "tile": streaming.tile,
        "sections": sections.total,
        "first": (options.sections or (0, None))[0],
        "size": list(layout.size),
        "dtype": str(sections.kind.dtype),
        "resolution": list(layout.resolution),
        "offset": list(layout.offset),
        "offsets": [list(offset) for offset in layout.offsets],
        "embedding": layout.embedding,
        "channels": layout.channels,
        "segment": layout.segment,
        "depth": layout.depth,
        "block": list(trained.decoding.block),
        "overlap": list(trained.decoding.overlap),
        "parts": streaming.part.of,
        "on_bad": parse_policies(streaming.on_bad),
        "method": streaming.method,
        "merge_threshold": threshold_of(streaming.method or "flood", options, trained.notes),
        **grey_settings(trained.normaliser),
    }


def prepare_stream(
    out: Path, layout: StreamLayout, job: dict[str, Any], total: int | None, streaming: Streaming, options: Options
) -> bool:
    """Create the store atomically, or check that an existing one belongs to the same stream.

    The caller has claimed `out`; ranges, which share it, take turns.

    Returns:
        Whether it was made.
    """
    with claim(out.with_name(f"{out.name}.begin"), wait=True):
        if not (is_stream(out) and (streaming.resume or streaming.part.of > 1)):
            _make(out, layout, job, total, overwrite=options.overwrite)
            return True
        check_job(out, job, free=streaming.resume)
        if streaming.resume:
            begun = read_job(out)
            if begun["on_bad"] != job["on_bad"] and streaming.part.of == 1:
                write_job(out, begun | {"on_bad": job["on_bad"]})
        return False


def _make(out: Path, layout: StreamLayout, job: dict[str, Any], total: int | None, *, overwrite: bool) -> None:
    def make_room() -> None:
        if overwrite:
            set_aside(out)

    with writing(out):
        sweep_leftovers(out)
        with new_folder(out, make_room) as made:
            StreamStore.create(made, layout, total)
            (made / STREAM_FOLDER / "slabs").mkdir(parents=True)
            write_job(made, job)


def refuse_to_begin_again(journal: Journal, streaming: Streaming, created: bool) -> None:
    """Raise an error if the range has already been started and resuming was not requested."""
    done = len(read_lines(journal.path))
    if done and not created and not streaming.resume:
        part = streaming.part
        raise SourceError(
            f"{journal.path}: found {done} sections of range {part.index}/{part.of} done, expected --resume"
        )
