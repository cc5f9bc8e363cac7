"""Select thresholds on labelled validation data (`distill sweep`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.app import app
from distill.cli.console import Bar, Recorded, say
from distill.cli.options import (
    Device,
    Invert,
    Normalise,
    Overwrite,
    PrecisionOption,
    PresetOption,
    Rescale,
    free_out,
    runtime_of,
)
from distill.cli.selecting import selects
from distill.core.errors import DistillError
from distill.core.hardware import AUTO

if TYPE_CHECKING:
    from distill.core.choices import Method
    from distill.evaluation.sweep import MethodCurve

Range = Annotated[str | None, typer.Option(metavar="FIRST:LAST:STEP", help="thresholds to try, or a list with commas")]


@app.command()
@selects("affinity", "labels")
def sweep(
    affinity: Annotated[str, typer.Argument(metavar="AFFINITY", help="such as OUT.zarr:affinity")],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="ground truth that was not used for training")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder for sweep.json, thresholds.yaml and sweep.png")],
    methods: Annotated[
        str, typer.Option(help="comma-separated: flood, query, waterz, mws, fragments")
    ] = "flood,waterz,mws",
    flood: Range = None,
    query: Range = None,
    waterz: Range = None,
    mws: Range = None,
    scores: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST:STEP", help="fragments: scores to try, or a list with commas")
    ] = None,
    fragments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="fragments: the transformer that distill fragments has trained"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="query: model that predicts supervoxels; default: those in the stream's store")
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="RAW", help="query: sections for --model")] = None,
    preset: PresetOption = "skimage",
    device: Device = "auto",
    precision: PrecisionOption = AUTO,
    normalise: Normalise = None,
    invert: Invert = False,
    rescale: Rescale = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare segmentation methods over a range of thresholds, and select those with the lowest VOI."""
    from distill.inference.thresholds import parse_thresholds
    from distill.python.scoring import sweep as run

    given = {"flood": flood, "query": query, "waterz": waterz, "mws": mws, "fragments": scores}
    asked = _methods(methods if fragments is None or "fragments" in methods.split(",") else f"{methods},fragments")
    for name, text in given.items():
        if text is not None and name not in asked:
            raise DistillError(f"{_option(name)}: found no {name} in --methods {methods}, expected it there")
    if (model is None) != (source is None) or (model is not None and "query" not in asked):
        raise DistillError("--model, --source: expected both or none of them, for the method query")
    thresholds: dict[Method, Sequence[float]] = {}
    for name in asked:
        if (text := given[name]) is not None:
            thresholds[name] = parse_thresholds(text, _option(name))
    chosen = None
    if model is not None:
        _, chosen = runtime_of(device, precision)
    elif rescale:
        raise DistillError("--rescale: found no --model, expected --model and --source, or a store made with --rescale")
    if not out.name:
        raise DistillError(f"--out: found {str(out)!r}, expected a folder with a name of its own")
    for name in ("sweep.json", "thresholds.yaml", "sweep.png"):
        free_out(out / name, overwrite)
    with Recorded(out / "sweep") as record, Bar("methods") as bar:
        bar.head(*(() if chosen is None else chosen.lines))
        curves = run(
            affinity,
            labels,
            out,
            methods=asked,
            thresholds=thresholds,
            preset=preset,
            model=model,
            source=source,
            fragments=fragments,
            device=device,
            precision=precision,
            normalise=normalise,
            invert=invert,
            rescale=rescale,
            progress=bar.update,
            note=bar.line,
        )
        record["methods"] = list(asked)
        record.update(chosen.record() if chosen is not None else {})
    _say_table(curves)
    say(f"chosen by the least VOI sum on {labels} (preset {preset}); what they score on other sections is not known")
    say(f"next: distill segment SOURCE --model MODEL --thresholds {out / 'thresholds.yaml'} --out OUT.zarr")


def _option(method: str) -> str:
    """Return the option that sets the thresholds to try; --fragments is a file."""
    return "--scores" if method == "fragments" else f"--{method}"


def _methods(text: str) -> tuple[Method, ...]:
    from distill.core.choices import METHODS

    found = tuple(method for method in METHODS if method in text.split(","))
    wrong = [name for name in text.split(",") if name not in METHODS]
    if wrong or not found:
        raise DistillError(f"--methods: found {text!r}, expected some of {', '.join(METHODS)}")
    return found


def _say_table(curves: tuple[MethodCurve, ...]) -> None:
    say("method     threshold  VOI split  merge    sum  ARAND  objects   (VOI in bits; * = chosen)")
    for curve in curves:
        for one in curve.tried:
            s, mark = one.scores, "*" if one is curve.best else " "
            scores = f"{s.voi_split:9.3f}  {s.voi_merge:5.3f}  {s.voi_sum:5.3f}  {s.arand:5.3f}"
            say(f"{curve.method:9}  {one.threshold:8g}{mark}  {scores}  {one.objects:7d}")
    for curve in curves:
        chosen, rate = curve.chosen(), curve.alone / curve.voxels * 1e6
        what = "merging contacts alone" if curve.method == "query" else "from affinities to segments"
        say(f"{curve.method}: {chosen.threshold:g}; {what} {rate:.2f} s per megavoxel")
        if chosen.edge is not None:
            say(_warning(curve.method, chosen.threshold, chosen.edge))


def _warning(method: str, threshold: float, edge: str) -> str:
    if (threshold, edge) in ((0.0, "lowest"), (1.0, "highest")):
        return f"warning: {method}: {threshold:g} is the end of the scale; another threshold does no better"
    way = "below" if edge == "lowest" else "above"
    return (
        f"warning: {method}: {threshold:g} is the {edge} threshold that was tried, the best one may lie {way}; "
        f"widen {_option(method)}"
    )
