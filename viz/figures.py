"""Figures for print: embeddings beside the section with their seam profile, one segmented section, training curves.

Every figure is laid out in device pixels, so that an image which fits is shown at a whole number of pixels per voxel.
`build_*` return a matplotlib `Figure`; `*_figure` also write it.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError, ShapeError, SourceError
from viz.colour import overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    from viz.seams import SeamProfile, SeamScore

Image = npt.NDArray[np.uint8]
Profile = tuple[str, "SeamProfile", "SeamScore"]

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PAGE_MM = 180.0  # a journal's double column
_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,
    "svg.hashsalt": "distill",
}
_UNDATED: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Panel:
    """One colour image of `pca_figure`: (Y, X, 3) uint8, a title above and a note below it."""

    title: str
    rgb: Image
    note: str = ""


def scale_bar(ax: Axes, width_px: float, nm_per_px: float) -> float:
    """Draw a scale bar of a round length (1, 2, 5, 10, ...) about a fifth of the image wide, lower right.

    Args:
        ax: axes that show an image in voxel coordinates.
        width_px: width of the image in voxels.
        nm_per_px: voxel size along x in nm.

    Returns:
        The length in nm; the bar is exactly length / nm_per_px voxels long.

    Raises:
        DistillError: a width or voxel size that is not positive.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    if not (width_px > 0 and nm_per_px > 0):
        raise DistillError(f"scale_bar: found width {width_px} and {nm_per_px} nm per voxel, expected positive numbers")
    target = width_px * nm_per_px / 5
    decade = 10.0 ** math.floor(math.log10(target))
    length = min((decade * step for step in (1, 2, 5, 10)), key=lambda nm: abs(math.log(nm / target)))
    bar = length / nm_per_px
    bottom, top = sorted(ax.get_ylim())
    margin, thick = 0.04 * width_px, 0.012 * (top - bottom)
    left, y = width_px - 0.5 - margin - bar, top - 0.04 * (top - bottom) - thick
    ax.add_patch(Rectangle((left, y), bar, thick, facecolor="white", edgecolor="black", linewidth=0.4, gid="scale bar"))
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    # Flush right with the bar: a label longer than the bar would otherwise leave the image.
    label = ax.annotate(text, (left + bar, y), (0, 1.5), textcoords="offset points", ha="right", va="bottom")
    label.set(color="white", path_effects=[withStroke(linewidth=1.4, foreground="black")])
    return length


def pca_figure(
    raw: Image,
    panels: Sequence[Panel],
    resolution: tuple[float, float],
    windows: tuple[Sequence[int], Sequence[int]] | None,
    profile: Sequence[Profile],
    out: Path,
    dpi: int = 300,
) -> None:
    """Write the figure of `build_pca_figure` to `out` (.png, .svg or .pdf), whole or not at all.

    Raises:
        DistillError: as `build_pca_figure`, or an `out` that cannot be written.
    """
    save_figure(build_pca_figure(raw, panels, resolution, windows, profile, dpi), out)


def build_pca_figure(
    raw: Image,
    panels: Sequence[Panel],
    resolution: tuple[float, float],
    windows: tuple[Sequence[int], Sequence[int]] | None = None,
    profile: Sequence[Profile] = (),
    dpi: int = 300,
) -> Figure:
    """The section and its embeddings as colours side by side, and below them the change by distance to the borders.

    Args:
        raw: (Y, X) uint8 section.
        panels: colour images of the same Y, X.
        resolution: nm per voxel in y and x.
        windows: rows and columns at which a window begins, drawn as ticks outside the frames, or none.
        profile: (label, profile, score) per curve; without any, the plot is left out.
        dpi: device pixels per inch of the layout.

    Returns:
        Figure whose axes are raw, the panels in order, then the plot.

    Raises:
        DistillError: an image that is not uint8 or differs in size, or a resolution that is not positive.
    """
    from matplotlib import rc_context

    for name, image, shape in [("raw", raw, raw.shape[:2]), *((p.title, p.rgb, (*raw.shape[:2], 3)) for p in panels)]:
        if image.shape != shape or image.dtype != np.uint8:
            raise ShapeError(f"{name}: found {image.shape} {image.dtype}, expected {shape} uint8")
    with rc_context(_STYLE):
        titles = ["Section", *(p.title for p in panels)]
        size = f"{resolution[1]:g}" if resolution[0] == resolution[1] else f"y {resolution[0]:g}, x {resolution[1]:g}"
        notes = [
            f"{size} nm per pixel{'' if windows is None else '; ticks: window borders'}",
            *(p.note for p in panels),
        ]
        plot = 1.75 if profile else 0.0
        fig, axes = _image_grid(titles, notes, raw.shape, resolution, columns=len(titles), dpi=dpi, below=plot)
        for ax, image in zip(axes, [raw, *(p.rgb for p in panels)], strict=True):
            _show(ax, image, resolution)
            if windows is not None:
                _border_ticks(ax, windows)
        scale_bar(axes[0], raw.shape[1], resolution[1])
        if profile:
            _seam_plot(fig, profile, chr(ord("a") + len(axes)))
    return fig


