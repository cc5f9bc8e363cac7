"""Normalise the grey values of sections before a network sees them.

Microscopes, detectors and sessions differ in brightness and contrast. A network is trained on sections normalised to a
common scale, and later sections are normalised to the same scale. The normalisation is therefore stored with the
weights (`Normalisation`). The correction of a section (`Correction`) depends on the whole section only, so a section
read as a whole, in tiles, in ranges or in blocks is normalised identically, bit for bit.

Legend: N sections, H W = y x, h w = of a part of a section, n m tiles along y and x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.core.choices import NormalisationKind
from distill.core.errors import DistillError, ShapeError
from distill.core.grey import Bools, Histogram, Statistics

KINDS = get_args(NormalisationKind)
Grey = NDArray[np.float32]

_ROUNDING = 1e-3  # tolerance for floats that should lie in [0, 1]
_FLAT = 1e30  # wider than any range of grey values
_FEWEST = 0.2  # minimum fraction of tissue in a tile for its own statistics
_FLATTEST = 0.4  # minimum of a tile relative to the section's standard deviation, so that resin is not stretched


class Normalisation(BaseModel):
    """Rule that brings the grey values of a section to the scale of a network's training data.

    Attributes:
        kind: `none`: integers divided by the maximum of their type, floats as they are. `percentile`: the percentiles
            `low` and `high` become 0 and 1. `mean-std`: mean and standard deviation of the section become `mean` and
            `std`. `local`: as `mean-std`, with the statistics of tiles of `tile` pixels, interpolated between their
            centres. Results are clipped to [0, 1].
        mean: grey value, 0 to 1.
        std: grey value, 0 to 1.
        low: percentile, 0 to 100.
        high: percentile, 0 to 100.
        tile: side of a tile in pixels; tiles begin at the upper left corner of the section.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: NormalisationKind = "mean-std"
    mean: float = Field(0.5, gt=0, lt=1)
    std: float = Field(0.2, gt=0, lt=1)
    low: float = Field(1.0, ge=0, lt=50)
    high: float = Field(99.0, gt=50, le=100)
    tile: int = Field(256, ge=16)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, found: Any) -> Any:
        return {"kind": found} if isinstance(found, str) else found

    def __str__(self) -> str:
        """Describe the normalisation in a few words."""
        if self.kind == "none":
            return "none"
        if self.kind == "percentile":
            return f"percentiles {self.low:g} and {self.high:g} of each section to 0 and 1"
        of = "section" if self.kind == "mean-std" else f"tile of {self.tile} pixels"
        return f"each {of} to mean {self.mean:g} and standard deviation {self.std:g}"


NONE = Normalisation(kind="none")


@dataclass(frozen=True, eq=False)
class Correction:
    """Normalisation of one section: `(value - middle) / width + target`, clipped to [0, 1].

    Attributes:
        middle: (n, m) float32, grey values as recorded: 1 x 1, or one value per tile.
        width: as `middle`; negative if dark and bright are exchanged, 1e30 for a section without contrast.
        target: grey value that `middle` becomes.
        tile: side of a tile in pixels; 0 = one value for the whole section.
        unit: whether floats outside [0, 1] are refused rather than cut off: nothing was measured to place them.
    """

    middle: Grey
    width: Grey
    target: float
    tile: float = 0
    unit: bool = False

    def apply(self, pixels: NDArray[Any], origin: tuple[int, int] = (0, 0)) -> Grey:
        """Normalise part of the section.

        Args:
            pixels: (h, w), grey values as recorded.
            origin: (y, x) of the first pixel in the section.

        Returns:
            (h, w) float32 in [0, 1].

        Raises:
            ShapeError: pixels that are no finite numbers, or outside the range that `unit` asks for.
        """
        check_finite(pixels)
        if self.unit:
            _check_unit_range(pixels)
        return self._placed(pixels, origin)

    def picture(self, pixels: NDArray[Any]) -> Grey:
        """Normalise for the eye: pixels that are no numbers become 0."""
        return np.nan_to_num(self._placed(pixels, (0, 0)), nan=0.0)

    def _placed(self, pixels: NDArray[Any], origin: tuple[int, int]) -> Grey:
        found: Grey = pixels.astype(np.float32)
        if self.tile:
            rows, columns = (
                _between(first, length, count, self.tile)
                for first, length, count in zip(origin, pixels.shape, self.width.shape, strict=True)
            )
            found -= _interpolated(self.middle, rows, columns)
            found /= _interpolated(self.width, rows, columns)
        else:
            found -= self.middle[0, 0]
            found /= self.width[0, 0]
        found += np.float32(self.target)
        np.clip(found, np.float32(0), np.float32(1), out=found)
        return found


