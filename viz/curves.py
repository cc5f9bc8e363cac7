"""Figures of a run: losses and validation scores over the steps, and one validation section segmented by both
networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.core.errors import DistillError
from distill.core.normalisation import as_picture
from distill.training.data import LabelledPart
from distill.training.validation import Judged
from viz.section import section_figure
from viz.style import COLOURS, MARKERS, STYLE, colour_of, dress, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NO_LOSS = ("step", "lr", "seconds", "waited", "validation_seconds")


def run_figures(run: Path, judged: Mapping[str, Judged], part: LabelledPart) -> None:
    """Write figures/curves.png and, for each network, figures/validation_NETWORK.png.

    Args:
        run: run folder with metrics.jsonl.
        judged: the last validation.
        part: validation part; the first of several.
    """
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    curves_figure(list(_rows(run / "metrics.jsonl")), folder / "curves.png")
    middle, resolution = len(part.raw) // 2, part.volume.resolution
    grey = as_picture(part.raw[middle])
    for name, found in judged.items():
        section_figure(
            grey,
            found.affinity_section,
            found.labels_section,
            part.counted[middle],
            (resolution[1], resolution[2]),
            folder / f"validation_{name}.png",
            title=f"Section {part.box.start[0] + middle}",
        )


def _rows(metrics: Path) -> Iterator[dict[str, float]]:
    """Iterate over rows of metrics.jsonl with the names expected by the figure."""
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "loss" in row:
            terms = {name: value for name, value in row.items() if name not in _NO_LOSS and name != "loss"}
            yield {"step": row["step"], **{f"{name} loss": value for name, value in terms.items()}}
        for name in ("student", "teacher"):
            if f"validation_{name}" in row:
                yield {"step": row["step"], f"{name} + queries VOI": row[f"validation_{name}"]["voi"]}


def curves_figure(rows: Sequence[Mapping[str, Any]], out: Path, dpi: int = 300) -> None:
    """Write the figure of `build_curves_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_curves_figure`, or an `out` that cannot be written.
    """
    save_figure(build_curves_figure(rows, dpi), out)


def build_curves_figure(rows: Sequence[Mapping[str, Any]], dpi: int = 300) -> Figure:
    """Draw loss terms (log scale) and validation VOI over training steps.

    Args:
        rows: records with `step` and any of the named values; a name with `loss` in it is a loss term, one with `voi`
            a VOI in bits; other names, and values that are missing or not finite, are ignored.
        dpi: device pixels per inch.

    Returns:
        Figure with the axes losses, VOI; axes without values are omitted.

    Raises:
        DistillError: a row without a step, or no value to show.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if any("step" not in row for row in rows):
        raise DistillError("curves_figure: found a row without a `step`")
    kinds = {"loss": "Training loss", "voi": "Validation VOI (bits)"}
    curves = {kind: _curves(rows, kind) for kind in kinds}
    shown = [kind for kind in kinds if curves[kind]]
    if not shown:
        raise DistillError(f"curves_figure: found no finite `loss` or `voi` value in {len(rows)} rows")
    last = max(max(steps) for found in curves.values() for steps, _ in found.values())
    with rc_context(STYLE):
        fig = Figure(figsize=(3.5 * len(shown), 2.6), dpi=dpi, layout="constrained")
        for ax, kind in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for i, (name, (steps, values)) in enumerate(curves[kind].items()):
                turn, which = divmod(i, len(COLOURS))
                ax.plot(
                    steps,
                    values,
                    color=colour_of(name, which) if kind == "voi" else COLOURS[which],
                    linestyle=("-", "--", ":")[turn % 3],
                    marker=MARKERS[which] if len(steps) <= 40 else None,
                    markersize=3,
                    label=name.replace("_", " ").removesuffix(" loss").removesuffix(" VOI"),
                )
            positive = [float(np.nanmax(values)) > 0 for _, values in curves[kind].values()]
            ax.set_yscale("log" if kind == "loss" and any(positive) else "linear")
            dress(ax, "Training step", kinds[kind])
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_xlim(0, 1.03 * last or 1)
            _plain_ticks(ax)
            if len(shown) > 1:
                ax.set_title("ab"[shown.index(kind)], loc="left", fontsize=8, fontweight="bold", pad=4)
            ax.legend(
                frameon=False, handlelength=2.0, fontsize=6, loc="upper center", ncol=2, bbox_to_anchor=(0.5, -0.2)
            )
    return fig


def _plain_ticks(ax: Axes) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times powers of ten with plain numbers; a linear one from zero on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if ax.get_yscale() != "log":
        ax.set_ylim(bottom=0)
        return
    low, high = ax.get_ylim()
    within = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=within))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    if high / low < 4:  # at least two labels
        ax.set_ylim(low / 1.6, high * 1.6)


def _curves(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, tuple[list[float], list[float]]]:
    names = dict.fromkeys(name for row in rows for name in row if kind in name.lower())
    curves = {}
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
        finite = sorted(point for point in points if math.isfinite(point[1]))
        if finite:
            curves[name] = ([step for step, _ in finite], [value for _, value in finite])
    return curves
