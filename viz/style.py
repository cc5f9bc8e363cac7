"""Style of all figures: image frames on whole device pixels, scale bars, axes, label colours, and writing of files.

Label colours are defined in OKLCH (B. Ottosson, "A perceptual color space for image processing", 2020), where equal
steps of hue are perceived as equal. Hue and lightness of a label are multiplicative (Fibonacci) hashes of its id.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distill.core.atomic import replacing
from distill.core.errors import DistillError, ShapeError, SourceError
from distill.io.writers.output import check_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_PAGE_MM = 180.0  # a journal's double column
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,
    "svg.hashsalt": "distill",
}
_UNDATED: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# One colour for each network and each method in every figure; found by a word of the name.
_NAMED = {
    "teacher": "#D55E00",
    "student": "#56B4E9",
    "quer": "#E69F00",
    "waterz": "#0072B2",
    "flood": "#009E73",
    "mutex": "#CC79A7",
    "mws": "#CC79A7",
}

# Odd 64-bit multipliers. The first is 2^64 divided by the golden ratio: consecutive ids lie 137 degrees of hue apart.
# The second keeps ids of close hue (a Fibonacci number apart: 8, 13, 21, ...) on different lightness.
_HUE_STEP = np.uint64(0x9E3779B97F4A7C15)
_LIGHTNESS_STEP = np.uint64(0x9A544E4C70A3B001)
_LIGHTNESS = (0.54, 0.86)
_CHROMA = 0.135
_OUTLINE = 0.45  # brightness of the pixels between two labels

_OKLAB_TO_CONE = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
)
_CONE_TO_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def image_grid(
    titles: Sequence[str],
    notes: Sequence[str],
    shape: tuple[int, ...],
    resolution: tuple[float, float],
    columns: int,
    dpi: int,
    below: float,
    first_row: int | None = None,
) -> tuple[Figure, list[Axes]]:
    """Build a figure with equal image frames on whole device pixels, titles and letters above them, notes below.

    `below` inches stay free at the bottom; `first_row` images are in the first row and `columns` in each other one.
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
    # A hundredth of a pixel more, because the canvas truncates its size to whole pixels.
    fig = Figure(figsize=((across + 0.01) / dpi, (up + 0.01) / dpi), dpi=dpi)
    axes = []
    for k, (title, note) in enumerate(zip(title_lines, note_lines, strict=True)):
        row, column = (0, k) if k < first else (1 + (k - first) // columns, (k - first) % columns)
        count = first if row == 0 else min(columns, len(titles) - first)
        left = round((across - count * wide - (count - 1) * gap) / 2) + column * (wide + gap)
        bottom = up - (row + 1) * (head + tall) - row * foot
        ax = fig.add_axes((left / across, bottom / up, wide / across, tall / up))
        top = 72 * head / dpi - 2
        letter = chr(ord("a") + k)
        _annotate(ax, letter, (0, 1), (0, top + 0.8)).set(fontsize=8, fontweight="bold", gid="letter")
        _annotate(ax, "\n".join(title), (0, 1), (11.5 if letter in "mw" else 9.5, top)).set_gid("title")
        _annotate(ax, "\n".join(note), (0, 0), (0, -5)).set(fontsize=6, color="0.3", gid="note")
        axes.append(ax)
    return fig, axes


def show(ax: Axes, image: npt.NDArray[Any], resolution: tuple[float, float]) -> Any:
    """Show an image in voxel coordinates without ticks or frame: uint8 from 0 to 255, other types from 0 to 1."""
    # "antialiased" repeats pixels at a whole zoom and filters where the image has to shrink.
    top = 255 if image.dtype == np.uint8 else 1
    shown = ax.imshow(image, interpolation="antialiased", aspect="auto", cmap="gray", vmin=0, vmax=top)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return shown


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
    # Aligned with the right end of the bar: a label longer than the bar would otherwise leave the image.
    label = ax.annotate(text, (left + bar, y), (0, 1.5), textcoords="offset points", ha="right", va="bottom")
    label.set(color="white", path_effects=[withStroke(linewidth=1.4, foreground="black")])
    return length


def colour_of(name: str, position: int) -> str:
    """Return the colour of a network or method, the same in every figure; of other names one by their position."""
    for word, colour in _NAMED.items():
        if word in name.lower():
            return colour
    return COLOURS[position % len(COLOURS)]


def dress(ax: Axes, x: str, y: str) -> None:
    """Format a plot with labels and thin ticks, open at the top and on the right."""
    ax.set_xlabel(x, labelpad=2)
    ax.set_ylabel(y, labelpad=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(width=0.6, length=2.5, pad=2)


def _annotate(ax: Axes, text: str, corner: tuple[float, float], points: tuple[float, float]) -> Annotation:
    return ax.annotate(text, corner, points, xycoords="axes fraction", textcoords="offset points", va="top")


def _wrap(text: str, inches: float, points: float) -> list[str]:
    return textwrap.wrap(text, max(8, int(inches * 72 / (0.53 * points))))


def save_figure(fig: Figure, out: Path) -> None:
    """Write a figure atomically, under a temporary name that is then renamed.

    Args:
        fig: figure; written at its own dpi and size.
        out: file ending in .png, .svg or .pdf, in an existing folder.

    Raises:
        DistillError: another suffix, or the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    suffix = figure_suffix(out)
    FigureCanvasAgg(fig)
    try:
        with replacing(out, alone=False) as temporary, rc_context(STYLE):
            fig.savefig(temporary, format=suffix[1:], dpi=fig.dpi, metadata=_UNDATED[suffix])
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror or error})") from error


def legend(fig: Figure, entries: Mapping[str, Any]) -> None:
    """Draw a legend below the axes, in as many columns as fit."""
    widest = 0.5 + 0.049 * max(map(len, entries))  # inches, at 6 points
    columns = max(1, min(len(entries), int(fig.get_size_inches()[0] / widest)))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=6)


def figure_suffix(out: Path) -> str:
    """Return the format of a figure; call it before a long computation to detect errors early.

    Raises:
        DistillError: not .png, .svg or .pdf.
    """
    suffix = out.suffix.lower()
    if suffix not in _UNDATED:
        raise DistillError(f"{out}: found the suffix {out.suffix!r}, expected one of {', '.join(_UNDATED)}")
    return suffix


def check_figure(out: Path) -> None:
    """Check, before a long computation, that a figure can be written at `out`.

    Raises:
        DistillError: a suffix other than .png, .svg or .pdf, or a location that cannot be written.
    """
    figure_suffix(out)
    check_place(out)


def label_colours(ids: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return one colour per label, the same for an id in every section, run and machine.

    Args:
        ids: (N,) label ids of any integer type, 0 = background.

    Returns:
        (N, 3) uint8 sRGB; 0 is black, every other id is lighter than black and coloured.

    Raises:
        DistillError: the ids are not whole numbers, or one is negative.
    """
    flat = _as_ids(np.asarray(ids)).reshape(-1)
    unit = 2.0**-64
    hue = 2 * np.pi * unit * (flat * _HUE_STEP)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * unit * (flat * _LIGHTNESS_STEP)
    lab = np.stack([lightness, _CHROMA * np.cos(hue), _CHROMA * np.sin(hue)], axis=-1)
    linear = np.clip(((lab @ _OKLAB_TO_CONE.T) ** 3) @ _CONE_TO_SRGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    srgb[flat == 0] = 0
    colours: npt.NDArray[np.uint8] = np.rint(255 * srgb).astype(np.uint8)
    return colours


def overlay(raw_YX: npt.NDArray[np.uint8], labels_YX: npt.NDArray[Any], alpha: float = 0.45) -> npt.NDArray[np.uint8]:
    """Overlay labels on a grey section.

    Args:
        raw_YX: (Y, X) uint8 section.
        labels_YX: (Y, X) labels of any integer type; 0 is not coloured.
        alpha: weight of the label's colour, 0..1.

    Returns:
        (Y, X, 3) uint8.

    Raises:
        DistillError: raw is not (Y, X) uint8, the shapes differ, the labels are not ids, or alpha lies outside 0..1.
    """
    if raw_YX.ndim != 2 or raw_YX.dtype != np.uint8 or labels_YX.shape != raw_YX.shape:
        raise ShapeError(
            f"overlay: found raw {raw_YX.shape} {raw_YX.dtype} and labels {labels_YX.shape}, "
            "expected a (Y, X) uint8 section and labels of the same shape"
        )
    if not 0 <= alpha <= 1:
        raise DistillError(f"alpha: found {alpha}, expected 0..1")
    ids, inverse = np.unique(_as_ids(labels_YX), return_inverse=True)
    weight = np.where(ids == 0, 0, alpha).astype(np.float32)
    paint = (weight[:, None] * label_colours(ids)).astype(np.float32)
    where = inverse.reshape(raw_YX.shape)
    blend = raw_YX[..., None] * (1 - weight)[where][..., None] + paint[where]
    painted: npt.NDArray[np.uint8] = np.rint(blend).astype(np.uint8)
    return painted


def outlined(painted_YXC: npt.NDArray[np.uint8], labels_YX: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Darken the pixels of a painted section at which one label meets another, so that close colours stay apart.

    Args:
        painted_YXC: (Y, X, 3) uint8 from `overlay`.
        labels_YX: (Y, X) labels of any integer type.

    Returns:
        (Y, X, 3) uint8; the first pixel of the next label along y or x has `_OUTLINE` of its brightness.
    """
    edge = np.zeros(labels_YX.shape, bool)
    edge[1:] |= labels_YX[1:] != labels_YX[:-1]
    edge[:, 1:] |= labels_YX[:, 1:] != labels_YX[:, :-1]
    made: npt.NDArray[np.uint8] = np.where(edge[..., None], (painted_YXC * _OUTLINE).astype(np.uint8), painted_YXC)
    return made


def matched_ids(segmentation: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Give the largest segment of every ground-truth object the id, and so the colour, of that object.

    Args:
        segmentation: segment ids of any shape, 0 = background.
        labels: ground-truth ids of the same shape, 0 = ignored.

    Returns:
        uint64 ids of the same shape. A segment takes the id of the object it overlaps most if it is the largest segment
        of that object; all others get ids above every object's.
    """
    found, segments = np.unique(_as_ids(segmentation), return_inverse=True)
    known, objects = np.unique(_as_ids(labels), return_inverse=True)
    counts = np.zeros((len(found), len(known)), np.int64)
    np.add.at(counts, (segments.reshape(-1), objects.reshape(-1)), 1)
    counts[:, known == 0] = 0
    counts[found == 0] = 0
    ids = found + (known.max() + np.uint64(1))
    own = counts.argmax(axis=1)
    mutual = (counts.argmax(axis=0)[own] == np.arange(len(found))) & (counts.max(axis=1) > 0)
    ids[mutual] = known[own[mutual]]
    ids[found == 0] = 0
    matched: npt.NDArray[np.uint64] = ids[segments].reshape(segmentation.shape)
    return matched


def _as_ids(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    if ids.dtype.kind not in "ui":
        raise DistillError(f"labels: found {ids.dtype}, expected whole numbers")
    if ids.dtype.kind == "i" and ids.size and int(ids.min()) < 0:
        raise DistillError(f"labels: found the id {int(ids.min())}, expected ids of 0 and above")
    return ids.astype(np.uint64)
