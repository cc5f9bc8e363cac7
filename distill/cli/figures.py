"""Commands for figures, the viewer, and descriptions of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.app import app
from distill.cli.console import Bar, say, say_error
from distill.cli.options import (
    Device,
    Invert,
    Normalise,
    Overwrite,
    PrecisionOption,
    Rescale,
    Resolution,
    SectionsOption,
    ids,
    section_range,
)
from distill.cli.selecting import selects
from distill.core.errors import DistillError, SourceError
from distill.core.hardware import AUTO, check_precision

if TYPE_CHECKING:
    from distill.evaluation.seams.networks import NetworkSeams


@app.command()
@selects("source")
def pca(
    source: str,
    student: Annotated[str, typer.Option(help="run folder, weights file or bundled model")],
    section: Annotated[int, typer.Option(help="section number")],
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    teacher: Annotated[str | None, typer.Option(help="run folder, weights file or bundled model")] = None,
    raw_only_student: Annotated[
        bool, typer.Option("--raw-only-student", help="draw section and student only, without a teacher")
    ] = False,
    window: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="window of the teacher; default: its block")
    ] = None,
    overlap: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="voxels that windows share")] = None,
    no_blend: Annotated[
        bool, typer.Option("--no-blend", help="use the last window in overlaps instead of blending")
    ] = False,
    shifted: Annotated[
        bool,
        typer.Option("--shifted", help="also measure the disagreement with a run of windows shifted by half a step"),
    ] = False,
    inset: Annotated[
        list[str] | None, typer.Option(metavar="Y0:Y1,X0:X1", help="region to enlarge, in pixels; may be repeated")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="draw the window borders")] = False,
    membranes: Annotated[bool, typer.Option("--membranes", help="also colour pixels outside neurites")] = False,
    movie: Annotated[
        Path | None, typer.Option(metavar="MOVIE", help="also write a movie of all sections; .gif, or .mp4 with ffmpeg")
    ] = None,
    sections: Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="sections of the movie")] = None,
    resolution: Resolution = None,
    device: Device = "auto",
    precision: PrecisionOption = AUTO,
    normalise: Normalise = None,
    invert: Invert = False,
    rescale: Rescale = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the seam scores as JSON")] = False,
) -> None:
    """Draw a section next to the embeddings of teacher (sliding window) and student, with their seam scores."""
    from distill.cli.options import free_out

    free_out(out, overwrite)
    free_out(movie, overwrite)
    from distill.core.geometry import parse_numbers, parse_triple
    from distill.python.figures import pca as run

    if (teacher is None) != raw_only_student:
        found_text = "neither" if teacher is None else "both"
        raise DistillError(f"--teacher, --raw-only-student: found {found_text}, expected one of them")
    if raw_only_student and (window or overlap or no_blend or shifted or grid):
        raise DistillError(
            "--raw-only-student: found --window, --overlap, --no-blend, --shifted or --grid as well, expected none; "
            "the student alone has no windows"
        )
    if sections is not None and movie is None:
        raise DistillError("--sections: found no --movie, expected it as well")
    check_precision(precision)
    size = parse_triple(window, "--window") if window else None
    shared = parse_triple(overlap, "--overlap") if overlap else (0, 0, 0)
    through = section_range(sections)
    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with Bar("sections") as bar:
        found = run(
            source,
            student,
            out,
            teacher=teacher,
            section=section,
            window=size,
            overlap=shared,
            blend=not no_blend,
            shifted=shifted,
            insets=inset or (),
            grid=grid,
            membranes=membranes,
            movie=movie,
            sections=through,
            resolution=nm,
            normalise=normalise,
            invert=invert,
            rescale=rescale,
            device=device,
            precision=precision,
            progress=bar.update,
            note=say_error,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    for name, network in (("teacher", found.teacher), ("student", found.student)):
        if network is not None:
            _say_seams(name, network)
    say(f"figure: {out}" if movie is None else f"figure: {out}\nmovie: {movie}")


@app.command()
def section(
    store: Annotated[Path, typer.Argument(metavar="OUT.zarr")],
    section: Annotated[int, typer.Option(help="section number in the image")],
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    raw: Annotated[str | None, typer.Option(metavar="SOURCE", help="image; default: the source of OUT")] = None,
    labels: Annotated[str | None, typer.Option(metavar="SOURCE", help="ground truth")] = None,
    resolution: Resolution = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a section of a result: image, segmentation and ground truth in stable colours, affinities."""
    from distill.cli.options import free_out

    free_out(out, overwrite)
    from distill.core.geometry import parse_numbers
    from viz.section import section as run
    from viz.viewer.view import Sources

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    shown = run(store, Sources(raw, labels, resolution=nm), section, out)
    say(f"section {section}: {', '.join(shown)}\nfigure: {out}")


