"""Figures for print: embeddings beside the section with their seam profile, one segmented section, training curves.

Every figure is laid out in device pixels, so that an image which fits is shown at a whole number of pixels per voxel.
`build_*` return a matplotlib `Figure`; `*_figure` also write it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError, ShapeError
from viz.colour import overlay
from viz.embeddings.insets import check_insets, draw_insets, rows_height
from viz.layout import STYLE, dress, image_grid, save_figure, scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from distill.evaluation.seams.border import SeamProfile, SeamScore
    from viz.embeddings.insets import Inset

Image = npt.NDArray[np.uint8]
Profile = tuple[str, "SeamProfile", "SeamScore"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


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
) -> None:
    """Write the figure of `build_pca_figure` to `out` (.png, .svg or .pdf), whole or not at all.

    Raises:
        DistillError: as `build_pca_figure`, or an `out` that cannot be written.
    """
    save_figure(build_pca_figure(raw, panels, resolution, windows, profile, dpi, insets, grid, region, basis), out)


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
) -> Figure:
    """The section and its embeddings as colours side by side, and below them the change by distance to the borders.

    Args:
        raw: (Y, X) uint8 section.
        panels: colour images of the same Y, X.
        resolution: nm per voxel in y and x.
        windows: rows and columns at which a window begins, drawn as ticks outside the frames, or none.
        profile: (label, profile, score) per curve; without any, the plot is left out.
        dpi: device pixels per inch of the layout.
        insets: boxes to outline on every panel and to enlarge below it, at a whole number of device pixels per voxel.
        grid: also draw the windows' borders as lines across the panels.
        region: the pixels that colours and curves go by, such as `inside neurites`; said above the plot.
        basis: the same as a sentence, below the section.

    Returns:
        Figure whose axes are raw, the panels in order, the insets panel by panel, then the plot.

    Raises:
        DistillError: an image that is not uint8 or differs in size, a resolution that is not positive, or insets that
            do not fit.
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
            *([] if windows is None else ["ticks: window borders"]),
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


def section_figure(
    raw: Image,
    affinity: npt.NDArray[Any] | None,
    segmentation: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    resolution: tuple[float, float],
    out: Path,
    dpi: int = 300,
) -> None:
    """Write the figure of `build_section_figure` to `out` (.png, .svg or .pdf), whole or not at all.

    Raises:
        DistillError: as `build_section_figure`, or an `out` that cannot be written.
    """
    save_figure(build_section_figure(raw, affinity, segmentation, labels, resolution, dpi), out)


def build_section_figure(
    raw: Image,
    affinity: npt.NDArray[Any] | None,
    segmentation: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    resolution: tuple[float, float],
    dpi: int = 300,
) -> Figure:
    """One section with what there is of segmentation, ground truth and affinities.

    Args:
        raw: (Y, X) uint8.
        affinity: (3, Y, X) in channel order z, y, x; uint8 0..255 or float 0..1, 1 = same neuron; or none.
        segmentation: (Y, X) label ids, 0 = background, or none.
        labels: (Y, X) ground truth ids, or none.
        resolution: nm per voxel in y and x.
        dpi: device pixels per inch of the layout.

    Returns:
        Figure whose axes are raw, segmentation and ground truth if any, the affinities below them, their colour bar.

    Raises:
        DistillError: shapes or types that do not fit.
    """
    from matplotlib import rc_context

    images: list[tuple[str, npt.NDArray[Any]]] = [("Section", raw)]
    images += [
        (title, overlay(raw, ids))
        for title, ids in (("Segmentation", segmentation), ("Ground truth", labels))
        if ids is not None
    ]
    first = len(images)
    if affinity is not None:
        images += [(f"Affinity {axis}", c) for axis, c in zip("zyx", _unit_affinity(affinity, raw.shape), strict=True)]
    with rc_context(STYLE):
        titles, below = [title for title, _ in images], 0.0 if affinity is None else 0.42
        fig, axes = image_grid(titles, [""] * len(titles), raw.shape, resolution, 3, dpi, below, first)
        shown = [show(ax, image, resolution) for ax, (_, image) in zip(axes, images, strict=True)]
        scale_bar(axes[0], raw.shape[1], resolution[1])
        if affinity is not None:
            _affinity_bar(fig, shown[-1])
    return fig


