"""Measure the grey-value variation between and within the sections of a volume (`distill info --grey`).

After each section is normalised to a mean and a standard deviation, two kinds of variation remain that a training has
to cover: the shape of the histogram (gamma), and contrast that varies within the section.

Legend: H W = y x of a section, T = tiles of a section, P = percentiles 1 to 99.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.core.grey import Histogram
from distill.io.volume import Volume

Floats = NDArray[np.float64]

TILE = 64  # pixels
_PERCENTS = np.arange(1, 100)
_FITTED = slice(9, 90)  # percentiles 10 to 90
_FLOOR = 1e-3  # fraction of the range between percentiles 1 and 99
_LINES = {
    "mean": ("mean", 1),
    "std": ("standard deviation", 1),
    "percentile 1": ("percentile 1", 1),
    "percentile 50": ("percentile 50", 1),
    "percentile 99": ("percentile 99", 1),
    "gain": ("gain against the mean section", 2),
    "offset": ("offset against the mean section", 1),
    "gamma": ("gamma against the typical section", 2),
    "local_contrast": (f"local contrast, octaves between tiles of {TILE} pixels", 2),
    "local_brightness": ("local brightness, standard deviations between tiles", 2),
    "saturated": ("saturated or lone left-out pixels, %", 2),
    "constant": ("constant areas, %", 2),
}
_SUMMARY = (0, 5, 50, 95, 100)  # percent of the sections


@dataclass(frozen=True)
class SectionGrey:
    """Grey-value statistics of one section, of its tissue unless stated otherwise.

    Attributes:
        section: number.
        mean: in units of the file.
        std: in units of the file.
        percentiles: 1, 25, 50, 75 and 99, in units of the file.
        gain: `std` divided by the mean of all sections' `std`.
        offset: `mean` minus `gain` times the mean of all sections' `mean`.
        gamma: exponent from the volume's typical histogram to this one (see `gamma_of`).
        local_contrast: standard deviation over tiles of the logarithm (base 2) of their standard deviation.
        local_brightness: standard deviation over tiles of their mean, in units of `std`.
        saturated: fraction of all pixels that have an excluded value and do not lie in constant areas.
        constant: fraction of all pixels in areas of one excluded value, such as padding.
    """

    section: int
    mean: float
    std: float
    percentiles: tuple[float, float, float, float, float]
    gain: float
    offset: float
    gamma: float
    local_contrast: float
    local_brightness: float
    saturated: float
    constant: float


@dataclass(frozen=True)
class GreyRanges:
    """Grey-value statistics of a volume.

    Attributes:
        source: name of the source.
        dtype: of the file.
        sections: statistics of the sections with tissue, in order.
        empty: numbers of sections without a tile of tissue.
        contrast_change: change of a tile's contrast between consecutive sections, octaves; percentiles 5 and 95. None
            for one section.
        brightness_change: change of a tile's mean, in standard deviations of the section; percentiles 5 and 95.
    """

    source: str
    dtype: str
    sections: tuple[SectionGrey, ...]
    empty: tuple[int, ...]
    contrast_change: tuple[float, float] | None
    brightness_change: tuple[float, float] | None

    def ranges(self) -> dict[str, tuple[float, ...]]:
        """Return the minimum, 5 %, median, 95 % and maximum of each statistic over the sections, by name."""
        rows = [asdict(one) for one in self.sections]
        named = {name: [row[name] for row in rows] for name in rows[0] if name not in ("section", "percentiles")}
        for k, percent in ((0, 1), (2, 50), (4, 99)):
            named[f"percentile {percent}"] = [row["percentiles"][k] for row in rows]
        return {
            name: tuple(float(value) for value in np.percentile(values, _SUMMARY)) for name, values in named.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all statistics by name, ready for JSON."""
        return {**asdict(self), "ranges": {name: list(values) for name, values in self.ranges().items()}}


@dataclass(frozen=True)
class _Measured:
    """Statistics of one section before comparison with others; tiles without enough tissue are NaN."""

    section: int
    mean: float
    std: float
    quantiles: Floats  # (P,)
    tile_mean: Floats  # (T,)
    tile_std: Floats
    saturated: float
    constant: float


def grey_ranges(
    volume: Volume,
    sections: tuple[int, int | None] | None = None,
    on_section: Callable[[int, int], None] = lambda *_: None,
) -> GreyRanges:
    """Measure the grey values of a volume by section.

    Args:
        volume: grey values (z, y, x).
        sections: first and last (exclusive, None for the end); default: all.
        on_section: called with the number of sections done and their total.

    Raises:
        ShapeError: the volume has channels, its type cannot hold grey values, or no section has tissue.
        SourceError: a section cannot be read.
    """
    if volume.channels is not None:
        raise ShapeError(f"{volume.source}: found {volume.channels} channels, expected grey values z, y, x")
    first, last = sections or (0, None)
    last = volume.size[0] if last is None else last
    measured, empty = [], []
    for z, image in enumerate(volume.sections(first, last), first):
        one = _measure(z, image)
        if one is None:
            empty.append(z)
        else:
            measured.append(one)
        on_section(z + 1 - first, last - first)
    if not measured:
        raise ShapeError(f"{volume.source}: found no section with tissue in {first}:{last}, expected grey values")
    mean, std = (float(np.mean([getattr(one, name) for one in measured])) for name in ("mean", "std"))
    shapes = np.stack([_shape(one.quantiles) for one in measured])
    typical = np.median(shapes, axis=0)
    rows = tuple(
        _compared(one, mean, std, gamma_of(shape, typical)) for one, shape in zip(measured, shapes, strict=True)
    )
    pairs = [(a, b) for a, b in pairwise(measured) if b.section == a.section + 1]
    contrast = _spread([np.log2(b.tile_std / a.tile_std) - np.log2(b.std / a.std) for a, b in pairs])
    brightness = _spread([(b.tile_mean - b.mean) / b.std - (a.tile_mean - a.mean) / a.std for a, b in pairs])
    return GreyRanges(volume.source, str(volume.dtype), rows, tuple(empty), contrast, brightness)


