"""Command that writes the configurations of a first training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.app import app
from distill.cli.console import say
from distill.cli.options import Device, Overwrite, Resolution
from distill.core.errors import DistillError


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder for teacher.yaml and student.yaml")],
    raw: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="labelled sections; default: the bundled sample, into FOLDER")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="their neuron ids, 0 = not labelled; default: those in the file of --raw"),
    ] = None,
    resolution: Resolution = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a commented teacher.yaml and student.yaml that fit your labelled sections."""
    from distill.core.geometry import parse_numbers
    from distill.io.writers.output import check_folder
    from distill.models.load import pick_device
    from distill.training.starter import write_pair

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    if raw is None and labels is not None:
        raise DistillError("--labels: found no --raw, expected the sections that these labels belong to: --raw SOURCE")
    gpu = pick_device(device).type == "cuda"
    check_folder(folder)
    if raw is None:
        raw, labels = _sample(folder, overwrite)
    made = write_pair(folder, raw, labels, resolution=nm, gpu=gpu, overwrite=overwrite)
    for line in made.lines:
        say(line)
    say(f"written: {made.teacher}\nwritten: {made.student}")
    words = map(str, ("distill", "train", made.teacher, made.student, "--out", folder / "run"))
    say(f"next: {shlex.join(words)}")


def _sample(folder: Path, overwrite: bool) -> tuple[str, str]:
    """Write the bundled sample to the folder, unless a configuration is in the way; return its two sources."""
    from distill.data.sample import write_sample
    from distill.io.writers.target import check_file

    for name in ("teacher.yaml", "student.yaml"):
        check_file(folder / name, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    made = write_sample(folder / "sample.h5", overwrite=overwrite)
    return made.raw, made.labels
