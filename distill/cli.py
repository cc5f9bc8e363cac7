"""The command line: parse, call one function, turn our errors into an exit code.

0 done, 1 a failure inside, 2 wrong use, 130 interrupted. Everything heavy is imported inside the commands, so that
`distill --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from distill import __version__
from distill.errors import DistillError

if TYPE_CHECKING:
    from distill.recipes.pca import NetworkSeams
    from distill.recipes.run_models import Options


class _Stopped(Exception):
    """A KeyboardInterrupt that typer would turn into an exit without its message."""


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _Stopped(str(stop)) from stop


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distil a 3D affinity teacher into a fast 2D student and segment neurons on streams of EM sections.",
)

Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Precision = Annotated[str, typer.Option(help="bf16-mixed or 32-true")]
Resolution = Annotated[str | None, typer.Option(metavar="Z,Y,X", help="nm per voxel, for files without one")]
Sections = Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="only these sections, LAST excluded")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace OUT if it exists")]
Merge = Annotated[
    float | None,
    typer.Option(help="merge above this mean affinity (waterz: below this score); default: the model's own"),
]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT.h5")],
    shape: Annotated[str, typer.Option(metavar="Z,Y,X", help="voxels")] = "64,512,512",
    resolution: Annotated[str, typer.Option(metavar="Z,Y,X", help="nm per voxel")] = "30,6,6",
    seed: Annotated[int, typer.Option(help="same seed, same bytes")] = 0,
) -> None:
    """Make a synthetic EM volume with 3D neuron labels (CREMI layout)."""
    from distill.geometry import parse_numbers, parse_triple
    from distill.phantom import make_phantom
    from distill.recipes.outputs import check_place
    from distill.store import write_cremi

    check_place(out)

    began = time.perf_counter()
    with _Bar("sections") as bar:
        made = make_phantom(
            parse_triple(shape, "--shape"), parse_numbers(resolution, "--resolution"), seed, on_section=bar.update
        )
    write_cremi(
        out,
        raw=made.raw,
        labels=made.labels,
        resolution=made.resolution,
        attributes={"source": f"affinity-distill {__version__} phantom, seed {seed}"},
    )
    _say(f"{out}: {' x '.join(map(str, made.raw.shape))} voxels, {int(made.labels.max())} neurons, {_took(began)}")
    _say(f"next: distill info {out}")


@app.command(context_settings={"ignore_unknown_options": False})
def train(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER.yaml")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default runs/<folder of STUDENT.yaml>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    device: Device = "auto",
) -> None:
    """Train a 3D teacher, a 2D student and the query decoder that they share."""
    from distill.config import load_pair

    pair = load_pair(teacher, student, overrides or [])
    folder = out or Path("runs") / (student.resolve().parent.name or "run")

    from distill.recipes.models import pick_device
    from distill.recipes.train import Progress
    from distill.recipes.train import train as run

    pick_device(device)
    with _Bar("steps") as bar:

        def on_step(report: Any, steps: int) -> None:
            bar.update(report.step, steps, f"loss {report.terms['loss']:.3f}")

        def on_validation(step: int, judged: Any, seconds: float) -> None:
            for name, found in judged.items():
                s = found.scores
                bar.line(
                    f"step {step}, {name} + queries on validation: VOI {s.voi_sum:.3f} (split {s.voi_split:.3f}, merge "
                    f"{s.voi_merge:.3f}), ARAND {s.arand:.3f}, boundary F1 z {found.boundary_f1[0]:.3f}, "
                    f"y {found.boundary_f1[1]:.3f}, x {found.boundary_f1[2]:.3f}"
                )

        run(pair, folder, resume=resume, device=device, progress=Progress(on_step, on_validation), command=sys.argv)
    _say(f"run folder: {folder}")
    data = pair.student.data
    first, last = data.validation
    _say(f"next: distill stream {data.raw} --sections {first}:{last} --model {folder} --out {folder}/validation.zarr")


@app.command()
def stream(
    source: str,
    model: Annotated[str, typer.Option(help="run folder or weights file of a student")],
    out: Annotated[Path, typer.Option(metavar="OUT.zarr")],
    no_segment: Annotated[bool, typer.Option("--no-segment", help="affinities only")] = False,
    offset: Annotated[
        list[str] | None, typer.Option(metavar="Z,Y,X", help="one more affinity beside the nearest; may be repeated")
    ] = None,
    sections: Sections = None,
    resolution: Resolution = None,
    merge: Merge = None,
    device: Device = "auto",
    precision: Precision = "bf16-mixed",
    overwrite: Overwrite = False,
) -> None:
    """Run a student over sections: affinities, and instances through the query decoder."""
    from distill.affinity import NEAREST
    from distill.geometry import parse_triple
    from distill.recipes.run_models import stream as run

    options = _options(sections, resolution, merge, device, precision, overwrite)
    offsets = (*NEAREST, *(parse_triple(text, "--offset") for text in offset or []))
    with _Recorded(out) as record, _Bar("sections") as bar:
        about = run(
            source,
            model,
            out,
            options,
            segment=not no_segment,
            offsets=offsets,
            on_section=bar.update,
            note=bar.line,
        )
        record.update(about)
    _say_result(out, about)


@app.command()
def segment(
    source: str,
    model: Annotated[str, typer.Option(help="run folder or weights file")],
    out: Annotated[Path, typer.Option(metavar="OUT.zarr")],
    network: Annotated[str, typer.Option(help="student or teacher")] = "student",
    method: Annotated[str, typer.Option(help="query, or waterz (watershed + agglomeration)")] = "query",
    sections: Sections = None,
    resolution: Resolution = None,
    merge: Merge = None,
    device: Device = "auto",
    precision: Precision = "bf16-mixed",
    overwrite: Overwrite = False,
) -> None:
    """Segment a volume that fits in memory, with the student or the teacher."""
    from distill.recipes.run_models import segment as run

    if network not in ("student", "teacher"):
        raise DistillError(f"--network: found {network!r}, expected student or teacher")
    if method not in ("query", "waterz"):
        raise DistillError(f"--method: found {method!r}, expected query or waterz")
    options = _options(sections, resolution, merge, device, precision, overwrite)
    with _Recorded(out) as record, _Bar("sections") as bar:
        about = run(
            source,
            model,
            out,
            options,
            network="teacher" if network == "teacher" else "student",
            method="waterz" if method == "waterz" else "query",
            on_section=bar.update,
            note=bar.line,
        )
        record.update(about)
    _say_result(out, about)


@app.command()
def evaluate(
    segmentation: str,
    labels: str,
    preset: Annotated[str, typer.Option(help="skimage, cremi, agq or cad")] = "skimage",
    resolution: Resolution = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score a segmentation against ground truth."""
    from dataclasses import asdict

    from distill.geometry import parse_numbers
    from distill.recipes.evaluate import evaluate as run

    found = run(segmentation, labels, preset, parse_numbers(resolution, "--resolution") if resolution else None)
    s = found.scores
    if as_json:
        typer.echo(json.dumps({**s.to_dict(), "worst": asdict(found.worst)}, indent=2))
        return
    _say(f"preset {s.preset}, {s.voxels:,} voxels, {s.n_true} objects in the ground truth, {s.n_pred} found")
    _say(f"VOI    split {s.voi_split:.4f}  merge {s.voi_merge:.4f}  sum {s.voi_sum:.4f}  bits")
    _say(f"ARAND  {s.arand:.4f}  (precision {s.arand_precision:.4f}, recall {s.arand_recall:.4f})")
    if s.cremi_score is not None:
        _say(f"CREMI  {s.cremi_score:.4f}")
    for title, objects in (("worst splits (ground-truth id)", found.worst.split), ("worst merges", found.worst.merged)):
        listed = ", ".join(f"{o.id}: {o.bits:.3f} bits in {o.pieces} pieces" for o in objects if o.bits > 0)
        _say(f"{title}: {listed or 'none'}")


