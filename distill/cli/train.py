"""Commands for training: phantoms, training, fine-tuning, ablations, augmentations, reports."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.app import app
from distill.cli.console import Bar, say, say_error, took
from distill.cli.options import Device, Overwrite, PrecisionOption, PresetOption, Resolution, free_out, runtime_of
from distill.core.errors import DistillError
from distill.core.hardware import AUTO
from distill.core.pace import number
from distill.core.version import VERSION

if TYPE_CHECKING:
    from distill.training.train import Progress


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT.h5")],
    shape: Annotated[str, typer.Option(metavar="Z,Y,X", help="size in voxels")] = "64,512,512",
    resolution: Annotated[str, typer.Option(metavar="Z,Y,X", help="nm per voxel")] = "30,6,6",
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a synthetic EM volume with 3D neuron labels (CREMI layout)."""
    from distill.core.geometry import parse_numbers, parse_triple
    from distill.data.phantom import make_phantom
    from distill.io.writers.cremi import check_cremi_name, write_cremi

    check_cremi_name(out)
    free_out(out, overwrite)

    began = time.perf_counter()
    with Bar("sections") as bar:
        made = make_phantom(
            parse_triple(shape, "--shape"), parse_numbers(resolution, "--resolution"), seed, on_section=bar.update
        )
    write_cremi(
        out,
        raw=made.raw,
        labels=made.labels,
        resolution=made.resolution,
        attributes={"source": f"affinity-distill {VERSION} phantom, seed {seed}"},
    )
    say(f"{out}: {' x '.join(map(str, made.raw.shape))} voxels, {int(made.labels.max())} neurons, {took(began)}")
    say(f"next: distill info {out}")


@app.command(context_settings={"ignore_unknown_options": False})
def train(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER.yaml")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/<folder of STUDENT.yaml>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    device: Device = "auto",
) -> None:
    """Train a 3D teacher, a 2D student and the query decoder that they share."""
    from distill.python.training import train as run
    from distill.training.loop.loop import Interrupted, NotFiniteError
    from distill.training.ranks import from_environment

    first = from_environment().first
    folder = out or Path("runs") / (student.resolve().parent.name or "run")
    with Bar("steps", shown=first) as bar:
        try:
            found = run(
                teacher,
                student,
                folder,
                overrides=overrides or [],
                resume=resume,
                device=device,
                progress=_progress(bar),
            )
        except (Interrupted, NotFiniteError):  # every rank stops in this way; one reports it
            if first:
                raise
            return
    if found.times is None:
        return
    if found.times.steps:
        say(found.times.line())
    pair = found.config
    say(f"run folder: {folder}")
    from distill.config.data import spans

    _, volume, part = next(pair.student.data.having("validation"))
    start, stop = spans(part)[0]
    command = "stream" if pair.student_runs else "segment --network teacher"
    words = f"{volume.raw} --sections {start}:{stop} --model {folder} --out {folder}/validation.zarr"
    say(f"next: distill {command} {words}")


@app.command(context_settings={"ignore_unknown_options": False})
def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="run folder, weights file or bundled model")],
    raw: Annotated[str, typer.Argument(metavar="RAW", help="sections")],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="neuron ids of RAW, 0 = not labelled")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="run folder")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    sections: Annotated[
        str | None,
        typer.Option(metavar="FIRST:LAST", help="labelled sections to use; default: all that contain a label"),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST",
            help="sections held out for validation; default: the last fifth, at least two; none of fewer than four",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="duration of the training; default: 10, unless student.training.steps=N"),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="3D teacher that the student is distilled from; default: none")
    ] = None,
    resolution: Resolution = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in RUN")] = False,
    device: Device = "auto",
) -> None:
    """Continue the training of a student on a few labelled sections of another volume."""
    from distill.core.geometry import parse_numbers
    from distill.models.load import pick_device
    from distill.training.finetune import plan_finetune
    from distill.training.train import train as run

    found = plan_finetune(
        model,
        raw,
        labels,
        sections=_span(sections, "--sections"),
        validation=_span(validation, "--validation"),
        minutes=minutes,
        teacher=teacher,
        resolution=parse_numbers(resolution, "--resolution") if resolution else None,
        overrides=overrides or [],
    )
    pick_device(device)
    for line in found.plan:
        say(line)
    with Bar("steps") as bar:
        run(found.config, out, resume=resume, device=device, progress=_progress(bar), command=sys.argv)
    say(f"run folder: {out}")
    say(f"next: distill stream {raw} --model {out} --out {out}/sections.zarr")


