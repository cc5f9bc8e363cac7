"""Histograms of the grey values of sections, and statistics of the tissue in them.

Statistics are computed from histograms of integer counts, so they do not depend on the order in which pixels are
counted. Padding, saturated pixels and masked pixels are excluded. Padding is recognised as a grey value that is far
more frequent than its neighbours in the histogram.

Legend: H W = y x of a section, h w = of a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError

Bools = NDArray[np.bool_]

_AT_ONCE = 2**16  # bins whose neighbours are compared at a time
_STRIP = 2**22  # pixels counted at a time
_FLOAT_BITS = 20  # leading bits of a float32 that define its bin: steps of 0.05 % of the value
_SPIKE_SHARE, _SPIKE_RATIO, _NEIGHBOURS = 0.005, 8.0, 17
_END_SHARE, _END_RATIO = 0.0005, 2.0


class Histogram:
    """Counts of grey values, summed over any number of parts of a section in any order.

    Integers of up to 16 bits have one bin per value; other types are counted in bins of 0.05 % of the value.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        """Create an empty histogram.

        Args:
            dtype: of the pixels.

        Raises:
            ShapeError: the type cannot hold grey values.
        """
        self.check(dtype)
        self._exact = dtype.kind in "iu" and dtype.itemsize <= 2
        self._first = int(np.iinfo(dtype).min) if self._exact else 0
        self.counts = np.zeros(2 ** (8 * dtype.itemsize if self._exact else _FLOAT_BITS), dtype=np.int64)

    @staticmethod
    def check(dtype: np.dtype[Any]) -> None:
        """Check that a type can hold grey values.

        Raises:
            ShapeError: it cannot.
        """
        if dtype.kind not in "iuf":
            raise ShapeError(f"raw: found {dtype}, expected grey values: integers or floating-point numbers")

    def add(self, pixels: NDArray[Any], mask: Bools | None = None) -> Histogram:
        """Count pixels (h, w), only those where `mask` is set if one is given; non-finite values are ignored."""
        rows = max(1, _STRIP // max(1, pixels.shape[-1]))
        for start in range(0, len(pixels), rows):
            strip = pixels[start : start + rows]
            flat = strip.ravel() if mask is None else strip[mask[start : start + rows]]
            self.counts += np.bincount(self.bins(flat[np.isfinite(flat)]), minlength=len(self.counts))
        return self

    def bins(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the bin of each value; the values must be finite."""
        if self._exact:
            return values.astype(np.int32) - self._first if self._first else values
        bits = values.astype(np.float32).view(np.uint32)
        ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # negative values have decreasing bins
        return (ordered >> np.uint32(32 - _FLOAT_BITS)).astype(np.int64)

    def values(self, bins: NDArray[Any]) -> NDArray[np.float64]:
        """Return the grey value at the centre of each bin."""
        if self._exact:
            return (bins + self._first).astype(np.float64)
        ordered = (bins.astype(np.uint32) << np.uint32(32 - _FLOAT_BITS)) | np.uint32(1 << (31 - _FLOAT_BITS))
        bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
        return bits.astype(np.uint32).view(np.float32).astype(np.float64)

    def tissue(self) -> Bools:
        """Return which bins hold tissue.

        A value is excluded as padding if it holds at least 0.5 % of the pixels and at least 8 times as many as the
        median of its 16 nearest neighbours in the histogram. The lowest or highest value is excluded as saturated if it
        holds at least 0.05 % of the pixels and twice as many as the next value. The rules use counts and not grey
        values, so gain, offset and type of the file have no effect. If nothing would remain, all values count.
        """
        at = np.flatnonzero(self.counts)
        counts = self.counts[at]
        if not len(at):
            return self.counts > 0
        usual = _median_of_neighbours(counts)
        kept = (counts < _SPIKE_SHARE * counts.sum()) | (counts < _SPIKE_RATIO * usual)
        for end, next_one in ((0, 1), (-1, -2)) if len(at) > 1 else ():
            clipped = counts[end] >= _END_SHARE * counts.sum() and counts[end] >= _END_RATIO * counts[next_one]
            kept[end] &= not clipped
        found = np.zeros(len(self.counts), dtype=bool)
        found[at] = kept | (not kept.any())
        return found


@dataclass(frozen=True)
class Statistics:
    """Grey-value statistics of the tissue of a section, in the units of the file."""

    mean: float
    std: float
    low: float  # percentiles
    high: float

    @classmethod
    def of(cls, histogram: Histogram, low: float = 1.0, high: float = 99.0) -> Statistics:
        """Summarise a histogram; all values are 0 if it is empty.

        Args:
            histogram: of a whole section.
            low: lower percentile, 0 to 100.
            high: upper percentile, 0 to 100.
        """
        at = np.flatnonzero(histogram.tissue())
        if not len(at):
            return cls(0.0, 0.0, 0.0, 0.0)
        values, counts = histogram.values(at), histogram.counts[at]
        total = counts.sum()
        mean = float((values * counts).sum() / total)
        std = float(np.sqrt((counts * (values - mean) ** 2).sum() / total))
        running = np.cumsum(counts)
        ends = (min(len(at) - 1, int(np.searchsorted(running, percent / 100 * total))) for percent in (low, high))
        return cls(mean, std, *(float(values[end]) for end in ends))


def _median_of_neighbours(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the median of each count and its 16 nearest neighbours; beyond an end its own count is repeated."""
    reach = _NEIGHBOURS // 2
    padded = np.pad(counts, reach, mode="edge")
    found = np.empty_like(counts)
    for first in range(0, len(counts), _AT_ONCE):
        stop = min(first + _AT_ONCE, len(counts))
        windows = np.lib.stride_tricks.sliding_window_view(padded[first : stop + 2 * reach], _NEIGHBOURS)
        found[first:stop] = np.partition(windows, reach, axis=1)[:, reach]
    return found


def empty_pixels(section: NDArray[Any]) -> int:
    """Count pixels without an image: those of value 0, and all if they have one value.

    Args:
        section: (H, W) as recorded.
    """
    if section.size and bool((section == section.flat[0]).all()):
        return section.size
    return section.size - int(np.count_nonzero(section))
