"""The figure of scores shows every object, skeleton and channel at its place, and says the totals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distill.core.errors import DistillError
from distill.evaluation.affinities import EdgeHistogram
from distill.evaluation.metrics import ObjectBits
from distill.evaluation.run_length.scores import RunLength, run_length
from distill.evaluation.run_length.skeletons import Skeleton
from viz.scores import Channel, build_scores_figure, scores_figure


def objects(n: int = 30) -> ObjectBits:
    rng = np.random.default_rng(0)
    return ObjectBits(
        np.arange(1, n + 1, dtype=np.uint64) * np.uint64(1000),
        rng.integers(1, 90_000, n),
        rng.exponential(0.01, n),
        rng.exponential(0.02, n),
    )


def runs() -> RunLength:
    nodes = np.stack([np.arange(5) * 500.0, np.zeros(5), np.zeros(5)], 1)
    edges = np.stack([np.arange(4), np.arange(1, 5)], 1)
    skeletons = [Skeleton("a", nodes, edges), Skeleton("b", 2 * nodes, edges)]
    ids = [np.array([1, 1, 1, 1, 1], np.uint64), np.array([2, 2, 2, 3, 3], np.uint64)]
    return run_length(skeletons, ids, [np.ones(5, bool)] * 2)


def channels() -> list[Channel]:
    rng, made = np.random.default_rng(1), []
    for offset in ((-1, 0, 0), (0, -9, 0)):
        histogram = EdgeHistogram()
        connected = rng.random(500) < 0.7
        histogram.add(np.clip(rng.normal(100 + 90 * connected, 40), 0, 255).astype(np.uint8), connected)
        curves, auc, precision = histogram.curves(), histogram.roc_auc, histogram.boundary_average_precision
        assert curves is not None
        assert auc is not None
        assert precision is not None
        made.append(Channel(offset, curves, auc, precision))
    return made


def panel(fig: Figure, gid: str) -> Axes:
    (found,) = (ax for ax in fig.axes if any(child.get_gid() == gid for child in ax.get_children()))
    return found


def test_every_object_and_skeleton_is_a_point() -> None:
    fig = build_scores_figure(objects(), channels(), runs())
    assert len(fig.axes) == 4
    ax = panel(fig, "objects")
    (points,) = (one for one in ax.collections if one.get_gid() == "objects")
    np.testing.assert_allclose(points.get_offsets(), np.stack([objects().split, objects().merge], 1))
    assert np.argsort(points.get_sizes()).tolist() == np.argsort(objects().voxels).tolist()
    named = [text.get_text() for text in ax.texts if text.get_gid() == "id"]
    cost = objects().split + objects().merge
    assert named[0] == str(objects().id[cost.argmax()])
    assert ax.get_title(loc="right") == f"split {objects().split.sum():.3f}, merge {objects().merge.sum():.3f} bits"
    ax = panel(fig, "skeletons")
    (points,) = (one for one in ax.collections if one.get_gid() == "skeletons")
    np.testing.assert_allclose(points.get_offsets(), [[2, 2], [4, (2**2 + 1**2) / 4]])
    assert ax.get_title(loc="right") == "ERL 1.50 of 3.33 µm (45%)"


def test_every_channel_is_a_curve_with_its_area() -> None:
    fig = build_scores_figure(None, channels(), None)
    assert len(fig.axes) == 2
    for one, name in zip(channels(), ("z", "0, -9, 0"), strict=True):
        (line,) = (line for line in panel(fig, f"roc {name}").lines if line.get_gid() == f"roc {name}")
        x, y = line.get_data()
        assert np.trapezoid(y, x) == pytest.approx(one.auc)
        assert line.get_label() == f"{name}  AUC {one.auc:.3f}"
        (line,) = (line for line in panel(fig, f"precision {name}").lines if line.get_gid() == f"precision {name}")
        np.testing.assert_array_equal(line.get_data()[1], one.curves.precision)


def test_nothing_leaves_the_figure() -> None:
    for fig in (build_scores_figure(objects(), channels(), runs()), build_scores_figure(objects(), [], None)):
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        box = fig.get_tightbbox(canvas.get_renderer())
        width, height = fig.get_size_inches()
        assert min(box.x0, box.y0) >= -0.01
        assert box.x1 <= width + 0.01
        assert box.y1 <= height + 0.01


def test_without_any_error_and_without_anything(tmp_path: Path) -> None:
    none = ObjectBits(np.array([4], np.uint64), np.array([10]), np.zeros(1), np.zeros(1))
    scores_figure(none, [], None, tmp_path / "a.png", dpi=80)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DistillError, match="found neither objects, skeletons nor channels"):
        build_scores_figure(None, [], None)
