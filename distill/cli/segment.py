"""Commands that run networks over sections and volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.app import app
from distill.cli.console import Bar, Recorded, say
from distill.cli.options import (
    Backend,
    Device,
    Invert,
    Merge,
    Normalise,
    Overwrite,
    Precision,
    Rescale,
    Resolution,
    Sections,
    Thresholds,
    merge_of,
    run_options,
)
from distill.cli.selecting import selects
from distill.core.errors import DistillError
from distill.core.hardware import AUTO

if TYPE_CHECKING:
    from distill.inference.streaming.output.manifest import Line
    from distill.inference.streaming.output.store import Kept
    from distill.inference.streaming.stream import Streamed


@app.command()
@selects("source")
def stream(
    source: Annotated[
        str, typer.Argument(help="volume, folder or glob of section images, or - for paths on standard input")
    ],
    model: Annotated[str, typer.Option(help="run folder, weights file or bundled model")],
    out: Annotated[Path, typer.Option(metavar="OUT.zarr")],
    no_segment: Annotated[bool, typer.Option("--no-segment", help="affinities only")] = False,
    method: Annotated[
        str | None,
        typer.Option(help="of instances: flood (supervoxels merged by their contacts) or query; default: flood"),
    ] = None,
    offset: Annotated[
        list[str] | None, typer.Option(metavar="Z,Y,X", help="one more affinity beside the nearest; may be repeated")
    ] = None,
    embedding: Annotated[str, typer.Option(help="also keep the embedding, as uint8 or float16")] = "none",
    on_bad: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]POLICY",
            help="about bad sections: fail, skip (leave the place empty, pair nothing over it) or bridge (pair its "
            "neighbours); for one kind: missing, corrupt, size, blank, saturated, contrast or position; default fail",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=64, help="cut sections that do not fit in memory into tiles of this side, in pixels"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the stream in OUT where it stopped")] = False,
    part: Annotated[
        str | None, typer.Option("--range", metavar="I/N", help="do the I-th of N parts (from 0), then distill finish")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="watch the folder SOURCE and take sections as they come")
    ] = False,
    until: Annotated[int | None, typer.Option(min=1, help="--follow: end after so many sections")] = None,
    idle: Annotated[float | None, typer.Option(help="--follow: end after so many seconds without news")] = None,
    end_marker: Annotated[
        str, typer.Option(help="--follow: a file of this name in the folder ends the stream")
    ] = "END",
    settle: Annotated[float, typer.Option(help="--follow: seconds without change before a file is read")] = 2.0,
    patience: Annotated[
        float, typer.Option(help="--follow: seconds before a broken file is corrupt, or a number left out is missing")
    ] = 60.0,
    sections: Sections = None,
    resolution: Resolution = None,
    merge: Merge = None,
    thresholds: Thresholds = None,
    device: Device = "auto",
    precision: Precision = AUTO,
    backend: Backend = "auto",
    normalise: Normalise = None,
    invert: Invert = False,
    rescale: Rescale = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a student over sections: affinities, and instances."""
    from distill.core.affinity import NEAREST
    from distill.core.geometry import parse_triple
    from distill.inference.streaming.options import Streaming
    from distill.inference.streaming.output.manifest import method_of, read_job
    from distill.inference.streaming.plan import parse_part
    from distill.inference.streaming.sections.watch import Following
    from distill.inference.streaming.stream import stream as run

    if method not in (None, "flood", "query"):
        raise DistillError(f"--method: found {method!r}, expected flood or query")
    if thresholds is not None:
        merge = merge_of(merge, thresholds, method or (method_of(read_job(out)) if resume else "flood"))
    options = run_options(
        sections, resolution, merge, device, precision, overwrite, backend, normalise, invert, rescale
    )
    if resume and overwrite:
        raise DistillError("--resume: found --overwrite beside it, expected one of them")
    if not follow and (until is not None or idle is not None):
        raise DistillError("--until, --idle: found no --follow beside them, expected it")
    streaming = Streaming(
        segment=not no_segment,
        method=None if method is None else "query" if method == "query" else "flood",
        offsets=(*NEAREST, *(parse_triple(text, "--offset") for text in offset or [])),
        embedding=_kept(embedding),
        on_bad=tuple(on_bad or ()),
        resume=resume,
        following=Following(settle, patience, until, idle, end_marker) if follow else None,
        part=parse_part(part),
        tile=tile,
    )
    with Recorded(out, part) as record, Bar("sections") as bar:
        found = run(source, model, out, options, streaming, on_progress=bar.update, note=bar.line, on_start=bar.start)
        record.update(found.about | found.chosen | {"stages": found.seconds})
    _say_stream(out, found)


@app.command()
def finish(
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr")],
    merge: Merge = None,
    thresholds: Thresholds = None,
) -> None:
    """Give what a stream has done so far its final ids, after an interruption, all ranges, or with another --merge."""
    from distill.inference.streaming.finish import finish as run
    from distill.inference.streaming.output.manifest import method_of, read_job

    if thresholds is not None:
        merge = merge_of(merge, thresholds, method_of(read_job(out)))
    if merge is not None and not 0 <= merge <= 1:
        raise DistillError(f"--merge: found {merge}, expected a number from 0 to 1")
    found = run(out, merge)
    _say_bad(found.bad)
    say(f"{out}: {found.sections} sections")
    _say_result(out, found.about)


