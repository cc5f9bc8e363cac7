"""Commands that run networks over sections and volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.app import app
from distill.cli.arguments import (
    BlockArguments,
    FollowArguments,
    Model,
    RunArguments,
    StoreOut,
    StreamArguments,
    check_resume,
)
from distill.cli.console import Bar, Recorded, say
from distill.cli.groups import grouped
from distill.cli.options import Merge, Overwrite, Thresholds, merge_of
from distill.cli.selecting import selects
from distill.core.choices import PackageFormat, check_merge
from distill.core.errors import DistillError
from distill.core.hardware import EXACT, ExportPrecision

if TYPE_CHECKING:
    from distill.inference.streaming.output.manifest import Line
    from distill.inference.streaming.stream import Streamed


@app.command()
@selects("source")
@grouped
def stream(
    source: Annotated[
        str, typer.Argument(help="volume, folder or glob of section images, or - for paths on standard input")
    ],
    model: Model,
    out: StoreOut,
    wanted: StreamArguments,
    follow: FollowArguments,
    run: RunArguments,
) -> None:
    """Run the student over a stream of sections and write affinities and segments."""
    from distill.inference.options import Callbacks
    from distill.inference.streaming.output.manifest import method_of, read_job
    from distill.inference.streaming.plan import parse_part
    from distill.python.running import stream as run_stream

    check_resume(wanted.resume, run.overwrite)
    kept = wanted.method is None and wanted.resume and run.thresholds is not None
    merge = run.merge(method_of(read_job(out)) if kept else wanted.method or "flood", wanted.merge)
    keywords, part = run.keywords(), parse_part(wanted.part)
    offsets, following = wanted.offsets(), follow.following()
    with Recorded(out, wanted.part) as record, Bar("sections") as bar:
        found = run_stream(
            source,
            model,
            out,
            method=wanted.method,
            merge=merge,
            segments=not wanted.no_segment,
            offsets=offsets,
            embedding=wanted.embedding,
            on_bad=wanted.on_bad or (),
            tile=wanted.tile,
            part=(part.index, part.of),
            following=following,
            resume=wanted.resume,
            progress=Callbacks(bar.start, bar.update, bar.line),
            **keywords,
        )
        record.update(found.about | found.chosen | {"stages": found.seconds})
    _say_stream(out, found)


@app.command()
def finish(
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="store of distill stream")],
    merge: Merge = None,
    thresholds: Thresholds = None,
) -> None:
    """Assign final segment ids to the sections of a stream: after all --range parts, or with another --merge."""
    from distill.inference.streaming.finish import finish as run
    from distill.inference.streaming.output.manifest import method_of, read_job

    if thresholds is not None:
        merge = merge_of(merge, thresholds, method_of(read_job(out)))
    found = run(out, check_merge(merge, "--merge"))
    _say_bad(found.bad)
    say(f"{out}: {found.sections} sections")
    _say_result(out, found.about)


@app.command()
@selects("source")
@grouped
def segment(
    source: Annotated[str, typer.Argument(help="volume")],
    model: Model,
    out: StoreOut,
    blocks: BlockArguments,
    run: RunArguments,
) -> None:
    """Segment a volume of any size in blocks, with the student or the teacher, on one process or many."""
    from distill.inference.options import Callbacks
    from distill.python.running import segment as run_segment

    check_resume(blocks.resume, run.overwrite)
    merge, keywords = run.merge(blocks.method, blocks.merge), run.keywords()
    block = blocks.extent()
    with Recorded(out) as record, Bar("blocks") as bar:
        found = run_segment(
            source,
            model,
            out,
            network=blocks.network,
            method=blocks.method,
            merge=merge,
            block=block,
            workers=blocks.workers,
            scheduler=blocks.scheduler,
            retries=blocks.retries,
            on_bad=blocks.on_bad or (),
            orientations=blocks.orientations,
            fragments=blocks.fragments,
            resume=blocks.resume,
            progress=Callbacks(bar.start, bar.update, bar.line),
            **keywords,
        )
        record.update(found.record())
    _say_result(out, found.about)
    _say_stages(found.timer.seconds)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="published PyTorch checkpoint")],
    out: Annotated[Path, typer.Option(metavar="WEIGHTS.safetensors", help="weights file to write")],
    resolution: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="voxel size of its training data in nm, if it is not known")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a published AGQ or CAD checkpoint to a weights file."""
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
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder to write")],
    form: Annotated[
        PackageFormat, typer.Option("--format", help="runtime of the exported functions; bioimageio: a package for it")
    ] = "onnx",
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="volume to compare on, its first two sections; default: a phantom; int8 takes its ranges from it",
        ),
    ] = None,
    precision: Annotated[
        ExportPrecision, typer.Option(help="of the convolutions; int8 with --format openvino only")
    ] = EXACT,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="bioimageio: of the weights, such as CC-BY-4.0")
    ] = None,
    author: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="bioimageio: who trained the model; may be repeated")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Export a student's two functions, encode and decode, to another runtime, and compare them with PyTorch."""
    if form == "bioimageio" and precision != EXACT:
        raise DistillError(f"--precision: found {precision}, expected {EXACT} for --format bioimageio")
    if form == "bioimageio":
        from distill.inference.bioimageio import export_bioimageio

        made = export_bioimageio(model, out, sample, licence=licence, authors=author or [], overwrite=overwrite)
        for file in made.files:
            say(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
        say(f"height and width: multiples of {made.stride}")
        say(f"largest difference from torch on {made.sample}: affinity {made.difference:.1e}")
        return
    if licence is not None or author:
        raise DistillError(f"--license, --author: found --format {form}, expected bioimageio")
    from distill.inference.export import export as run

    found = run(model, form, out, sample, overwrite=overwrite, precision=precision)
    for file in found.files:
        say(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    say(f"height and width: multiples of {found.stride}")
    d = found.difference
    if isinstance(d, float):
        say(f"int8: affinities differ from float32 by {d:.4f} on average on windows of {found.sample}")
        return
    say(
        f"largest difference from torch on {found.sample}: maps {d.maps:.1e} of their largest value, "
        f"affinity {d.affinity:.1e}, embedding {d.embedding:.1e}"
    )


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
        _say_empty(about)
        return
    from distill.io.info import share_without_id

    say(f"{out}:affinity and {out}:segmentation, {about['objects']} objects")
    skipped = len(about.get("bad_sections", {}))
    bad = f"; {skipped} of {about['sections']} sections were bad" if skipped else ""
    say(f"{100 * share_without_id(f'{out}:segmentation'):.1f} % of the voxels belong to no object{bad}")
    _say_empty(about)
    say(f"next: distill evaluate {out}:segmentation LABELS")


def _say_empty(about: dict[str, Any]) -> None:
    if about.get("empty"):
        sections = ", and sections of one value or without an image" if "bad_sections" in about else ""
        say(f"{100 * about['empty']:.1f} % of the source is empty: voxels of value 0{sections}")
