"""Stride score: power of an embedding's change at the stride of the windows.

It requires the stride of the windows, but not the positions of their borders. Intervals are Student's t on the
logarithm of the ratio, with the standard error of a bootstrap over strips; measured coverage in docs/results/seams.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError
from distill.evaluation.seams.bootstrap import SHUFFLES, TINY, Floats, bootstrap_sums, central_interval, ratio_interval
from distill.evaluation.seams.border import SeamScore
from distill.evaluation.seams.profile import ALONG, Changes, by_segment, changes_of, quotient


@dataclass(frozen=True)
class StrideScore(SeamScore):
    """Power of the embedding's change at the windows' stride relative to the power in between: dimensionless, 1 = no
    effect.

    As `SeamScore`, but resampled over strips, of which there are `n`.

    Attributes:
        stride: pixels between borders in y and x; None for an axis without two equal steps.
    """

    stride: tuple[int | None, int | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return {**asdict(self), "stride": list(self.stride)}


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
    """Compute the power of the embedding's change at the frequencies of the stride, relative to the frequencies in
    between.

    The mean change per row of pairs in a strip of `segment` columns is a signal along y (and likewise along x). Over
    two strides S its spectrum has the stride's fundamental and harmonics at the even bins 2k (k / S per pixel); a
    pattern that repeats from window to window has no power at the odd bins. Share = mean of P(2k) / (P(2k) + P(2k +-
    1)) over all k < S / 2, both neighbours, all strips and all neighbouring windows; ratio = share / (1 - share). Where
    the spectrum is smooth the share is 1/2 and the ratio 1, whatever its slope. The score does not depend on position
    or shape of the seam.

    The interval resamples strips. The null uses other borders, at a stride that differs by 5 to 30 % from the true one.

    Args:
        embedding: as in `seam_profile`; so are borders_y, borders_x and exclude.
        borders_y: rows; the longest run of equal steps is used, with at least two borders along one axis.
        borders_x: columns.
        exclude: (Y, X) pixels to exclude.
        segment: width of a strip in pixels; the score of a seam increases with it, because noise averages out.
        grid: period in pixels of the network's own sampling grid; harmonics in common with the stride are excluded.
        along: as in `seam_profile`.
        seed: of the bootstrap and of the shuffles.

    Returns:
        The score; monotone in the size of a step at the borders, about the same for sections of any size.

    Raises:
        DistillError: as `seam_profile`; or there are no two borders at one stride, or the embedding is so flat that it
            has no spectrum.
    """
    return stride_of_changes(changes_of(embedding, borders_y, borders_x, exclude, along), segment, grid, seed)


def stride_of_changes(axes: Sequence[Changes], segment: int = 64, grid: int = 1, seed: int = 0) -> StrideScore:
    """Compute `stride_score` from the output of `changes_of`.

    Raises:
        DistillError: as `stride_score`.
    """
    if segment < 1 or grid < 1:
        raise DistillError(f"stride_score: found segment {segment} and grid {grid}, expected 1 or more of both")
    runs = [even_run(axis.borders.tolist()) for axis in axes]
    used = [(_signal(axis, segment), run) for axis, run in zip(axes, runs, strict=True) if run is not None]
    if not used:
        y, x = (axis.borders.tolist() for axis in axes)
        raise DistillError(
            f"borders: found {y} and {x}, expected two or more at one stride, with half a "
            "window or more next to them, in y or x"
        )
    rng = np.random.default_rng(seed)
    shares = np.concatenate([_shares(_stretches(signal, run), grid) for signal, run in used])
    shares = shares[np.isfinite(shares)]
    if len(shares) < 2:
        raise DistillError(f"stride_score: {len(shares)} strips with a changing embedding, expected at least 2")
    draws = bootstrap_sums(shares, rng) / len(shares)
    null = [
        np.concatenate([_shares(_stretches(s, _random_run(r, len(s), rng)), grid) for s, r in used])
        for _ in range(SHUFFLES)
    ]
    nulls = _odds(np.array([np.nanmean(one) for one in null]))
    ratio = float(_odds(shares.mean()))
    low, high = ratio_interval(ratio, _odds(draws), len(shares))
    stride = tuple(None if run is None else run[1] for run in runs)
    return StrideScore(
        ratio, low, high, float(nulls.mean()), *central_interval(nulls), len(shares), (stride[0], stride[1])
    )


def even_run(borders: Sequence[int]) -> tuple[int, int, int] | None:
    """Find the longest run of borders at equal steps: its first border, step and number of borders; None with fewer
    than
    two.
    """
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


def _signal(axis: Changes, segment: int) -> Floats:
    """Return the (rows of pairs, strips) mean change; the mean of the strip where there is no pair."""
    total, pairs = by_segment(axis, segment)
    return np.where(pairs > 0, quotient(total, pairs), quotient(total.sum(axis=0), pairs.sum(axis=0)))


def _stretches(signal: Floats, run: tuple[int, int, int]) -> Floats:
    """Cut the signal into (windows, stride, strips), the length of a window around each border of the run."""
    first, stride, count = run
    start = max(0, first - stride // 2 - 1)
    count = min(count, (len(signal) - start) // stride)
    return signal[start : start + count * stride].reshape(count, stride, -1)


def _shares(stretch: Floats, grid: int) -> Floats:
    """Return the mean fraction of power at the stride's harmonics per strip; NaN for a strip without any change."""
    stride = stretch.shape[1]
    pairs = np.concatenate([stretch[:-1], stretch[1:]], axis=1)
    power = np.abs(np.fft.rfft(pairs - pairs.mean(axis=1, keepdims=True), axis=1)) ** 2
    harmonic = np.arange(1, (stride + 1) // 2)
    harmonic = harmonic[(grid == 1) | (harmonic * grid % stride != 0)]
    if len(harmonic) == 0 or len(pairs) == 0:
        return np.full(stretch.shape[2], np.nan)
    at = power[:, 2 * harmonic]
    shares = [quotient(at, at + power[:, 2 * harmonic + side]) for side in (-1, 1)]
    valid = np.isfinite(shares)
    return quotient(np.where(valid, shares, 0).sum(axis=(0, 1, 2)), valid.sum(axis=(0, 1, 2)))


def _random_run(run: tuple[int, int, int], rows: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw other borders, at a stride that differs by 5 to 30 % from the true one, as many as fit into `rows`."""
    stride = run[1]
    near = [s for s in range(max(2, -(-7 * stride // 10)), 13 * stride // 10 + 1) if abs(s - stride) > stride / 20]
    fits = [s for s in near if 2 * s < rows] or [max(2, rows // 3)]
    other = int(rng.choice(fits))
    spare = rows - 2 * other
    return other // 2 + 1 + int(rng.integers(0, min(spare, other))), other, rows // other


def _odds(share: Any) -> Any:
    return share / np.maximum(1 - share, TINY)
