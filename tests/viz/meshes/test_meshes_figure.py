"""The figure of neurons in 3D: the order of panels, in which colour, at which scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from distill.core.errors import DistillError
from viz.meshes.figure import DrawnObject, Neuron, build_meshes_figure, meshes_figure
from viz.meshes.raster import Solid, View, surface

BLUE, GREEN, RED, GREY = (0.0, 114.0, 178.0), (0.0, 158.0, 115.0), (213.0, 94.0, 0.0), (140.0, 140.0, 140.0)


def part(label: str, colour: tuple[float, float, float], x: tuple[int, int], hatched: bool = False) -> DrawnObject:
    """A bar of cells of 30 x 10 x 10 nm along x."""
    share = np.zeros((8, 60, 100), np.float32)
    share[2:6, 20:40, slice(*x)] = 1
    solid = Solid(surface(share, (30, 10, 10)), colour, hatched)
    return DrawnObject(label, colour, solid, hatched)


NEURON = Neuron(
    "Neuron 7",
    part("object 7: 1,000 voxels", BLUE, (5, 75)),
    (
        part("segment 1: 60.0 %", GREEN, (5, 45)),
        part("segment 2: 40.0 %", BLUE, (45, 75)),
        DrawnObject("3 more segments: 0.1 %", GREY, None),
        part("merged: 90 voxels of object 8", RED, (75, 95), hatched=True),
    ),
    ((0.0, 0.0, 0.0), (240.0, 600.0, 1000.0)),
)


def named(ax: Axes, gid: str) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_gid() == gid]


def test_truth_prediction_and_legend_stand_side_by_side() -> None:
    fig = build_meshes_figure([NEURON, NEURON])
    assert len(fig.axes) == 6
    assert [named(ax, "letter") for ax in fig.axes] == [["a"], ["b"], [], ["c"], ["d"], []]
    assert [named(ax, "title")[0] for ax in fig.axes[:3]] == ["Ground truth", "Prediction", "Neuron 7"]
    legend = fig.axes[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "object 7: 1,000 voxels",
        "1  segment 1: 60.0 %",
        "2  segment 2: 40.0 %",
        "3  3 more segments: 0.1 %",
        "4  merged: 90 voxels of object 8",
    ]
    expected = [BLUE, GREEN, BLUE, GREY, RED]
    assert np.allclose([to_rgb(p.get_facecolor()) for p in legend.get_patches()], np.array(expected) / 255)
    assert [bool(p.get_hatch()) for p in legend.get_patches()] == [False, False, False, False, True]


def test_pieces_have_their_colours_and_numbers_in_place() -> None:
    view = View(tilt=0, turn=0)
    fig = build_meshes_figure([NEURON], view)
    truth, prediction = (np.asarray(ax.images[0].get_array()).astype(float) for ax in fig.axes[:2])
    scale = 640 / (1.04 * 1000)
    middle = truth.shape[0] // 2

    def hue(image: np.ndarray, nm: float) -> np.ndarray:
        patch = image[middle - 8 : middle + 8, round(320 + (nm - 500) * scale) - 8 :][:, :16].reshape(-1, 3)
        value = patch[patch.sum(axis=1).argmax()]  # the brightest: between the stripes of a hatching
        return (value - value.min()) / np.ptp(value)

    for image, nm, colour in (
        (truth, 250, BLUE),
        (truth, 600, BLUE),
        (prediction, 250, GREEN),
        (prediction, 600, BLUE),
        (prediction, 850, RED),
    ):
        assert np.allclose(hue(image, nm), (np.array(colour) - min(colour)) / np.ptp(colour), atol=0.06)
    assert (truth[middle, round(320 + 350 * scale)] == 255).all()  # nothing is merged to the truth
    numbers = {t.get_text(): t.get_position()[0] for t in fig.axes[1].texts if str(t.get_gid()).startswith("number")}
    assert set(numbers) == {"1", "2", "4"}  # the third has nothing left to draw
    for name, low, high in (("1", 50, 450), ("2", 450, 750), ("4", 750, 950)):
        assert low < (numbers[name] - 320) / scale + 500 < high
    assert not [t for t in fig.axes[0].texts if str(t.get_gid()).startswith("number")]


def test_scale_bars_are_exact_and_dark() -> None:
    for ax in build_meshes_figure([NEURON], View(tilt=0, turn=0)).axes[:2]:
        bar = next(p for p in ax.patches if isinstance(p, Rectangle) and p.get_gid() == "scale bar")
        assert bar.get_width() == pytest.approx(200 / (1.04 * 1000 / 640))
        assert to_rgb(bar.get_facecolor()) == (0, 0, 0)
        assert "200 nm" in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("view", [View(), View(0, 0), View(30, -60), View(90, 0)])
def test_arrows_point_along_the_axes(view: View) -> None:
    ax = build_meshes_figure([NEURON], view).axes[0]
    arrows = {t.get_gid(): t for t in ax.texts if str(t.get_gid()).startswith("axis")}
    for k, name in enumerate("zyx"):
        along = view.axes[:2, k]
        if np.hypot(*along) < 0.1:
            assert f"axis {name}" not in arrows
            continue
        arrow = arrows[f"axis {name}"]
        shaft = np.array(arrow.xy) - np.array(arrow.get_position())  # y grows downwards
        assert np.allclose(shaft / np.hypot(*shaft), along / np.hypot(*along), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_texts_stay_inside(texts_inside: Callable[..., None], count: int) -> None:
    fig = build_meshes_figure([NEURON] * count)
    assert fig.get_size_inches()[0] <= 180 / 25.4 + 0.01
    texts_inside(fig, ("title", "letter"))


def test_files_are_written_and_no_neuron_is_refused(tmp_path: Path) -> None:
    meshes_figure([NEURON], tmp_path / "neuron.svg", dpi=100)
    meshes_figure([NEURON], tmp_path / "neuron.pdf", dpi=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["neuron.pdf", "neuron.svg"]
    with pytest.raises(DistillError, match="found no neuron"):
        build_meshes_figure([])
