"""Bar chart of an ablation: variants as bars, one point per seed, baselines as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.core.errors import DistillError
from distill.training.ablation.table import SCORED_METHODS, Row
from viz.style import STYLE, colour_of, dress, legend, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHTER = 0.45  # share of white in the bars of a method's second series
_WIDEST = 2.0  # the axis ends at this multiple of the longest bar; lines beyond are named in the legend only
_SCORES = {"voi": "VOI (bits)", "voi_split": "VOI split (bits)", "voi_merge": "VOI merge (bits)", "arand": "ARAND"}


@dataclass(frozen=True)
class RunScore:
    """One score of one run; rows with equal variant, series and score are seeds."""

    variant: str
    score: str
    value: float
    series: str = ""


def draw_ablation(rows: Sequence[Row], out: Path) -> None:
    """Write the figure of an ablation's runs to `out`: students as bars, teachers as lines."""
    runs, teachers = bars(rows)
    ablation_figure(runs, out, teachers)


def bars(rows: Sequence[Row]) -> tuple[list[RunScore], list[RunScore]]:
    """Return students as bars and teachers (mean over seeds) as lines, for `ablation_figure`."""
    runs, lines = [], []
    for method, pick in SCORED_METHODS.items():
        for row in rows:
            found = pick(row.scores)
            if row.network == "student" and found is not None:
                runs += [RunScore(row.variant, name, getattr(found, name), method) for name in ("voi", "arand")]
        for name in dict.fromkeys(row.name for row in rows if row.network == "teacher"):
            picked = [one for one in (pick(row.scores) for row in rows if row.name == name) if one is not None]
            if picked and method == "query decoder":
                for key in ("voi", "arand"):
                    mean = float(np.mean([getattr(one, key) for one in picked]))
                    lines.append(RunScore(f"{name}, {method}", key, mean))
    return runs, lines


def ablation_figure(runs: Sequence[RunScore], out: Path, baselines: Sequence[RunScore] = (), dpi: int = 300) -> None:
    """Write the figure of `build_ablation_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_ablation_figure`, or an `out` that cannot be written.
    """
    save_figure(build_ablation_figure(runs, baselines, dpi), out)


def build_ablation_figure(runs: Sequence[RunScore], baselines: Sequence[RunScore] = (), dpi: int = 300) -> Figure:
    """Draw variants from top to bottom: the mean as a bar from zero, every seed as a point, baselines as lines.

    Args:
        runs: variants, series and scores in the order in which they appear.
        baselines: one value per name (`variant`) and score; scores that no run has are omitted.
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
    variants, series, scores = (
        list(dict.fromkeys(getattr(run, key) for run in runs)) for key in ("variant", "series", "score")
    )
    if not variants:
        raise DistillError("ablation: found no runs, expected one at least")
    with rc_context(STYLE):
        tall = 0.9 + len(variants) * (0.09 + 0.1 * len(series))
        fig = Figure(figsize=(1.4 + 2.45 * min(len(scores), 2), tall), dpi=dpi, layout="constrained")
        axes = fig.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for k, (ax, score) in enumerate(zip(axes, scores, strict=True)):
            _bars(ax, [run for run in runs if run.score == score], variants, series)
            lines = [level for level in baselines if level.score == score]
            longest = max((run.value for run in runs if run.score == score), default=0.0)
            for level, style in zip(lines, ("--", ":", "-.", (0, (1, 4))) * len(lines), strict=False):
                beyond = f" ({level.value:.2f}, beyond the axis)" if level.value > _WIDEST * longest > 0 else ""
                name = level.variant + (beyond if score == scores[0] else "")
                ax.axvline(level.value, color="black", lw=0.8, ls=style, label=name, gid=level.variant)
            dress(ax, _SCORES.get(score, score.replace("_", " ")), "")
            within = [level.value for level in lines if level.value <= _WIDEST * longest]
            ax.set_xlim(0, 1.05 * max([longest, *within]) or 1)
            ax.tick_params(axis="y", length=0)
            if len(scores) > 1:
                ax.set_title(chr(ord("a") + k), loc="left", fontsize=8, fontweight="bold", pad=4)
        axes[0].set_yticks(range(len(variants)), labels=variants)
        axes[0].set_ylim(len(variants) - 0.5, -0.5)
        entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        legend(fig, dict(sorted(entries.items(), key=lambda entry: not entry[0].startswith("mean"))))
    return fig


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
        ax.barh(places, means, thick * 0.92, color=_shade(series, k), label=label)
    _seeds(ax, [], [], label="one seed")


def _shade(series: Sequence[str], k: int) -> str:
    """Return the colour of a method, lighter for its second series, such as another threshold."""
    from matplotlib.colors import to_hex, to_rgb

    colours = [colour_of(name, position + 5) for position, name in enumerate(series)]
    light = _LIGHTER * colours[:k].count(colours[k])
    return to_hex([1 - (1 - part) * (1 - min(light, 0.8)) for part in to_rgb(colours[k])])


def _seeds(ax: Axes, x: Sequence[float], y: Sequence[float], label: str | None = None) -> None:
    ax.scatter(x, y, s=5, facecolor="white", edgecolor="black", linewidth=0.5, zorder=3, label=label)