def _unit_affinity(affinity: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """(3, Y, X) from 0 to 1."""
    if affinity.shape != (3, *shape) or not (affinity.dtype == np.uint8 or affinity.dtype.kind == "f"):
        raise ShapeError(f"affinity: found {affinity.shape} {affinity.dtype}, expected {(3, *shape)} uint8 or float")
    return affinity / np.float32(255) if affinity.dtype == np.uint8 else affinity


def _affinity_bar(fig: Figure, shown: Any) -> None:
    height = fig.get_size_inches()[1]
    bar = fig.colorbar(shown, cax=fig.add_axes((0.35, 0.30 / height, 0.30, 0.07 / height)), orientation="horizontal")
    bar.set_label("Affinity (0 = boundary, 1 = same neuron)", labelpad=1)
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.ax.tick_params(width=0.6, length=2, pad=1.5)


def curves_figure(rows: Sequence[Mapping[str, Any]], out: Path, dpi: int = 300) -> None:
    """Write the figure of `build_curves_figure` to `out` (.png, .svg or .pdf), whole or not at all.

    Raises:
        DistillError: as `build_curves_figure`, or an `out` that cannot be written.
    """
    save_figure(build_curves_figure(rows, dpi), out)


def build_curves_figure(rows: Sequence[Mapping[str, Any]], dpi: int = 300) -> Figure:
    """Loss terms (log scale) and validation VOI over training steps.

    Args:
        rows: records with `step` and any of the named values; a name with `loss` in it is a loss term, one with `voi`
            a VOI in bits; other names, and values that are missing or not finite, are left out.
        dpi: device pixels per inch.

    Returns:
        Figure with the axes losses, VOI; one without values is left out.

    Raises:
        DistillError: a row without a step, or no value to show.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if any("step" not in row for row in rows):
        raise DistillError("curves_figure: found a row without a `step`")
    kinds = {"loss": "Training loss", "voi": "Validation VOI (bits)"}
    curves = {kind: _curves(rows, kind) for kind in kinds}
    shown = [kind for kind in kinds if curves[kind]]
    if not shown:
        raise DistillError(f"curves_figure: found no finite `loss` or `voi` value in {len(rows)} rows")
    with rc_context(STYLE):
        fig = Figure(figsize=(3.5 * len(shown), 2.6), dpi=dpi, layout="constrained")
        for ax, kind in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for i, (name, (steps, values)) in enumerate(curves[kind].items()):
                turn, which = divmod(i, len(COLOURS))
                ax.plot(
                    steps,
                    values,
                    color=COLOURS[which],
                    linestyle=("-", "--", ":")[turn % 3],
                    marker=MARKERS[which] if len(steps) <= 40 else None,
                    markersize=3,
                    label=name.replace("_", " ").removesuffix(" loss"),
                )
            positive = [float(np.nanmax(values)) > 0 for _, values in curves[kind].values()]
            ax.set_yscale("log" if kind == "loss" and any(positive) else "linear")
            dress(ax, "Training step", kinds[kind])
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(shown) > 1:
                ax.set_title("ab"[shown.index(kind)], loc="left", fontsize=8, fontweight="bold", pad=4)
            ax.legend(
                frameon=False, handlelength=2.0, fontsize=6, loc="upper center", ncol=2, bbox_to_anchor=(0.5, -0.2)
            )
    return fig


def _curves(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, tuple[list[float], list[float]]]:
    names = dict.fromkeys(name for row in rows for name in row if kind in name.lower())
    curves = {}
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
        finite = sorted(point for point in points if math.isfinite(point[1]))
        if finite:
            curves[name] = ([step for step, _ in finite], [value for _, value in finite])
    return curves


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
    for (label, curve, score), colour, marker in zip(profile, _cycle(COLOURS), _cycle(MARKERS), strict=False):
        text = f"{label}\nseam score {score.ratio:.2f} (95 % CI {score.low:.2f}–{score.high:.2f})"
        text += f"\nshuffled borders {score.null:.2f}"
        ax.plot(curve.distance, curve.pooled, color=colour, marker=marker, markersize=3, label=text)
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
