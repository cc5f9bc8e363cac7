"""Commands that bring volumes into other formats."""

from __future__ import annotations

from typing import Annotated

import typer

from distill.cli.app import app
from distill.cli.console import Bar, say
from distill.cli.options import Resolution, Sections, section_range


@app.command()
def copy(
    source: str,
    target: Annotated[str, typer.Argument(help="path or s3:// or gs:// address, with :DATASET in Zarr, N5 and HDF5")],
    form: Annotated[
        str | None,
        typer.Option("--format", help="zarr3, zarr2, n5, precomputed, hdf5 or tiff; default by the name of TARGET"),
    ] = None,
    levels: Annotated[int, typer.Option(min=0, help="of a pyramid, the full one included; 0 = down to 256 pixels")] = 1,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--image", help="ids, or grey values; default: integers of 32 and 64 bits are ids"),
    ] = None,
    sections: Sections = None,
    every: Annotated[int, typer.Option(min=1, help="only every so many-th of them, e.g. 4 where voxels are cubes")] = 1,
    resolution: Resolution = None,
    offset: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="nm of the first voxel of SOURCE, instead of what it says")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace TARGET if it exists")] = False,
) -> None:
    """Copy a volume into another format, block by block, with resolution and offset."""
    from distill.core.geometry import parse_numbers
    from distill.io.writers.copy import Copying
    from distill.io.writers.copy import copy as run

    how = Copying(
        form,
        levels or None,
        labels,
        section_range(sections),
        parse_numbers(resolution, "--resolution") if resolution else None,
        parse_numbers(offset, "--offset") if offset else None,
        overwrite,
        every,
    )
    with Bar("parts") as bar:
        found = run(source, target, how, bar.update)
    kind = "ids" if found.labels else "grey values" if found.volume.channels is None else "channels"
    shape = " x ".join(map(str, found.volume.shape))
    nm = ", ".join(f"{n:.10g}" for n in found.volume.resolution)
    say(f"{found.name}: {found.form}, {kind}, {shape} {found.volume.dtype}, {nm} nm")
    for k, size in enumerate(found.levels[1:], 1):
        say(f"  level {k}: {' x '.join(map(str, size))}")


@app.command()
def pyramid(
    source: Annotated[str, typer.Argument(metavar="OUT.zarr:ARRAY", help="such as OUT.zarr:segmentation")],
    levels: Annotated[
        int | None, typer.Option(min=2, help="the full one included; default until a section has 256 pixels")
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--image", help="ids, or grey values; default: integers of 32 and 64 bits are ids"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace levels that are there")] = False,
) -> None:
    """Add coarser levels to an array of a Zarr v3 store, for viewers."""
    from distill.io.writers.pyramid import add_levels

    with Bar("parts") as bar:
        found = add_levels(source, levels, labels, overwrite, bar.update)
    for k, level in enumerate(found):
        nm = ", ".join(f"{n:.10g}" for n in level.resolution)
        say(f"level {k}: {' x '.join(map(str, level.size))}, {nm} nm")