def section_figure(
    raw: Image,
    affinity: npt.NDArray[Any],
    segmentation: npt.NDArray[Any],
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
    affinity: npt.NDArray[Any],
    segmentation: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    resolution: tuple[float, float],
    dpi: int = 300,
) -> Figure:
    """One section with its affinities, its segmentation and, where there is one, the ground truth.

    Args:
        raw: (Y, X) uint8.
        affinity: (3, Y, X) in channel order z, y, x; uint8 0..255 or float 0..1, 1 = same neuron.
        segmentation: (Y, X) label ids, 0 = background.
        labels: (Y, X) ground truth ids, or none.
        resolution: nm per voxel in y and x.
        dpi: device pixels per inch of the layout.

    Returns:
        Figure whose axes are raw, segmentation, ground truth if any, the affinities, then their colour bar.

    Raises:
        DistillError: shapes or types that do not fit.
    """
    from matplotlib import rc_context

    if affinity.shape != (3, *raw.shape) or not (affinity.dtype == np.uint8 or affinity.dtype.kind == "f"):
        raise ShapeError(
            f"affinity: found {affinity.shape} {affinity.dtype}, expected {(3, *raw.shape)} uint8 or float"
        )
    scaled = affinity / np.float32(255) if affinity.dtype == np.uint8 else affinity
    images: list[tuple[str, npt.NDArray[Any]]] = [("Section", raw), ("Segmentation", overlay(raw, segmentation))]
    if labels is not None:
        images.append(("Ground truth", overlay(raw, labels)))
    images += [(f"Affinity {axis}", channel) for axis, channel in zip("zyx", scaled, strict=True)]
    with rc_context(_STYLE):
        titles = [title for title, _ in images]
        first = len(images) - 3
        fig, axes = _image_grid(titles, [""] * len(titles), raw.shape, resolution, 3, dpi, below=0.42, first_row=first)
        shown = [_show(ax, image, resolution) for ax, (_, image) in zip(axes, images, strict=True)]
        scale_bar(axes[0], raw.shape[1], resolution[1])
        height = fig.get_size_inches()[1]
        bar = fig.colorbar(
            shown[-1], cax=fig.add_axes((0.35, 0.30 / height, 0.30, 0.07 / height)), orientation="horizontal"
        )
        bar.set_label("Affinity (0 = boundary, 1 = same neuron)", labelpad=1)
        bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
        bar.ax.tick_params(width=0.6, length=2, pad=1.5)
    return fig


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
    with rc_context(_STYLE):
        fig = Figure(figsize=(3.5 * len(shown), 2.4), dpi=dpi, layout="constrained")
        for ax, kind in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for (name, (steps, values)), colour, marker in zip(
                curves[kind].items(), _cycle(COLOURS), _cycle(MARKERS), strict=False
            ):
                sparse = marker if len(steps) <= 40 else None
                ax.plot(steps, values, color=colour, marker=sparse, markersize=3, label=name.replace("_", " "))
            positive = [float(np.nanmax(values)) > 0 for _, values in curves[kind].values()]
            ax.set_yscale("log" if kind == "loss" and any(positive) else "linear")
            _dress(ax, "Training step", kinds[kind])
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(shown) > 1:
                ax.set_title("ab"[shown.index(kind)], loc="left", fontsize=8, fontweight="bold", pad=4)
            ax.legend(frameon=False, handlelength=1.6)
    return fig


