"""Border (seam, checkerboard) score: change of an embedding across window borders relative to the change next to them.

A network run window by window has different context on the two sides of a border, so its embedding is discontinuous
there. `distill.evaluation.seams.profile` defines the change and the distance to a border.
`distill.evaluation.seams.stride` detects the windows' stride in the spectrum of the change.
`distill.evaluation.seams.shift` measures the difference between two runs with different windows.

Intervals are Student's t on the logarithm of the ratio, with the standard error of a bootstrap over border segments;
measured coverage in docs/results/seams.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError
from distill.evaluation.seams.bootstrap import SHUFFLES, Floats, bootstrap_sums, central_interval, ratio_interval
from distill.evaluation.seams.profile import ALONG, Changes, by_segment, changes_of, quotient

_CLEAR = 3  # pairs closer than this to a border count neither as seam nor as surroundings


@dataclass(frozen=True)
class SeamProfile:
    """Mean change of the embedding by distance to the nearest window border.

    Attributes:
        distance: (reach + 1,) whole pixels, 0 = across the border.
        y: (reach + 1,) mean change between rows, 0..2, by distance to the borders in y; NaN where there is no pair.
        x: the same between columns.
        pooled: mean over the pairs of both axes.
        count: (reach + 1,) number of runs of pairs of both axes.
    """

    distance: npt.NDArray[np.int64]
    y: Floats
    x: Floats
    pooled: Floats
    count: npt.NDArray[np.int64]

    def to_dict(self) -> dict[str, list[float | None]]:
        """Return plain lists for JSON, None where there was no pair."""
        return {key: [None if v != v else v for v in array.tolist()] for key, array in vars(self).items()}


@dataclass(frozen=True)
class SeamScore:
    """Change across window borders divided by the change next to them; dimensionless, 1 = no seam.

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
        """Return the fields by name, for JSON."""
        return asdict(self)


def seam_profile(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    reach: int = 8,
    exclude: npt.NDArray[np.bool_] | None = None,
    along: int = ALONG,
) -> SeamProfile:
    """Compute the mean change of the embedding as a function of the distance to the nearest window border.

    Args:
        embedding: (E, Y, X) float; scaled to unit length internally (a zero vector stays zero).
        borders_y: rows b at which a window begins, 0 < b < Y.
        borders_x: columns, the same.
        reach: largest distance in pixels, at least 0.
        exclude: (Y, X) pixels to exclude, such as a fold; a run of pairs with one of them is not counted.
        along: length of a run in pixels; 1 = single pairs.

    Returns:
        The profile per axis and pooled.

    Raises:
        DistillError: shapes do not match, a border lies outside the section, there is no border, or a value is not
            finite.
    """
    return profile_of_changes(changes_of(embedding, borders_y, borders_x, exclude, along), reach)


def profile_of_changes(axes: Sequence[Changes], reach: int = 8) -> SeamProfile:
    """Compute `seam_profile` from the output of `changes_of`, to avoid recomputing it.

    Raises:
        DistillError: a negative reach.
    """
    if reach < 0:
        raise DistillError(f"reach: found {reach}, expected 0 or more pixels")
    total, count = np.zeros((2, reach + 1)), np.zeros((2, reach + 1), np.int64)
    for a, axis in enumerate(axes):
        for d in range(reach + 1):
            rows = axis.near == d
            count[a, d] = np.count_nonzero(axis.valid[rows])
            total[a, d] = axis.change[rows].sum()
    y, x = (quotient(total[a], count[a]) for a in range(2))
    pooled = quotient(total.sum(axis=0), count.sum(axis=0))
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
    """Compute the mean change across window borders divided by the mean change next to them, along the same stretch of
    tissue.

    Each border is divided into segments. The change of a segment at distance 0 is compared with the mean change of the
    pairs 3 to `reach` pixels to either side of the same segment. Ratio = sum of the first over sum of the second. The
    interval resamples segments; the null places the same number of random borders, at least 3 pixels from every true
    one.

    Args:
        embedding: as in `seam_profile`; so are borders_y, borders_x and exclude.
        borders_y: rows.
        borders_x: columns.
        reach: half width of the compared band in pixels, at least 3.
        exclude: (Y, X) pixels to exclude.
        segment: length of a border segment in pixels; at least the embedding's correlation length.
        grid: period in pixels of the network's own sampling grid (its largest up-sampling factor). Compared pairs and
            random borders keep the phase of the borders on this grid, so that the grid itself does not count as a seam.
        along: as in `seam_profile`.
        seed: of the bootstrap and of the shuffles.

    Returns:
        The score; monotone in the size of a step at the borders.

    Raises:
        DistillError: as `seam_profile`; or the borders are too dense, or the embedding is too flat, for a comparison.
    """
    axes = changes_of(embedding, borders_y, borders_x, exclude, along)
    return score_of_changes(axes, reach, segment, grid, seed)


def score_of_changes(
    axes: Sequence[Changes], reach: int = 8, segment: int = 64, grid: int = 1, seed: int = 0
) -> SeamScore:
    """Compute `seam_score` from the output of `changes_of`.

    Raises:
        DistillError: as `seam_score`.
    """
    if segment < 1 or grid < 1 or reach < max(_CLEAR, grid):
        raise DistillError(
            f"seam_score: found segment {segment}, grid {grid}, reach {reach}; expected 1, 1, max(3, grid) or more"
        )
    band = np.array([d for d in range(-reach, reach + 1) if abs(d) >= _CLEAR and d % grid == 0])
    rng = np.random.default_rng(seed)
    sums = [by_segment(axis, segment) for axis in axes]
    pairs = np.concatenate([_pairs(*s, axis.borders, axis.near, band) for axis, s in zip(axes, sums, strict=True)])
    if len(pairs) < 2 or pairs[:, 1].sum() <= 0:
        raise DistillError(
            f"seam_score: {len(pairs)} border segments with a changing embedding {_CLEAR} to {reach} pixels next to "
            "them, expected at least 2; borders may lie too close together"
        )
    draws = bootstrap_sums(pairs, rng)
    null = np.array([_shuffled(axes, sums, band, grid, rng) for _ in range(SHUFFLES)])
    if np.isnan(null).all():
        raise DistillError("seam_score: the embedding does not change anywhere away from the borders")
    ratio = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    low, high = ratio_interval(ratio, quotient(draws[:, 0], draws[:, 1]), len(pairs))
    return SeamScore(ratio, low, high, float(np.nanmean(null)), *central_interval(null), n=len(pairs))


def _pairs(
    total: Floats,
    count: Floats,
    positions: npt.NDArray[np.int64],
    near: npt.NDArray[np.int64],
    band: npt.NDArray[np.int64],
) -> Floats:
    """Return (n, 2) the change across and next to each segment of the borders at `positions`, weighted by the pairs
    across.
    """
    found = [np.zeros((0, 2))]
    for position in positions:
        rows = position + band - 1
        rows = rows[(rows >= 0) & (rows < len(total))]
        rows = rows[near[rows] >= _CLEAR]
        across, nearby = count[position - 1], count[rows].sum(axis=0)
        usable = (across > 0) & (nearby > 0)
        expected = across[usable] * total[rows][:, usable].sum(axis=0) / nearby[usable]
        found.append(np.stack([total[position - 1, usable], expected], axis=1))
    return np.concatenate(found)


def _shuffled(
    axes: Sequence[Changes],
    sums: Sequence[tuple[Floats, Floats]],
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
    return float(quotient(found[:1], found[1:])[0])
