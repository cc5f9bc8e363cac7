"""Seam (checkerboard) scores: how much more an embedding changes at window borders, and as regularly as they come.

A network run window by window sees another context on either side of a border, so its embedding jumps there.
The change of an embedding between two neighbouring rows is the Euclidean distance of their vectors, each scaled to unit
length and averaged over a run of `along` pixels of the row: 0 (same direction) to 2 (opposite). What varies from pixel
to pixel averages out, such as the chequer that a network trained with background edges at 0 draws; a step that goes the
same way all along the border stays, and it is this that an eye follows. A border b lies between rows b - 1 and b; the
pair (b - 1, b) has distance 0 to it, the pairs (b - 2, b - 1) and (b, b + 1) have distance 1, and so on. The same holds
for columns.

`seam_score` compares the change at the borders with that beside them, `stride_score` looks for the windows' stride in
the spectrum of the change and needs no knowledge of where the borders lie. What two runs with different windows differ
by is measured in `viz.shifts`.

Intervals of both are Student's t on the logarithm of the ratio, with the standard error of a block bootstrap; measured
coverage in docs/seams.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from distill.errors import DistillError, ShapeError

Floats = npt.NDArray[np.float64]
_CLEAR = 3  # pairs nearer than this to a border belong neither to the seam nor to its surroundings
_RESAMPLES = 1000
_SHUFFLES = 200
_TINY = 1e-30
ALONG = 8  # pixels of a border over which the change is averaged


@dataclass(frozen=True)
class SeamProfile:
    """Mean change of the embedding by distance to the nearest window border.

    Attributes:
        distance: (reach + 1,) whole pixels, 0 = across the border.
        y: (reach + 1,) mean change between rows, 0..2, by distance to the borders in y; NaN where there is no pair.
        x: the same between columns.
        pooled: mean over the pairs of both.
        count: (reach + 1,) number of runs of pairs of both.
    """

    distance: npt.NDArray[np.int64]
    y: Floats
    x: Floats
    pooled: Floats
    count: npt.NDArray[np.int64]

    def to_dict(self) -> dict[str, list[float | None]]:
        """Plain lists for JSON, None where there was no pair."""
        return {key: [None if v != v else v for v in array.tolist()] for key, array in vars(self).items()}


@dataclass(frozen=True)
class SeamScore:
    """Change across window borders over the change beside them: a ratio without unit, 1 = no seam.

    Attributes:
        ratio: the score.
        low: lower end of its 95 % interval, by a bootstrap over border segments.
        high: upper end.
        null: mean ratio of shuffled border positions, about 1.
        null_low: 2.5th percentile of those ratios.
        null_high: 97.5th percentile.
        n: number of border segments.
    """

    ratio: float
    low: float
    high: float
    null: float
    null_low: float
    null_high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class StrideScore(SeamScore):
    """Power of the embedding's change at the windows' stride over the power between: no unit, 1 = nothing there.

    As `SeamScore`, but resampled over strips, of which there are `n`.

    Attributes:
        stride: pixels from border to border in y and x; None where an axis has no two equal steps to compare.
    """

    stride: tuple[int | None, int | None]

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {**asdict(self), "stride": list(self.stride)}


@dataclass(frozen=True)
class _Axis:
    """Changes along one axis: row j of `change` holds the pairs (j, j + 1); `near` is their distance to a border."""

    change: Floats  # (rows of pairs, runs)
    valid: npt.NDArray[np.bool_]
    borders: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]
    along: int


def seam_profile(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    reach: int = 8,
    exclude: npt.NDArray[np.bool_] | None = None,
    along: int = ALONG,
) -> SeamProfile:
    """Mean change of the embedding as a function of the distance to the nearest window border.

    Args:
        embedding: (E, Y, X) float; scaled to unit length here (a zero vector stays zero).
        borders_y: rows b at which a window begins, 0 < b < Y.
        borders_x: columns, the same.
        reach: largest distance in pixels, at least 0.
        exclude: (Y, X) pixels to leave out, such as a fold; a run of pairs with one of them is not counted.
        along: length of a run in pixels; 1 = every pair for itself.

    Returns:
        The profile per axis and pooled.

    Raises:
        DistillError: shapes that do not fit, a border outside the section, no border at all, or a value not finite.
    """
    axes = _axes(embedding, borders_y, borders_x, exclude, along)
    if reach < 0:
        raise DistillError(f"reach: found {reach}, expected 0 or more pixels")
    total, count = np.zeros((2, reach + 1)), np.zeros((2, reach + 1), np.int64)
    for a, axis in enumerate(axes):
        for d in range(reach + 1):
            rows = axis.near == d
            count[a, d] = np.count_nonzero(axis.valid[rows])
            total[a, d] = axis.change[rows].sum()
    y, x = (_ratio(total[a], count[a]) for a in range(2))
    pooled = _ratio(total.sum(axis=0), count.sum(axis=0))
    return SeamProfile(np.arange(reach + 1), y, x, pooled, count.sum(axis=0))


def seam_score(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    reach: int = 8,
    exclude: npt.NDArray[np.bool_] | None = None,
    segment: int = 64,
    grid: int = 1,
    along: int = ALONG,
    seed: int = 0,
) -> SeamScore:
    """Mean change across window borders divided by the mean change beside them, over the same stretch of tissue.

    Each border is cut into segments; a segment's change at distance 0 is compared with the mean change of the pairs 3
    to `reach` pixels to either side of that very segment. Ratio = sum of the first over sum of the second. The interval
    resamples segments; the null places as many borders at random, at least 3 pixels from every true one.

    Args:
        embedding: as in `seam_profile`; so are borders_y, borders_x and exclude.
        borders_y: rows.
        borders_x: columns.
        reach: half width of the compared band in pixels, at least 3.
        exclude: (Y, X) pixels to leave out.
        segment: length of a border segment in pixels; choose it no shorter than the embedding's correlation length.
        grid: period in pixels of the network's own sampling grid (its largest up-sampling factor). Compared pairs and
            shuffled borders keep the borders' phase on it, so that the grid itself does not count as a seam.
        along: as in `seam_profile`.
        seed: of the bootstrap and of the shuffles.

    Returns:
        The score; monotone in the size of a step at the borders.

    Raises:
        DistillError: as `seam_profile`; or borders so dense, or an embedding so flat, that nothing can be compared.
    """
    axes = _axes(embedding, borders_y, borders_x, exclude, along)
    if segment < 1 or grid < 1 or reach < max(_CLEAR, grid):
        raise DistillError(
            f"seam_score: found segment {segment}, grid {grid}, reach {reach}; expected 1, 1, max(3, grid) or more"
        )
    band = np.array([d for d in range(-reach, reach + 1) if abs(d) >= _CLEAR and d % grid == 0])
    rng = np.random.default_rng(seed)
    sums = [_by_segment(axis, segment) for axis in axes]
    pairs = np.concatenate([_pairs(*s, axis.borders, axis.near, band) for axis, s in zip(axes, sums, strict=True)])
    if len(pairs) < 2 or pairs[:, 1].sum() <= 0:
        raise DistillError(
            f"seam_score: {len(pairs)} border segments with a changing embedding {_CLEAR} to {reach} pixels beside "
            "them, expected at least 2; borders may lie too close together"
        )
    draws = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=_RESAMPLES) @ pairs
    null = np.array([_shuffled(axes, sums, band, grid, rng) for _ in range(_SHUFFLES)])
    if np.isnan(null).all():
        raise DistillError("seam_score: the embedding does not change anywhere away from the borders")
    ratio = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    low, high = _ratio_interval(ratio, _ratio(draws[:, 0], draws[:, 1]), len(pairs))
    return SeamScore(ratio, low, high, float(np.nanmean(null)), *_middle(null), n=len(pairs))


def stride_score(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    exclude: npt.NDArray[np.bool_] | None = None,
    segment: int = 64,
    grid: int = 1,
    along: int = ALONG,
    seed: int = 0,
) -> StrideScore:
    """Power of the embedding's change at the frequencies of the windows' stride, over that at the frequencies between.

    The mean change per row of pairs in a strip of `segment` columns is a signal along y (and likewise along x). Over
    two strides S its spectrum has the stride's fundamental and harmonics at the even bins 2k (k / S per pixel); what
    repeats from window to window has no power at the odd bins. Share = mean of P(2k) / (P(2k) + P(2k +- 1)) over all
    k < S / 2, both neighbours, all strips and all neighbouring windows; ratio = share / (1 - share). Where the spectrum
    is smooth the share is 1/2 and the ratio 1, whatever its slope. Neither position nor shape of the seam matters.

    The interval resamples strips. The null puts the borders elsewhere, at a stride 5 to 30 % from the true one.

    Args:
        embedding: as in `seam_profile`; so are borders_y, borders_x and exclude.
        borders_y: rows; the longest run of equal steps is used, at least two borders of one axis must make one.
        borders_x: columns.
        exclude: (Y, X) pixels to leave out.
        segment: width of a strip in pixels; the score of a seam grows with it, as noise averages out.
        grid: period in pixels of the network's own sampling grid; the harmonics that it shares with the stride are
            left out.
        along: as in `seam_profile`.
        seed: of the bootstrap and of the shuffles.

    Returns:
        The score; monotone in the size of a step at the borders, about the same for sections of any size.

    Raises:
        DistillError: as `seam_profile`; or no two borders at one stride, or an embedding so flat that it has no
            spectrum.
    """
    axes = _axes(embedding, borders_y, borders_x, exclude, along)
    if segment < 1 or grid < 1:
        raise DistillError(f"stride_score: found segment {segment} and grid {grid}, expected 1 or more of both")
    runs = [even_run(borders) for borders in (borders_y, borders_x)]
    used = [(axis, run) for axis, run in zip(axes, runs, strict=True) if run is not None]
    if not used:
        raise DistillError(
            f"borders: found {list(borders_y)} and {list(borders_x)}, expected two or more at one stride, with half a "
            "window or more beside them, in y or x"
        )
    rng = np.random.default_rng(seed)
    shares = np.concatenate([_shares(_stretches(axis, run, segment), grid) for axis, run in used])
    shares = shares[np.isfinite(shares)]
    if len(shares) < 2:
        raise DistillError(f"stride_score: {len(shares)} strips with a changing embedding, expected at least 2")
    draws = rng.multinomial(len(shares), np.full(len(shares), 1 / len(shares)), size=_RESAMPLES) @ shares / len(shares)
    null = [
        np.concatenate([_shares(_stretches(a, _random_run(r, len(a.near), rng), segment), grid) for a, r in used])
        for _ in range(_SHUFFLES)
    ]
    nulls = _odds(np.array([np.nanmean(one) for one in null]))
    ratio = float(_odds(shares.mean()))
    low, high = _ratio_interval(ratio, _odds(draws), len(shares))
    stride = tuple(None if run is None else run[1] for run in runs)
    return StrideScore(ratio, low, high, float(nulls.mean()), *_middle(nulls), len(shares), (stride[0], stride[1]))


def even_run(borders: Sequence[int]) -> tuple[int, int, int] | None:
    """The longest run of borders at equal steps: its first border, step and number of borders; None with under two."""
    positions = sorted(set(borders))
    best: tuple[int, int, int] | None = None
    start = 0
    for i in range(1, len(positions)):
        step = positions[i] - positions[i - 1]
        if i - start > 1 and step != positions[start + 1] - positions[start]:
            start = i - 1
        if best is None or i - start + 1 > best[2]:
            best = positions[start], step, i - start + 1
    return best


def student_interval(value: float, draws: Floats, n: int) -> tuple[float, float]:
    """Student's t interval around a value, 95 %, from bootstrap draws of n blocks."""
    half = float(stdtrit(n - 1, 0.975) * np.nanstd(draws) * np.sqrt(n / (n - 1)))
    return value - half, value + half


