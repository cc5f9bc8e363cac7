"""Split and merge errors of segmentation methods over their thresholds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.core.choices import Method
from distill.core.errors import DistillError
from distill.evaluation.sweep import MethodCurve
from viz.style import MARKERS, STYLE, colour_of, dress, legend, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_DRAWN = 1.6  # points above this multiple of the lowest VOI sum are omitted,
_OWN = 1.2  # unless they are below this multiple of their method's lowest
NAMES: dict[Method, str] = {
    "flood": "flooding + contacts",
    "query": "query decoder",
    "waterz": "watershed + waterz",
    "mws": "mutex watershed",
    "fragments": "fragment transformer",
}
_CONTOUR, _NUMBER = "0.7", "0.35"  # grey of contours and of their numbers


@dataclass(frozen=True)
class SweepPoint:
    """Scores of one method at one threshold; VOI in bits."""

    method: str
    threshold: float
    split: float
    merge: float
    arand: float | None = None


def draw_sweep(curves: Sequence[MethodCurve], out: Path) -> None:
    """Write the figure of a sweep's curves to `out`; points far above the lowest VOI sum are omitted."""
    least = min(curve.best.scores.voi_sum for curve in curves)
    points = [
        SweepPoint(NAMES[curve.method], one.threshold, one.scores.voi_split, one.scores.voi_merge, one.scores.arand)
        for curve in curves
        for one in curve.tried
        if one.scores.voi_sum <= max(_DRAWN * least, _OWN * curve.best.scores.voi_sum)
    ]
    sweep_figure(points, out, {NAMES[c.method]: c.best.threshold for c in curves}, ring="chosen")


def sweep_figure(
    points: Sequence[SweepPoint],
    out: Path,
    chosen: Mapping[str, float] | None = None,
    dpi: int = 300,
    ring: str = "chosen beforehand",
) -> None:
    """Write the figure of `build_sweep_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_sweep_figure`, or an `out` that cannot be written.
    """
    save_figure(build_sweep_figure(points, chosen, dpi, ring), out)


