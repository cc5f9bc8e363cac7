"""Disagreement of two runs whose windows lie elsewhere, on smooth random fields with planted windows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from distill.core.errors import DistillError
from distill.evaluation.seams.shift import ShiftScore, shift_score

SIZE, WINDOW = 128, 32
EVERY = list(range(16, SIZE, 16))  # borders of windows at multiples of 32, and of windows half a step further


def field(seed: int, channels: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=(SIZE, SIZE)), 4, mode="wrap") for _ in range(channels)])
    return np.asarray(smooth / smooth.std(), np.float32)


def windowed(strength: float, first: int, seed: int = 0) -> np.ndarray:
    """The field with an offset of its own in each window; windows begin at `first` and every 32 pixels on."""
    index = (np.arange(SIZE) + WINDOW - first) // WINDOW
    offsets = np.random.default_rng(seed + 100 + first).normal(size=(5, 6, 6))
    return field(seed) + np.float32(strength) * offsets[:, index][:, :, index].astype(np.float32)


def faded(strength: float, first: int) -> np.ndarray:
    """The field with an error that is strongest at the borders and falls off over 3 pixels."""
    away = np.abs((np.arange(SIZE) - first + WINDOW // 2) % WINDOW - WINDOW // 2)
    weight = np.exp(-np.minimum.outer(away, away) / 3)
    return field(0) + np.float32(strength) * field(50 + first) * weight.astype(np.float32)


def test_score_equals_the_pixel_by_pixel_oracle() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 3, 20, 24))
    exclude = rng.random((20, 24)) < 0.1
    found = shift_score(one, other, [10], [12], exclude=exclude, reach=2, block=5)
    a, b = (v[:, ~exclude] / np.linalg.norm(v[:, ~exclude], axis=0) for v in (one, other))
    left, _, right = np.linalg.svd(a @ b.T)
    turned = left @ right @ b
    angles = [math.acos(max(-1.0, min(1.0, float(p @ q)))) for p, q in zip(a.T, turned.T, strict=True)]
    assert found.degrees == pytest.approx(math.degrees(np.mean(angles)), rel=1e-9)
    rows, columns = np.nonzero(~exclude)
    near = [8 <= y < 12 or 10 <= x < 14 for y, x in zip(rows, columns, strict=True)]
    gap = np.mean([t for t, n in zip(angles, near, strict=True) if n]) - np.mean(
        [t for t, n in zip(angles, near, strict=True) if not n]
    )
    assert found.excess == pytest.approx(math.degrees(gap) / found.unrelated, rel=1e-9)
    every = [math.acos(max(-1.0, min(1.0, float(p @ q)))) for p in a.T for q in turned.T]
    assert found.unrelated == pytest.approx(math.degrees(np.mean(every)), rel=0.02)
    assert found.ratio == pytest.approx(found.degrees / found.unrelated, rel=1e-12)
    assert found.n == 4 * 5


def test_same_run_and_turned_run_agree() -> None:
    values = windowed(1, 0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    for other in (values, values * 3, np.einsum("fe,eyx->fyx", turn, values)):
        found = shift_score(values, other, EVERY, EVERY, reach=2)
        assert found.ratio == pytest.approx(0, abs=1e-6)
        assert found.low == pytest.approx(0, abs=1e-6)
        assert found.excess == pytest.approx(0, abs=1e-6)


def test_score_grows_with_the_windows_and_ends_at_unrelated() -> None:
    found = [shift_score(windowed(s, 0), windowed(s, 16), EVERY, EVERY, reach=2) for s in (0, 0.05, 0.2, 0.5, 1, 3)]
    ratios = [f.ratio for f in found]
    assert ratios == sorted(ratios)
    assert all(f.low > 0 for f in found[1:])
    assert all(f.low <= f.ratio <= f.high for f in found)
    apart = shift_score(field(0), field(1), EVERY, EVERY, reach=2)
    assert apart.ratio == pytest.approx(1, abs=0.1)


def test_excess_tells_errors_at_the_borders_from_errors_anywhere() -> None:
    def score(one: np.ndarray, other: np.ndarray) -> ShiftScore:
        return shift_score(one, other, [32, 64, 96], [32, 64, 96], reach=3)

    at_borders = [score(faded(s, 0), field(0)) for s in (0.1, 0.3, 1)]
    assert all(f.excess_low > 0 and f.excess > f.null_high for f in at_borders)
    assert [f.excess for f in at_borders] == sorted(f.excess for f in at_borders)
    anywhere = [score(field(s), field(s) + 0.3 * field(s + 70)) for s in range(20)]
    assert sum(f.excess_low <= 0 <= f.excess_high for f in anywhere) >= 17
    assert sum(f.null_low <= f.excess <= f.null_high for f in anywhere) >= 17
    assert np.mean([f.null for f in anywhere]) == pytest.approx(0, abs=0.005)


def test_interval_holds_the_mean_of_many() -> None:
    found = [shift_score(windowed(0.3, 0, s), windowed(0.3, 16, s), EVERY, EVERY, reach=2) for s in range(20)]
    truth = np.mean([f.ratio for f in found])
    assert sum(f.low <= truth <= f.high for f in found) >= 17


def test_excluded_pixels_do_not_count_and_results_are_plain_json() -> None:
    one, other, exclude = windowed(0.3, 0), windowed(0.3, 16), np.zeros((SIZE, SIZE), bool)
    exclude[40:60, 30:90] = True
    found = shift_score(one, other, EVERY, EVERY, exclude=exclude, reach=2)
    one[:, exclude], other[:, exclude] = np.nan, np.inf
    assert shift_score(one, other, EVERY, EVERY, exclude=exclude, reach=2) == found
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == vars(found)


def test_bad_input_is_refused() -> None:
    one, other = field(0), field(1)
    with pytest.raises(DistillError, match="same pixels"):
        shift_score(one, other[:, :40], EVERY, EVERY)
    with pytest.raises(DistillError, match="exclude"):
        shift_score(one, other, EVERY, EVERY, exclude=np.zeros((3, 3), bool))
    for borders in ([], [0], [SIZE]):
        with pytest.raises(DistillError, match="borders: found"):
            shift_score(one, other, borders, [])
    with pytest.raises(DistillError, match="reach 0"):
        shift_score(one, other, EVERY, EVERY, reach=0)
    with pytest.raises(DistillError, match="wider windows"):
        shift_score(one, other, list(range(1, SIZE)), [])
    with pytest.raises(DistillError, match="wider windows"):
        shift_score(one, other, EVERY, EVERY, reach=8)
    with pytest.raises(DistillError, match="not excluded"):
        shift_score(one, other, EVERY, EVERY, exclude=np.ones((SIZE, SIZE), bool))
    with pytest.raises(DistillError, match="1 blocks"):
        shift_score(one, other, EVERY, EVERY, block=SIZE)
    other[0, 3, 3] = np.nan
    with pytest.raises(DistillError, match="NaN"):
        shift_score(one, other, EVERY, EVERY, reach=2)
