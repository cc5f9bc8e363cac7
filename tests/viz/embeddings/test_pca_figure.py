"""The structure of the embedding figure: panels, labels, insets, a scale bar that is right to a pixel; no display."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from distill.core.errors import DistillError
from distill.evaluation.seams.border import seam_profile, seam_score
from viz.embeddings.draw import Panel, build_pca_figure, pca_figure
from viz.embeddings.insets import Inset, zooms

RNG = np.random.default_rng(0)
RAW = RNG.integers(40, 200, (96, 96), dtype=np.uint8)
PANELS = [
    Panel(
        title, RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8), f"PC1–3: {n} + 20 + 9 % of variance inside neurites"
    )
    for title, n in (("Teacher, 48 x 48 windows, side by side", 50), ("Student, whole section", 40))
]
WINDOWS = [48], [32, 64]
EMBEDDING = RNG.normal(size=(3, 96, 96))
PROFILE = [
    (name, seam_profile(EMBEDDING, *WINDOWS), seam_score(EMBEDDING, *WINDOWS, segment=16))
    for name in ("Teacher", "Student")
]
INSETS = [Inset((10, 34), (20, 44)), Inset((60, 90), (50, 70))]

GOLDEN = """\
a Section | 6 nm per pixel; ticks: window borders | bar outline 1 outline 2
b Teacher, 48 x 48 windows, side by side | PC1–3: 50 + 20 + 9 % of variance inside neurites | outline 1 outline 2
c Student, whole section | PC1–3: 40 + 20 + 9 % of variance inside neurites | outline 1 outline 2
inset 0 1 | bar
inset 0 2 | bar
inset 1 1
inset 1 2
inset 2 1
inset 2 2
d Change across window borders, inside neurites | Distance to nearest window border (pixels) | Embedding change (L2)
"""


def text_of(ax: Axes, gid: str) -> str:
    return next(t.get_text() for t in ax.texts if t.get_gid() == gid).replace("\n", " ")


def bar_of(ax: Axes) -> Rectangle:
    return next(patch for patch in ax.patches if patch.get_gid() == "scale bar")


def structure(fig: Figure, panels: int) -> str:
    """One line for each axes: letter, title, note, what is drawn on it."""
    lines = []
    for ax in fig.axes:
        drawn = [str(p.get_gid()).replace("scale bar", "bar") for p in ax.patches if p.get_gid()]
        drawn.sort(key=lambda gid: gid != "bar")
        if len(lines) < panels:
            parts = [" ".join(text_of(ax, gid) for gid in ("letter", "title")), text_of(ax, "note"), " ".join(drawn)]
        elif ax.images:
            parts = [str(ax.get_gid()), *drawn]
        else:
            parts = [" ".join(t.get_text() for t in fig.texts), ax.get_xlabel(), ax.get_ylabel()]
        lines.append(" | ".join(part for part in parts if part) + "\n")
    return "".join(lines)


def picture(fig: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def box_of(fig: Figure, ax: Axes) -> tuple[int, int, int, int]:
    """Device pixels of an axes: top, bottom, left, right."""
    box = ax.get_window_extent()
    assert all(abs(v - round(v)) < 0.1 for v in (box.x0, box.x1, box.y0, box.y1))
    return *(round(fig.bbox.height - v) for v in (box.y1, box.y0)), round(box.x0), round(box.x1)


def test_structure_is_as_agreed() -> None:
    fig = build_pca_figure(RAW, PANELS, (6, 6), WINDOWS, PROFILE, insets=INSETS, region="inside neurites")
    assert structure(fig, 3) == GOLDEN


def test_plain_figure_has_neither_insets_nor_region_nor_lines() -> None:
    fig = build_pca_figure(RAW, PANELS, (6, 6), WINDOWS, PROFILE)
    assert len(fig.axes) == 4
    assert [t.get_text() for t in fig.texts] == ["d"]
    assert not any(line.get_gid() for ax in fig.axes for line in ax.lines)


@pytest.mark.parametrize("resolution", [4.6, 6.0, 9.3])
@pytest.mark.parametrize("size", [96, 300, 1024])
def test_drawn_scale_bar_is_right_to_a_pixel(resolution: float, size: int) -> None:
    raw = np.full((size, size), 128, np.uint8)
    fig = build_pca_figure(raw, [Panel("Student", np.zeros((size, size, 3), np.uint8))], (resolution, resolution))
    bar, ax = bar_of(fig.axes[0]), fig.axes[0]
    text = next(t.get_text() for t in ax.texts if t.get_text().endswith("m"))
    nm = float(text.split()[0]) * (1000 if "µm" in text else 1)
    top, bottom, left, right = box_of(fig, ax)
    middle = int((bar.get_y() + bar.get_height() / 2 + 0.5) / size * (bottom - top))
    row = picture(fig)[top + middle, left:right, 0].astype(int)
    white, black = np.flatnonzero(row > 190), np.flatnonzero(row < 90)
    assert white[-1] - white[0] + 1 == len(white), "one piece"
    # The bar ends in the middle of its dark outline.
    outer, inner = black[-1] - black[0] + 1, len(white)
    assert (outer + inner) / 2 == pytest.approx(nm / resolution * (right - left) / size, abs=1)
    assert (black[-1] + white[-1] + 2) / 2 == pytest.approx(0.96 * (right - left), abs=1)


def test_insets_are_drawn_at_a_whole_zoom_and_unblurred() -> None:
    fig = build_pca_figure(RAW, PANELS, (6, 6), insets=INSETS)
    shown = picture(fig)
    for p, image in ((1, PANELS[0].rgb), (2, PANELS[1].rgb)):
        for k, inset in enumerate(INSETS):
            ax = next(a for a in fig.axes if a.get_gid() == f"inset {p} {k + 1}")
            top, bottom, left, right = box_of(fig, ax)
            cut = image[inset.y[0] : inset.y[1], inset.x[0] : inset.x[1]]
            zoom = (right - left) // cut.shape[1]
            assert zoom >= 5
            expected = np.kron(cut, np.ones((zoom, zoom, 1), np.uint8))
            assert np.array_equal(shown[top:bottom, left:right], expected)


def test_insets_lie_below_their_panel_inside_the_page_and_apart() -> None:
    four = [Inset((y, y + 20), (x, x + 30)) for y in (5, 60) for x in (5, 60)]
    for insets in (four[:1], four[:2], four[:3], four):
        fig = build_pca_figure(RAW, PANELS, (6, 6), WINDOWS, PROFILE, insets=insets)
        boxes = [a.get_window_extent() for a in fig.axes if (a.get_gid() or "").startswith("inset")]
        assert len(boxes) == 3 * len(insets)
        for k, box in enumerate(boxes):
            panel = fig.axes[k // len(insets)].get_window_extent()
            assert panel.x0 - 1 <= box.x0 < box.x1 <= panel.x1 + 1
            assert fig.axes[-1].get_window_extent().y1 < box.y0 < box.y1 < panel.y0
            assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_outline_encloses_exactly_the_pixels_of_the_inset() -> None:
    ax = build_pca_figure(RAW, PANELS, (6, 6), insets=INSETS).axes[1]
    outline = next(p for p in ax.patches if p.get_gid() == "outline 2")
    assert (outline.get_x(), outline.get_y()) == (49.5, 59.5)
    assert (outline.get_width(), outline.get_height()) == (20, 30)


@pytest.mark.parametrize(
    ("size", "room", "resolution", "expected"),
    [
        ((50, 50), 340, (6, 6), (6, 6)),
        ((50, 50), 340, (12, 6), (6, 3)),
        ((80, 20), 340, (6, 6), (4, 4)),
        ((64, 64), 340, (8, 6), (5, 4)),
        ((340, 340), 340, (6, 6), (1, 1)),
    ],
)
def test_zoom(size: tuple[int, int], room: int, resolution: tuple[float, float], expected: tuple[int, int]) -> None:
    assert zooms(Inset((0, size[0]), (0, size[1])), room, resolution) == expected


def test_grid_lines_lie_between_the_pixels_of_the_borders() -> None:
    fig = build_pca_figure(RAW, PANELS, (6, 6), WINDOWS, grid=True)
    for ax in fig.axes:
        lines = [line for line in ax.lines if line.get_gid() == "window border"]
        assert [line.get_ydata()[0] for line in lines[:1]] == [47.5]
        assert [line.get_xdata()[0] for line in lines[1:]] == [31.5, 63.5]
        assert ax.get_xlim() == (-0.5, 95.5)
        assert ax.get_ylim() == (95.5, -0.5)


def test_wrong_insets_are_refused() -> None:
    for text in ("1:2", "1:2,3", "5:5,0:4", "9:4,0:4", "a:b,c:d", "-1:4,0:4"):
        with pytest.raises(DistillError, match="Y0:Y1,X0:X1"):
            Inset.parse(text)
    assert Inset.parse("10:34,20:44") == INSETS[0]
    with pytest.raises(DistillError, match=r"rows 90:97.*96 x 96"):
        build_pca_figure(RAW, PANELS, (6, 6), insets=[Inset((90, 97), (0, 5))])
    with pytest.raises(DistillError, match="found 5 of them, expected 4"):
        build_pca_figure(RAW, PANELS, (6, 6), insets=INSETS[:1] * 5)
    large = np.zeros((900, 900), np.uint8)
    with pytest.raises(DistillError, match="900 x 900 pixels, more than"):
        build_pca_figure(large, [], (6, 6), insets=[Inset((0, 900), (0, 900))])


def test_every_format_is_written(tmp_path: Path) -> None:
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        out = tmp_path / f"figure{suffix}"
        pca_figure(RAW, PANELS, (6, 6), WINDOWS, PROFILE, out, 150, INSETS, True, "inside neurites")
        assert out.read_bytes().startswith(start)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert image.width <= 180 / 25.4 * 150 + 1
    svg = (tmp_path / "figure.svg").read_text()
    assert 'id="outline 1"' in svg
    assert svg.count("<image") == 3 + 6


def test_no_display_and_no_network(tmp_path: Path) -> None:
    """In a process of its own: no pyplot, no socket, no DISPLAY."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket = socket.create_connection = refuse\n"
        "from pathlib import Path\nimport numpy as np\nfrom viz.embeddings.draw import Panel, pca_figure\n"
        "raw = np.zeros((32, 32), np.uint8)\n"
        f"panel, out = Panel('a', np.zeros((32, 32, 3), np.uint8)), Path({str(tmp_path)!r}) / 'a.png'\n"
        "pca_figure(raw, [panel], (6, 6), None, [], out)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND", "WAYLAND_DISPLAY")}
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "a.png").exists()