_Places = tuple[NDArray[np.intp], NDArray[np.intp], Grey]  # tile before, tile after, weight of the latter


def _between(first: int, length: int, count: int, tile: float) -> _Places:
    position = (np.arange(first, first + length) + 0.5) / tile - 0.5
    before = np.clip(np.floor(position), 0, count - 1).astype(np.intp)
    weight: Grey = np.clip(position - before, 0, 1).astype(np.float32)
    return before, np.minimum(before + 1, count - 1), weight


def _interpolated(grid: Grey, rows: _Places, columns: _Places) -> Grey:
    above, below, down = rows
    left, right, across = columns
    lines: Grey = grid[above] * (1 - down)[:, None] + grid[below] * down[:, None]
    found: Grey = lines[:, left] * (1 - across) + lines[:, right] * across
    return found


@dataclass(frozen=True)
class Normaliser:
    """A normalisation and the polarity of one source.

    Attributes:
        normalisation: of the model.
        invert: whether dark and bright are exchanged, for sections with bright membranes.
    """

    normalisation: Normalisation = field(default=NONE)
    invert: bool = False

    def check(self, dtype: np.dtype[Any]) -> None:
        """Check that pixels of a type can be normalised.

        Raises:
            ShapeError: they cannot.
        """
        if self.normalisation.kind == "none":
            _type_range(dtype)
        else:
            Histogram.check(dtype)

    def of(self, section: NDArray[Any], mask: Bools | None = None) -> Correction:
        """Compute the correction of a section.

        Args:
            section: (H, W), the whole section as recorded.
            mask: (H, W), pixels that count; all by default.

        Raises:
            ShapeError: its type cannot be normalised.
        """
        wanted = self.normalisation
        if wanted.kind == "none":
            _check_unit_range(section)
            width = np.full((1, 1), _type_range(section.dtype))
            return replace(self._correction(np.zeros((1, 1)), width, 0.0, 1.0), unit=True)
        histogram = Histogram(section.dtype).add(section, mask)
        found = Statistics.of(histogram, wanted.low, wanted.high)
        if wanted.kind == "percentile":
            return self._correction(np.array([[found.low]]), np.array([[found.high - found.low]]), 0.0, 1.0)
        mean, std = np.array([[found.mean]]), np.array([[found.std]])
        if wanted.kind == "local":
            mean, std = _tile_statistics(section, mask, histogram, found, wanted.tile)
        return self._correction(mean, std, wanted.mean, wanted.std)

    def sections(self, sections: NDArray[Any], corrections: Sequence[Correction] | None = None) -> Grey:
        """Normalise whole sections.

        Args:
            sections: (N, H, W), grey values as recorded.
            corrections: one per section; by default from the sections' own statistics.

        Returns:
            (N, H, W) float32 in [0, 1].
        """
        given = [self.of(section) for section in sections] if corrections is None else corrections
        found = np.empty(sections.shape, dtype=np.float32)
        for n, correction in enumerate(given):
            found[n] = correction.apply(sections[n])
        return found

    def _correction(
        self, middle: NDArray[np.float64], width: NDArray[np.float64], target: float, spread: float
    ) -> Correction:
        """Build the correction that maps `middle` to `target` and a difference of `width` to `spread`; no contrast
        becomes
        0.5.
        """
        flat = width <= 0
        if flat.all():
            target = 0.5
        width = np.where(flat, _FLAT, width / spread)
        if self.invert:
            width, target = -width, 1 - target
        tile = self.normalisation.tile if self.normalisation.kind == "local" else 0
        return Correction(middle.astype(np.float32), width.astype(np.float32), target, tile)