@app.command()
@selects("source")
def segment(
    source: str,
    model: Annotated[str, typer.Option(help="run folder, weights file or bundled model")],
    out: Annotated[Path, typer.Option(metavar="OUT.zarr")],
    network: Annotated[str, typer.Option(help="student or teacher")] = "student",
    method: Annotated[
        str,
        typer.Option(
            help="flood (supervoxels merged by their contacts), query, waterz (watershed + agglomeration) or mws "
            "(mutex watershed)"
        ),
    ] = "flood",
    block: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="most voxels of a block; default: the decoder's depth and 1024 x 1024"),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes on this machine; 0 and 1: this one")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="host:port or file of a dask scheduler, in place of --workers")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="how often a block that fails is tried again")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the blocks in OUT where they stopped")] = False,
    sections: Sections = None,
    resolution: Resolution = None,
    merge: Merge = None,
    thresholds: Thresholds = None,
    device: Device = "auto",
    precision: Precision = AUTO,
    backend: Backend = "auto",
    normalise: Normalise = None,
    invert: Invert = False,
    rescale: Rescale = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment a volume of any size in blocks, with the student or the teacher, on one process or many."""
    from distill.core.geometry import parse_triple
    from distill.inference.blockwise.options import Blocking
    from distill.inference.blockwise.segment import segment as run
    from distill.inference.thresholds import METHODS

    if network not in ("student", "teacher"):
        raise DistillError(f"--network: found {network!r}, expected student or teacher")
    if method not in METHODS:
        raise DistillError(f"--method: found {method!r}, expected one of {', '.join(METHODS)}")
    if resume and overwrite:
        raise DistillError("--resume: found --overwrite beside it, expected one of them")
    if scheduler is not None and workers:
        raise DistillError("--scheduler: found --workers beside it, expected one of them")
    merge = merge_of(merge, thresholds, method)
    options = run_options(
        sections, resolution, merge, device, precision, overwrite, backend, normalise, invert, rescale
    )
    blocking = Blocking(None if block is None else parse_triple(block, "--block"), workers, scheduler, retries, resume)
    with Recorded(out) as record, Bar("blocks") as bar:
        found = run(
            source,
            model,
            out,
            options,
            blocking,
            network="teacher" if network == "teacher" else "student",
            method=method,
            on_progress=bar.update,
            note=bar.line,
            on_start=bar.start,
        )
        record.update(found.record())
    _say_result(out, found.about)
    _say_stages(found.timer.seconds)


@app.command()
def convert(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="WEIGHTS.safetensors")],
    resolution: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="nm per voxel that it was trained on, where that is not known")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a published AGQ or CAD checkpoint into a weights file."""
    from distill.cli.options import free_out

    free_out(out, overwrite)
    from distill.core.geometry import parse_numbers
    from distill.models.convert import convert as run

    found = run(checkpoint, out, parse_numbers(resolution, "--resolution") if resolution else None)
    say(f"{out}: {found.method}, {found.tensors} tensors")
    for key in found.unplaced:
        say(f"no place for {key}")
    voxels = " x ".join(f"{n:g}" for n in found.resolution or ())
    say(f"trained on voxels of {voxels} nm" if voxels else "trained on voxels of unknown size; --resolution Z,Y,X")
    command = "stream SOURCE --no-segment" if found.kind == "student" else "segment SOURCE --network teacher"
    say(f"next: distill {command} --model {out} --out OUT.zarr")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="run folder or weights file of a student")],
    out: Annotated[Path, typer.Option(metavar="FOLDER")],
    form: Annotated[str, typer.Option("--format", help="onnx, openvino or torch")] = "onnx",
    sample: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="two sections to check on; default a phantom")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a student's two functions, encode and decode, for another runtime, and check them against torch."""
    from distill.inference.export import export as run

    found = run(model, form, out, sample, overwrite=overwrite)
    for file in found.files:
        say(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    say(f"height and width: multiples of {found.stride}")
    d = found.difference
    say(
        f"largest difference from torch on {found.sample}: maps {d.maps:.1e} of their largest value, "
        f"affinity {d.affinity:.1e}, embedding {d.embedding:.1e}"
    )


def _kept(embedding: str) -> Kept:
    known: dict[str, Kept] = {"none": "none", "uint8": "uint8", "float16": "float16"}
    if embedding not in known:
        raise DistillError(f"--embedding: found {embedding!r}, expected uint8 or float16")
    return known[embedding]


def _say_stream(out: Path, found: Streamed) -> None:
    _say_bad(found.bad)
    if found.finished:
        _say_result(out, found.about)
    else:
        say(f"{out}: {found.sections} sections of this range; next, when all are done: distill finish {out}")
    _say_stages(found.seconds)


def _say_stages(seconds: dict[str, float]) -> None:
    whole = sum(seconds.values()) or 1.0
    shares = ", ".join(f"{name} {100 * each / whole:.0f} %" for name, each in seconds.items())
    say(f"time by stage (they overlap): {shares}")


def _say_bad(bad: list[Line]) -> None:
    from distill.inference.streaming.output.manifest import bad_lines

    for text in bad_lines(bad):
        say(text)


def _say_result(out: Path, about: dict[str, Any]) -> None:
    if about.get("method") is None:
        say(f"{out}:affinity")
        return
    say(f"{out}:affinity and {out}:segmentation, {about['objects']} objects")
    say(f"next: distill evaluate {out}:segmentation LABELS")
