"""The error figure shows planted errors at their places, in their colours, and names the objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.evaluation.contingency import Contingency
from distill.evaluation.metrics import ObjectError, worst_objects
from distill.evaluation.partners import MERGE, SPLIT, Partners, main_partners
from viz.errors.figure import COLOUR_OF, WrongObject, build_errors_figure, errors_figure
from viz.style import label_colours, outlined, overlay

RAW = np.random.default_rng(0).integers(60, 200, (128, 128), dtype=np.uint8)


def planted() -> tuple[np.ndarray, np.ndarray, Partners, list[WrongObject]]:
    """Nine squares of ground truth; a corner of one is split off, one is swallowed by its neighbour."""
    labels = np.zeros((128, 128), np.uint64)
    for k in range(9):
        y, x = 4 + 41 * (k // 3), 4 + 41 * (k % 3)
        labels[y : y + 38, x : x + 38] = k + 1
    segmentation = np.where(labels > 0, labels + np.uint64(100), np.uint64(0))
    segmentation[4:20, 4:14] = 150  # split: a part of object 1
    segmentation[labels == 6] = 105  # merge: object 6 into the segment of 5
    segmentation[10:14, 50:65] = 0  # background within object 2: split, and segment 0 holds nothing else
    table = Contingency()
    table.add(segmentation, labels)
    worst = worst_objects(table)
    split = next(o for o in worst.split if o.id == 1)
    merged = next(o for o in worst.merged if o.id == 105)
    box = Box((0, 0, 0), (1, 9, 9))
    objects = [WrongObject("merge", merged, 0.1, box, 6, box), WrongObject("split", split, 0.05, box, 150, box)]
    return labels, segmentation, main_partners(table), objects


def build() -> Figure:
    labels, segmentation, who, objects = planted()
    return build_errors_figure(RAW, labels, segmentation, who, objects, (6, 6), title="Section 7")


def drawn(ax: Axes, gid: str) -> list[object]:
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def row_of(fig: Figure, number: int) -> list[str]:
    return [text.get_text() for text in fig.texts if text.get_gid() == f"row {number}"]


def test_planted_errors_have_their_colour_at_their_place_and_none_elsewhere() -> None:
    labels, segmentation, who, objects = planted()
    fig = build_errors_figure(RAW, labels, segmentation, who, objects, (6, 6))
    section, truth, found, wrong = (np.asarray(ax.images[0].get_array()) for ax in fig.axes)
    assert np.array_equal(section, RAW)
    assert np.array_equal(truth, outlined(overlay(RAW, labels), labels))
    assert np.array_equal(found, outlined(overlay(RAW, segmentation), segmentation))
    split = np.zeros((128, 128), bool)
    split[4:20, 4:14] = split[10:14, 50:65] = True
    for mask, code in ((split, SPLIT), (labels == 6, MERGE)):
        colour = 255 * np.array(to_rgb(COLOUR_OF[code]))
        assert np.abs(wrong[mask] - (0.8 * colour + 0.2 * RAW[mask][:, None])).max() <= 0.51
    right = ~split & (labels != 6)
    assert np.ptp(wrong[right].astype(int), axis=1).max() == 0  # grey
    assert wrong[right].min() > 180  # and pale


def test_errors_are_told_apart_in_grey() -> None:
    grey = sorted(float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in COLOUR_OF.values())
    assert np.diff(grey).min() > 0.15


def test_worst_objects_are_outlined_numbered_and_listed() -> None:
    labels, segmentation, _, _ = planted()
    fig = build()
    _, truth, found, wrong = fig.axes
    assert len(drawn(wrong, "outline 1")) == len(drawn(found, "outline 1")) == 2  # dark on light
    assert len(drawn(truth, "outline 2")) == len(drawn(wrong, "outline 2")) == 2
    assert not drawn(truth, "outline 1")
    assert not drawn(found, "outline 2")
    corners = np.concatenate([path.vertices for path in drawn(wrong, "outline 2")[0].get_paths()])
    assert corners.min(axis=0).tolist() == [3.5, 3.5]  # object 1 lies at 4:42 on both axes
    assert corners.max(axis=0).tolist() == [41.5, 41.5]
    for number, inside in ((1, labels == 6), (2, segmentation == 150)):
        (text,) = drawn(wrong, f"number {number}")
        assert len(drawn(found if number == 1 else truth, f"number {number}")) == 1
        assert isinstance(text, Text)
        x, y = text.get_position()
        assert text.get_text() == str(number)
        assert inside[round(y), round(x)]


def test_table_says_what_and_where() -> None:
    labels, segmentation, who, objects = planted()
    far = Box((64, 10, 20), (80, 110, 220))
    split = WrongObject("split", ObjectError(7, 0.12345, 99, 3), 0.01, far, 2**63, Box((70, 0, 1), (71, 2, 3)))
    fig = build_errors_figure(RAW, labels, segmentation, who, [split, *objects], (6, 6))
    first = ["1", "split", "", "object 7", "0.1235", "0.0100", "3", "64:80", "10:110", "20:220"]
    assert row_of(fig, 1) == [*first, f"segment {2**63}", "70:71", "0:2", "1:3"]
    assert row_of(fig, 2)[:4] == ["2", "merge", "", "segment 105"]
    assert row_of(fig, 2)[10] == "object 6"
    header = " ".join(text.get_text() for text in fig.texts if text.get_gid() == "header")
    for word in ("VOI (bits)", "voxels", "z", "y", "x"):
        assert word in header
    swatches = {p.get_gid(): p for p in fig.findobj(Rectangle) if str(p.get_gid()).startswith("swatch")}
    colours = [swatches[f"swatch {n}"].get_facecolor()[:3] for n in (1, 2, 3)]
    assert np.allclose(np.array(colours) * 255, label_colours([7, 105, 1]))


def test_legend_scale_bar_and_notes() -> None:
    fig = build()
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert [text.split(":")[0] for text in legend[:3]] == ["split", "merge", "split and merge"]
    assert [to_rgb(handle.get_facecolor()) for handle in fig.legends[0].get_patches()] == [
        to_rgb(COLOUR_OF[code]) for code in (SPLIT, MERGE, SPLIT | MERGE)
    ]
    bar = next(patch for patch in fig.axes[0].patches if patch.get_gid() == "scale bar")
    assert bar.get_width() == pytest.approx(200 / 6)
    note = next(text.get_text() for text in fig.axes[3].texts if text.get_gid() == "note").replace("\n", " ")
    counted = 9 * 38 * 38
    assert note.endswith(f"split {100 * 220 / counted:.1f} %, merge {100 * 38 * 38 / counted:.1f} %, both 0.0 %")
    titles = [next(t.get_text() for t in ax.texts if t.get_gid() == "title") for ax in fig.axes]
    assert titles == ["Section 7", "Ground truth", "Segmentation", "Errors"]


def test_scale_bar_is_exact_to_a_device_pixel() -> None:
    labels, segmentation, who, _ = planted()
    fig = build_errors_figure(np.full((128, 128), 90, np.uint8), labels, segmentation, who, [], (6, 6))
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    box = fig.axes[0].get_window_extent()
    shown = np.asarray(canvas.buffer_rgba())[..., :3]
    left, top = round(box.x0), round(fig.bbox.height - box.y1)
    frame = shown[top : top + round(box.height), left : left + round(box.width)]
    white = np.all(frame > 250, axis=-1).sum(axis=1)
    zoom = round(box.width) / 128
    assert white.max() == pytest.approx(200 / 6 * zoom, abs=3)  # less its black rim


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (40, 700)])
@pytest.mark.parametrize("count", [0, 2, 12])
def test_texts_stay_inside_and_apart(texts_inside: Callable[..., None], shape: tuple[int, int], count: int) -> None:
    labels, box = np.ones(shape, np.uint64), Box((10000, 10000, 10000), (20000, 20000, 20000))
    labels[: shape[0] // 2] = 2**64 - 2
    segmentation = np.ones(shape, np.uint64)
    table = Contingency()
    table.add(segmentation, labels)
    one = WrongObject("split", ObjectError(2**64 - 2, 1.0, 10, 123), 1.0, box, 2**63, box)
    fig = build_errors_figure(
        np.zeros(shape, np.uint8), labels, segmentation, main_partners(table), [one] * count, (6, 6)
    )
    assert fig.get_size_inches()[0] <= 180 / 25.4 + 0.01
    texts_inside(fig, ("header", "row", "note", "title", "letter"))
    assert len(row_of(fig, count)) == (14 if count else 0)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_every_format_is_written(tmp_path: Path, suffix: str, start: bytes) -> None:
    labels, segmentation, who, objects = planted()
    out = tmp_path / f"errors{suffix}"
    errors_figure(RAW, labels, segmentation, who, objects, (6, 6), out)
    assert out.read_bytes().startswith(start)
    if suffix == ".png":
        with Image.open(out) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_bad_input_is_refused() -> None:
    labels, segmentation, who, objects = planted()
    with pytest.raises(DistillError, match="raw: found"):
        build_errors_figure(RAW[:9], labels, segmentation, who, objects, (6, 6))
    with pytest.raises(DistillError, match="raw: found"):
        build_errors_figure(RAW.astype(float), labels, segmentation, who, objects, (6, 6))
    with pytest.raises(DistillError, match="segmentation: found"):
        build_errors_figure(RAW, labels, segmentation[:5], who, objects, (6, 6))
