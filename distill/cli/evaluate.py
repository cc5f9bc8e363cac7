"""Score a result (`distill evaluate`)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distill.cli.app import app
from distill.cli.console import Bar, say
from distill.cli.options import Overwrite, PresetOption, Resolution
from distill.cli.selecting import selects
from distill.core.choices import SkeletonUnits

if TYPE_CHECKING:
    from distill.evaluation.affinities import AffinityScores
    from distill.evaluation.evaluate import Scorecard
    from distill.evaluation.run_length.scores import RunLength
    from distill.evaluation.segmentation import BlockScores, Evaluation


@app.command()
@selects("source", "labels", "mask", "affinity")
def evaluate(
    source: Annotated[
        str, typer.Argument(metavar="SEGMENTATION", help="segmentation, or affinities such as OUT.zarr:affinity")
    ],
    labels: Annotated[str | None, typer.Argument(metavar="LABELS", help="ground truth")] = None,
    preset: PresetOption = "skimage",
    worst: Annotated[int, typer.Option(min=0, help="objects of each kind to list; 0 reads the volume only once")] = 5,
    listing: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="write the worst objects to .csv, or to .json for Neuroglancer"),
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(metavar="ID", help="label of voxels that are not counted, such as -1")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="volume that is not 0 where voxels are counted")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="also average scores over blocks of this size")
    ] = None,
    affinity: Annotated[str | None, typer.Option(metavar="SOURCE", help="also score these affinities")] = None,
    labelled_only: Annotated[
        bool, typer.Option("--labelled-only", help="exclude edges with an end in ground-truth label 0")
    ] = False,
    skeletons: Annotated[
        Path | None, typer.Option(metavar="PATH", help="SWC file or folder, for the expected run length")
    ] = None,
    skeleton_units: Annotated[SkeletonUnits, typer.Option(help="unit of their coordinates")] = "nm",
    skeletonize: Annotated[
        bool, typer.Option("--skeletonize", help="compute skeletons from LABELS; needs kimimaro (GPL)")
    ] = False,
    merge_nodes: Annotated[
        int, typer.Option(min=1, help="nodes of each of two skeletons that make a segment a merger")
    ] = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FIGURE", help=".png, .svg or .pdf")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    resolution: Resolution = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="print results as JSON")] = False,
) -> None:
    """Score a segmentation, or affinities, against ground truth."""
    from distill.cli.options import free_out

    free_out(listing, overwrite)
    free_out(plot, overwrite)
    from distill.core.geometry import parse_numbers, parse_triple
    from distill.python.scoring import scorecard

    nm = parse_numbers(resolution, "--resolution") if resolution else None
    size = parse_triple(blocks, "--blocks") if blocks else None
    with Bar("blocks") as bar:
        found = scorecard(
            source,
            labels,
            preset=preset,
            resolution=nm,
            ignore=ignore,
            mask=mask,
            worst=worst,
            listing=listing,
            blocks=size,
            affinity=affinity,
            labelled_only=labelled_only,
            skeletons=skeletons,
            skeleton_units=skeleton_units,
            skeletonize=skeletonize,
            merge_nodes=merge_nodes,
            plot=plot,
            workers=workers,
            progress=bar.update,
        )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    if found.evaluation is not None:
        _say_scores(found.evaluation)
        _say_errors(found, found.evaluation)
        if found.evaluation.blocks is not None:
            _say_blocks(found.evaluation.blocks)
    if found.run_length is not None:
        _say_run_length(found.run_length)
    if found.affinity is not None:
        _say_affinity(found.affinity)
    for what, path in (("list", listing), ("figure", plot)):
        if path is not None:
            say(f"{what}: {path}")


def _say_scores(found: Evaluation) -> None:
    s = found.scores
    say(f"preset {s.preset}, {s.voxels:,} voxels, {s.n_true} objects in the ground truth, {s.n_pred} found")
    say(f"VOI    split {s.voi_split:.4f}  merge {s.voi_merge:.4f}  sum {s.voi_sum:.4f}  bits")
    say(f"ARAND  {s.arand:.4f}  (precision {s.arand_precision:.4f}, recall {s.arand_recall:.4f})")
    if s.cremi_score is not None:
        say(f"CREMI  {s.cremi_score:.4f}")


def _say_errors(card: Scorecard, found: Evaluation) -> None:
    if not card.spots:
        looked_at = found.scores.voi_sum > 0
        say("worst objects: " + ("not looked up" if looked_at else "none"))
        return
    from distill.evaluation.worst_objects.error_list import place_nm

    rows = []
    for number, spot in enumerate(card.spots, 1):
        partners = ", ".join(map(str, spot.pieces)) + (" ..." if spot.error.pieces > len(spot.pieces) else "")
        where = ", ".join(map(str, spot.voxel))
        nm = "" if card.segmentation is None else ", ".join(f"{p:.0f}" for p in place_nm(spot, card.segmentation))
        counts = (f"{spot.error.bits:.4f}", f"{spot.error.voxels:,}", str(spot.error.pieces))
        rows.append((str(number), spot.kind, spot.name or str(spot.error.id), *counts, partners, where, nm))
    head = ("", "error", "id", "bits", "voxels", "pieces", "largest partners", "at voxel z, y, x", "nm z, y, x")
    _say_table("worst objects (split: ground-truth id in segments; merge: segment over objects)", head, rows)
    if card.pieces is not None and card.pieces.parts:
        say(
            f"bound  {card.pieces.bound:.4f} bits of VOI split cannot be avoided: {card.pieces.neurons} neurons lie in "
            "pieces that do not meet inside the volume; the list has the pieces"
        )


def _say_blocks(found: BlockScores) -> None:
    rows = []
    names = {"voi_split": "VOI split", "voi_merge": "VOI merge", "voi_sum": "VOI", "arand": "ARAND"}
    for key, name in (names | {"cremi_score": "CREMI"}).items():
        one = found.statistic(key)
        if one is not None:
            rows.append((name, f"{one.mean:.4f}", "-" if one.std is None else f"{one.std:.4f}"))
    size = " x ".join(map(str, found.size))
    left_out = f", {found.empty} without ground truth left out" if found.empty else ""
    _say_table(f"{len(found.scores)} blocks of {size}{left_out}", ("score", "mean", "std"), rows)


def _say_run_length(found: RunLength) -> None:
    um = {kind: found.total(kind) / 1000 for kind in ("length", "correct", "split", "merged", "omitted", "outside")}
    say(
        f"ERL    {found.erl / 1000:.3f} um of {found.ideal / 1000:.3f} um without error "
        f"({100 * found.normalised:.1f} %), {len(found.skeletons)} skeletons, {len(found.mergers)} segments merge"
    )
    shares = ", ".join(f"{kind} {um[kind]:.2f}" for kind in ("correct", "split", "merged", "omitted"))
    say(
        f"       of {um['length']:.2f} um: {shares}; {um['outside']:.2f} um and {found.outside_nodes} of "
        f"{found.nodes + found.outside_nodes} nodes outside the volume are not counted"
    )


def _say_affinity(found: AffinityScores) -> None:
    rows = []
    for one in found.channels:
        s, h = one.scores, one.histogram
        numbers = [
            *(s.boundary.precision, s.boundary.recall, s.boundary.f1),
            *(s.connected.precision, s.connected.recall, s.connected.f1),
            *(h.roc_auc, h.boundary_average_precision, h.connected_average_precision),
        ]
        cells = ["-" if n is None else f"{n:.4f}" for n in numbers]
        share = f"{100 * s.boundary_edges / max(s.edges, 1):.1f} %"
        rows.append((", ".join(map(str, one.offset)), f"{s.edges:,}", share, *cells))
    head = (
        "offset z, y, x",
        "edges",
        "boundary",
        "P",
        "R",
        "F1",
        "P conn.",
        "R conn.",
        "F1 conn.",
        "AUC",
        "AP",
        "AP conn.",
    )
    counted = "with both ends labelled" if found.labelled_only else "ends in ground-truth 0 count as boundaries"
    _say_table(f"affinities at 0.5, boundary and connected edges ({counted})", head, rows)


def _say_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in plain text, at its full width or that of the environment variable COLUMNS."""
    import os

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    width = os.environ.get("COLUMNS", "")
    narrow = width.isdecimal() and int(width) >= 20
    for k, name in enumerate(head):
        side: Literal["left", "right"] = "left" if k < 2 or "," in name or "partners" in name else "right"
        table.add_column(name, justify=side, no_wrap=not narrow, overflow="fold")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=int(width) if narrow else 400, color_system=None).print(table)
    say(title)
    say("\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines()))