@app.command()
def pca(
    source: str,
    student: Annotated[str, typer.Option(help="run folder or weights file")],
    section: Annotated[int, typer.Option(help="section number")],
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    teacher: Annotated[str | None, typer.Option(help="run folder or weights file")] = None,
    raw_only_student: Annotated[
        bool, typer.Option("--raw-only-student", help="section and student alone, without a teacher")
    ] = False,
    window: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="teacher's window; default its block")] = None,
    overlap: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="voxels that windows share")] = None,
    no_blend: Annotated[bool, typer.Option("--no-blend", help="let the last window win in overlaps")] = False,
    shifted: Annotated[
        bool, typer.Option("--shifted", help="also run windows half a step further: how much do the runs disagree?")
    ] = False,
    inset: Annotated[
        list[str] | None, typer.Option(metavar="Y0:Y1,X0:X1", help="part to enlarge, in pixels; may be repeated")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="draw the window borders")] = False,
    membranes: Annotated[bool, typer.Option("--membranes", help="colours outside neurites too")] = False,
    movie: Annotated[
        Path | None, typer.Option(metavar="MOVIE", help="also the stack; .gif, or .mp4 with ffmpeg")
    ] = None,
    sections: Annotated[str | None, typer.Option(metavar="FIRST:LAST", help="sections of the movie")] = None,
    resolution: Resolution = None,
    device: Device = "auto",
    precision: Precision = "bf16-mixed",
    as_json: Annotated[bool, typer.Option("--json", help="print the seam scores as JSON")] = False,
) -> None:
    """Draw a section beside the embeddings of teacher (sliding window) and student, with their seam scores."""
    from distill.geometry import parse_numbers, parse_triple
    from distill.recipes.embeddings import Windows
    from distill.recipes.pca import Drawing, Movie
    from distill.recipes.pca import pca as run
    from viz.insets import Inset

    if (teacher is None) != raw_only_student:
        found_text = "neither" if teacher is None else "both"
        raise DistillError(f"--teacher, --raw-only-student: found {found_text}, expected one of them")
    if raw_only_student and (window or overlap or no_blend or shifted or grid):
        raise DistillError(
            "--raw-only-student: found --window, --overlap, --no-blend, --shifted or --grid beside it, expected none; "
            "the student alone has no windows"
        )
    if sections is not None and movie is None:
        raise DistillError("--sections: expected --movie beside it")
    windows = Windows(
        parse_triple(window, "--window") if window else None,
        parse_triple(overlap, "--overlap") if overlap else (0, 0, 0),
        not no_blend,
    )
    drawing = Drawing(tuple(Inset.parse(text) for text in inset or []), grid, membranes)
    through = None if movie is None else Movie(movie, _range(sections))
    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with _Bar("sections") as bar:
        found = run(
            source,
            teacher,
            student,
            section,
            out,
            windows,
            drawing,
            through,
            shifted=shifted,
            device=device,
            precision=precision,
            resolution=nm,
            on_section=bar.update,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    for name, network in (("teacher", found.teacher), ("student", found.student)):
        if network is not None:
            _say_seams(name, network)
    _say(f"figure: {out}" if movie is None else f"figure: {out}\nmovie: {movie}")


@app.command()
def convert(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="WEIGHTS.safetensors")],
) -> None:
    """Turn a published AGQ or CAD checkpoint into a weights file."""
    from distill.recipes.convert import convert as run

    found = run(checkpoint, out)
    _say(f"{out}: {found.method}, {found.tensors} tensors")
    for key in found.unplaced:
        _say(f"no place for {key}")
    command = "stream SOURCE --no-segment" if found.kind == "student" else "segment SOURCE --network teacher"
    _say(f"next: distill {command} --model {out} --out OUT.zarr")


