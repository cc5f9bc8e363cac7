"""Draw embeddings next to their section, with the seam profile of their windows.

Every figure is laid out in device pixels, so that an image that fits is shown at a whole number of pixels per voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from distill.core.errors import ShapeError
from viz.embeddings.insets import check_insets, draw_insets, rows_height
from viz.style import MARKERS, STYLE, colour_of, dress, image_grid, save_figure, scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from distill.evaluation.seams.border import SeamProfile, SeamScore
    from viz.embeddings.insets import Inset

Image = npt.NDArray[np.uint8]
Profile = tuple[str, "SeamProfile", "SeamScore"]


@dataclass(frozen=True)
class Panel:
    """One colour image of `pca_figure`: (Y, X, 3) uint8, a title above and a note below it."""

    title: str
    rgb: Image
    note: str = ""


def pca_figure(
    raw: Image,
    panels: Sequence[Panel],
    resolution: tuple[float, float],
    windows: tuple[Sequence[int], Sequence[int]] | None,
    profile: Sequence[Profile],
    out: Path,
    dpi: int = 300,
    insets: Sequence[Inset] = (),
    grid: bool = False,
    region: str = "",
    basis: str = "",
    kind: str = "",
) -> None:
    """Write the figure of `build_pca_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_pca_figure`, or an `out` that cannot be written.
    """
    save_figure(
        build_pca_figure(raw, panels, resolution, windows, profile, dpi, insets, grid, region, basis, kind), out
    )


def build_pca_figure(
    raw: Image,
    panels: Sequence[Panel],
    resolution: tuple[float, float],
    windows: tuple[Sequence[int], Sequence[int]] | None = None,
    profile: Sequence[Profile] = (),
    dpi: int = 300,
    insets: Sequence[Inset] = (),
    grid: bool = False,
    region: str = "",
    basis: str = "",
    kind: str = "",
) -> Figure:
    """Draw a section and its embeddings as colours side by side, and below them the change by distance to the borders.

    Args:
        raw: (Y, X) uint8 section.
        panels: colour images of the same Y, X.
        resolution: nm per voxel in y and x.
        windows: rows and columns at which a window begins, drawn as ticks outside the frames, or none.
        profile: (label, profile, score) per curve; without any, the plot is omitted.
        dpi: device pixels per inch of the layout.
        insets: boxes to outline on every panel and to enlarge below it, at a whole number of device pixels per voxel.
        grid: also draw the windows' borders as lines across the panels.
        region: pixels that colours and curves are based on, such as `inside neurites`; stated above the plot.
        basis: the same as a sentence, below the section.
        kind: of the windows, in words, after their ticks.

    Returns:
        Figure whose axes are raw, the panels in order, the insets panel by panel, then the plot.

    Raises:
        DistillError: an image is not uint8 or differs in size, a resolution is not positive, or insets do not fit.
    """
    from matplotlib import rc_context

    for name, image, shape in [("raw", raw, raw.shape[:2]), *((p.title, p.rgb, (*raw.shape[:2], 3)) for p in panels)]:
        if image.shape != shape or image.dtype != np.uint8:
            raise ShapeError(f"{name}: found {image.shape} {image.dtype}, expected {shape} uint8")
    check_insets(insets, (raw.shape[0], raw.shape[1]))
    with rc_context(STYLE):
        titles = ["Section", *(p.title for p in panels)]
        size = f"{resolution[1]:g}" if resolution[0] == resolution[1] else f"y {resolution[0]:g}, x {resolution[1]:g}"
        says = [
            f"{size} nm per pixel",
            *([] if windows is None else [f"ticks: window borders{f' ({kind})' if kind else ''}"]),
            *([basis] if basis else []),
        ]
        notes = ["; ".join(says), *(p.note for p in panels)]
        plot = 1.75 if profile else 0.0
        images = [raw, *(p.rgb for p in panels)]
        fig, axes = image_grid(titles, notes, raw.shape, resolution, columns=len(titles), dpi=dpi, below=plot)
        if insets:
            room = axes[0].get_position().width * fig.get_size_inches()[0] * dpi
            rows = rows_height(insets, room, dpi, resolution)
            fig, axes = image_grid(titles, notes, raw.shape, resolution, len(titles), dpi, below=plot + rows)
            draw_insets(fig, axes, images, insets, resolution, plot + rows)
        for ax, image in zip(axes, images, strict=True):
            show(ax, image, resolution)
            if windows is not None:
                _border_ticks(ax, windows)
                if grid:
                    _border_lines(ax, windows)
        scale_bar(axes[0], raw.shape[1], resolution[1])
        if profile:
            _seam_plot(fig, profile, chr(ord("a") + len(axes)), region)
    return fig


def _cycle(items: Sequence[str]) -> list[str]:
    return [*items] * 8


def _border_ticks(ax: Axes, windows: tuple[Sequence[int], Sequence[int]]) -> None:
    rows, columns = windows
    ax.set_yticks([b - 0.5 for b in rows], labels=[""] * len(rows))
    ax.set_xticks([b - 0.5 for b in columns], labels=[""] * len(columns))
    ax.tick_params(length=2.5, width=0.5, direction="out")


def _border_lines(ax: Axes, windows: tuple[Sequence[int], Sequence[int]]) -> None:
    for draw, borders in ((ax.axhline, windows[0]), (ax.axvline, windows[1])):
        for border in borders:
            draw(border - 0.5, color="black", linewidth=0.9, alpha=0.5)
            draw(border - 0.5, color="white", linewidth=0.5, linestyle=(0, (4, 3)), gid="window border")


def _seam_plot(fig: Figure, profile: Sequence[Profile], letter: str, region: str) -> None:
    from matplotlib.ticker import MaxNLocator

    width, height = fig.get_size_inches()
    left, bottom, right, tall = 0.52, 0.36, 2.25, 1.16
    ax = fig.add_axes((left / width, bottom / height, (width - left - right) / width, tall / height))
    for k, ((label, curve, score), marker) in enumerate(zip(profile, _cycle(MARKERS), strict=False)):
        text = f"{label}\nseam score {score.ratio:.2f} (95 % CI {score.low:.2f}–{score.high:.2f})"
        text += f"\nshuffled borders {score.null:.2f}"
        ax.plot(curve.distance, curve.pooled, color=colour_of(label, k), marker=marker, markersize=3, label=text)
    dress(ax, "Distance to nearest window border (pixels)", "Embedding change (L2)")
    highest = max(float(np.nanmax(curve.pooled, initial=1e-6)) for _, curve, _ in profile)
    ax.set_ylim(0, 1.1 * highest)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.06), frameon=False, handlelength=1.6, fontsize=6.5)
    line = (bottom + tall + 0.03) / height
    fig.text(0.05 / width, line, letter, fontsize=8, fontweight="bold")
    if region:
        fig.text(left / width, line, f"Change across window borders, {region}", gid="region")
