"""The seam scores on smooth random fields with planted steps of known strength."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from distill.core.errors import DistillError
from distill.evaluation.seams.border import SeamScore, seam_profile, seam_score
from distill.evaluation.seams.stride import even_run, stride_score

BORDERS = [32, 64, 96]


def field(seed: int, size: int = 128, channels: int = 5, sigma: float = 4) -> np.ndarray:
    """Smooth random (E, Y, X) embedding."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap") for _ in range(channels)])
    return np.asarray(smooth / smooth.std(), np.float32)


def windowed(strength: float, seed: int = 0) -> np.ndarray:
    """The field with an offset of its own added in each window of 32 pixels."""
    offsets = np.random.default_rng(seed + 1000).normal(size=(5, 4, 4))
    return field(seed) + np.float32(strength) * np.kron(offsets, np.ones((1, 32, 32))).astype(np.float32)


def score(values: np.ndarray) -> SeamScore:
    return seam_score(values, BORDERS, BORDERS)


def brute_profile(
    values: np.ndarray, borders: list[int], exclude: np.ndarray, reach: int, along: int
) -> list[list[float]]:
    """Changes along y by distance, run by run."""
    bins: list[list[float]] = [[] for _ in range(reach + 1)]
    for y in range(1, values.shape[1]):
        distance = min(abs(y - b) for b in borders)
        for first in range(0, values.shape[2] - along + 1, along):
            run = range(first, first + along)
            if distance <= reach and not any(exclude[y, x] or exclude[y - 1, x] for x in run):
                step = np.zeros(len(values))
                for x in run:
                    a, b = values[:, y - 1, x].astype(float), values[:, y, x].astype(float)
                    step += a / np.linalg.norm(a) - b / np.linalg.norm(b)
                bins[distance].append(float(np.linalg.norm(step)) / along)
    return bins


@pytest.mark.parametrize("along", [1, 3, 8])
def test_profile_equals_the_run_by_run_oracle(along: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 24, 35)).astype(np.float32)
    exclude = rng.random((24, 35)) < 0.02
    values[:, exclude] = np.nan
    profile = seam_profile(values, [7, 13], [5], reach=4, exclude=exclude, along=along)
    along_y = brute_profile(values, [7, 13], exclude, 4, along)
    along_x = brute_profile(values.transpose(0, 2, 1), [5], exclude.T, 4, along)
    assert profile.distance.tolist() == [0, 1, 2, 3, 4]
    assert np.allclose(profile.y, [np.mean(b) for b in along_y], rtol=1e-6)
    assert np.allclose(profile.x, [np.mean(b) for b in along_x], rtol=1e-6)
    assert np.allclose(profile.pooled, [np.mean(a + b) for a, b in zip(along_y, along_x, strict=True)], rtol=1e-6)
    assert profile.count.tolist() == [len(a) + len(b) for a, b in zip(along_y, along_x, strict=True)]


def test_score_equals_the_segment_by_segment_oracle() -> None:
    values = windowed(0.5)
    unit = values.astype(float) / np.linalg.norm(values.astype(float), axis=0)
    steps = np.diff(unit, axis=1)
    runs = np.stack([steps[:, :, x : x + 8].mean(axis=2) for x in range(0, 128, 8)], axis=2)
    change = np.sqrt((runs**2).sum(axis=0))
    across = [change[b - 1, s : s + 4].mean() for b in BORDERS for s in range(0, 16, 4)]
    offsets = [d for d in range(-8, 9) if abs(d) >= 3]
    adjacent = [change[[b - 1 + d for d in offsets], s : s + 4].mean() for b in BORDERS for s in range(0, 16, 4)]
    found = seam_score(values, BORDERS, [], segment=32)
    assert found.ratio == pytest.approx(sum(across) / sum(adjacent), rel=1e-9)
    assert found.n == len(across)


def test_score_grows_with_the_step() -> None:
    found = [score(windowed(strength)) for strength in (0, 0.2, 0.5, 1, 2)]
    ratios = [s.ratio for s in found]
    assert ratios == sorted(ratios)
    assert found[0].low <= 1 <= found[0].high
    assert found[0].ratio == pytest.approx(1, abs=0.15)
    assert all(s.low > 1 and s.ratio > s.null_high for s in found[1:])
    assert all(s.low <= s.ratio <= s.high for s in found)