UNCHANGED = Normaliser()


def _tile_statistics(
    section: NDArray[Any], mask: Bools | None, histogram: Histogram, whole: Statistics, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute mean and standard deviation (n, m) of the tissue in each tile; those of the section where there is
    little.
    """
    tissue = histogram.tissue()
    edges = [[*range(0, max(1, round(length / side)) * side, side), length] for length in section.shape]
    mean, std = (np.empty([len(cuts) - 1 for cuts in edges]) for _ in range(2))
    for n, m in np.ndindex(mean.shape):
        at = slice(edges[0][n], edges[0][n + 1]), slice(edges[1][m], edges[1][m + 1])
        values = section[at].ravel() if mask is None else section[at][mask[at]]
        values = values[np.isfinite(values)]
        values = values[tissue[histogram.bins(values)]].astype(np.float64)
        few = len(values) < _FEWEST * section[at].size
        mean[n, m] = whole.mean if few else values.mean()
        std[n, m] = whole.std if few else max(float(values.std()), _FLATTEST * whole.std)
    return mean, std


def source_normaliser(own: Normaliser, kind: str | None, *, invert: bool) -> Normaliser:
    """Adapt a model's normalisation to a source.

    Args:
        own: of the model.
        kind: kind requested by the user; None: the model's own.
        invert: whether dark and bright are exchanged in the source.

    Raises:
        DistillError: an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise DistillError(f"--normalise: found {kind!r}, expected {', '.join(KINDS)}")
    other = kind is not None and kind != own.normalisation.kind
    return Normaliser(Normalisation.model_validate(kind) if other else own.normalisation, invert)


def as_picture(section: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert grey values of a section or part of it (h, w) to 0..255 for display.

    uint8 and floats in [0, 1] are used directly; for other types, percentiles 0.5 and 99.5 become black and white.
    """
    if section.dtype == np.uint8:
        return section
    unit = section.dtype.kind == "f" and bool(np.all((section >= 0) & (section <= 1)))
    shown = Normaliser(NONE if unit else Normalisation(kind="percentile", low=0.5, high=99.5))
    return np.round(shown.of(section).picture(section) * 255).astype(np.uint8)


def check_finite(pixels: NDArray[Any]) -> None:
    """Refuse grey values that are no finite numbers; a network would spread one of them over all that it reaches.

    Raises:
        ShapeError: there are some.
    """
    if pixels.dtype.kind != "f" or not pixels.size:
        return
    if not (np.isfinite(pixels.min()) and np.isfinite(pixels.max())):
        count = int(pixels.size - np.isfinite(pixels).sum())
        raise ShapeError(
            f"raw: found {count:,} of {pixels.size:,} pixels that are no finite numbers (NaN or infinite), expected "
            "grey values; give them one, such as 0, in a copy of the data"
        )


def _check_unit_range(section: NDArray[Any]) -> None:
    """Check that floats lie in [0, 1].

    Raises:
        ShapeError: values below 0 or above 1.
    """
    known = section[np.isfinite(section)] if section.dtype.kind == "f" else section[:0]
    if not known.size:
        return
    low, high = float(known.min()), float(known.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ShapeError(
            f"raw: found grey values from {low:g} to {high:g}, expected floats from 0 to 1; with --normalise mean-std "
            "any range is taken"
        )


def _type_range(dtype: np.dtype[Any]) -> float:
    """Return the grey value that becomes 1 without normalisation.

    Raises:
        ShapeError: a signed or other type.
    """
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    if dtype.kind == "f":
        return 1.0
    raise ShapeError(
        f"raw: found {dtype}, expected uint8, uint16 or float in [0, 1]; with --normalise mean-std any range is taken"
    )
