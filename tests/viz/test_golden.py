"""Every figure against a kept image and a kept list of its parts; without a display, without a network.

`DISTILL_GOLDEN=write pytest tests/viz/test_golden.py` keeps what the code draws now; look at it before you commit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_scenes import DPI, SCENES
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"
_GREY = 24  # levels that the pixels of a block may differ by in the mean; another rasteriser's edges stay below
_BLOCK = 4  # pixels


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest) -> tuple[str, Figure, float | None]:
    build, nm = SCENES[request.param]
    return request.param, build(), nm


def picture(fig: Figure) -> np.ndarray:
    """(H, W) grey values as it is written."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).convert("L"))


def differs(one: np.ndarray, other: np.ndarray) -> bool:
    """Another size, or a block of pixels that looks different."""
    if one.shape != other.shape:
        return True
    height, width = (n // _BLOCK for n in one.shape)
    apart = np.abs(one.astype(float) - other)[: height * _BLOCK, : width * _BLOCK]
    return bool(apart.reshape(height, _BLOCK, width, _BLOCK).mean(axis=(1, 3)).max() > _GREY)


def parts(fig: Figure) -> list[dict[str, Any]]:
    """What is where, axes by axes: frame in device pixels, texts, legend, what is drawn; last the figure's own."""
    FigureCanvasAgg(fig).draw()
    found = []
    for ax in fig.axes:
        box, legend = ax.get_window_extent(), ax.get_legend()
        found.append(
            {
                "frame": [round(v, 1) for v in (box.x0, box.y0, box.width, box.height)],
                "texts": [f"{t.get_gid() or 'text'}: {t.get_text()}" for t in ax.texts],
                "labels": [ax.get_xlabel(), ax.get_ylabel()],
                "legend": [t.get_text() for t in legend.get_texts()] if legend else [],
                "images": [list(np.shape(image.get_array())) for image in ax.images],
                "drawn": sorted(str(a.get_gid()) for a in (*ax.patches, *ax.lines) if a.get_gid()),
            }
        )
    legends = [t.get_text() for legend in fig.legends for t in legend.get_texts()]
    return [
        *found,
        {"frame": [0, 0, *fig.bbox.size.round(1)], "texts": [t.get_text() for t in fig.texts], "legend": legends},
    ]


def test_looks_as_kept(scene: tuple[str, Figure, float | None]) -> None:
    name, fig, _ = scene
    found, listed = picture(fig), parts(fig)
    if os.environ.get("DISTILL_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        Image.fromarray(found).save(GOLDEN / f"{name}.png", optimize=True)
        (GOLDEN / f"{name}.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert len(listed) == len(kept)
    for one, other in zip(listed, kept, strict=True):
        assert {k: v for k, v in one.items() if k != "frame"} == {k: v for k, v in other.items() if k != "frame"}
        np.testing.assert_allclose(one["frame"], other["frame"], atol=1)
    assert not differs(found, np.asarray(Image.open(GOLDEN / f"{name}.png")))


def bars(fig: Figure) -> Iterator[tuple[Axes, Rectangle]]:
    for ax in fig.axes:
        for patch in ax.patches:
            if patch.get_gid() == "scale bar":
                assert isinstance(patch, Rectangle)
                yield ax, patch


def length_of(ax: Axes) -> float:
    """What the scale bar's label says, in nm."""
    (found,) = (m for t in ax.texts if (m := re.fullmatch(r"([\d.]+) (nm|µm)", t.get_text())))
    return float(found[1]) * (1000 if found[2] == "µm" else 1)


def drawn_length(fig: Figure, ax: Axes, bar: Rectangle) -> float:
    """Device pixels along the middle of the bar, in the picture: where it changes when the bar goes."""
    with_bar = picture(fig).astype(int)
    bar.set_visible(False)
    without = picture(fig).astype(int)
    bar.set_visible(True)
    x, y = ax.transData.transform((bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2))
    row = np.abs(with_bar - without)[int(fig.bbox.height - y)]
    changed = np.flatnonzero(row > 40)
    assert changed[0] < x < changed[-1]
    return float(changed[-1] - changed[0] + 1)


def test_scale_bars_are_right_to_a_pixel(scene: tuple[str, Figure, float | None]) -> None:
    _, fig, nm = scene
    found = list(bars(fig))
    assert bool(found) == (nm is not None)
    for ax, bar in found:
        assert nm is not None
        low, high = ax.get_xlim()
        zoom = ax.get_window_extent().width / (high - low)  # device pixels a voxel
        outline = bar.get_linewidth() * DPI / 72  # half of it on either side
        assert drawn_length(fig, ax, bar) == pytest.approx(length_of(ax) / nm * zoom + outline, abs=1)


def test_every_image_has_a_title_and_a_letter(scene: tuple[str, Figure, float | None]) -> None:
    _, fig, _ = scene
    named = [ax for ax in fig.axes if ax.images and not (ax.get_gid() or "").startswith("inset")]
    for ax in [ax for ax in named if ax.get_label() != "<colorbar>"]:
        said = {t.get_gid(): t.get_text() for t in ax.texts}
        assert said["title"]
        assert re.fullmatch("[a-z]", said["letter"])


def _without_bar(fig: Figure) -> None:
    next(bars(fig))[1].remove()


def _longer_bar(fig: Figure) -> None:
    _, bar = next(bars(fig))
    bar.set_x(bar.get_x() - bar.get_width() / 2)
    bar.set_width(1.5 * bar.get_width())


def _swapped_panels(fig: Figure) -> None:
    one, other = (ax.images[0] for ax in fig.axes[1:3])
    data = one.get_array(), other.get_array()
    one.set_data(data[1])
    other.set_data(data[0])


def _moved_panel(fig: Figure) -> None:
    box = fig.axes[1].get_position()
    fig.axes[1].set_position((box.x0 + 0.02, box.y0, box.width, box.height))


def _other_title(fig: Figure) -> None:
    next(t for t in fig.axes[0].texts if t.get_gid() == "title").set_text("Another")


@pytest.mark.parametrize("fault", [_without_bar, _longer_bar, _swapped_panels, _moved_panel, _other_title])
def test_faults_are_seen(fault: Callable[[Figure], None]) -> None:
    fig = SCENES["section"][0]()
    fault(fig)
    assert differs(picture(fig), np.asarray(Image.open(GOLDEN / "section.png")))


def test_no_text_leaves_a_figure(scene: tuple[str, Figure, float | None], texts_inside: Callable[..., None]) -> None:
    texts_inside(scene[1])
    assert scene[1].findobj(Text)


def test_no_display_and_no_network() -> None:
    """In a process of its own: no socket, no pyplot, no window system."""
    code = (
        "import socket, ssl, sys\n"  # ssl derives a class from the socket
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket = socket.create_connection = refuse\n"
        "from matplotlib.backends.backend_agg import FigureCanvasAgg\nfrom golden_scenes import SCENES\n"
        "for build, _ in SCENES.values(): FigureCanvasAgg(build()).draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND", "WAYLAND_DISPLAY")}
    here = Path(__file__).resolve().parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1])])
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