def test_interval_without_a_seam_holds_one() -> None:
    found = [score(field(seed)) for seed in range(20)]
    assert sum(s.low <= 1 <= s.high for s in found) >= 17
    assert sum(s.null_low <= s.ratio <= s.null_high for s in found) >= 17
    assert all(s.null_low < s.null < s.null_high for s in found)
    assert np.mean([s.null for s in found]) == pytest.approx(1, abs=0.02)


def test_shuffled_borders_find_no_seam_beside_a_strong_one() -> None:
    assert score(windowed(2)).null == pytest.approx(1, abs=0.1)


def test_score_does_not_depend_on_length_rotation_or_axis_order() -> None:
    values = windowed(0.5)
    ratio = score(values).ratio
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert score(values * 7).ratio == pytest.approx(ratio, rel=1e-5)
    assert score(np.einsum("fe,eyx->fyx", turn, values)).ratio == pytest.approx(ratio, rel=1e-4)
    assert score(values.transpose(0, 2, 1)).ratio == pytest.approx(ratio, rel=1e-6)
    assert score(values) == score(values)


def test_sampling_grid_is_not_a_seam() -> None:
    coarse = np.repeat(np.repeat(field(0), 2, axis=1), 2, axis=2)
    fooled, aware = (seam_score(coarse, [64, 128, 192], [64, 128, 192], grid=g) for g in (1, 2))
    assert fooled.ratio > 1.5
    assert aware.low <= 1 <= aware.high
    assert aware.null == pytest.approx(1, abs=0.1)


def chequered(values: np.ndarray, amount: float) -> np.ndarray:
    """With a direction added that changes sign from pixel to pixel, as background does in trained embeddings."""
    sign = 1 - 2 * (np.add.outer(np.arange(values.shape[1]), np.arange(values.shape[2])) % 2)
    return values + np.float32(amount) * sign * np.array([1, -1, 0, 0, 1], np.float32)[:, None, None]


def test_a_pixel_chequer_does_not_hide_a_seam() -> None:
    plain, hidden = windowed(0.5), chequered(windowed(0.5), 3)
    assert seam_score(hidden, BORDERS, BORDERS, along=1).ratio == pytest.approx(1, abs=0.1)
    found = score(hidden)
    assert found.low > 1
    assert found.ratio > 0.5 * score(plain).ratio
    assert score(chequered(field(0), 3)).low < 1


def test_stride_score_equals_a_discrete_fourier_transform_by_hand() -> None:
    values = windowed(0.3)
    unit = values.astype(float) / np.linalg.norm(values.astype(float), axis=0)
    runs = np.diff(unit, axis=1).reshape(5, 127, 16, 8).mean(axis=3)
    change = np.sqrt((runs**2).sum(axis=0))
    shares = []
    for strip in range(2):
        signal = change[:, 8 * strip : 8 * strip + 8].mean(axis=1)
        for window in range(2):
            part = signal[15 + 32 * window : 15 + 32 * window + 64]  # half a stride before the border, two strides long
            part = part - part.mean()
            power = [abs(sum(part[j] * np.exp(-2j * np.pi * f * j / 64) for j in range(64))) ** 2 for f in range(33)]
            shares += [power[2 * k] / (power[2 * k] + power[2 * k + s]) for k in range(1, 16) for s in (-1, 1)]
    share = np.mean(shares)
    assert stride_score(values, BORDERS, []).ratio == pytest.approx(share / (1 - share), rel=1e-9)


def test_stride_score_grows_with_the_step_and_has_a_null_of_one() -> None:
    found = [stride_score(windowed(strength), BORDERS, BORDERS) for strength in (0, 0.1, 0.2, 0.5, 1)]
    ratios = [s.ratio for s in found]
    assert ratios == sorted(ratios)
    assert found[0].low <= 1 <= found[0].high
    assert all(s.low > 1 and s.ratio > s.null_high for s in found[1:])
    assert all(s.low <= s.ratio <= s.high for s in found)
    assert all(s.null == pytest.approx(1, abs=0.12) for s in found)
    assert found[0].stride == (32, 32)
    assert found[0].n == 4


def test_stride_score_without_a_seam_holds_one() -> None:
    found = [stride_score(field(seed), BORDERS, BORDERS) for seed in range(20)]
    assert sum(s.low <= 1 <= s.high for s in found) >= 17
    assert np.mean([s.ratio for s in found]) == pytest.approx(1, abs=0.04)


