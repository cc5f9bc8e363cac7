"""Figure of one section with its split and merge errors, and the worst objects outlined and listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from distill.core.errors import ShapeError
from distill.core.geometry import Box
from distill.core.labels import Integers
from distill.evaluation.metrics import ObjectError
from distill.evaluation.partners import MERGE, SPLIT, Partners, error_codes
from distill.evaluation.worst_objects.locate import ErrorKind
from viz.style import STYLE, image_grid, label_colours, outlined, overlay, save_figure, scale_bar, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[np.uint8]

COLOUR_OF = {SPLIT: "#56B4E9", MERGE: "#D55E00", SPLIT | MERGE: "#000000"}  # Okabe and Ito, 2008; light, mid, black
BADGE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.4}  # of a number
_PAINT = 0.8  # weight of an error's colour
_PALE = 0.25  # weight of the section below the errors; the remainder is white
_MEANING = {
    SPLIT: "split: outside its object's largest segment",
    MERGE: "merge: outside its segment's largest object",
    SPLIT | MERGE: "split and merge",
}
_ROW_INCHES = 0.115
_LEGEND_COLUMN = 2.3  # inches
_CHARACTER = 0.054  # inches that a digit takes at 6 points
_HEADERS = (
    ("", "", "", "", "VOI (bits)", "", "", "extent (voxels)", "", "", "largest wrong piece", "", "", ""),
    ("", "error", "", "of", "volume", "section", "parts", "z", "y", "x", "in", "z", "y", "x"),
)


@dataclass(frozen=True)
class WrongObject:
    """A row of the figure's table.

    Attributes:
        kind: `split` for a ground-truth object, `merge` for a segment.
        error: its id and contribution to the score of the whole volume.
        bits_here: contribution of its erroneous voxels in the section.
        box: its counted voxels.
        partner: the segment or ground-truth object that contains its largest erroneous fragment.
        piece: voxels of that fragment.
        neuron: id as in the files, where `error.id` is that of a connected piece; none: the same.
        name: of the object, with the number of the piece; empty: its id.
    """

    kind: ErrorKind
    error: ObjectError
    bits_here: float
    box: Box
    partner: int
    piece: Box
    neuron: int | None = None
    name: str = ""


def errors_figure(
    raw: Image,
    labels: Integers,
    segmentation: Integers,
    partners: Partners,
    objects: Sequence[WrongObject],
    resolution: tuple[float, float],
    out: Path,
    title: str = "Section",
    dpi: int = 300,
    *,
    neurons: Integers | None = None,
) -> None:
    """Write the figure of `build_errors_figure` to `out` (.png, .svg or .pdf) atomically.

    Raises:
        DistillError: as `build_errors_figure`, or an `out` that cannot be written.
    """
    made = build_errors_figure(raw, labels, segmentation, partners, objects, resolution, title, dpi, neurons=neurons)
    save_figure(made, out)


def build_errors_figure(
    raw: Image,
    labels: Integers,
    segmentation: Integers,
    partners: Partners,
    objects: Sequence[WrongObject],
    resolution: tuple[float, float],
    title: str = "Section",
    dpi: int = 300,
    *,
    neurons: Integers | None = None,
) -> Figure:
    """Draw one section, its ground truth, its segmentation and its erroneous voxels, with the worst objects outlined
    and
    listed.

    Args:
        raw: (Y, X) uint8.
        labels: (Y, X) ground-truth ids, 0 = ignored.
        segmentation: (Y, X) segment ids.
        partners: of the whole volume.
        objects: numbered from 1 in this order; objects without a voxel in the section are listed but not outlined.
        resolution: nm per voxel in y and x.
        title: of the first image.
        dpi: device pixels per inch of the layout.
        neurons: (Y, X) whole neurons, where `labels` are their connected pieces.

    Returns:
        Figure whose axes are section, ground truth, segmentation and errors; the table and legend are texts and
        patches of the figure. Outlines carry the gid `outline N`, numbers `number N`, table rows `row N`.

    Raises:
        ShapeError: the section is not uint8 or the shapes differ.
    """
    from matplotlib import rc_context

    if raw.ndim != 2 or raw.dtype != np.uint8 or labels.shape != raw.shape:
        raise ShapeError(
            f"raw: found {raw.shape} {raw.dtype} with labels {labels.shape}, expected one (Y, X) shape and uint8"
        )
    codes = error_codes(segmentation, labels, partners, neurons)
    images = {
        title: raw,
        "Ground truth": outlined(overlay(raw, labels), labels),
        "Segmentation": outlined(overlay(raw, segmentation), segmentation),
        "Errors": _paint(raw, codes),
    }
    size = f"{resolution[1]:g}" if resolution[0] == resolution[1] else f"y {resolution[0]:g}, x {resolution[1]:g}"
    listed = ("numbers: worst objects, listed below", "parts: segments of an object, or objects of a segment")
    about = ("colours of b and c do not correspond", *(listed if objects else ()))
    notes = [
        f"{size} nm per pixel",
        about[1] if objects else "",
        "; ".join([about[0], *about[2:]]),
        _shares(codes, labels),
    ]
    # The legend has two or three lines, depending on the width of the images.
    below = _ROW_INCHES * (3.5 + (len(objects) + len(_HEADERS) if objects else 0))
    with rc_context(STYLE):
        fig, axes = image_grid(list(images), notes, raw.shape, resolution, columns=4, dpi=dpi, below=below)
        for ax, image in zip(axes, images.values(), strict=True):
            show(ax, image, resolution)
        scale_bar(axes[0], raw.shape[1], resolution[1])
        taken: list[tuple[float, float]] = []
        for number, found in enumerate(objects, start=1):
            ids, bit = (labels, SPLIT) if found.kind == "split" else (segmentation, MERGE)
            mask = ids == np.uint64(found.error.id)
            if mask.any():
                for ax in (axes[1 if found.kind == "split" else 2], axes[3]):
                    _outline(ax, mask, found.kind, number)
                taken.append(_place(mask & (codes & bit > 0), mask, taken))
                for ax in (axes[1 if found.kind == "split" else 2], axes[3]):
                    _number(ax, taken[-1], number)
        lines = _legend(fig, below)
        if objects:
            _table(fig, objects, below - _ROW_INCHES * (lines + 0.3))
    return fig


def _rgb(colour: str) -> npt.NDArray[np.float64]:
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], np.float64)


def _paint(raw: Image, codes: Image) -> Image:
    """Fade the section, and colour its erroneous voxels."""
    table = np.stack([np.zeros(3), *(_rgb(COLOUR_OF[code]) for code in (SPLIT, MERGE, SPLIT | MERGE))])
    grey = raw[..., None].astype(np.float32)
    wrong = (codes > 0)[..., None]
    painted = np.where(wrong, _PAINT * table[codes] + (1 - _PAINT) * grey, 255 * (1 - _PALE) + _PALE * grey)
    image: Image = np.rint(painted).astype(np.uint8)
    return image


def _shares(codes: Image, labels: Integers) -> str:
    counted = max(1, int(np.count_nonzero(labels)))
    share = {code: 100 * int(np.count_nonzero(codes == code)) / counted for code in COLOUR_OF}
    return f"of labelled pixels: split {share[1]:.1f} %, merge {share[2]:.1f} %, both {share[3]:.1f} %"


def _outline(ax: Axes, mask: npt.NDArray[np.bool_], kind: ErrorKind, number: int) -> None:
    padded = np.pad(mask, 1).astype(np.float32)
    y, x = (np.arange(-1, size + 1) for size in mask.shape)
    for width, colour in ((1.3, "white"), (0.6, "black")):
        lines = ax.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=width, antialiased=True)
        lines.set(linestyle="-" if kind == "split" or colour == "white" else (0, (3, 1.5)), gid=f"outline {number}")
    ax.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _place(
    wrong: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], taken: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Choose the position of the number (y, x): deep in the erroneous part, away from previous numbers."""
    inside = wrong if wrong.any() else mask
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    apart = 0.06 * max(mask.shape)  # of the section: the width of a number
    y, x = np.nonzero(inside)
    near = np.zeros(len(y))
    for other in taken:
        near = np.maximum(near, apart - np.hypot(y - other[0], x - other[1]))
    best = int(np.argmax(depth[y, x] - 1e3 * near))
    return float(y[best]), float(x[best])