@app.command()
@selects("segmentation", "labels", "raw")
def errors(
    segmentation: str,
    labels: str,
    raw: Annotated[str, typer.Option(metavar="SOURCE", help="sections")],
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    section: Annotated[
        int | None, typer.Option(help="section number in LABELS; default: the one with most errors")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="number of worst objects to outline and list")] = 8,
    resolution: Resolution = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="print results as JSON")] = False,
) -> None:
    """Draw the split and merge errors of a section, and list the worst objects."""
    from distill.cli.options import free_out

    free_out(out, overwrite)
    from distill.core.geometry import parse_numbers
    from viz.errors.survey import errors as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with Bar("sections") as bar:
        found = run(segmentation, labels, raw, out, section, worst, nm, bar.update)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    counts = f"{found.split:,} are split, {found.merge:,} merged, {found.both:,} both"
    say(f"section {found.section}: of {found.counted:,} labelled pixels {counts}")
    for number, one in enumerate(found.objects, 1):
        own, other = ("object", "segment") if one.kind == "split" else ("segment", "object")
        spans = ", ".join(f"{a}:{b}" for a, b in zip(one.piece.start, one.piece.stop, strict=True))
        say(
            f"{number}. {one.kind}: {own} {one.name or one.error.id}, {one.error.bits:.4f} bits in {one.error.pieces} "
            f"pieces, {one.bits_here:.4f} in this section; largest wrong piece in {other} {one.partner} at {spans} "
            "(z, y, x)"
        )
    say(f"figure: {out}")


@app.command()
@selects("segmentation", "labels")
def render(
    segmentation: str,
    labels: str,
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    neuron: Annotated[str | None, typer.Option(metavar="ID[,ID..]", help="label ids; default: the three worst")] = None,
    resolution: Resolution = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="print results as JSON")] = False,
) -> None:
    """Draw neurons in 3D, ground truth next to segmentation: fragments in their colours, merged objects hatched."""
    from distill.cli.options import free_out

    free_out(out, overwrite)
    from distill.core.geometry import parse_numbers
    from viz.meshes.render import render as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with Bar("sections") as bar:
        found = run(segmentation, labels, out, ids(neuron), nm, bar.update)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    for one in found:
        pieces = ", ".join(f"{p.segment} ({100 * p.voxels / one.voxels:.1f} %)" for p in one.pieces[:5])
        merged = ", ".join(f"{f.object} ({f.voxels:,} voxels)" for f in one.foreign)
        count = f"{len(one.pieces)} segment{'s' if len(one.pieces) > 1 else ''}"
        say(f"neuron {one.name}: in {count}: {pieces}; merged to it: {merged or 'nothing'}")
    say(f"figure: {out}")


