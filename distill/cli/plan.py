"""What a segmentation costs, and the commands for it (`distill plan`)."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.app import app
from distill.cli.arguments import BlockArguments, Model, RunArguments
from distill.cli.console import say, say_error
from distill.cli.groups import grouped
from distill.cli.selecting import selects
from distill.core.errors import DistillError

if TYPE_CHECKING:
    from distill.inference.blockwise.estimate import Estimate

_SPARE = 1.25  # memory of a job over that of the trial


@app.command()
@selects("source")
@grouped
def plan(
    source: Annotated[str, typer.Argument(help="volume")],
    model: Model,
    blocks: BlockArguments,
    run: RunArguments,
    as_json: Annotated[bool, typer.Option("--json", help="print results as JSON")] = False,
) -> None:
    """Estimate time, memory and disk of a segmentation from a block in the middle of the volume."""
    from distill.core.pace import span
    from distill.inference.blockwise.estimate import estimate

    if blocks.resume or run.overwrite:
        raise DistillError("--resume, --overwrite: found one, expected neither: a plan writes nothing")
    found = estimate(source, model, run.options(blocks.method, blocks.merge), blocks.blocking(), say_error)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    z, y, x = found.shape
    say(f"volume: {z} x {y} x {x} voxels, {found.blocks} {'block' if found.blocks == 1 else 'blocks'}")
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.alone.seconds.items() if seconds >= 0.05)
    say(f"trial: {found.alone.work:.1f} s ({stages}), and {found.alone.start:.1f} s to start")
    threads, memory = _threads(found.alone.threads), _size(found.alone.peak)
    say(f"one process of {threads}: {span(found.one_process)}, {memory} of memory")
    if found.shared is not None and found.with_workers is not None:
        each = f"{_threads(found.shared.threads)} each"
        memory = f"{_size(found.shared.peak)} of memory each"
        say(f"{found.workers} workers of {each}: {span(found.with_workers)} if none slows another down, {memory}")
    say(f"disk: {_size(found.disk)}")
    for line in commands(source, model, blocks, run, found):
        say(line)


def commands(source: str, model: str, blocks: BlockArguments, run: RunArguments, found: Estimate) -> list[str]:
    """Return the commands for one process and, with `--workers`, for this many processes or jobs of a SLURM array."""
    alone = replace(blocks, workers=0, scheduler=None)
    given = ["distill", "segment", shlex.quote(source), "--model", shlex.quote(model), "--out", "OUT.zarr"]
    segment = " ".join([*given, *_given(alone, run)])
    lines = [f"next: {segment}"]
    if found.shared is not None:
        memory = -(-int(found.shared.peak * _SPARE) // 2**30)
        array = f"--array=1-{found.workers} --cpus-per-task={found.shared.threads} --mem={memory}G"
        lines += [
            f"{found.workers} workers: {segment} --workers {found.workers}",
            "SLURM array, on a disk that all nodes share:",
            "  dask scheduler --scheduler-file scheduler.json &",
            f'  sbatch {array} --requeue --wrap "dask worker --scheduler-file scheduler.json --nthreads 1"',
            f"  {segment} --scheduler scheduler.json",
        ]
    return lines


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _size(count: int) -> str:
    """Format bytes: `3.1 GiB`, `12 MiB`."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{max(1, round(count / 2**20))} MiB"


def _given(*groups: BlockArguments | RunArguments) -> list[str]:
    """Return the options that differ from their defaults, as they are typed."""
    words: list[str] = []
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if value == field.default:
                continue
            name = "--" + field.name.replace("_", "-")
            for one in value if isinstance(value, list) else [value]:
                words += [name] if one is True else [name, shlex.quote(str(one))]
    return words
