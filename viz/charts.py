"""Charts of scores: merge thresholds traced through split and merge errors, and variants beside each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError
from viz.figures import COLOURS, MARKERS
from viz.layout import STYLE, dress, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_CONTOUR, _NUMBER = "0.7", "0.35"  # grey of contours and of their numbers
_BARS = ("#B3B3B3", "#0072B2", "#E69F00", "#009E73")  # light, dark, light, mid: told apart in grey too
_SCORES = {"voi": "VOI (bits)", "voi_split": "VOI split (bits)", "voi_merge": "VOI merge (bits)", "arand": "ARAND"}


@dataclass(frozen=True)
class SweepPoint:
    """Scores of one method at one threshold; VOI in bits."""

    method: str
    threshold: float
    split: float
    merge: float
    arand: float | None = None


@dataclass(frozen=True)
class RunScore:
    """One score of one run: several rows of a variant, series and score are its seeds."""

    variant: str
    score: str
    value: float
    series: str = ""


def sweep_figure(
    points: Sequence[SweepPoint],
    out: Path,
    chosen: Mapping[str, float] | None = None,
    dpi: int = 300,
    ring: str = "chosen beforehand",
) -> None:
    """Write the figure of `build_sweep_figure` to `out` (.png, .svg or .pdf), whole or not at all.

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
    """VOI split against VOI merge along the thresholds of each method, over contours of their sum; and ARAND.

    Args:
        points: in any order; a method's points are joined by rising threshold.
        chosen: the threshold of each method that was chosen elsewhere, such as on validation data, which gets a ring.
            Without it the ring marks each method's lowest sum, and the legend says that it was chosen on these scores.
        dpi: device pixels per inch.
        ring: what the legend says of the chosen thresholds' rings.

    Returns:
        Figure with the axes split and merge, and ARAND by threshold where a point has one. Rings carry the gid
        `chosen`, numbers at the points `threshold`, contours `sum`.

    Raises:
        DistillError: no points, a score that is negative or not finite, a threshold twice, or a chosen one not there.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    methods = _methods(points)
    marked = _marked(methods, chosen)
    rated = any(point.arand is not None for point in points)
    with rc_context(STYLE):
        fig = Figure(figsize=(6.4 if rated else 3.4, 3.0), dpi=dpi, layout="constrained")
        axes = fig.subplots(1, 1 + rated, squeeze=False)[0]
        drawn = []
        for k, (method, row) in enumerate(methods.items()):
            colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "label": method}
            drawn += axes[0].plot([p.split for p in row], [p.merge for p in row], **style)
            if rated:
                axes[1].plot(
                    [p.threshold for p in row], [math.nan if p.arand is None else p.arand for p in row], **style
                )
            best = marked[method]
            _ring(axes[0], best.split, best.merge)
            if best.arand is not None:
                _ring(axes[1], best.threshold, best.arand)
        dress(axes[0], "VOI split (bits)", "VOI merge (bits)")
        _sum_contours(axes[0], points)
        if rated:
            dress(axes[1], "Threshold", "ARAND")
            highest = max(point.arand for point in points if point.arand is not None)
            axes[1].set_ylim(0, 1.08 * highest or 1)
            for ax, letter in zip(axes, "ab", strict=True):
                ax.set_title(letter, loc="left", fontsize=8, fontweight="bold", pad=4)
        what = ring if chosen is not None else "lowest sum of these scores"
        rings = axes[0].plot([], [], "o", markersize=7, markerfacecolor="none", color="black", label=what)
        equal = axes[0].plot([], [], color=_CONTOUR, lw=0.5, label="equal sum (bits)")
        _legend(fig, {str(line.get_label()): line for line in (*drawn, *rings, *equal)})
        _threshold_labels(fig, axes[0], methods, marked)
    return fig


def ablation_rows(found: Mapping[str, Any]) -> tuple[list[RunScore], list[RunScore]]:
    """Runs and baselines of what `benchmarks/decoder_ablation.py` writes.

    Args:
        found: `variants` by name, each with `runs` that hold scores under `plain` and `merged`; `watershed + waterz`
            with scores under a name each.

    Returns:
        VOI and ARAND of every run, the series being `plain` or `merged`; and of every baseline.

    Raises:
        DistillError: other keys.
    """
    try:
        runs = [
            RunScore(variant, score, float(run[series][score]), series)
            for variant, entry in found["variants"].items()
            for run in entry["runs"]
            for series in ("plain", "merged")
            for score in ("voi", "arand")
        ]
        baseline = "watershed + waterz"
        levels = [
            RunScore(f"{baseline}, {name.replace('_', ' ')}", score, float(scores[score]))
            for name, scores in found.get(baseline, {}).items()
            for score in ("voi", "arand")
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DistillError(f"ablation: found no {error} where expected; see benchmarks/decoder_ablation.py") from None
    return runs, levels


def ablation_figure(runs: Sequence[RunScore], out: Path, baselines: Sequence[RunScore] = (), dpi: int = 300) -> None:
    """Write the figure of `build_ablation_figure` to `out` (.png, .svg or .pdf), whole or not at all.

    Raises:
        DistillError: as `build_ablation_figure`, or an `out` that cannot be written.
    """
    save_figure(build_ablation_figure(runs, baselines, dpi), out)


def build_ablation_figure(runs: Sequence[RunScore], baselines: Sequence[RunScore] = (), dpi: int = 300) -> Figure:
    """Variants from top to bottom: the mean as a bar from zero, every seed as a point; baselines as lines.

    Args:
        runs: variants, series and scores in the order in which they appear.
        baselines: one value per name (`variant`) and score; scores that no run has are left out.
        dpi: device pixels per inch.

    Returns:
        Figure with one axes per score. Baseline lines carry their name as gid.

    Raises:
        DistillError: no runs, or a value that is negative or not finite.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for run in (*runs, *baselines):
        if not (math.isfinite(run.value) and run.value >= 0):
            raise DistillError(f"ablation: found {run.score} {run.value} of {run.variant!r}, expected 0 or more")
    variants, series, scores = (_distinct(getattr(run, key) for run in runs) for key in ("variant", "series", "score"))
    if not variants:
        raise DistillError("ablation: found no runs, expected one at least")
    with rc_context(STYLE):
        tall = 0.9 + len(variants) * (0.09 + 0.1 * len(series))
        fig = Figure(figsize=(1.4 + 2.45 * min(len(scores), 2), tall), dpi=dpi, layout="constrained")
        axes = fig.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for k, (ax, score) in enumerate(zip(axes, scores, strict=True)):
            _bars(ax, [run for run in runs if run.score == score], variants, series)
            lines = [level for level in baselines if level.score == score]
            for level, style in zip(lines, ("--", ":", "-.", (0, (1, 4))) * len(lines), strict=False):
                ax.axvline(level.value, color="black", lw=0.8, ls=style, label=level.variant, gid=level.variant)
            dress(ax, _SCORES.get(score, score.replace("_", " ")), "")
            ax.set_xlim(left=0)
            ax.tick_params(axis="y", length=0)
            if len(scores) > 1:
                ax.set_title(chr(ord("a") + k), loc="left", fontsize=8, fontweight="bold", pad=4)
        axes[0].set_yticks(range(len(variants)), labels=variants)
        axes[0].set_ylim(len(variants) - 0.5, -0.5)
        entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        _legend(fig, dict(sorted(entries.items(), key=lambda entry: not entry[0].startswith("mean"))))
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


