"""The seam (checkerboard) score: how much more an embedding changes across window borders than beside them.

A network run window by window sees another context on either side of a border, so its embedding jumps there.
The change of an embedding between two neighbouring pixels is the Euclidean distance of their vectors, each scaled to
unit length: 0 (same direction) to 2 (opposite). A border b lies between pixels b - 1 and b; the pair (b - 1, b) has
distance 0 to it, the pairs (b - 2, b - 1) and (b, b + 1) have distance 1, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError, ShapeError

Floats = npt.NDArray[np.float64]
_CLEAR = 3  # pairs nearer than this to a border belong neither to the seam nor to its surroundings
_RESAMPLES = 1000
_SHUFFLES = 200


@dataclass(frozen=True)
class SeamProfile:
    """Mean change of the embedding by distance to the nearest window border.

    Attributes:
        distance: (reach + 1,) whole pixels, 0 = across the border.
        y: (reach + 1,) mean change between rows, 0..2, by distance to the borders in y; NaN where there is no pair.
        x: the same between columns.
        pooled: mean over the pairs of both.
        count: (reach + 1,) number of pairs of both.
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
        low: lower end of its 95 % bootstrap interval over border segments.
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

    def to_dict(self) -> dict[str, float | int]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Axis:
    """Changes along one axis: row j of `change` holds the pairs (j, j + 1); `near` is their distance to a border."""

    change: Floats
    valid: npt.NDArray[np.bool_]
    borders: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]


def seam_profile(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    reach: int = 8,
    exclude: npt.NDArray[np.bool_] | None = None,
) -> SeamProfile:
    """Mean change of the embedding as a function of the distance to the nearest window border.

    Args:
        embedding: (E, Y, X) float; scaled to unit length here (a zero vector stays zero).
        borders_y: rows b at which a window begins, 0 < b < Y.
        borders_x: columns, the same.
        reach: largest distance in pixels, at least 0.
        exclude: (Y, X) pixels to leave out, such as a fold; a pair with one of them is not counted.

    Returns:
        The profile per axis and pooled.

    Raises:
        DistillError: shapes that do not fit, a border outside the section, no border at all, or a value not finite.
    """
    axes = _axes(embedding, borders_y, borders_x, exclude)
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
    segment: int = 32,
    grid: int = 1,
    seed: int = 0,
) -> SeamScore:
    """Mean change across window borders divided by the mean change beside them, over the same stretch of tissue.

    Each border is cut into segments; a segment's change at distance 0 is compared with the mean change of the pairs 3
    to `reach` pixels to either side of that very segment. Ratio = sum of the first over sum of the second. The interval
    resamples segments; the null places as many borders at random, at least 3 pixels from every true one.
    The interval is a plain percentile bootstrap: on smooth random fields with 24 segments it holds 1 in 90 % of cases.

    Args:
        embedding: as in `seam_profile`; so are borders_y, borders_x and exclude.
        borders_y: rows.
        borders_x: columns.
        reach: half width of the compared band in pixels, at least 3.
        exclude: (Y, X) pixels to leave out.
        segment: length of a border segment in pixels; choose it no shorter than the embedding's correlation length.
        grid: period in pixels of the network's own sampling grid (its largest up-sampling factor). Compared pairs and
            shuffled borders keep the borders' phase on it, so that the grid itself does not count as a seam.
        seed: of the bootstrap and of the shuffles.

    Returns:
        The score; monotone in the size of a step at the borders.

    Raises:
        DistillError: as `seam_profile`; or borders so dense, or an embedding so flat, that nothing can be compared.
    """
    axes = _axes(embedding, borders_y, borders_x, exclude)
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
    low, high = _interval(_ratio(draws[:, 0], draws[:, 1]))
    null = np.array([_shuffled(axes, sums, band, grid, rng) for _ in range(_SHUFFLES)])
    if np.isnan(null).all():
        raise DistillError("seam_score: the embedding does not change anywhere away from the borders")
    ratio = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    return SeamScore(ratio, low, high, float(np.nanmean(null)), *_interval(null), n=len(pairs))


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def _axes(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    exclude: npt.NDArray[np.bool_] | None,
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
    keep = np.ones(size, bool) if exclude is None else ~exclude
    dy, dx = _changes(embedding, keep)
    return [
        _axis(dy, keep[1:] & keep[:-1], borders_y),
        _axis(dx.T, (keep[:, 1:] & keep[:, :-1]).T, borders_x),
    ]


def _axis(change: Floats, valid: npt.NDArray[np.bool_], borders: Sequence[int]) -> _Axis:
    positions = np.unique(np.asarray(borders, np.int64))
    pair = np.arange(1, len(change) + 1)
    far = np.full(len(pair), np.iinfo(np.int64).max)
    near = np.abs(pair[:, None] - positions).min(axis=1) if positions.size else far
    return _Axis(np.where(valid, change, 0.0), valid, positions, near)


def _changes(embedding: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Distances of unit vectors between rows (Y - 1, X) and columns (Y, X - 1), channel by channel to spare memory."""
    length = np.zeros(embedding.shape[1:])
    for channel in embedding:
        length += np.where(keep, channel, 0).astype(np.float64) ** 2
    if not np.isfinite(length).all():
        raise DistillError("embedding: found NaN or infinite values in pixels that are not excluded, expected none")
    length = np.maximum(np.sqrt(length), 1e-12)
    dy, dx = np.zeros(length[1:].shape), np.zeros(length[:, 1:].shape)
    for channel in embedding:
        unit = np.where(keep, channel, 0) / length
        dy += np.diff(unit, axis=0) ** 2
        dx += np.diff(unit, axis=1) ** 2
    return np.sqrt(dy), np.sqrt(dx)


def _by_segment(axis: _Axis, segment: int) -> tuple[Floats, Floats]:
    """Sum of changes and number of valid pairs per row of pairs and segment."""
    starts = np.arange(0, axis.change.shape[1], segment)
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