def _ratio_interval(ratio: float, draws: Floats, n: int) -> tuple[float, float]:
    if ratio <= 0:
        return ratio, ratio
    low, high = student_interval(np.log(ratio), np.log(np.maximum(draws, _TINY)), n)
    return float(np.exp(low)), float(np.exp(high))


def _middle(values: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def _stretches(axis: _Axis, run: tuple[int, int, int], segment: int) -> Floats:
    """(windows, stride, strips) mean change per row of pairs, a window's length around each border of the run."""
    first, stride, count = run
    total, pairs = _by_segment(axis, segment)
    mean = _ratio(total.sum(axis=0), pairs.sum(axis=0))
    signal = np.where(pairs > 0, _ratio(total, pairs), mean)
    start = max(0, first - stride // 2 - 1)
    count = min(count, (len(signal) - start) // stride)
    return signal[start : start + count * stride].reshape(count, stride, -1)


def _shares(stretch: Floats, grid: int) -> Floats:
    """Per strip, the mean share of power at the stride's harmonics; NaN for a strip without any change."""
    stride = stretch.shape[1]
    pairs = np.concatenate([stretch[:-1], stretch[1:]], axis=1)
    power = np.abs(np.fft.rfft(pairs - pairs.mean(axis=1, keepdims=True), axis=1)) ** 2
    harmonic = np.arange(1, (stride + 1) // 2)
    harmonic = harmonic[(grid == 1) | (harmonic * grid % stride != 0)]
    if len(harmonic) == 0 or len(pairs) == 0:
        return np.full(stretch.shape[2], np.nan)
    at = power[:, 2 * harmonic]
    shares = [_ratio(at, at + power[:, 2 * harmonic + side]) for side in (-1, 1)]
    valid = np.isfinite(shares)
    return _ratio(np.where(valid, shares, 0).sum(axis=(0, 1, 2)), valid.sum(axis=(0, 1, 2)))


def _random_run(run: tuple[int, int, int], rows: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Borders that lie elsewhere: of another stride, 5 to 30 % from the true one, as many as fit into `rows`."""
    stride = run[1]
    near = [s for s in range(max(2, -(-7 * stride // 10)), 13 * stride // 10 + 1) if abs(s - stride) > stride / 20]
    fits = [s for s in near if 2 * s < rows] or [max(2, rows // 3)]
    other = int(rng.choice(fits))
    spare = rows - 2 * other
    return other // 2 + 1 + int(rng.integers(0, min(spare, other))), other, rows // other


def _odds(share: Any) -> Any:
    return share / np.maximum(1 - share, _TINY)


def _axes(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    exclude: npt.NDArray[np.bool_] | None,
    along: int,
) -> list[_Axis]:
    if embedding.ndim != 3 or embedding.dtype.kind != "f" or 0 in embedding.shape:
        raise ShapeError(f"embedding: found {embedding.shape} {embedding.dtype}, expected floats (E, Y, X), not empty")
    size = embedding.shape[1:]
    if exclude is not None and (exclude.shape != size or exclude.dtype != np.bool_):
        raise ShapeError(f"exclude: found {exclude.shape} {exclude.dtype}, expected {size} bool")
    if len(borders_y) + len(borders_x) == 0:
        raise DistillError("borders: found none, expected at least one window border in y or x")
    for name, borders, extent in (("borders_y", borders_y, size[0]), ("borders_x", borders_x, size[1])):
        if any(not 0 < b < extent for b in borders):
            raise DistillError(f"{name}: found {list(borders)}, expected pixels inside 1..{extent - 1}")
    if not 1 <= along <= min(size):
        raise DistillError(f"along: found {along}, expected 1 to {min(size)} pixels")
    keep = np.ones(size, bool) if exclude is None else ~exclude
    length = _length(embedding, keep)
    return [
        _axis(embedding, keep, length, borders_y, along),
        _axis(embedding.transpose(0, 2, 1), keep.T, length.T, borders_x, along),
    ]


def _length(embedding: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> Floats:
    square = np.zeros(keep.shape)
    for channel in embedding:
        square += np.where(keep, channel, 0).astype(np.float64) ** 2
    if not np.isfinite(square).all():
        raise DistillError("embedding: found NaN or infinite values in pixels that are not excluded, expected none")
    return np.maximum(np.sqrt(square), 1e-12)


def _axis(
    embedding: npt.NDArray[Any], keep: npt.NDArray[np.bool_], length: Floats, borders: Sequence[int], along: int
) -> _Axis:
    """Distances of unit vectors between rows, averaged over runs, channel by channel to spare memory."""
    runs = keep.shape[1] // along
    both = keep[1:] & keep[:-1]
    valid: npt.NDArray[np.bool_] = np.asarray(both[:, : runs * along].reshape(-1, runs, along).all(axis=2))
    square = np.zeros(valid.shape)
    for channel in embedding:
        unit = (np.where(keep, channel, 0) / length)[:, : runs * along].reshape(-1, runs, along).mean(axis=2)
        square += np.diff(unit, axis=0) ** 2
    positions = np.unique(np.asarray(borders, np.int64))
    pair = np.arange(1, len(square) + 1)
    far = np.full(len(pair), np.iinfo(np.int64).max)
    near = np.abs(pair[:, None] - positions).min(axis=1) if positions.size else far
    return _Axis(np.where(valid, np.sqrt(square), 0.0), valid, positions, near, along)


def _by_segment(axis: _Axis, segment: int) -> tuple[Floats, Floats]:
    """Sum of changes and number of valid runs per row of pairs and segment."""
    starts = np.arange(0, axis.change.shape[1], max(1, segment // axis.along))
    return np.add.reduceat(axis.change, starts, axis=1), np.add.reduceat(axis.valid.astype(np.float64), starts, axis=1)


def _pairs(
    total: Floats,
    count: Floats,
    positions: npt.NDArray[np.int64],
    near: npt.NDArray[np.int64],
    band: npt.NDArray[np.int64],
) -> Floats:
    """(n, 2) change across and beside each segment of the borders at `positions`, weighted by the pairs across."""
    found = [np.zeros((0, 2))]
    for position in positions:
        rows = position + band - 1
        rows = rows[(rows >= 0) & (rows < len(total))]
        rows = rows[near[rows] >= _CLEAR]
        across, beside = count[position - 1], count[rows].sum(axis=0)
        usable = (across > 0) & (beside > 0)
        expected = across[usable] * total[rows][:, usable].sum(axis=0) / beside[usable]
        found.append(np.stack([total[position - 1, usable], expected], axis=1))
    return np.concatenate(found)


def _shuffled(
    axes: list[_Axis],
    sums: list[tuple[Floats, Floats]],
    band: npt.NDArray[np.int64],
    grid: int,
    rng: np.random.Generator,
) -> float:
    found = np.zeros(2)
    for axis, (total, count) in zip(axes, sums, strict=True):
        if axis.borders.size == 0:
            continue
        pair = np.arange(1, len(axis.near) + 1)
        free = pair[(axis.near >= _CLEAR) & np.isin(pair % grid, axis.borders % grid)]
        if free.size == 0:
            raise DistillError(
                f"borders: no pixel on their grid of {grid} lies {_CLEAR} or more from all of them; "
                "expected wider windows"
            )
        chosen = rng.choice(free, axis.borders.size, replace=axis.borders.size > free.size)
        found += _pairs(total, count, chosen, axis.near, band).sum(axis=0)
    return float(_ratio(found[:1], found[1:])[0])


def _ratio(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    out = np.full(above.shape, np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out
