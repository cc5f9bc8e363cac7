"""Figure of neurons in 3D, ground truth next to prediction, with split and merged parts in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres
from viz.errors.figure import BADGE
from viz.meshes.raster import Rendering, Solid, View, draw_solids, fitting_height
from viz.style import STYLE, image_grid, save_figure, scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 640  # pixels of a drawing
_SEEN = 4  # minimum distance in pixels from a number to the rim of its solid
_VIEW = View()


@dataclass(frozen=True)
class DrawnObject:
    """A solid, or None if nothing is left to draw, and its line in the legend."""

    label: str
    colour: tuple[float, float, float]
    solid: Solid | None
    hatched: bool = False


@dataclass(frozen=True)
class Neuron:
    """A row of the figure.

    Attributes:
        title: above the legend.
        truth: the neuron.
        prediction: its fragments, and other objects merged with it.
        frame: first and last corner z, y, x in nm of the bounding box.
    """

    title: str
    truth: DrawnObject
    prediction: tuple[DrawnObject, ...]
    frame: tuple[Nanometres, Nanometres]


def meshes_figure(neurons: Sequence[Neuron], out: Path, view: View = _VIEW, dpi: int = 300) -> None:
    """Write the figure of `build_meshes_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_meshes_figure`, or an `out` that cannot be written.
    """
    save_figure(build_meshes_figure(neurons, view, dpi), out)


def build_meshes_figure(neurons: Sequence[Neuron], view: View = _VIEW, dpi: int = 300) -> Figure:
    """Draw one row per neuron: ground truth, prediction, legend; orthographic, each row at its own scale.

    Args:
        neurons: rows of the figure.
        view: direction of view.
        dpi: device pixels per inch of the layout.

    Returns:
        Figure with three axes per neuron. The drawings have a scale bar in the plane of the screen and arrows along the
        axes with the gid `axis z`, `axis y` and `axis x`.

    Raises:
        DistillError: there is no neuron, or a box has no extent.
    """
    from matplotlib import rc_context

    if not neurons:
        raise DistillError("meshes: found no neuron, expected one at least")
    tall = max(min(_WIDTH, fitting_height(one.frame, _WIDTH, view)) for one in neurons)
    with rc_context(STYLE):
        titles = [title for one in neurons for title in ("Ground truth", "Prediction", one.title)]
        fig, axes = image_grid(titles, [""] * len(titles), (tall, _WIDTH), (1, 1), columns=3, dpi=dpi, below=0)
        for row, one in enumerate(neurons):
            truth, prediction, legend = axes[3 * row : 3 * row + 3]
            for k, (ax, parts) in enumerate(((truth, (one.truth,)), (prediction, one.prediction))):
                drawn = [number for number, part in enumerate(parts) if part.solid]
                drawing = draw_solids([p.solid for p in parts if p.solid], one.frame, (tall, _WIDTH), view)
                show(ax, drawing.rgb, (1, 1))
                if k:
                    _numbers(ax, drawing, drawn)
                _letter(ax, chr(ord("a") + 2 * row + k))
                _dark_scale_bar(ax, drawing)
                _arrows(ax, view)
            _legend(legend, (one.truth, *one.prediction))
    return fig


def _letter(ax: Axes, letter: str) -> None:
    next(text for text in ax.texts if text.get_gid() == "letter").set_text(letter)


def _numbers(ax: Axes, drawing: Rendering, numbers: Sequence[int]) -> None:
    """Number each solid as in the legend, in the middle of its largest visible part."""
    for k, number in enumerate(numbers):
        depth = ndimage.distance_transform_edt(np.pad(drawing.shown == k, 1))[1:-1, 1:-1]
        if depth.max() >= _SEEN:
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            text = ax.text(float(x), float(y), str(number + 1), fontsize=5, ha="center", va="center", bbox=BADGE)
            text.set_gid(f"number {number + 1}")


def _dark_scale_bar(ax: Axes, drawing: Rendering) -> None:
    """Draw the scale bar of the other figures in black on white."""
    scale_bar(ax, drawing.rgb.shape[1], drawing.nm_per_pixel)
    ax.patches[-1].set(facecolor="black", linewidth=0)
    ax.texts[-1].set(color="black", path_effects=[])


def _arrows(ax: Axes, view: View) -> None:
    """Draw unit vectors z, y, x from the lower left corner, as seen in this view."""
    low, _ = sorted(ax.get_ylim())
    tall = abs(ax.get_ylim()[1] - ax.get_ylim()[0])
    length = 0.12 * _WIDTH
    start = np.array([0.05 * _WIDTH, low + tall - 1.1 * length])
    for k, name in enumerate("zyx"):
        along = view.axes[:2, k]
        if np.hypot(*along) < 0.1:
            continue  # the axis points into the screen
        (x, y), unit = start + length * along, along / np.hypot(*along)
        head = {"arrowstyle": "-|>,head_length=0.25,head_width=0.12", "lw": 0.6}
        ax.annotate("", (x, y), (start[0], start[1]), arrowprops=head).set_gid(f"axis {name}")
        beyond = 0.025 * _WIDTH * unit
        ax.text(x + beyond[0], y + beyond[1], name, fontsize=6, ha="center", va="center")


def _legend(ax: Axes, parts: Sequence[DrawnObject]) -> None:
    from matplotlib.patches import Patch

    next(text for text in ax.texts if text.get_gid() == "letter").remove()
    ax.set_axis_off()
    handles = [
        Patch(
            facecolor=tuple(value / 255 for value in part.colour),
            edgecolor="black" if part.hatched else "none",
            linewidth=0.4,
            hatch="//////" if part.hatched else None,
            label=f"{number}  {part.label}" if number else part.label,
        )
        for number, part in enumerate(parts)
    ]
    ax.legend(handles=handles, loc="upper left", frameon=False, fontsize=6, borderaxespad=0, handlelength=1.4)