def test_stride_score_sees_the_stride_and_not_where_the_borders_lie() -> None:
    values = windowed(0.5)
    ratio = stride_score(values, BORDERS, BORDERS).ratio
    assert stride_score(values, [26, 58, 90], [26, 58, 90]).ratio == pytest.approx(ratio, rel=0.2)
    assert stride_score(values, [27, 54, 81], [27, 54, 81]).ratio < 1.2


def test_stride_score_leaves_the_sampling_grid_out() -> None:
    coarse = np.kron(field(0, size=22, sigma=1), np.ones((6, 6), np.float32))
    borders = [18 * k for k in range(1, 7)]
    fooled, aware = (stride_score(coarse, borders, borders, segment=16, grid=g) for g in (1, 6))
    assert fooled.low > 1
    assert aware.low <= 1 <= aware.high


@pytest.mark.parametrize(
    ("borders", "run"),
    [
        ([], None),
        ([9], None),
        ([160, 320, 352], (160, 160, 2)),
        ([352, 320, 160], (160, 160, 2)),
        ([24, 72, 120, 128], (24, 48, 3)),
        ([10, 20, 50, 80, 110], (20, 30, 4)),
    ],
)
def test_longest_run_of_equal_steps(borders: list[int], run: tuple[int, int, int] | None) -> None:
    assert even_run(borders) == run


def test_excluded_pixels_do_not_count() -> None:
    values, exclude = field(3), np.zeros((128, 128), bool)
    values[:, 60:68, :64] = 100 * np.random.default_rng(0).normal(size=(5, 8, 64))
    exclude[60:68, :64] = True
    found = seam_score(values, BORDERS, BORDERS, exclude=exclude)
    values[:, exclude] = np.nan
    assert seam_score(values, BORDERS, BORDERS, exclude=exclude) == found
    assert found.ratio == pytest.approx(1, abs=0.2)


def test_results_are_plain_json() -> None:
    values = field(0)
    record = json.loads(json.dumps(score(values).to_dict(), allow_nan=False))
    assert record == {**vars(score(values))}
    profile = seam_profile(values, [64], [], reach=3)
    assert all(math.isnan(v) for v in profile.x)
    record = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert record["x"] == [None] * 4
    assert record["count"] == [16, 32, 32, 32]
    strided = stride_score(values, BORDERS, [])
    record = json.loads(json.dumps(strided.to_dict(), allow_nan=False))
    assert record == {**vars(strided), "stride": [32, None]}


def test_bad_input_is_refused() -> None:
    values = field(0, size=40)
    holed = values.copy()
    holed[0, 3, 3] = np.inf
    for borders in ([0], [40], [-3]):
        with pytest.raises(DistillError, match="borders_y"):
            seam_score(values, borders, [])
    with pytest.raises(DistillError, match="found none"):
        seam_profile(values, [], [])
    with pytest.raises(DistillError, match="NaN or infinite"):
        seam_score(holed, [20], [])
    with pytest.raises(DistillError, match=r"\(E, Y, X\)"):
        seam_profile(values[0], [20], [])
    with pytest.raises(DistillError, match="exclude"):
        seam_profile(values, [20], [], exclude=np.zeros((3, 3), bool))
    with pytest.raises(DistillError, match="reach"):
        seam_score(values, [20], [], reach=2)
    with pytest.raises(DistillError, match="reach"):
        seam_profile(values, [20], [], reach=-1)
    with pytest.raises(DistillError, match="too close"):
        seam_score(values, list(range(1, 40)), [])
    with pytest.raises(DistillError, match="changing embedding"):
        seam_score(np.ones((2, 40, 40)), [20], [])
    with pytest.raises(DistillError, match="wider windows"):
        seam_score(field(0, size=64), [32], [8, 16, 24, 32, 40, 48, 56], grid=8, segment=16)
    with pytest.raises(DistillError, match="along"):
        seam_profile(values, [20], [], along=41)
    with pytest.raises(DistillError, match="one stride"):
        stride_score(values, [20], [7])
    with pytest.raises(DistillError, match="segment 0"):
        stride_score(values, [10, 20], [], segment=0)
    with pytest.raises(DistillError, match="changing embedding"):
        stride_score(np.ones((2, 40, 40)), [10, 20, 30], [])
