"""Commands around training: volumes to try it on, the training, its augmentations and its report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from distill import __version__
from distill.cli.app import app
from distill.cli.console import Bar, say, say_error, took
from distill.cli.options import Device, Precision, Resolution, runtime_of


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
    with Bar("sections") as bar:
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
    say(f"{out}: {' x '.join(map(str, made.raw.shape))} voxels, {int(made.labels.max())} neurons, {took(began)}")
    say(f"next: distill info {out}")


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
    from distill.ranks import from_environment

    pair, ranks = load_pair(teacher, student, overrides or []), from_environment()
    folder = out or Path("runs") / (student.resolve().parent.name or "run")

    from distill.engine import Interrupted, NotFiniteError
    from distill.recipes.models import pick_device
    from distill.recipes.train import Progress
    from distill.recipes.train import train as run

    pick_device(device)
    with Bar("steps", shown=ranks.first) as bar:

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

        progress = Progress(on_step, on_validation)
        try:
            split = run(pair, folder, resume=resume, device=device, progress=progress, command=sys.argv)
        except (Interrupted, NotFiniteError):  # every rank stops so; one says it
            if ranks.first:
                raise
            return
    if split is None:
        return
    if split.steps:
        say(split.line())
    say(f"run folder: {folder}")
    data = pair.student.data
    first, last = data.validation
    say(f"next: distill stream {data.raw} --sections {first}:{last} --model {folder} --out {folder}/validation.zarr")


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
    say(f"section {found.section}: {', '.join(found.shown)}" + (f"; off: {', '.join(found.off)}" if found.off else ""))
    say(f"figure: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="default RUN/report.html")] = None,
    segmentation: Annotated[
        list[str] | None, typer.Option(metavar="OUT.zarr", help="show its worst errors; default the stores in RUN")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="SOURCE", help="ground truth; default the run's")] = None,
    preset: Annotated[str, typer.Option(help="skimage, cremi, agq or cad")] = "skimage",
    seams: Annotated[
        bool, typer.Option("--seams", help="first run both networks on a validation section: embeddings, seam scores")
    ] = False,
    device: Device = "auto",
    precision: Precision = "bf16-mixed",
) -> None:
    """Write a run as one web page: scores, figures, curves, worst errors, times, how to repeat it."""
    from distill.recipes.report import report as write

    runtime = runtime_of(device, precision) if seams else None
    made = write(
        run, out, segmentations=segmentation or (), labels=labels, preset=preset, seams=runtime, note=say_error
    )
    say(f"{made}: {made.stat().st_size / 1e6:.1f} MB; open it in a browser, it needs no network")