def save_figure(fig: Figure, out: Path) -> None:
    """Write a figure under a temporary name and then rename it, so that `out` is never half written.

    Args:
        fig: figure; written at its own dpi and size.
        out: file ending in .png, .svg or .pdf, in an existing folder.

    Raises:
        DistillError: another suffix, or a place that cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    suffix = out.suffix.lower()
    if suffix not in _UNDATED:
        raise DistillError(f"{out}: found the suffix {out.suffix!r}, expected one of {', '.join(_UNDATED)}")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    FigureCanvasAgg(fig)
    try:
        with rc_context(_STYLE):
            fig.savefig(part, format=suffix[1:], dpi=fig.dpi, metadata=_UNDATED[suffix])
        part.replace(out)
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(part)


def _remove(part: Path) -> None:
    if part.parent.is_dir():
        part.unlink(missing_ok=True)


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


def _image_grid(
    titles: Sequence[str],
    notes: Sequence[str],
    shape: tuple[int, ...],
    resolution: tuple[float, float],
    columns: int,
    dpi: int,
    below: float,
    first_row: int | None = None,
) -> tuple[Figure, list[Axes]]:
    """Figure with equal image frames on whole device pixels, titles and letters above them, notes below.

    `below` inches stay free at the bottom; `first_row` images go into the first row and `columns` into each other one.
    """
    from matplotlib.figure import Figure

    height, width = shape
    if min(resolution) <= 0:
        raise ShapeError(f"resolution: found {resolution}, expected positive nm per voxel in y and x")
    gap, edge = round(0.09 * dpi), round(0.05 * dpi)
    room = int(min(62 / 25.4 * dpi, (_PAGE_MM / 25.4 * dpi - 2 * edge - gap * (columns - 1)) / columns))
    wide = room // width * width or room
    tall = round(wide * height * resolution[0] / (width * resolution[1]))
    title_lines = [_wrap(title, wide / dpi - 0.13, 7) for title in titles]
    note_lines = [_wrap(note, wide / dpi, 6) for note in notes]
    head = round(dpi * (0.06 + 0.12 * max(len(lines) for lines in title_lines)))
    foot = round(dpi * (0.07 + 0.105 * max(len(lines) for lines in note_lines)))
    first = columns if first_row is None else first_row
    rows = 1 + math.ceil((len(titles) - first) / columns)
    across = max(2 * edge + columns * wide + (columns - 1) * gap, round(3.6 * dpi) if below else 0)
    up = rows * (head + tall + foot) + round(below * dpi)
    # A hundredth of a pixel more, because the canvas cuts the size off to whole pixels.
    fig = Figure(figsize=((across + 0.01) / dpi, (up + 0.01) / dpi), dpi=dpi)
    axes = []
    for k, (title, note) in enumerate(zip(title_lines, note_lines, strict=True)):
        row, column = (0, k) if k < first else (1 + (k - first) // columns, (k - first) % columns)
        count = first if row == 0 else min(columns, len(titles) - first)
        left = round((across - count * wide - (count - 1) * gap) / 2) + column * (wide + gap)
        bottom = up - (row + 1) * (head + tall) - row * foot
        ax = fig.add_axes((left / across, bottom / up, wide / across, tall / up))
        top = 72 * head / dpi - 2
        _annotate(ax, chr(ord("a") + k), (0, 1), (0, top + 0.8)).set(fontsize=8, fontweight="bold", gid="letter")
        _annotate(ax, "\n".join(title), (0, 1), (9.5, top)).set_gid("title")
        _annotate(ax, "\n".join(note), (0, 0), (0, -5)).set(fontsize=6, color="0.3", gid="note")
        axes.append(ax)
    return fig, axes


def _annotate(ax: Axes, text: str, corner: tuple[float, float], points: tuple[float, float]) -> Annotation:
    return ax.annotate(text, corner, points, xycoords="axes fraction", textcoords="offset points", va="top")


def _wrap(text: str, inches: float, points: float) -> list[str]:
    return textwrap.wrap(text, max(8, int(inches * 72 / (0.53 * points))))


def _show(ax: Axes, image: npt.NDArray[Any], resolution: tuple[float, float]) -> Any:
    # "antialiased" repeats pixels at a whole zoom and filters where the image has to shrink.
    top = 255 if image.dtype == np.uint8 else 1
    shown = ax.imshow(image, interpolation="antialiased", aspect="auto", cmap="gray", vmin=0, vmax=top)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return shown


def _border_ticks(ax: Axes, windows: tuple[Sequence[int], Sequence[int]]) -> None:
    rows, columns = windows
    ax.set_yticks([b - 0.5 for b in rows], labels=[""] * len(rows))
    ax.set_xticks([b - 0.5 for b in columns], labels=[""] * len(columns))
    ax.tick_params(length=2.5, width=0.5, direction="out")


def _seam_plot(fig: Figure, profile: Sequence[Profile], letter: str) -> None:
    from matplotlib.ticker import MaxNLocator

    width, height = fig.get_size_inches()
    left, bottom, right, tall = 0.52, 0.36, 2.25, 1.16
    ax = fig.add_axes((left / width, bottom / height, (width - left - right) / width, tall / height))
    for (label, curve, score), colour, marker in zip(profile, _cycle(COLOURS), _cycle(MARKERS), strict=False):
        text = f"{label}\nseam score {score.ratio:.2f} (95 % CI {score.low:.2f}–{score.high:.2f})"
        text += f"\nshuffled borders {score.null:.2f}"
        ax.plot(curve.distance, curve.pooled, color=colour, marker=marker, markersize=3, label=text)
    _dress(ax, "Distance to nearest window border (pixels)", "Embedding change (L2)")
    highest = max(float(np.nanmax(curve.pooled, initial=1e-6)) for _, curve, _ in profile)
    ax.set_ylim(0, 1.1 * highest)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.06), frameon=False, handlelength=1.6, fontsize=6.5)
    fig.text(0.05 / width, (bottom + tall + 0.03) / height, letter, fontsize=8, fontweight="bold")


def _dress(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, labelpad=2)
    ax.set_ylabel(y, labelpad=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(width=0.6, length=2.5, pad=2)
