"""Figure of scores: error of each object, expected run length of each neuron, curves of each affinity channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.core.affinity import NEAREST
from distill.core.errors import DistillError
from distill.core.geometry import Triple
from distill.evaluation.affinities import Curves
from distill.evaluation.evaluate import Scorecard
from distill.evaluation.metrics import ObjectBits, object_bits
from distill.evaluation.run_length.scores import RunLength
from viz.style import COLOURS, STYLE, dress, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = 2.35  # a panel's side
_NAMED = 5  # objects labelled with their id
_AREA = (3.0, 90.0)  # area in square points of the smallest and the largest object
_APART = 0.12  # of a panel, between objects labelled with their id
_STYLES = ("-", "--", ":", "-.")
_GREY = "0.6"


@dataclass(frozen=True)
class Channel:
    """Curves of one affinity channel.

    Attributes:
        offset: z, y, x in voxels.
        curves: see `distill.evaluation.affinities`.
        auc: area under the ROC curve.
        precision: average precision of the boundaries.
    """

    offset: Triple
    curves: Curves
    auc: float
    precision: float

    @property
    def name(self) -> str:
        """Return the axis of a nearest neighbour, or the offset."""
        return "zyx"[NEAREST.index(self.offset)] if self.offset in NEAREST else ", ".join(map(str, self.offset))


def draw_scorecard(card: Scorecard, out: Path) -> None:
    """Write the figure of all results of `distill evaluate` to `out` (.png, .svg or .pdf)."""
    channels = [
        Channel(one.offset, curves, one.histogram.roc_auc or 0.0, one.histogram.boundary_average_precision or 0.0)
        for one in (card.affinity.channels if card.affinity else ())
        if (curves := one.histogram.curves()) is not None
    ]
    objects = object_bits(card.evaluation.table) if card.evaluation else None
    scores_figure(objects, channels, card.run_length, out)


def scores_figure(
    objects: ObjectBits | None, channels: Sequence[Channel], run: RunLength | None, out: Path, dpi: int = 300
) -> None:
    """Write the figure of `build_scores_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_scores_figure`, or an `out` that cannot be written.
    """
    save_figure(build_scores_figure(objects, channels, run, dpi), out)


def build_scores_figure(
    objects: ObjectBits | None, channels: Sequence[Channel], run: RunLength | None, dpi: int = 300
) -> Figure:
    """Draw a panel for each available result.

    The panels are split against merge of every object, run length of every skeleton, and ROC and precision-recall of
    every channel.

    Args:
        objects: of the ground truth.
        channels: of the affinities.
        run: of the skeletons.
        dpi: device pixels per inch.

    Returns:
        Figure. Points carry the gid `objects` and `skeletons`, curves `roc NAME` and `precision NAME`.

    Raises:
        DistillError: there is nothing to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels: list[tuple[str, Callable[[Axes], None]]] = []
    if objects is not None:
        panels.append(("Objects", lambda ax: _draw_objects(ax, objects)))
    if run is not None:
        panels.append(("Run length", lambda ax: _draw_runs(ax, run)))
    if channels:
        panels.append(("ROC of affinities", lambda ax: _draw_roc(ax, channels)))
        panels.append(("Precision of affinities", lambda ax: _draw_precision(ax, channels)))
    if not panels:
        raise DistillError("scores: found neither objects, skeletons nor channels with both classes, expected some")
    with rc_context(STYLE):
        size = (max(2, len(panels)) * _INCHES if len(panels) > 1 else 1.5 * _INCHES, 1.08 * _INCHES)
        fig = Figure(figsize=size, dpi=dpi, layout="constrained")
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, draw), letter in zip(axes, panels, "abcd", strict=False):
            draw(ax)
            if len(panels) > 1:
                ax.set_title(letter, loc="left", fontsize=8, fontweight="bold", pad=4)
                ax.annotate(title, (0, 1), (10, 4), xycoords="axes fraction", textcoords="offset points", va="baseline")
    return fig