@app.command()
def view(
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr")],
    raw: Annotated[str | None, typer.Option(metavar="SOURCE", help="image; default: the source of OUT")] = None,
    labels: Annotated[str | None, typer.Option(metavar="SOURCE", help="ground truth")] = None,
    embedding: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="embedding (channels, z, y, x); default: that in OUT")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="worst objects, from distill evaluate --json")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0: any free port")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="only print the address")] = False,
    resolution: Resolution = None,
) -> None:
    """Show a result with its image, ground truth and worst errors in the browser, until Ctrl-C."""
    from distill.core.geometry import parse_numbers
    from viz.viewer.view import Sources, open_browser
    from viz.viewer.view import view as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with Bar("blocks") as bar:

        def ready(address: str, errors: list[str]) -> None:
            for number, error in enumerate(errors, 1):
                say(f"{number}. {error}")
            say(f"{address}  (on this machine; Ctrl-C ends it)")
            if not no_open:
                open_browser(address)

        sources = Sources(raw, labels, embedding, evaluation, nm)
        run(out, sources, port, on_block=bar.update, note=bar.line, ready=ready)
    say("viewer ended")


@app.command()
@selects("source")
def info(
    source: str,
    grey: Annotated[
        bool, typer.Option("--grey", help="measure differences of grey values between and within sections")
    ] = False,
    sections: SectionsOption = None,
    resolution: Resolution = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="print all that is known as JSON; with --grey: section by section"),
    ] = False,
) -> None:
    """Describe the contents of a volume or a weights file."""
    if grey:
        _info_grey(source, sections, resolution, as_json)
        return
    if sections is not None or resolution is not None:
        raise DistillError("--sections, --resolution: found without --grey, expected it with them")
    files = [Path(source)] if source.endswith(".safetensors") else sorted((Path(source) / "best").glob("*.safetensors"))
    if not files and source.isidentifier() and not Path(source).exists():
        from distill.models.header import bundled_models

        if (bundled := bundled_models().get(source)) is not None:
            if not as_json:
                say(f"bundled model {source}: {bundled}")
            files = sorted(bundled.glob("*.safetensors"))
    if files:
        _info_weights(source, files, as_json)
        return
    from distill.io.info import describe, format_summary

    found = describe(source)
    say(json.dumps([one.to_dict() for one in found], indent=1) if as_json else format_summary(found))
    if all(one.trouble and not one.shape for one in found):
        raise SourceError(f"{source}: none of its arrays can be read, expected at least one")


def _info_weights(source: str, files: list[Path], as_json: bool) -> None:
    from distill.models.describe import format_header
    from distill.models.header import read_header

    headers = {file: read_header(file) for file in files}
    if as_json:
        say(json.dumps({str(file): vars(header) for file, header in headers.items()}, indent=1))
        return
    for file, header in headers.items():
        say(format_header(file, header))
    say(f"all of the configuration: distill info {source} --json")


def _info_grey(source: str, sections: str | None, resolution: str | None, as_json: bool) -> None:
    from distill.core.geometry import parse_numbers
    from distill.io.grey_ranges import format_grey_ranges, grey_ranges
    from distill.io.volume import open_grey

    nm = parse_numbers(resolution, "--resolution") if resolution else (1.0, 1.0, 1.0)  # no number depends on it
    volume = open_grey(source, resolution=nm)
    with Bar("sections") as bar:
        found = grey_ranges(volume, section_range(sections), bar.update)
    say(json.dumps(found.to_dict(), indent=1) if as_json else format_grey_ranges(found))


def _say_seams(name: str, found: NetworkSeams) -> None:
    def line(text: str, value: float, low: float, high: float, best: str) -> None:
        say(f"{text} of the {name}: {value:.2f} ({low:.2f} to {high:.2f}); {best}")

    border, stride, shift = found.border, found.stride, found.shift
    line("seam score", border.ratio, border.low, border.high, "1 = no seam")
    if stride is not None:
        line("power at the windows' stride", stride.ratio, stride.low, stride.high, "1 = no seam")
    if shift is not None:
        line("disagreement with shifted windows", shift.ratio, shift.low, shift.high, "0 = none")
