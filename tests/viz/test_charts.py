"""Charts show every score they are given, at its place, and say what was chosen on what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from distill.core.errors import DistillError
from viz.charts import (
    RunScore,
    SweepPoint,
    ablation_figure,
    build_ablation_figure,
    build_sweep_figure,
    sweep_figure,
)

POINTS = [
    SweepPoint(method, t, shift + (1 - t) ** 2, shift + t**2, shift / 2 + (t - 0.4) ** 2)
    for method, shift in (("waterz", 0.1), ("queries", 0.3))
    for t in (0.7, 0.3, 0.5)
]
VARIANTS = {"learned queries": 2.0, "guided + learned (published)": 1.6, "K-Net": 1.0}
RUNS = [
    RunScore(name, score, value, series)
    for name, v in VARIANTS.items()
    for s in (0.0, 0.3)
    for series, voi, arand in (("plain", v + s, v / 9), ("merged", v / 2 + s, v / 20))
    for score, value in (("voi", voi), ("arand", arand))
]
BASELINES = [
    RunScore(f"watershed + waterz, {name}", score, value)
    for name, scores in (("at 0.5", {"voi": 0.7, "arand": 0.08}), ("chosen", {"voi": 0.6, "arand": 0.07}))
    for score, value in scores.items()
]


def rings(ax: Axes) -> list[list[float]]:
    return [[float(v) for v in line.get_xydata()[0]] for line in ax.lines if line.get_gid() == "chosen"]


def texts(ax: Axes, gid: str) -> list[Text]:
    return [text for text in ax.texts if text.get_gid() == gid]


def legend(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_sweep_draws_each_method_by_rising_threshold() -> None:
    fig = build_sweep_figure(POINTS)
    left, right = fig.axes
    by_name = {str(line.get_label()): line for line in left.lines}
    for method, shift in (("waterz", 0.1), ("queries", 0.3)):
        expected = [[shift + (1 - t) ** 2, shift + t**2] for t in (0.3, 0.5, 0.7)]
        assert np.allclose(by_name[method].get_xydata(), expected)
    assert (left.get_xlabel(), left.get_ylabel()) == ("VOI split (bits)", "VOI merge (bits)")
    assert (right.get_xlabel(), right.get_ylabel()) == ("Threshold", "ARAND")
    assert {"waterz", "queries"} <= set(legend(fig))
    assert by_name["waterz"].get_color() != by_name["queries"].get_color()
    assert by_name["waterz"].get_marker() != by_name["queries"].get_marker()


def test_sweep_marks_the_chosen_threshold_and_says_how_it_was_chosen() -> None:
    fig = build_sweep_figure(POINTS)
    assert np.allclose(rings(fig.axes[0]), [[0.35, 0.35], [0.55, 0.55]])  # 0.5 has the lowest sum
    assert np.allclose(rings(fig.axes[1]), [[0.5, 0.06], [0.5, 0.16]])
    assert "lowest sum of these scores" in legend(fig)
    fig = build_sweep_figure(POINTS, {"waterz": 0.3, "queries": 0.7})
    assert np.allclose(rings(fig.axes[1])[0], [0.3, 0.06])
    assert np.allclose(rings(fig.axes[0])[1], [0.39, 0.79])
    assert "chosen beforehand" in legend(fig)


def test_contours_join_points_of_equal_sum() -> None:
    ax = build_sweep_figure(POINTS).axes[0]
    lines = [line for line in ax.lines if line.get_gid() == "sum"]
    totals = [float(line.get_xydata().sum(axis=1)[0]) for line in lines]
    assert len(totals) >= 3
    for line, total in zip(lines, totals, strict=True):
        assert np.allclose(line.get_xydata().sum(axis=1), total)
    assert [float(text.get_text()) for text in texts(ax, "sum")] == pytest.approx(totals)
    for text, total in zip(texts(ax, "sum"), totals, strict=True):
        assert sum(text.xy) == pytest.approx(total)  # a number lies on its line


def test_thresholds_are_written_beside_their_points() -> None:
    ax = build_sweep_figure(POINTS).axes[0]
    written = {(text.get_text(), *np.round(text.xy, 6)) for text in texts(ax, "threshold")}
    assert written == {(f"{p.threshold:g}", round(p.split, 6), round(p.merge, 6)) for p in POINTS}


def test_crowded_thresholds_keep_apart_and_the_chosen_one_stays() -> None:
    crowd = [SweepPoint("one", t / 100, 0.5 + t / 1e4, 0.5 + t / 1e4) for t in range(60)]
    crowd += [SweepPoint("two", t / 10, 0.5 + t / 1e3, 2.0) for t in range(3)]
    fig = build_sweep_figure(crowd, {"one": 0.37, "two": 0.1})
    assert len(fig.axes) == 1  # without ARAND
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    shown = texts(fig.axes[0], "threshold")
    assert {"0.37", "0.1"} <= {text.get_text() for text in shown}
    assert len(shown) < 40
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in shown]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_one_point_of_perfect_score() -> None:
    fig = build_sweep_figure([SweepPoint("perfect", 0.5, 0.0, 0.0, 0.0)])
    assert rings(fig.axes[0]) == [[0.0, 0.0]]


def test_bad_sweeps_are_refused() -> None:
    with pytest.raises(DistillError, match="found no points"):
        build_sweep_figure([])
    with pytest.raises(DistillError, match="scores of 0 or more"):
        build_sweep_figure([SweepPoint("a", 0.5, -1, 0)])
    with pytest.raises(DistillError, match="scores of 0 or more"):
        build_sweep_figure([SweepPoint("a", 0.5, 1, 0, float("nan"))])
    with pytest.raises(DistillError, match=r"threshold 0\.5 of 'waterz' twice"):
        build_sweep_figure([*POINTS, SweepPoint("waterz", 0.5, 1, 1)])
    with pytest.raises(DistillError, match=r"found 0\.4 for 'waterz', expected one of 0\.3, 0\.5, 0\.7"):
        build_sweep_figure(POINTS, {"waterz": 0.4, "queries": 0.5})
    with pytest.raises(DistillError, match="found None for 'queries'"):
        build_sweep_figure(POINTS, {"waterz": 0.5})


def test_ablation_bars_are_means_and_every_seed_is_a_point() -> None:
    fig = build_ablation_figure(RUNS, BASELINES)
    left, right = fig.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("VOI (bits)", "ARAND")
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(VARIANTS)
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first variant on top
    plain, merged = left.containers
    assert [bar.get_width() for bar in plain] == pytest.approx([2.15, 1.75, 1.15])
    assert [bar.get_width() for bar in merged] == pytest.approx([1.15, 0.95, 0.65])
    assert all(bar.get_x() == 0 for bar in (*plain, *merged))
    seeds = np.concatenate([np.asarray(dots.get_offsets()) for dots in left.collections])
    assert sorted(seeds[:, 0]) == pytest.approx(sorted(r.value for r in RUNS if r.score == "voi"))
    for bar, row in zip((*plain, *merged), (0, 1, 2, 0, 1, 2), strict=True):
        middle = bar.get_y() + bar.get_height() / 2
        assert abs(middle - row) < 0.5
        assert (np.abs(seeds[:, 1] - middle) < 1e-9).sum() == 2
    levels = {line.get_gid(): float(line.get_xdata()[0]) for line in left.lines}
    assert levels == {"watershed + waterz, at 0.5": 0.7, "watershed + waterz, chosen": 0.6}
    assert legend(fig) == ["mean, plain", "mean, merged", "one seed", *levels]


def test_general_rows_make_bars_too(texts_inside: Callable[..., None]) -> None:
    rows = [RunScore("a", "boundary_f1", 0.5), RunScore("a", "boundary_f1", 0.7), RunScore("b", "boundary_f1", 0.2)]
    fig = build_ablation_figure(rows)
    assert len(fig.axes) == 1
    assert fig.axes[0].get_xlabel() == "boundary f1"
    assert [bar.get_width() for bar in fig.axes[0].containers[0]] == pytest.approx([0.6, 0.2])
    assert legend(fig) == ["mean", "one seed"]
    texts_inside(fig)
    with pytest.raises(DistillError, match="no runs"):
        build_ablation_figure([])
    with pytest.raises(DistillError, match="voi nan of 'a'"):
        build_ablation_figure([RunScore("a", "voi", float("nan"))])


def test_legends_stay_inside(texts_inside: Callable[..., None]) -> None:
    texts_inside(build_sweep_figure(POINTS))
    texts_inside(build_ablation_figure(RUNS, BASELINES))
    longer = [SweepPoint(p.method + ", a long name " * 3, p.threshold, p.split, p.merge) for p in POINTS]
    texts_inside(build_sweep_figure(longer))


def test_files_are_written(tmp_path: Path) -> None:
    sweep_figure(POINTS, tmp_path / "sweep.svg")
    ablation_figure(RUNS, tmp_path / "ablation.pdf")
    assert (tmp_path / "sweep.svg").read_text().startswith("<?xml")
    assert (tmp_path / "ablation.pdf").read_bytes().startswith(b"%PDF")
