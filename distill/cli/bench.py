"""Commands that benchmark your own model on your own machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from distill.cli.app import App, app
from distill.cli.console import Bar, say
from distill.cli.options import Device, PrecisionOption, Resolution, runtime_of
from distill.core.errors import DistillError
from distill.core.hardware import AUTO

bench = App(no_args_is_help=True)
app.add_typer(bench, name="bench", help="Measure a model on this machine.")


@bench.command()
def seams(
    source: str,
    model: Annotated[str, typer.Option(help="run folder, or a teacher's weights file with --student")],
    student: Annotated[
        str | None, typer.Option(help="run folder, weights file or bundled model; default: --model")
    ] = None,
    section: Annotated[
        list[int] | None, typer.Option(help="section number; may be repeated; default: the middle one")
    ] = None,
    window: Annotated[list[int] | None, typer.Option(help="side in pixels; may be repeated; default: 96, 128")] = None,
    crop: Annotated[int, typer.Option(min=32, help="pixels along y and x, from the upper left corner")] = 384,
    depth: Annotated[int, typer.Option(min=1, help="sections per window")] = 6,
    resolution: Resolution = None,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale", help="resample sections to the pixel size of the model, the unit of --window and --crop"
        ),
    ] = False,
    device: Device = "auto",
    precision: PrecisionOption = AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="print results as JSON")] = False,
) -> None:
    """Measure the seam scores of teacher and student for several window sizes, side by side and blended."""
    from distill.core.geometry import parse_numbers
    from distill.evaluation.seams.bench import HEADER, bench_seams
    from distill.inference.embeddings import grey_volume
    from distill.inference.rescaling.voxel_size import on_grid_of, record_of
    from distill.io.volume import open_grey
    from distill.models.load import load_student, load_teacher

    volume = open_grey(source, resolution=parse_numbers(resolution, "--resolution") if resolution else None)
    grey_volume(volume, source)
    runtime, chosen = runtime_of(device, precision)
    networks = load_teacher(model, runtime.device), load_student(student or model, runtime.device)
    held: list[str] = []
    seen, rescaling = on_grid_of(
        networks[::-1],
        volume,
        rescale=rescale,
        note=held.append,
        results="--window and --crop count those",
        otherwise="leave --rescale out",
    )
    sections, sizes = section or [volume.size[0] // 2], window or [96, 128]
    if min(sizes) < 16:
        raise DistillError(f"--window: found {min(sizes)}, expected 16 pixels or more")
    with Bar("windows") as bar:
        bar.head(*chosen.lines, *held)
        rows = bench_seams(seen, *networks, sections, sizes, crop, depth, runtime, bar.update)
    if as_json:
        about = {"source": source, "model": model, "student": student or model, "sections": sections, "crop": crop}
        about |= {
            "depth": depth,
            "rescaled": record_of(rescaling, volume.resolution),
            **chosen.record(),
            "device": str(runtime.device),
        }
        typer.echo(json.dumps({**about, "rows": [row.to_dict() for row in rows]}, indent=2))
        return
    lines = [list(HEADER), *(row.cells() for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEADER))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