def _span(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise DistillError(f"{option}: found {text!r}, expected FIRST:LAST such as 0:10")
    return int(first), int(last)


@app.command(context_settings={"ignore_unknown_options": False})
def ablate(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER.yaml")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT.yaml")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder for one run per variant and seed, and the table")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    variants: Annotated[
        str, typer.Option(metavar="NAME,...", help="comma-separated: none, cross, graft, masks, both, both+masks")
    ] = "none,cross,graft,both,both+masks",
    seeds: Annotated[
        str, typer.Option(metavar="N,...", help="random seeds; every variant is trained with each")
    ] = "0,1,2",
    device: Device = "auto",
) -> None:
    """Train a student with and without each distillation term, and score all variants in one table.

    Finished runs in FOLDER are kept, and unfinished ones are resumed.
    """
    from distill.config import load_pair

    pair = load_pair(teacher, student, overrides or [])

    from distill.training.ablation.ablate import ablate as run
    from viz.charts.ablation import draw_ablation

    with Bar("steps") as bar:
        found = run(
            pair,
            out,
            variants=[name.strip() for name in variants.split(",")],
            seeds=_seeds(seeds),
            device=device,
            progress=lambda before, runs: _progress(bar, before, runs),
            note=bar.line,
            command=sys.argv,
        )
    say(found.text)
    for file in found.files:
        say(f"written: {file}")
    draw_ablation(found.rows, out / "ablation.png")
    say(f"written: {out / 'ablation.png'}")


@app.command()
def bundle(
    run: Annotated[str, typer.Argument(metavar="MODEL", help="run folder, weights file or bundled model")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="new folder, whose name becomes that of the model")],
    about: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="attribution and limitations, included in the model card")
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="volume to compare outputs on; default: validation sections of the run"),
    ] = None,
    resolution: Resolution = None,
) -> None:
    """Package a run's best weights at half precision with a model card, and check that their outputs are unchanged."""
    from distill.core.geometry import parse_numbers
    from distill.training.bundle import bundle as pack

    found = pack(
        run,
        out,
        about=about,
        sample=sample,
        resolution=parse_numbers(resolution, "--resolution") if resolution else None,
    )
    for kind, change in found.changes.items():
        say(f"{kind}: affinities differ by {change.mean:.5f} on average, by {change.largest:.4f} at most")
    say(f"{out}: {found.size / 1e6:.2f} MB, {', '.join(file.name for file in found.files)}")


def _progress(bar: Bar, before: int = 0, runs: int = 1) -> Progress:
    """Show steps of a run on the bar, after those of previous runs, and validations as lines."""
    from distill.training.train import Progress
    from viz.report.report import report_after_training

    def on_start(step: int, steps: int) -> None:
        bar.start(before * steps + step, runs * steps)

    def on_step(report: Any, steps: int, left: float | None) -> None:
        later = None if left is None or runs > before + 1 else left
        bar.update(before * steps + report.step, runs * steps, f"loss {number(report.terms['loss'])}", left=later)

    def on_validation(step: int, judged: Any, seconds: float) -> None:
        for name, found in judged.items():
            s = found.scores
            bar.line(
                f"step {step}, {name} + queries on validation: VOI {s.voi_sum:.3f} (split {s.voi_split:.3f}, merge "
                f"{s.voi_merge:.3f}), ARAND {s.arand:.3f}, boundary F1 z {found.boundary_f1[0]:.3f}, "
                f"y {found.boundary_f1[1]:.3f}, x {found.boundary_f1[2]:.3f}"
            )

    return Progress(on_start, on_step, on_validation, bar.line, report_after_training)


def _seeds(text: str) -> list[int]:
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise DistillError(f"--seeds: found {text!r}, expected numbers from 0 such as 0,1,2")
    return found


@app.command()
def gallery(
    source: str,
    out: Annotated[Path, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")],
    section: Annotated[int | None, typer.Option(help="section number; default: the middle one")] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="folder with teacher.yaml and student.yaml; default: every augmentation"),
    ] = None,
    resolution: Resolution = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw part of a volume before and after each augmentation of the training."""
    free_out(out, overwrite)
    from distill.core.geometry import parse_numbers
    from viz.gallery.gallery import gallery as run

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    found = run(source, out, section, seed, config, nm)
    say(f"section {found.section}: {', '.join(found.shown)}" + (f"; off: {', '.join(found.off)}" if found.off else ""))
    say(f"figure: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="page to write; default: RUN/report.html")
    ] = None,
    segmentation: Annotated[
        list[str] | None,
        typer.Option(metavar="OUT.zarr", help="store whose worst errors are shown; default: those in RUN"),
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="SOURCE", help="ground truth; default: that of the run")] = None,
    preset: PresetOption = "skimage",
    seams: Annotated[
        bool,
        typer.Option("--seams", help="first run both networks on a validation section, for embeddings and seam scores"),
    ] = False,
    device: Device = "auto",
    precision: PrecisionOption = AUTO,
    overwrite: Overwrite = False,
) -> None:
    """Write a run as one web page: scores, figures, curves, worst errors, timings, and commands to reproduce it."""
    free_out(out, overwrite)
    from viz.report.report import report as write

    runtime = None
    if seams:
        runtime, chosen = runtime_of(device, precision)
        for line in chosen.lines:
            say_error(line)
    made = write(
        run, out, segmentations=segmentation or (), labels=labels, preset=preset, seams=runtime, note=say_error
    )
    say(f"{made}: {made.stat().st_size / 1e6:.1f} MB; open it in a browser, it needs no network")