@app.command()
def info(source: str) -> None:
    """Say what a volume or a weights file holds."""
    run = Path(source) / "best"
    files = [Path(source)] if source.endswith(".safetensors") else sorted(run.glob("*.safetensors"))
    if files:
        from distill.checkpoint import read_weights

        for file in files:
            weights = read_weights(file)
            count = sum(t.numel() for t in weights.tensors.values())
            _say(f"{file}: {weights.kind}, {count:,} values in {len(weights.tensors)} tensors")
            _say(json.dumps({"config": weights.config, "notes": weights.notes}, indent=2))
        return
    from distill.describe import describe, format_summary

    _say(format_summary(describe(source)))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="default RUN/report.html")] = None,
    segmentation: Annotated[
        list[str] | None, typer.Option(metavar="OUT.zarr", help="show its worst errors; default the stores in RUN")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="SOURCE", help="ground truth; default the run's")] = None,
    preset: Annotated[str, typer.Option(help="skimage, cremi, agq or cad")] = "skimage",
) -> None:
    """Write a run as one web page: scores, figures, curves, worst errors, times, how to repeat it."""
    from distill.recipes.report import report as write

    made = write(run, out, segmentations=segmentation or (), labels=labels, preset=preset, note=_say_error)
    _say(f"{made}: {made.stat().st_size / 1e6:.1f} MB; open it in a browser, it needs no network")