def gamma_of(shape: Floats, typical: Floats) -> float:
    """Fit the exponent that maps one histogram to another.

    Both are given by their percentiles, stretched so that the 1st is 0 and the 99th is 1. log(shape) = gamma
    log(typical) is fitted over the percentiles 10 to 90 by least squares; gain and offset cancel. The 1st percentile
    stands in for the darkest value, which biases the result towards 1: 0.6 and 1.6 are estimated as 0.65 and 1.6.

    Args:
        shape: (P,) of a section.
        typical: (P,) of the volume, the median over its sections.
    """
    own, other = (np.log(np.maximum(one[_FITTED], _FLOOR)) for one in (shape, typical))
    return float((own * other).sum() / np.square(other).sum())


def format_grey_ranges(found: GreyRanges) -> str:
    """Format the statistics over the sections as a plain-text table."""
    ranges = found.ranges()
    lines = [f"{found.source}: {found.dtype}, {len(found.sections)} sections with tissue"]
    if found.empty:
        shown = ", ".join(map(str, found.empty[:8])) + (" ..." if len(found.empty) > 8 else "")
        lines.append(f"without tissue: {len(found.empty)} (sections {shown})")
    width = max(len(text) for text, _ in _LINES.values())
    lines.append(" ".join([" " * width, *(f"{title:>9}" for title in ("lowest", "5 %", "median", "95 %", "highest"))]))
    for name, (text, digits) in _LINES.items():
        scale = 100 if name in ("saturated", "constant") else 1
        values = (f"{scale * value:9.{digits}f}" for value in ranges[name])
        lines.append(" ".join([text.ljust(width), *values]))
    for what, unit, change in (
        ("contrast", "octaves", found.contrast_change),
        ("brightness", "standard deviations", found.brightness_change),
    ):
        if change is not None:
            lines.append(
                f"{what} of a tile, from one section to the next: {change[0]:.2f} to {change[1]:.2f} {unit} (5 to 95 %)"
            )
    return "\n".join(lines)


def _measure(z: int, image: NDArray[Any]) -> _Measured | None:
    histogram = Histogram(image.dtype).add(image)
    kept = histogram.tissue()
    at = np.flatnonzero(kept)
    if not len(at):
        return None
    finite = np.isfinite(image)
    tissue = np.zeros(image.shape, bool)
    tissue[finite] = kept[histogram.bins(image[finite])]
    values, counts = histogram.values(at), histogram.counts[at]
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    if std == 0:
        return None
    ranks = np.searchsorted(np.cumsum(counts), _PERCENTS / 100 * counts.sum())
    tile_mean, tile_std = _tiles(image, tissue)
    constant = ~tissue & _alike(image)
    return _Measured(
        z, mean, std, values[ranks], tile_mean, tile_std, float((~tissue & ~constant).mean()), float(constant.mean())
    )


def _tiles(image: NDArray[Any], tissue: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Compute mean and standard deviation of tiles with at least half tissue; a smaller section is one tile."""
    height, width = (size // min(size, TILE) for size in image.shape)
    tall, wide = (min(size, TILE) for size in image.shape)
    cut = (slice(height * tall), slice(width * wide))
    shape = (height, tall, width, wide)
    grey = np.where(tissue, image, 0)[cut].astype(np.float64).reshape(shape)
    count = tissue[cut].reshape(shape).sum(axis=(1, 3)).astype(np.float64)
    count[2 * count < tall * wide] = np.nan
    mean = grey.sum(axis=(1, 3)) / count
    square = np.square(grey).sum(axis=(1, 3)) / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std[std == 0] = np.nan
    return mean.ravel(), std.ravel()


def _alike(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark pixels that equal a neighbour in y and one in x."""
    alike: NDArray[np.bool_] = np.zeros((2, *image.shape), bool)
    for k, axis in enumerate((0, 1)):
        same = np.diff(image.astype(np.float64), axis=axis) == 0
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (1, 0), (0, 1)
        alike[k] = np.pad(same, before) | np.pad(same, after)
    found: NDArray[np.bool_] = np.logical_and(alike[0], alike[1])
    return found


def _shape(quantiles: Floats) -> Floats:
    low, high = quantiles[0], quantiles[-1]
    shape: Floats = (quantiles - low) / (high - low) if high > low else np.full(len(quantiles), 0.5)
    return shape


def _compared(one: _Measured, mean: float, std: float, gamma: float) -> SectionGrey:
    gain = one.std / std
    p1, p25, p50, p75, p99 = (float(one.quantiles[percent - 1]) for percent in (1, 25, 50, 75, 99))
    seen = np.isfinite(one.tile_std) & np.isfinite(one.tile_mean)
    contrast = float(np.log2(one.tile_std[seen]).std()) if seen.any() else 0.0
    brightness = float(one.tile_mean[seen].std() / one.std) if seen.any() else 0.0
    return SectionGrey(
        one.section,
        one.mean,
        one.std,
        (p1, p25, p50, p75, p99),
        gain,
        one.mean - gain * mean,
        gamma,
        contrast,
        brightness,
        one.saturated,
        one.constant,
    )


def _spread(changes: Sequence[Floats]) -> tuple[float, float] | None:
    """Return percentiles 5 and 95 of all finite changes."""
    found = np.concatenate(changes) if changes else np.zeros(0)
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.percentile(found, [5, 95])
    return float(low), float(high)