def build_sweep_figure(
    points: Sequence[SweepPoint],
    chosen: Mapping[str, float] | None = None,
    dpi: int = 300,
    ring: str = "chosen beforehand",
) -> Figure:
    """Draw VOI split against VOI merge over the thresholds of each method, with contours of their sum, and ARAND.

    Args:
        points: in any order; the points of a method are joined in order of threshold.
        chosen: the threshold of each method selected elsewhere, such as on validation data, which is ringed. By default
            the ring marks each method's lowest sum, and the legend states that it was selected on these scores.
        dpi: device pixels per inch.
        ring: legend text of the rings.

    Returns:
        Figure with the axes split and merge, and ARAND by threshold where a point has one. Rings carry the gid
        `chosen`, numbers at the points `threshold`, contours `sum`.

    Raises:
        DistillError: no points, a score that is negative or not finite, a repeated threshold, or a selected threshold
            without a point.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    methods = _methods(points)
    marked = _marked(methods, chosen)
    rated = any(point.arand is not None for point in points)
    with rc_context(STYLE):
        fig = Figure(figsize=(6.6 if rated else 3.5, 3.3), dpi=dpi, layout="constrained")
        axes = fig.subplots(1, 1 + rated, squeeze=False)[0]
        drawn = []
        for k, (method, row) in enumerate(methods.items()):
            colour, marker = colour_of(method, k), MARKERS[k % len(MARKERS)]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "label": method}
            drawn += axes[0].plot([p.split for p in row], [p.merge for p in row], **style)
            if rated:
                axes[1].plot(
                    [p.threshold for p in row], [math.nan if p.arand is None else p.arand for p in row], **style
                )
            best = marked[method]
            _ring(axes[0], best.split, best.merge, k)
            if best.arand is not None:
                _ring(axes[1], best.threshold, best.arand, k)
        dress(axes[0], "VOI split (bits)", "VOI merge (bits)")
        _sum_contours(axes[0], points)
        if rated:
            dress(axes[1], "Threshold", "ARAND")
            highest = max(point.arand for point in points if point.arand is not None)
            axes[1].set_ylim(0, 1.08 * highest or 1)
            for ax, letter, title in zip(axes, "ab", ("Splits and mergers", "Rand error"), strict=True):
                ax.set_title(letter, loc="left", fontsize=8, fontweight="bold", pad=4)
                ax.set_title(title, fontsize=7, pad=4)
        what = ring if chosen is not None else "lowest sum of these scores"
        rings = axes[0].plot([], [], "o", markersize=7, markerfacecolor="none", color="black", label=what)
        equal = axes[0].plot([], [], color=_CONTOUR, lw=0.5, label="equal sum (bits)")
        legend(fig, {str(line.get_label()): line for line in (*drawn, *rings, *equal)})
        _threshold_labels(fig, axes[0], methods, marked)
    return fig


def _methods(points: Sequence[SweepPoint]) -> dict[str, list[SweepPoint]]:
    if not points:
        raise DistillError("sweep: found no points, expected one at least")
    methods: dict[str, list[SweepPoint]] = {}
    for point in points:
        values = [v for v in (point.split, point.merge, point.arand) if v is not None]
        if not (math.isfinite(point.threshold) and all(math.isfinite(v) and v >= 0 for v in values)):
            raise DistillError(f"sweep: found {point}, expected a finite threshold and scores of 0 or more")
        methods.setdefault(point.method, []).append(point)
    for method, row in methods.items():
        row.sort(key=lambda p: p.threshold)
        for one, other in itertools.pairwise(row):
            if one.threshold == other.threshold:
                raise DistillError(f"sweep: found threshold {one.threshold:g} of {method!r} twice, expected it once")
    return methods


def _marked(methods: Mapping[str, Sequence[SweepPoint]], chosen: Mapping[str, float] | None) -> dict[str, SweepPoint]:
    if chosen is None:
        return {method: min(row, key=lambda p: p.split + p.merge) for method, row in methods.items()}
    marked = {}
    for method, row in methods.items():
        near = min(row, key=lambda p: abs(p.threshold - chosen.get(method, math.inf)))
        if method not in chosen or not math.isclose(near.threshold, chosen[method], abs_tol=1e-9):
            known = ", ".join(f"{p.threshold:g}" for p in row)
            raise DistillError(f"chosen: found {chosen.get(method)} for {method!r}, expected one of {known}")
        marked[method] = near
    return marked


def _ring(ax: Axes, x: float, y: float, k: int) -> None:
    """Ring a point; rings of later methods are wider, so that all are seen where they coincide."""
    ax.plot([x], [y], "o", markersize=7 + 3 * k, markerfacecolor="none", color="black", mew=0.8, gid="chosen", zorder=3)


def _sum_contours(ax: Axes, points: Sequence[SweepPoint]) -> None:
    """Draw lines of equal sum at round numbers of bits, each labelled where it leaves the plot."""
    from matplotlib.ticker import MaxNLocator

    left, x = _span([p.split for p in points])
    low, y = _span([p.merge for p in points])
    side = max(x - left, y - low)  # a square of bits, in which lines of equal sum fall at 45 degrees
    x, y = left + side, low + side
    ax.set(xlim=(left, x), ylim=(low, y), aspect="equal")
    for total in MaxNLocator(8).tick_values(left + low, x + y):
        if left + low < total < x + y:
            ends = (max(left, total - y), min(x, total - low))
            ax.plot(ends, [total - end for end in ends], color=_CONTOUR, lw=0.5, zorder=0, gid="sum")
            at = (ends[1], total - ends[1])
            text = ax.annotate(f"{total:g}", at, (-1, 2), textcoords="offset points", ha="right", va="bottom")
            text.set(fontsize=5, color=_NUMBER, gid="sum")


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis around values, with a margin; never below zero."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.12 * high or 0.5
    return max(0.0, low - margin), high + margin


def _threshold_labels(
    fig: Figure, ax: Axes, methods: Mapping[str, Sequence[SweepPoint]], marked: Mapping[str, SweepPoint]
) -> None:
    """Label every point that has room and the marked points; marked points, then the ends, have priority."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(fig)
    canvas.draw()  # finalises the layout
    renderer = canvas.get_renderer()
    traced = [_trace(ax.transData.transform([(p.split, p.merge) for p in row])) for row in methods.values()]
    inked = np.concatenate(traced)
    placed: list[Any] = [text.get_window_extent(renderer) for text in ax.texts]
    order = sorted(
        ((p, k, row) for k, row in enumerate(methods.values()) for p in row),
        key=lambda item: (item[0] != marked[item[0].method], item[0] not in (item[2][0], item[2][-1])),
    )
    for point, k, _ in order:
        for text in _candidates(ax, point, colour_of(point.method, k)):
            box = text.get_window_extent(renderer)
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            clear = not ((inked >= box.min) & (inked <= box.max)).all(axis=1).any()
            if inside and clear and not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
            text.remove()
        else:
            if point == marked[point.method]:  # is labelled anyway
                next(iter(_candidates(ax, point, colour_of(point.method, k))))


def _trace(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return pixels along a line through the points."""
    steps = [max(2, int(np.hypot(*(b - a)) / 2)) for a, b in itertools.pairwise(points)]
    parts = [np.linspace(a, b, n) for (a, b), n in zip(itertools.pairwise(points), steps, strict=True)]
    return np.concatenate([points, *parts])


def _candidates(ax: Axes, point: SweepPoint, colour: str) -> Iterable[Annotation]:
    across, along = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}
    for dx, dy in ((1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (-1, 1), (1, -1)):
        far = 3.2 if dx and dy else 5.0
        text = ax.annotate(
            f"{point.threshold:g}",
            (point.split, point.merge),
            (far * dx, far * dy),
            textcoords="offset points",
            ha=across[dx],
            va=along[dy],
        )
        text.set(fontsize=5, color=colour, gid="threshold")
        yield text
