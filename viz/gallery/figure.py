"""Gallery of augmentations: part of a volume before and after each, as a section and as a side view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Nanometres
from viz.style import STYLE, image_grid, save_figure, scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]

_COLUMNS = 4
_GAP = 6  # white pixels between the views


@dataclass(frozen=True)
class Example:
    """One augmentation applied to part of a volume.

    Attributes:
        key: title.
        before: (D, H, W) uint8.
        after: same shape.
        section: the section shown; the side view is cut through the middle row.
        note: below the images.
    """

    key: str
    before: Image
    after: Image
    section: int
    note: str = ""


def gallery_figure(examples: Sequence[Example], resolution: Nanometres, out: Path, dpi: int = 300) -> None:
    """Write the figure of `build_gallery_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_gallery_figure`, or an `out` that cannot be written.
    """
    save_figure(build_gallery_figure(examples, resolution, dpi), out)


def build_gallery_figure(examples: Sequence[Example], resolution: Nanometres, dpi: int = 300) -> Figure:
    """Draw the volume before and after each augmentation: a section (x to the right, y down) above a side view (z
    down).

    Args:
        examples: all of one shape.
        resolution: nm per voxel z, y, x; the side view repeats sections so that its scale is that of the section.
        dpi: device pixels per inch of the layout.

    Returns:
        Figure with one axes per example; ticks at the left mark the row of the side view and the section shown.

    Raises:
        DistillError: there is no example, shapes or types differ, or a section does not exist.
    """
    from matplotlib import rc_context

    if not examples:
        raise DistillError("gallery: found no example, expected one at least")
    shape = examples[0].before.shape
    for one in examples:
        for volume in (one.before, one.after):
            if volume.ndim != 3 or volume.shape != shape or volume.dtype != np.uint8:
                raise ShapeError(f"{one.key}: found {volume.shape} {volume.dtype}, expected (D, H, W) uint8, all alike")
        if not 0 <= one.section < shape[0]:
            raise DistillError(f"{one.key}: found section {one.section}, expected one of {shape[0]}")
    thick = max(1, round(resolution[0] / resolution[1]))
    images = [
        np.hstack([view, np.full((len(view), _GAP), 255, np.uint8), other])
        for view, other in (
            (_views(one.before, one.section, thick), _views(one.after, one.section, thick)) for one in examples
        )
    ]
    with rc_context(STYLE):
        fig, axes = image_grid(
            [one.key for one in examples],
            [one.note for one in examples],
            images[0].shape,
            resolution[1:],
            columns=min(_COLUMNS, len(examples)),
            dpi=dpi,
            below=0,
        )
        for ax, image, one in zip(axes, images, examples, strict=True):
            show(ax, image, resolution[1:])
            _mark(ax, shape[1:], one.section, thick)
        scale_bar(axes[0], images[0].shape[1], resolution[2])
    return fig


def _views(volume: Image, section: int, thick: int) -> Image:
    """Stack the section above the side view through its middle row."""
    side = np.repeat(volume[:, volume.shape[1] // 2], thick, axis=0)
    return np.vstack([volume[section], np.full((_GAP, volume.shape[2]), 255, np.uint8), side])


def _mark(ax: Axes, shape: tuple[int, ...], section: int, thick: int) -> None:
    from matplotlib.patheffects import withStroke

    height, width = shape
    ax.set_yticks([height // 2, height + _GAP + thick * (section + 0.5) - 0.5], labels=["", ""])
    ax.tick_params(length=2, width=0.5, direction="out", pad=0)
    for left, text in ((0, "before"), (width + _GAP, "after")):
        said = ax.annotate(text, (left, 0), (2, -2), textcoords="offset points", va="top", fontsize=6, color="white")
        said.set(path_effects=[withStroke(linewidth=1.4, foreground="black")], gid=text)
