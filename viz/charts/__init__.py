"""Charts of scores: thresholds of a sweep, variants of an ablation."""

from viz.charts.ablation import (
    RunScore,
    ablation_figure,
    build_ablation_figure,
    draw_ablation,
)
from viz.charts.sweep import SweepPoint, build_sweep_figure, draw_sweep, sweep_figure

__all__ = [
    "RunScore",
    "SweepPoint",
    "ablation_figure",
    "build_ablation_figure",
    "build_sweep_figure",
    "draw_ablation",
    "draw_sweep",
    "sweep_figure",
]
