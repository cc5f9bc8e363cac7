"""Histograms and statistics of grey values against NumPy on the pixels themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.core.grey import Histogram, Statistics

TYPES = [np.uint8, np.uint16, np.int8, np.int16, np.int32, np.float32, np.float64]


def tissue(seed: int = 0, shape: tuple[int, int] = (90, 110)) -> NDArray[np.float64]:
    """Grey values around 120 that keep clear of 0 and 255."""
    return np.clip(np.random.default_rng(seed).normal(120, 25, shape), 30, 220).round()


def as_type(image: NDArray[np.float64], dtype: Any) -> NDArray[Any]:
    """The same section as another type would record it."""
    if dtype == np.int8:
        return (image - 128).astype(dtype)
    if np.dtype(dtype).kind == "f":
        return (image / 255 * 3 - 1).astype(dtype)
    return (image * (1 if dtype == np.uint8 else 16) - (30_000 if dtype == np.int16 else 0)).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@given(rows=st.integers(1, 60), columns=st.integers(1, 60), seed=st.integers(0, 99))
def test_parts_add_up_to_the_section(dtype: Any, rows: int, columns: int, seed: int) -> None:
    image = as_type(tissue(seed, (60, 61)), dtype)
    whole = Histogram(image.dtype).add(image)
    parts = Histogram(image.dtype)
    for part in (image[rows:, columns:], image[:rows], image[rows:, :columns]):
        parts.add(part)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert whole.counts.sum() == image.size
    assert Statistics.of(parts) == Statistics.of(whole)


@pytest.mark.parametrize("dtype", TYPES)
def test_statistics_are_those_of_the_pixels(dtype: Any) -> None:
    image = as_type(tissue(), dtype)
    found, near = (
        Statistics.of(Histogram(image.dtype).add(image), 5, 90),
        2e-3 * float(np.ptp(image.astype(np.float64))),
    )
    assert found.mean == pytest.approx(float(image.mean()), abs=near)
    assert found.std == pytest.approx(float(image.std()), abs=near)
    for value, percent in ((found.low, 5), (found.high, 90)):
        assert (image < value - near).mean() < percent / 100 <= (image <= value + near).mean()


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_bins_keep_the_order_and_the_value(dtype: Any) -> None:
    values = np.array([-3e4, -1.5, -1e-3, 0, 1e-3, 0.5, 1, 77, 1e6], dtype=dtype)
    histogram = Histogram(values.dtype)
    bins = histogram.bins(values)
    assert (np.diff(bins) >= 0).all()
    np.testing.assert_allclose(histogram.values(bins), values, rtol=5e-4, atol=1e-40)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0, 117, 255])
def test_padding_does_not_count(dtype: Any, value: int) -> None:
    image = tissue()
    padded = np.pad(image, ((40, 7), (0, 90)), constant_values=value)
    plain, found = (
        Statistics.of(Histogram(one.dtype).add(one)) for one in (as_type(image, dtype), as_type(padded, dtype))
    )
    near = 0.03 * plain.std  # the padding's own value is missing from the tissue, too
    assert found.mean == pytest.approx(plain.mean, abs=near)
    assert found.std == pytest.approx(plain.std, abs=near)


@pytest.mark.parametrize("dtype", TYPES)
def test_saturated_pixels_do_not_count(dtype: Any) -> None:
    image = np.clip(np.random.default_rng(0).normal(120, 50, (200, 200)).round(), 40, 200)  # a twelfth at either end
    inside = image[(image > 40) & (image < 200)]
    one = as_type(image, dtype)
    found, kept = Statistics.of(Histogram(one.dtype).add(one)), as_type(inside, dtype)
    assert found.mean == pytest.approx(float(kept.mean()), abs=0.01 * float(kept.std()))
    assert found.std == pytest.approx(float(kept.std()), rel=0.01)


def test_masked_pixels_and_no_numbers_do_not_count() -> None:
    image = tissue().astype(np.float32)
    mask = np.random.default_rng(1).random(image.shape) < 0.7
    spoilt = np.where(mask, image, np.float32(9999))
    wanted = Statistics.of(Histogram(image.dtype).add(image[mask][None]))
    assert Statistics.of(Histogram(image.dtype).add(spoilt, mask)) == wanted
    assert Statistics.of(Histogram(image.dtype).add(np.where(mask, image, np.nan))) == wanted


def test_a_constant_section_and_none_at_all() -> None:
    flat = np.full((9, 9), 7, np.uint8)
    assert Statistics.of(Histogram(flat.dtype).add(flat)) == Statistics(7.0, 0.0, 7.0, 7.0)
    assert Statistics.of(Histogram(flat.dtype)) == Statistics(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [bool, np.complex64, "S1"])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises(ShapeError, match="expected grey values: integers or floating-point numbers"):
        Histogram(np.dtype(dtype))
