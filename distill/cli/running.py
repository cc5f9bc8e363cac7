"""Commands that run networks over sections and volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from distill.cli.app import app
from distill.cli.console import Bar, Recorded, say
from distill.cli.options import Backend, Device, Merge, Overwrite, Precision, Resolution, Sections, run_options
from distill.errors import DistillError


@app.command()
def stream(
    source: str,
    model: Annotated[str, typer.Option(help="run folder, weights file or bundled model")],
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
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Run a student over sections: affinities, and instances through the query decoder."""
    from distill.affinity import NEAREST
    from distill.geometry import parse_triple
    from distill.recipes.run_models import stream as run

    options = run_options(sections, resolution, merge, device, precision, overwrite, backend)
    offsets = (*NEAREST, *(parse_triple(text, "--offset") for text in offset or []))
    with Recorded(out) as record, Bar("sections") as bar:
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
    model: Annotated[str, typer.Option(help="run folder, weights file or bundled model")],
    out: Annotated[Path, typer.Option(metavar="OUT.zarr")],
    network: Annotated[str, typer.Option(help="student or teacher")] = "student",
    method: Annotated[str, typer.Option(help="query, or waterz (watershed + agglomeration)")] = "query",
    sections: Sections = None,
    resolution: Resolution = None,
    merge: Merge = None,
    device: Device = "auto",
    precision: Precision = "bf16-mixed",
    backend: Backend = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Segment a volume that fits in memory, with the student or the teacher."""
    from distill.recipes.run_models import segment as run

    if network not in ("student", "teacher"):
        raise DistillError(f"--network: found {network!r}, expected student or teacher")
    if method not in ("query", "waterz"):
        raise DistillError(f"--method: found {method!r}, expected query or waterz")
    options = run_options(sections, resolution, merge, device, precision, overwrite, backend)
    with Recorded(out) as record, Bar("sections") as bar:
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
def convert(
    checkpoint: Path,
    out: Annotated[Path, typer.Option(metavar="WEIGHTS.safetensors")],
) -> None:
    """Turn a published AGQ or CAD checkpoint into a weights file."""
    from distill.recipes.convert import convert as run

    found = run(checkpoint, out)
    say(f"{out}: {found.method}, {found.tensors} tensors")
    for key in found.unplaced:
        say(f"no place for {key}")
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
    from distill.recipes.export import export as run

    found = run(model, form, out, sample, overwrite=overwrite)
    for file in found.files:
        say(f"{file}  {file.stat().st_size / 1e6:.2f} MB")
    say(f"height and width: multiples of {found.stride}")
    d = found.difference
    say(
        f"largest difference from torch on {found.sample}: maps {d.maps:.1e} of their largest value, "
        f"affinity {d.affinity:.1e}, embedding {d.embedding:.1e}"
    )


def _say_result(out: Path, about: dict[str, Any]) -> None:
    if about.get("method") is None:
        say(f"{out}:affinity")
        return
    say(f"{out}:affinity and {out}:segmentation, {about['objects']} objects")
    say(f"next: distill evaluate {out}:segmentation LABELS")