def _draw_objects(ax: Axes, objects: ObjectBits) -> None:
    low, high = _AREA
    area = low + (high - low) * objects.voxels / max(1, int(objects.voxels.max()))
    style: dict[str, Any] = {"facecolor": COLOURS[1], "edgecolor": "white", "linewidth": 0.3, "alpha": 0.75}
    ax.scatter(objects.split, objects.merge, s=area, gid="objects", clip_on=False, zorder=3, **style)
    most = 1.15 * max(float(objects.split.max()), float(objects.merge.max()), 1e-6)
    for axis, set_limits in (
        ("x", ax.set_xlim),
        ("y", ax.set_ylim),
    ):  # square roots, because the error of most objects is close to 0
        getattr(ax, f"set_{axis}scale")("function", functions=(_root, np.square))
        set_limits(0, most)
        getattr(ax, f"set_{axis}ticks")(_round_numbers(most))
        getattr(ax, f"{axis}axis").set_major_formatter("{x:g}")
    ax.set_box_aspect(1)
    cost = objects.split + objects.merge
    named: list[tuple[float, float]] = []
    for k in np.argsort(-cost, kind="stable")[:_NAMED]:
        x, y = (math.sqrt(max(0.0, float(bits[k])) / most) for bits in (objects.split, objects.merge))
        if cost[k] > 0 and all(math.hypot(x - u, 2 * (y - v)) > _APART for u, v in named):
            named.append((x, y))
            place, right = (float(objects.split[k]), float(objects.merge[k])), x > 0.8
            text = ax.annotate(str(objects.id[k]), place, (-5 if right else 5, 2), textcoords="offset points")
            text.set(fontsize=5.5, ha="right" if right else "left", gid="id")
    dress(ax, f"VOI split (bits, square-root axes), n = {len(cost)}", "VOI merge (bits)")
    _say(ax, f"split {objects.split.sum():.3f}, merge {objects.merge.sum():.3f} bits")


def _root(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sqrt(np.maximum(values, 0))


def _round_numbers(most: float) -> list[float]:
    """Return 0 and up to four numbers 1, 2 or 5 times a power of ten, spaced by square root from 0 to `most`."""
    top = math.floor(math.log10(most))
    steps = [m * 10.0**e for e in range(top - 3, top + 1) for m in (1, 2, 5) if m * 10.0**e <= most]
    wanted = [most * share**2 for share in (0.35, 0.6, 0.8, 0.98)]
    return [0.0, *sorted({min(steps, key=lambda step: abs(math.sqrt(step) - math.sqrt(w))) for w in wanted})]


def _draw_runs(ax: Axes, run: RunLength) -> None:
    length = np.array([one.length for one in run.skeletons]) / 1000
    runs = np.array([one.run for one in run.skeletons]) / 1000
    most = 1.08 * float(length.max())
    ax.plot([0, most], [0, most], color=_GREY, lw=0.6, zorder=0)
    ax.scatter(length, runs, s=9, color=COLOURS[0], alpha=0.75, linewidth=0, gid="skeletons", clip_on=False, zorder=3)
    ax.annotate("no error", (0.9 * most, 0.9 * most), (-4, 3), textcoords="offset points", fontsize=5.5, ha="right")
    ax.set(xlim=(0, most), ylim=(0, most))
    ax.set_box_aspect(1)
    dress(ax, f"length of a skeleton (µm), n = {len(length)}", "expected run length (µm)")
    _say(ax, f"ERL {run.erl / 1000:.2f} of {run.ideal / 1000:.2f} µm ({run.normalised:.0%})")


def _say(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="right", fontsize=6, pad=4)


def _draw_roc(ax: Axes, channels: Sequence[Channel]) -> None:
    for k, one in enumerate(channels):
        x, y = np.append(0.0, one.curves.false), np.append(0.0, one.curves.found)
        ax.plot(x, y, gid=f"roc {one.name}", label=f"{one.name}  AUC {one.auc:.3f}", **_line(k))
    ax.plot([0, 1], [0, 1], color=_GREY, lw=0.6, zorder=0)
    ax.set(xlim=(0, 1), ylim=(0, 1.01))
    ax.set_box_aspect(1)
    dress(ax, "connected edges cut", "boundary edges cut")
    ax.legend(loc="lower right", frameon=False, fontsize=5.5)


def _draw_precision(ax: Axes, channels: Sequence[Channel]) -> None:
    for k, one in enumerate(channels):
        label = f"{one.name}  AP {one.precision:.3f}"
        ax.plot(one.curves.found, one.curves.precision, gid=f"precision {one.name}", label=label, **_line(k))
    ax.set(xlim=(0, 1), ylim=(0, 1.01))
    ax.set_box_aspect(1)
    dress(ax, "boundary edges cut (recall)", "cut edges that are boundaries")
    ax.legend(loc="lower left", frameon=False, fontsize=5.5)


def _line(k: int) -> dict[str, Any]:
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": _STYLES[k % len(_STYLES)]}