@app.command()
def view(
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr")],
    raw: Annotated[str | None, typer.Option(metavar="SOURCE", help="image; default what OUT was made from")] = None,
    labels: Annotated[str | None, typer.Option(metavar="SOURCE", help="ground truth")] = None,
    embedding: Annotated[str | None, typer.Option(metavar="SOURCE", help="channels, z, y, x; default OUT's")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="worst objects, from distill evaluate --json")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="on 127.0.0.1; 0 takes a free one")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="only print the address")] = False,
    resolution: Resolution = None,
) -> None:
    """Show a result beside its image, ground truth and worst errors in the browser, until Ctrl-C."""
    from distill.geometry import parse_numbers
    from distill.recipes.view import Sources, open_browser
    from distill.recipes.view import view as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with _Bar("sections") as bar:

        def ready(address: str, errors: list[str]) -> None:
            for number, error in enumerate(errors, 1):
                _say(f"{number}. {error}")
            _say(f"{address}  (on this machine; Ctrl-C ends it)")
            if not no_open:
                open_browser(address)

        sources = Sources(raw, labels, embedding, evaluation, nm)
        run(out, sources, port, on_section=bar.update, note=bar.line, ready=ready)
    _say("viewer ended")


@app.command()
def errors(
    segmentation: str,
    labels: str,
    raw: Annotated[str, typer.Option(metavar="SOURCE", help="the sections")],
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    section: Annotated[int | None, typer.Option(help="number in LABELS; default the one with most errors")] = None,
    worst: Annotated[int, typer.Option(min=0, help="objects to outline and list")] = 8,
    resolution: Resolution = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Draw a section with what is split or merged in it, and list the worst objects."""
    from distill.geometry import parse_numbers
    from distill.recipes.errors import errors as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with _Bar("sections") as bar:
        found = run(segmentation, labels, raw, out, section, worst, nm, bar.update)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    counts = f"{found.split:,} are split, {found.merge:,} merged, {found.both:,} both"
    _say(f"section {found.section}: of {found.counted:,} labelled pixels {counts}")
    for number, one in enumerate(found.objects, 1):
        own, other = ("object", "segment") if one.kind == "split" else ("segment", "object")
        spans = ", ".join(f"{a}:{b}" for a, b in zip(one.piece.start, one.piece.stop, strict=True))
        _say(
            f"{number}. {one.kind}: {own} {one.error.id}, {one.error.bits:.4f} bits in {one.error.pieces} pieces, "
            f"{one.bits_here:.4f} here; largest wrong piece in {other} {one.partner} at {spans} (z, y, x)"
        )
    _say(f"figure: {out}")


@app.command()
def gallery(
    source: str,
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    section: Annotated[int | None, typer.Option(help="section number; default the middle one")] = None,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same figure")] = 0,
    config: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="with teacher.yaml and student.yaml; default built-in values")
    ] = None,
    resolution: Resolution = None,
) -> None:
    """Draw a piece of a volume before and after each augmentation of the training."""
    from distill.geometry import parse_numbers
    from distill.recipes.gallery import gallery as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    found = run(source, out, section, seed, config, nm)
    _say(f"section {found.section}: {', '.join(found.shown)}" + (f"; off: {', '.join(found.off)}" if found.off else ""))
    _say(f"figure: {out}")


@app.command()
def render(
    segmentation: str,
    labels: str,
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    neuron: Annotated[str | None, typer.Option(metavar="ID[,ID..]", help="of LABELS; default the worst three")] = None,
    resolution: Resolution = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Draw neurons in 3D beside what a segmentation made of them: pieces in their colours, what was merged hatched."""
    from distill.geometry import parse_numbers
    from distill.recipes.render import render as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    with _Bar("sections") as bar:
        found = run(segmentation, labels, out, _ids(neuron), nm, bar.update)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    for one in found:
        pieces = ", ".join(f"{p.segment} ({100 * p.voxels / one.voxels:.1f} %)" for p in one.pieces[:5])
        merged = ", ".join(f"{f.object} ({f.voxels:,} voxels)" for f in one.foreign)
        count = f"{len(one.pieces)} segment{'s' if len(one.pieces) > 1 else ''}"
        _say(f"neuron {one.neuron}: in {count}: {pieces}; merged to it: {merged or 'nothing'}")
    _say(f"figure: {out}")


def main() -> None:
    """Entry point: errors of the user become one line and exit code 2."""
    try:
        if app(standalone_mode=False, prog_name="distill") == 130:  # Ctrl-C before a command had begun
            _fail("interrupted", 130)
    except DistillError as error:
        _fail(str(error))
    except (_Stopped, typer.Abort, KeyboardInterrupt) as stop:
        _fail(str(stop) or "interrupted", 130)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            typer.echo(str(error), err=True)
            sys.exit(2)
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            _fail(error.format_message(), error.exit_code)
        raise


def _fail(message: str, code: int = 2) -> None:
    typer.echo("distill: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _say(text: str) -> None:
    typer.echo(text)


def _say_result(out: Path, about: dict[str, Any]) -> None:
    if about.get("method") is None:
        _say(f"{out}:affinity")
        return
    _say(f"{out}:affinity and {out}:segmentation, {about['objects']} objects")
    _say(f"next: distill evaluate {out}:segmentation LABELS")


def _say_seams(name: str, found: NetworkSeams) -> None:
    def line(text: str, value: float, low: float, high: float, best: str) -> None:
        _say(f"{text} of the {name}: {value:.2f} ({low:.2f} to {high:.2f}); {best}")

    border, stride, shift = found.border, found.stride, found.shift
    line("seam score", border.ratio, border.low, border.high, "1 = no seam")
    if stride is not None:
        line("power at the windows' stride", stride.ratio, stride.low, stride.high, "1 = no seam")
    if shift is not None:
        line("disagreement with shifted windows", shift.ratio, shift.low, shift.high, "0 = none")


def _took(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


def _options(
    sections: str | None, resolution: str | None, merge: float | None, device: str, precision: str, overwrite: bool
) -> Options:
    from distill.geometry import parse_numbers
    from distill.recipes.run_models import Options

    if precision not in ("bf16-mixed", "32-true"):
        raise DistillError(f"--precision: found {precision!r}, expected bf16-mixed or 32-true")
    if merge is not None and not 0 <= merge <= 1:
        raise DistillError(f"--merge: found {merge}, expected a number from 0 to 1")
    nm = parse_numbers(resolution, "--resolution") if resolution else None
    return Options(nm, _range(sections), device, precision, merge, overwrite)


def _range(sections: str | None) -> tuple[int, int | None] | None:
    if sections is None:
        return None
    first, colon, last = sections.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first or 0), int(last) if last else None
    except ValueError:
        raise DistillError(f"--sections: found {sections!r}, expected FIRST:LAST such as 64:80") from None


def _ids(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise DistillError(f"--neuron: found {text!r}, expected ids such as 12 or 12,40") from None


class _Recorded:
    """run.json beside an output: command, versions, what was done, seconds."""

    def __init__(self, out: Path) -> None:
        if not out.name:
            raise DistillError(f"--out: found {str(out)!r}, expected a path with a name of its own")
        self.path = out.with_name(out.name + ".run.json")
        self.values: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        self.began, self.started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return self.values

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            return
        seconds = round(time.perf_counter() - self.began, 2)
        record = {"command": sys.argv, "started": self.started, "seconds": seconds, **self.values}
        temporary = self.path.with_name(self.path.name + ".writing")
        try:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as failed:
            raise DistillError(f"{self.path}: cannot be written: {failed.strerror or failed}") from None


class _Bar:
    """Progress with rate and time left; plain lines when the output is no terminal."""

    def __init__(self, unit: str) -> None:
        self.unit, self.began, self.shown, self.first = unit, time.perf_counter(), 0.0, -1
        self.progress: Any = None
        self.task: Any = None

    def __enter__(self) -> _Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self.progress = Progress(*columns, console=Console(stderr=True))
            self.progress.start()
            self.task = self.progress.add_task(self.unit, total=None, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are finished."""
        now = time.perf_counter()
        if self.first < 0:
            self.first, self.began = done, now
        rate = (done - self.first) / (now - self.began) if done > self.first else 0.0
        text = f"{rate:.2f} {self.unit}/s {note}".rstrip()
        if self.progress is not None:
            self.progress.update(self.task, completed=done, total=total, note=text)
        elif now - self.shown > 10 or done == total:
            left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
            typer.echo(f"{done}/{total} {text}{left}", err=True)
            self.shown = now

    def line(self, text: str) -> None:
        """A line above the bar."""
        (self.progress.console.print if self.progress is not None else _say_error)(text)


def _say_error(text: str) -> None:
    typer.echo(text, err=True)
