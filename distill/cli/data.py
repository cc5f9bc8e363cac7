"""Commands for public data sets, and for conversion between formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.app import App, app
from distill.cli.console import Bar, say
from distill.cli.options import Overwrite, Resolution, SectionsOption, section_range
from distill.cli.selecting import selects
from distill.core.choices import VolumeFormat

if TYPE_CHECKING:
    from distill.data.catalogue import PublicData

data = App(no_args_is_help=True)
app.add_typer(data, name="data", help="List and download public volumes with neuron labels.")


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(metavar="OUT.h5")],
    overwrite: Overwrite = False,
) -> None:
    """Write the bundled labelled sample of mouse cortex (CREMI layout)."""
    from distill.data.sample import write_sample

    made = write_sample(out, overwrite=overwrite)
    shape, nm = (" x ".join(f"{n:g}" for n in numbers) for numbers in (made.shape, made.resolution))
    say(f"{out}: {shape} voxels of {nm} nm (z, y, x), {made.neurons} labelled neurons")
    say(f"source: {made.source}")
    say(f"licence: {made.licence}\nplease cite: {made.citation}\nchanges: {made.changes}")
    say(f"next: distill stream {made.raw} --model ac4 --out {out.with_suffix('.zarr')}")


@data.command("list")
def list_data(
    name: Annotated[str | None, typer.Argument(help="show all details of this data set")] = None,
) -> None:
    """List public data sets with their licences."""
    from distill.data.catalogue import DATASETS, dataset

    if name is not None:
        _say_details(dataset(name))
        return
    width = max(len(one.name) for one in DATASETS)
    for one in DATASETS:
        how = "by hand" if one.by_hand is not None else "download"
        say(f"{one.name:{width}}  {how:8}  {one.title}; licence {one.licence or 'unknown'}")
    say("next: distill data list NAME, distill data get NAME")


@data.command()
def get(
    name: Annotated[str, typer.Argument(help="name from distill data list")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder for downloads and volumes")] = Path("data"),
    given: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="data saved by a browser: a file, zip or folder")
    ] = None,
) -> None:
    """Download a public data set, or use files saved by a browser, and write volumes in CREMI layout."""
    from distill.data.catalogue import dataset
    from distill.data.get import LABELS, RAW
    from distill.data.get import get as run

    chosen = dataset(name)
    with Bar("MB") as bar:

        def on_bytes(have: int, total: int | None) -> None:
            bar.update(have // 10**6, None if total is None else -(-total // 10**6))

        found = run(chosen, out, given, on_bytes=on_bytes, note=bar.line)
    for file in found.files:
        say(f"{file}:{RAW}")
    say(f"licence: {chosen.licence or f'unknown, see {chosen.page}'}\nplease cite: {chosen.citation}")
    say(f"split in the papers: {chosen.split}")
    say(f"next: distill info {found.files[0]}:{LABELS if chosen.cuts and chosen.cuts[0].labels else RAW}")


def _say_details(one: PublicData) -> None:
    nm = " x ".join(f"{number:g}" for number in one.resolution)
    say(f"{one.name}: {one.title}")
    say(f"voxels: {nm} nm (z, y, x)")
    for file in one.files:
        size = "size unknown" if file.megabytes is None else f"about {file.megabytes} MB"
        say(f"file: {file.name}, {size}, checksum {file.checksum or 'unknown'}, {file.url or 'no direct address'}")
    say(f"volumes: {', '.join(cut.name for cut in one.cuts) or 'CREMI files as they are'}")
    say(f"page: {one.page}")
    if one.by_hand is not None:
        say(f"by hand: {one.by_hand}")
    say(f"licence: {one.licence or 'unknown'}\ncitation: {one.citation}\nsplit in the papers: {one.split}")
    if one.note:
        say(f"note: {one.note}")


@app.command()
@selects("source")
def copy(
    source: str,
    target: Annotated[str, typer.Argument(help="path or s3:// or gs:// address, with :DATASET in Zarr, N5 and HDF5")],
    form: Annotated[
        VolumeFormat | None, typer.Option("--format", help="format of TARGET; default: by its name")
    ] = None,
    levels: Annotated[
        int, typer.Option(min=0, help="levels of a pyramid, including full resolution; 0: down to 256 pixels")
    ] = 1,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--image", help="label ids or grey values; default: by metadata, type and values"),
    ] = None,
    sections: SectionsOption = None,
    every: Annotated[int, typer.Option(min=1, help="take every n-th section, such as 4 for isotropic voxels")] = 1,
    resolution: Resolution = None,
    offset: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="position of the first voxel of SOURCE in nm, instead of its metadata"),
    ] = None,
    webknossos: Annotated[
        bool, typer.Option("--webknossos", help="Zarr v3: also list the copy as a layer that webKnossos opens")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace TARGET if it exists")] = False,
) -> None:
    """Copy a volume to another format, block by block, with resolution and offset."""
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
        webknossos,
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
        int | None,
        typer.Option(min=2, help="levels, including full resolution; default: until a section has 256 pixels"),
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--image", help="label ids or grey values; default: by metadata, type and values"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace existing levels")] = False,
) -> None:
    """Add coarser levels to an array of a Zarr v3 store, for viewers."""
    from distill.io.writers.pyramid import add_levels

    with Bar("parts") as bar:
        found = add_levels(source, levels, labels, overwrite, bar.update)
    for k, level in enumerate(found):
        nm = ", ".join(f"{n:.10g}" for n in level.resolution)
        say(f"level {k}: {' x '.join(map(str, level.size))}, {nm} nm")


@app.command()
def mesh(
    folder: Annotated[
        Path, typer.Argument(metavar="SEG.precomputed", help="segmentation that distill copy has written")
    ],
    meshes: Annotated[bool, typer.Option("--meshes/--no-meshes", help="surfaces of all objects; needs zmesh")] = True,
    skeletons: Annotated[
        bool, typer.Option("--skeletons", help="skeletons of all objects; needs kimimaro (GPL)")
    ] = False,
    level: Annotated[int, typer.Option(min=0, help="level of the pyramid to take objects from; 0: the finest")] = 0,
    block: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="largest block, in voxels; default: 64,512,512")
    ] = None,
    error: Annotated[
        float, typer.Option(min=0, help="surfaces: nm by which simplification may shift them; 0: none")
    ] = 40.0,
    smallest: Annotated[
        int, typer.Option(min=0, help="skeletons: voxels below which a part of an object in a block has none")
    ] = 1000,
    twig: Annotated[float, typer.Option(min=0, help="skeletons: nm below which branches are dropped")] = 900.0,
    overwrite: Overwrite = False,
) -> None:
    """Add surfaces and skeletons of all objects to a precomputed segmentation, for Neuroglancer."""
    from distill.core.errors import DistillError
    from distill.core.geometry import parse_triple
    from distill.io.objects.objects import BLOCK, Kind, Objects, write_objects

    asked: dict[Kind, bool] = {"mesh": meshes, "skeletons": skeletons}
    kinds = tuple(kind for kind, wanted in asked.items() if wanted)
    if not kinds:
        raise DistillError("--no-meshes: found no --skeletons, expected one of meshes and skeletons")
    size = parse_triple(block, "--block") if block else BLOCK
    how = Objects(kinds, level, size, error, smallest, twig, overwrite)
    with Bar("parts") as bar:
        found = write_objects(folder, how, bar.update)
    for one in found:
        unit = "vertices" if one.kind == "mesh" else "nodes"
        say(f"{one.folder}: {one.count} objects, {one.points} {unit}")