def _number(ax: Axes, place: tuple[float, float], number: int) -> None:
    text = ax.text(place[1], place[0], str(number), fontsize=5, ha="center", va="center", bbox=BADGE)
    text.set_gid(f"number {number}")


def _legend(fig: Figure, top: float) -> int:
    """Draw the legend from `top` inches down, and return its number of lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    width, height = fig.get_size_inches()
    handles: list[Any] = [Patch(color=COLOUR_OF[code], label=text) for code, text in _MEANING.items()]
    handles += [Line2D([], [], color="black", lw=0.7, label="worst object of the ground truth")]
    handles += [Line2D([], [], color="black", lw=0.7, ls=(0, (3, 1.5)), label="worst segment")]
    columns = max(2, int(width / _LEGEND_COLUMN))
    fig.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.05 / width, top / height),
        ncols=columns,
        frameon=False,
        fontsize=6,
        handlelength=1.6,
        columnspacing=1.4,
        borderpad=0,
        borderaxespad=0,
    )
    return -(-len(handles) // columns)


def _table(fig: Figure, objects: Sequence[WrongObject], top: float) -> None:
    """Draw rows of text from `top` inches down; column widths follow their content."""
    from matplotlib.patches import Rectangle

    width, height = fig.get_size_inches()
    rows = [*_HEADERS, *(_row(number, found) for number, found in enumerate(objects, start=1))]
    # The upper header may extend over the columns to its right.
    chars = [max(len(row[k]) for row in rows[1:]) + 2 for k in range(len(rows[0]))]
    step = min(_CHARACTER, (width - 0.1) / sum(chars))
    lefts = [0.05 + step * sum(chars[:k]) for k in range(len(chars))]
    for line, row in enumerate(rows, start=1 - len(_HEADERS)):
        y = top - _ROW_INCHES * (line + len(_HEADERS))
        for k, text in enumerate(row):
            drawn = fig.text(lefts[k] / width, y / height, text, fontsize=6 * step / _CHARACTER, va="baseline")
            drawn.set(color="0.3" if line < 1 else "black", gid="header" if line < 1 else f"row {line}")
        if line > 0:
            colour = label_colours([objects[line - 1].error.id])[0] / 255
            place, size = (lefts[2] / width, (y - 0.008) / height), (0.08 / width, 0.08 / height)
            fig.add_artist(Rectangle(place, *size, facecolor=colour, gid=f"swatch {line}"))


def _row(number: int, found: WrongObject) -> tuple[str, ...]:
    own, other = ("object", "segment") if found.kind == "split" else ("segment", "object")
    spans, piece = (
        [f"{start}:{stop}" for start, stop in zip(box.start, box.stop, strict=True)] for box in (found.box, found.piece)
    )
    error = found.error
    costs = f"{error.bits:.4f}", f"{found.bits_here:.4f}", str(error.pieces)
    return (
        str(number),
        found.kind,
        "",
        f"{own} {found.name or error.id}",
        *costs,
        *spans,
        f"{other} {found.partner}",
        *piece,
    )
