"""Command that exports a segmentation for proofreading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.app import app
from distill.cli.console import Bar, Recorded, say
from distill.cli.options import Overwrite

if TYPE_CHECKING:
    from distill.inference.review.review import Review


@app.command()
def review(
    store: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="finished store of distill stream or segment")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder to write")],
    within: Annotated[
        float, typer.Option(help="doubtful: merges with a mean affinity that differs by less from the threshold")
    ] = 0.1,
    most: Annotated[int, typer.Option(help="length of the queue")] = 1000,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST:STEP",
            help="thresholds of further agglomerate files, or a list with commas; default: 0.05 and 0.1 around that of "
            "the store",
        ),
    ] = None,
    grey: Annotated[
        str | None,
        typer.Option(metavar="LOCATION", help="image for Neuroglancer: folder written by distill copy, or address"),
    ] = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="address at which the folder of the store is served to Neuroglancer")
    ] = "http://localhost:9000",
    overwrite: Overwrite = False,
) -> None:
    """Export a segmentation for proofreading: queue of doubtful contacts, contact graph, supervoxels."""
    from distill.inference.review.review import ReviewOptions
    from distill.inference.review.review import review as run
    from distill.inference.thresholds import parse_thresholds
    from viz.viewer.queue import Served, write_queue_state

    thresholds = None if at is None else parse_thresholds(at, "--at")
    served = Served(store.absolute().parent, url)
    if grey is not None:
        served.source(grey, (1, 1, 1), (0, 0, 0))  # refused before any work

    def add_state(found: Review, folder: Path) -> None:
        place = found.resolution, found.offset
        layers = {"segmentation": served.source(f"{store}/segmentation", *place)}
        if grey is not None:
            layers["image"] = served.source(grey, *place)
        write_queue_state(folder / "queue.json", found.queue, layers, found.resolution, str(store))

    with Recorded(out) as record, Bar("boxes") as bar:
        options = ReviewOptions(within, most, thresholds, overwrite)
        found = run(store, out, options, on_box=bar.update, finish=add_state)
        record.update({"doubtful": found.doubtful, "supervoxels": found.supervoxels, "edges": found.edges})
    say(
        f"{out}/queue.csv: {len(found.queue)} of {found.doubtful} doubtful contacts within {within:g} of the threshold "
        f"{found.threshold:g}"
    )
    say(f"{out}/queue.json: the same for Neuroglancer, with volumes at {url}")
    if grey is None:
        say("no image in it: distill copy SOURCE grey.precomputed, then --grey grey.precomputed")
    say(f"{out}/edges.csv, supervoxels.csv: {found.edges} contacts of {found.supervoxels} supervoxels")
    shown = ", ".join(f"{one:g}" for one in found.thresholds)
    say(f"{out}/webknossos: supervoxels, and agglomerate files merged above {shown}")