def _legend(fig: Figure, entries: Mapping[str, Any]) -> None:
    """Below the axes, in as many columns as fit."""
    widest = 0.5 + 0.049 * max(map(len, entries))  # inches, at 6 points
    columns = max(1, min(len(entries), int(fig.get_size_inches()[0] / widest)))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=6)


def _ring(ax: Axes, x: float, y: float) -> None:
    ax.plot([x], [y], "o", markersize=7, markerfacecolor="none", color="black", gid="chosen", zorder=3)


def _sum_contours(ax: Axes, points: Sequence[SweepPoint]) -> None:
    """Lines of equal sum at round numbers of bits, each with its number where it leaves the plot."""
    from matplotlib.ticker import MaxNLocator

    x = max(p.split for p in points) * 1.12 or 1.0
    y = max(p.merge for p in points) * 1.12 or 1.0
    ax.set(xlim=(0, x), ylim=(0, y))
    for total in MaxNLocator(8).tick_values(0, x + y)[1:]:
        if total < x + y:
            ax.plot([0, total], [total, 0], color=_CONTOUR, lw=0.5, zorder=0, gid="sum")
            at = (total, 0.0) if total <= x else (x, total - x)
            text = ax.annotate(f"{total:g}", at, (-1, 2), textcoords="offset points", ha="right", va="bottom")
            text.set(fontsize=5, color=_NUMBER, gid="sum")


def _threshold_labels(
    fig: Figure, ax: Axes, methods: Mapping[str, Sequence[SweepPoint]], marked: Mapping[str, SweepPoint]
) -> None:
    """A number at every point that has room for one and at the marked ones; those, then the ends, come first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(fig)
    canvas.draw()  # settles the layout
    renderer = canvas.get_renderer()
    traced = [_trace(ax.transData.transform([(p.split, p.merge) for p in row])) for row in methods.values()]
    inked = np.concatenate(traced)
    placed: list[Any] = [text.get_window_extent(renderer) for text in ax.texts]
    order = sorted(
        ((p, k, row) for k, row in enumerate(methods.values()) for p in row),
        key=lambda item: (item[0] != marked[item[0].method], item[0] not in (item[2][0], item[2][-1])),
    )
    for point, k, _ in order:
        for text in _candidates(ax, point, COLOURS[k % len(COLOURS)]):
            box = text.get_window_extent(renderer)
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            clear = not ((inked >= box.min) & (inked <= box.max)).all(axis=1).any()
            if inside and clear and not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
            text.remove()
        else:
            if point == marked[point.method]:  # is labelled all the same
                next(iter(_candidates(ax, point, COLOURS[k % len(COLOURS)])))


def _trace(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pixels along a line through the points."""
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


def _bars(ax: Axes, runs: Sequence[RunScore], variants: Sequence[str], series: Sequence[str]) -> None:
    thick = 0.8 / len(series)
    for k, name in enumerate(series):
        places, means = [], []
        for row, variant in enumerate(variants):
            values = [run.value for run in runs if (run.variant, run.series) == (variant, name)]
            if values:
                y = row - 0.4 + thick * (k + 0.5)
                places.append(y)
                means.append(float(np.mean(values)))
                _seeds(ax, values, [y] * len(values))
        label = f"mean, {name}" if name else "mean"
        ax.barh(places, means, thick * 0.92, color=_BARS[k % len(_BARS)], label=label)
    _seeds(ax, [], [], label="one seed")


def _seeds(ax: Axes, x: Sequence[float], y: Sequence[float], label: str | None = None) -> None:
    ax.scatter(x, y, s=5, facecolor="white", edgecolor="black", linewidth=0.5, zorder=3, label=label)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
