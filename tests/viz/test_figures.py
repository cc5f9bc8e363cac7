"""The structure of the figures, and the files they are written to."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from distill.core.errors import DistillError
from distill.evaluation.seams.border import seam_profile, seam_score
from viz.curves import build_curves_figure, curves_figure
from viz.embeddings.draw import Panel, build_pca_figure, pca_figure
from viz.section import build_section_figure, section_figure
from viz.style import save_figure, scale_bar

RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
EMBEDDING = RNG.normal(size=(3, 64, 64))
PANELS = [
    Panel(
        "Teacher, sliding window", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "PC1–3: 50 + 20 + 9 % of variance"
    ),
    Panel("Student, whole section", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
]
PROFILE = [
    (name, seam_profile(EMBEDDING, [32], [32]), seam_score(EMBEDDING, [32], [32], segment=8))
    for name in ("Teacher", "Student")
]
ROWS = [{"step": s, "loss_affinity": 1.0 / (s + 1), "loss_distill": 2.0, "lr": 1e-4} for s in range(0, 100, 10)]
ROWS += [{"step": s, "student_voi": 3.0 - s / 100} for s in range(0, 100, 50)]


def by_gid(ax: Axes, gid: str) -> str:
    return next(t.get_text() for t in ax.texts if t.get_gid() == gid)


def bar_of(ax: Axes) -> Rectangle:
    return next(patch for patch in ax.patches if patch.get_gid() == "scale bar")


def assert_texts_apart_and_inside(fig: Figure) -> None:
    """No text leaves the figure, and no two of titles, letters, notes, labels, ticks and legends overlap."""
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.canvas.draw()
    texts = list(fig.texts)
    for ax in fig.axes:
        texts += [*ax.texts, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        if ax.get_legend() is not None:
            texts += ax.get_legend().get_texts()
    boxes = [(t.get_text(), Text.get_window_extent(t, renderer)) for t in texts if t.get_text()]
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= fig.bbox.width + 1, text
        assert box.y1 <= fig.bbox.height + 1, text
    for (a, one), (b, two) in itertools.combinations(boxes, 2):
        apart = min(one.x1, two.x1) - max(one.x0, two.x0) <= 1 or min(one.y1, two.y1) - max(one.y0, two.y0) <= 1.5
        assert apart, (a, b)


def test_pca_figure_structure() -> None:
    fig = build_pca_figure(RAW, PANELS, (6, 6), ([32], [16, 48]), PROFILE)
    assert len(fig.axes) == 4
    titles = [by_gid(ax, "title").replace("\n", " ") for ax in fig.axes[:3]]
    assert titles == ["Section", "Teacher, sliding window", "Student, whole section"]
    assert [by_gid(ax, "letter") for ax in fig.axes[:3]] == ["a", "b", "c"]
    assert fig.texts[0].get_text() == "d"
    assert "50 + 20 + 9 %" in by_gid(fig.axes[1], "note")
    assert "6 nm per pixel" in by_gid(fig.axes[0], "note")
    for ax, image in zip(fig.axes, [RAW, *(p.rgb for p in PANELS)], strict=False):
        assert np.array_equal(ax.images[0].get_array(), image)
        assert ax.get_xticks().tolist() == [15.5, 47.5]
        assert ax.get_yticks().tolist() == [31.5]
    legend = [t.get_text() for t in fig.axes[3].get_legend().get_texts()]
    assert [text.splitlines()[0] for text in legend] == ["Teacher", "Student"]
    assert all(f"seam score {PROFILE[0][2].ratio:.2f}" in text for text in legend)
    assert "pixels" in fig.axes[3].get_xlabel()
    assert fig.axes[3].get_ylabel() == "Embedding change (L2)"
    assert np.array_equal(fig.axes[3].lines[0].get_ydata(), PROFILE[0][1].pooled)


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (500, 1200)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_pca_figure_fits_a_page_and_texts_keep_apart(shape: tuple[int, int], count: int) -> None:
    rgb = np.zeros((*shape, 3), np.uint8)
    panels = [Panel("Teacher embedding, three-dimensional, sliding window", rgb, PANELS[0].note)] * count
    fig = build_pca_figure(np.zeros(shape, np.uint8), panels, (8, 6), ([20], [20]), PROFILE)
    assert fig.get_size_inches()[0] <= 180 / 25.4 + 0.01
    assert_texts_apart_and_inside(fig)


def test_images_that_fit_are_shown_at_a_whole_zoom_and_unblurred() -> None:
    fig = build_pca_figure(RAW, PANELS, (6, 6))
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    box = fig.axes[1].get_window_extent()
    zoom = round(box.width) // 64
    assert zoom >= 5
    assert box.width == pytest.approx(64 * zoom, abs=0.1)
    left, top = round(box.x0), round(fig.bbox.height - box.y1)
    shown = np.asarray(canvas.buffer_rgba())[top : top + 64 * zoom, left : left + 64 * zoom, :3]
    assert np.array_equal(shown, np.kron(PANELS[0].rgb, np.ones((zoom, zoom, 1), np.uint8)))


def test_anisotropic_pixels_stretch_the_frame() -> None:
    ax = build_pca_figure(RAW, PANELS, (12, 6)).axes[0]
    box = ax.get_window_extent()
    assert box.height == pytest.approx(2 * box.width, abs=1)
    assert "y 12, x 6 nm" in by_gid(ax, "note")


@pytest.mark.parametrize(
    ("width", "resolution", "nm", "text"),
    [
        (1024, 6, 1000, "1 µm"),
        (256, 6, 200, "200 nm"),
        (512, 4, 500, "500 nm"),
        (2048, 6, 2000, "2 µm"),
        (64, 9, 100, "100 nm"),
    ],
)
def test_scale_bar_is_round_and_exact(width: int, resolution: float, nm: float, text: str) -> None:
    ax = build_pca_figure(np.zeros((40, width), np.uint8), [], (resolution, resolution)).axes[0]
    assert bar_of(ax).get_width() == pytest.approx(nm / resolution, rel=1e-12)
    assert text in [t.get_text() for t in ax.texts]


@given(st.floats(8, 1e5), st.floats(0.1, 1e4))
def test_scale_bar_is_about_a_fifth_and_stays_inside(width: float, resolution: float) -> None:
    ax = Figure().add_subplot()
    ax.set(xlim=(-0.5, width - 0.5), ylim=(width - 0.5, -0.5))
    nm = scale_bar(ax, width, resolution)
    bar = bar_of(ax)
    assert float(f"{nm:e}".split("e")[0]) in (1, 2, 5)
    assert 0.12 < bar.get_width() / width < 0.33
    assert -0.5 < bar.get_x() < bar.get_x() + bar.get_width() < width - 0.5


def test_section_figure_structure() -> None:
    labels = RNG.integers(0, 5, (64, 64))
    affinity = RNG.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    fig = build_section_figure(RAW, affinity, labels, labels, (6, 6))
    titles = [by_gid(ax, "title") for ax in fig.axes[:6]]
    assert titles == ["Section", "Segmentation", "Ground truth", "Affinity z", "Affinity y", "Affinity x"]
    assert len(fig.axes) == 7
    assert np.array_equal(fig.axes[1].images[0].get_array(), fig.axes[2].images[0].get_array())
    assert np.allclose(fig.axes[4].images[0].get_array(), affinity[1] / 255)
    assert fig.axes[4].images[0].get_clim() == (0, 1)
    assert "same neuron" in fig.axes[6].get_xlabel()
    assert_texts_apart_and_inside(fig)
    without = build_section_figure(RAW, affinity / 255, labels, None, (6, 6))
    assert len(without.axes) == 6
    assert bar_of(without.axes[0]).get_width() == pytest.approx(100 / 6)
    assert_texts_apart_and_inside(without)


def test_curves_figure_structure() -> None:
    fig = build_curves_figure(ROWS)
    left, right = fig.axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["loss affinity", "loss distill"]
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["student voi"]
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")
    assert left.get_xlabel() == "Training step"
    assert right.get_ylabel() == "Validation VOI (bits)"
    assert right.lines[0].get_xydata().tolist() == [[0, 3.0], [50, 2.5]]
    assert_texts_apart_and_inside(fig)


def test_curves_leave_out_what_is_not_finite() -> None:
    fig = build_curves_figure([{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 0.0}, {"step": 2, "loss": None}])
    assert len(fig.axes) == 1
    assert fig.axes[0].lines[0].get_xydata().tolist() == [[1, 0]]
    assert fig.axes[0].get_yscale() == "linear"


def test_written_png_has_size_and_dpi_of_the_layout(tmp_path: Path) -> None:
    out = tmp_path / "figure.png"
    pca_figure(RAW, PANELS, (6, 6), ([32], [32]), PROFILE, out, dpi=150)
    fig = build_pca_figure(RAW, PANELS, (6, 6), ([32], [32]), PROFILE, dpi=150)
    with Image.open(out) as image:
        assert image.size == tuple(int(v) for v in fig.bbox.size)
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_every_format_is_written_the_same_twice(tmp_path: Path, suffix: str, start: bytes) -> None:
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    curves_figure(ROWS, one)
    curves_figure(ROWS, two)
    assert one.read_bytes().startswith(start)
    assert one.read_bytes() == two.read_bytes()


def test_section_figure_is_written(tmp_path: Path) -> None:
    section_figure(RAW, np.zeros((3, 64, 64)), np.zeros((64, 64), np.uint64), None, (6, 6), tmp_path / "s.png", dpi=100)
    with Image.open(tmp_path / "s.png") as image:
        assert np.asarray(image).std() > 0


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    fig = build_curves_figure(ROWS)
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(DistillError, match=r"\.bmp.*expected one of"):
        save_figure(fig, tmp_path / "figure.bmp")
    for place in ("missing/a.png", "file/a.png", "taken.png"):
        with pytest.raises(DistillError, match="cannot be written"):
            save_figure(fig, tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]


def test_bad_input_is_refused() -> None:
    with pytest.raises(DistillError, match="Student, whole section"):
        build_pca_figure(RAW[:10], [Panel("Student, whole section", PANELS[1].rgb)], (6, 6))
    with pytest.raises(DistillError, match="uint8"):
        build_pca_figure(RAW.astype(float), [], (6, 6))
    with pytest.raises(DistillError, match="raw"):
        build_pca_figure(PANELS[0].rgb, [], (6, 6))
    with pytest.raises(DistillError, match="resolution"):
        build_pca_figure(RAW, PANELS, (0, 6))
    with pytest.raises(DistillError, match="affinity"):
        build_section_figure(RAW, np.zeros((2, 64, 64)), RAW, None, (6, 6))
    with pytest.raises(DistillError, match="scale_bar"):
        scale_bar(Figure().add_subplot(), 10, 0)
    with pytest.raises(DistillError, match="step"):
        build_curves_figure([{"loss": 1.0}])
    with pytest.raises(DistillError, match="no finite"):
        build_curves_figure([])
