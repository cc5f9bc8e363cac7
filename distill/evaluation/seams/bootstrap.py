"""95 % intervals of scores from bootstrap draws over blocks, and percentiles of null distributions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000  # draws of a bootstrap
SHUFFLES = 200  # draws of a null
TINY = 1e-30


def bootstrap_sums(blocks: npt.NDArray[np.float64], rng: np.random.Generator) -> Floats:
    """Draw blocks with replacement, as many as there are, and sum them.

    Args:
        blocks: (n, ...) one entry per block.
        rng: of the draws.

    Returns:
        (RESAMPLES, ...).
    """
    n = len(blocks)
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) @ blocks, dtype=np.float64)


def student_interval(value: float, draws: Floats, n: int) -> tuple[float, float]:
    """Compute Student's t interval around a value, 95 %, from bootstrap draws of n blocks."""
    half = float(stdtrit(n - 1, 0.975) * np.nanstd(draws) * np.sqrt(n / (n - 1)))
    return value - half, value + half


def ratio_interval(ratio: float, draws: Floats, n: int) -> tuple[float, float]:
    """Compute the interval of a ratio, on its logarithm."""
    if ratio <= 0:
        return ratio, ratio
    low, high = student_interval(np.log(ratio), np.log(np.maximum(draws, TINY)), n)
    return float(np.exp(low)), float(np.exp(high))


def central_interval(values: Floats) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentiles."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)
