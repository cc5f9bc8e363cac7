"""Insets: parts of a section, outlined on its panels and enlarged below at a whole number of device pixels per
voxel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from distill.core.errors import DistillError
from viz.style import scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 4  # maximum number of insets for a readable section
_ACROSS = 2  # insets side by side below one panel
_GAP = 0.05  # inches
_HEAD = 0.14  # inches above each row, for the numbers


@dataclass(frozen=True)
class Inset:
    """Rows and columns to enlarge, in voxels, half open."""

    y: tuple[int, int]
    x: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> Inset:
        """Parse an inset from `Y0:Y1,X0:X1`.

        Raises:
            DistillError: anything else, or a box without voxels.
        """
        found = re.fullmatch(r"\s*(\d+):(\d+),(\d+):(\d+)\s*", text)
        numbers = [int(v) for v in found.groups()] if found else []
        if not numbers or numbers[0] >= numbers[1] or numbers[2] >= numbers[3]:
            raise DistillError(f"--inset: found {text!r}, expected Y0:Y1,X0:X1 in pixels, such as 100:164,200:264")
        return cls((numbers[0], numbers[1]), (numbers[2], numbers[3]))

    @property
    def size(self) -> tuple[int, int]:
        """Return the number of rows and columns."""
        return self.y[1] - self.y[0], self.x[1] - self.x[0]

    def cut(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Crop an image (Y, X, ...) to the inset."""
        return image[self.y[0] : self.y[1], self.x[0] : self.x[1]]


def check_insets(insets: Sequence[Inset], shape: tuple[int, int]) -> None:
    """Check the number of insets and that all lie inside the section.

    Raises:
        DistillError: they do not.
    """
    if len(insets) > MOST:
        raise DistillError(f"--inset: found {len(insets)} of them, expected {MOST} at most")
    for inset in insets:
        inside = 0 <= inset.y[0] < inset.y[1] <= shape[0] and 0 <= inset.x[0] < inset.x[1] <= shape[1]
        if not inside:
            raise DistillError(
                f"--inset: found rows {inset.y[0]}:{inset.y[1]}, columns {inset.x[0]}:{inset.x[1]}; expected them "
                f"inside the section of {shape[0]} x {shape[1]} pixels"
            )


def zooms(inset: Inset, room: int, resolution: tuple[float, float]) -> tuple[int, int]:
    """Return device pixels per voxel in y and x: the largest whole numbers with which an inset fits into a square of
    `room`.

    Their ratio is that of the resolutions (nm, y and x), as closely as whole numbers allow.

    Raises:
        DistillError: the inset does not fit even unenlarged.
    """
    height, width = inset.size
    stretch = resolution[0] / resolution[1]
    for zoom in range(room // width, 0, -1):
        tall = max(1, round(zoom * stretch))
        if height * tall <= room:
            return tall, zoom
    raise DistillError(
        f"--inset: found {height} x {width} pixels, more than the {room} screen pixels that it could be enlarged to; "
        "expected a smaller one"
    )


def rows_height(insets: Sequence[Inset], wide: float, dpi: int, resolution: tuple[float, float]) -> float:
    """Return the height in inches of the rows of insets below panels of `wide` device pixels."""
    return sum(_HEAD + tall / dpi + _GAP for tall in _talls(insets, wide, dpi, resolution))


def draw_insets(
    fig: Figure,
    panels: Sequence[Axes],
    images: Sequence[npt.NDArray[Any]],
    insets: Sequence[Inset],
    resolution: tuple[float, float],
    top: float,
) -> None:
    """Outline the insets on every panel and draw them, numbered, in rows below it.

    Args:
        fig: figure of the panels, laid out in device pixels.
        panels: axes that show the images in voxel coordinates.
        images: (Y, X) or (Y, X, 3) uint8, one for each panel.
        insets: boxes; the first panel's carry scale bars.
        resolution: nm per voxel in y and x.
        top: upper end of the rows in inches from the lower edge of the figure.
    """
    if not insets:
        return
    dpi = fig.dpi
    across, up = (round(v * dpi) for v in fig.get_size_inches())
    wide = panels[0].get_position().width * across
    room, gap = _room(insets, wide, dpi), round(_GAP * dpi)
    talls = _talls(insets, wide, dpi, resolution)
    for ax in panels:
        for k, inset in enumerate(insets):
            _outline(ax, inset, str(k + 1))
    for p, (panel, image) in enumerate(zip(panels, images, strict=True)):
        left, edge = round(panel.get_position().x0 * across), round(top * dpi)
        for k, inset in enumerate(insets):
            row, column = divmod(k, _ACROSS)
            if column == 0:
                edge -= round(_HEAD * dpi)
            tall, zoom = zooms(inset, room, resolution)
            height, width = inset.size[0] * tall, inset.size[1] * zoom
            ax = fig.add_axes(
                ((left + column * (room + gap)) / across, (edge - height) / up, width / across, height / up)
            )
            ax.set_gid(f"inset {p} {k + 1}")
            show(ax, inset.cut(image), resolution)
            label = ax.annotate(str(k + 1), (0, 1), (0, 1.5), xycoords="axes fraction", textcoords="offset points")
            label.set(fontsize=6.5, fontweight="bold", gid="number")
            if p == 0:
                _bold_bar(ax, inset, resolution[1])
            if column == _ACROSS - 1 or k == len(insets) - 1:
                edge -= talls[row] + gap


def _room(insets: Sequence[Inset], wide: float, dpi: float) -> int:
    return round(wide) if len(insets) == 1 else int((wide - round(_GAP * dpi)) // _ACROSS)


def _talls(insets: Sequence[Inset], wide: float, dpi: float, resolution: tuple[float, float]) -> list[int]:
    room = _room(insets, wide, dpi) if insets else 0
    tall = [inset.size[0] * zooms(inset, room, resolution)[0] for inset in insets]
    return [max(tall[r * _ACROSS : (r + 1) * _ACROSS]) for r in range(math.ceil(len(tall) / _ACROSS))]


def _bold_bar(ax: Axes, inset: Inset, nm_per_px: float) -> None:
    scale_bar(ax, inset.size[1], nm_per_px)
    for patch in ax.patches:
        patch.set(height=0.03 * inset.size[0], linewidth=0.25)  # the scale bar of a section is too thin for an inset


def _outline(ax: Axes, inset: Inset, number: str) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    corner = inset.x[0] - 0.5, inset.y[0] - 0.5
    height, width = inset.size
    box = Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=0.7, gid=f"outline {number}")
    box.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    ax.add_patch(box)
    text = ax.annotate(number, corner, (1.5, -1.5), textcoords="offset points", va="top", ha="left")
    text.set(color="white", fontsize=6, path_effects=[withStroke(linewidth=1.4, foreground="black")], gid="box number")
