"""Rates and times as they are printed: tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.pace import each, number, rate, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (1234.0, "1230"), (1.5, "1.50"), (0.00123, "0.00123"), (9.996, "10.0"), (0.99951, "1.00")),
        *(
            (99.96, "100"),
            (999.6, "1000"),
            (-2.345, "-2.35"),
            (math.inf, "inf"),
            (math.nan, "nan"),
            (1e-7, "0.000000100"),
        ),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-6, 1e9))
def test_a_number_is_within_half_a_percent_and_never_zero(value: float) -> None:
    assert math.isclose(float(number(value)), value, rel_tol=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "1 s"), (0.2, "1 s"), (1.5, "2 s"), (59.9, "60 s"), (89.9, "90 s"), (90, "2 min"), (600, "10 min")),
        *((5369, "89 min"), (5400, "1 h 30 min"), (7000, "1 h 57 min"), (170_000, "47 h 13 min")),
        *((172_800, "2 d 0 h"), (360_000, "4 d 4 h"), (math.inf, "unknown time"), (math.nan, "unknown time")),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "unit", "text"),
    [
        *(
            (1, "steps", "1.00 s per step"),
            (2.345, "sections", "2.35 s per section"),
            (119, "blocks", "119 s per block"),
            (3, "boxes", "3.00 s per box"),
        ),
        *((120, "blocks", "2.00 min per block"), (7300, "MB", "2.03 h per MB"), (1e9, "steps", "278000 h per step")),
    ],
)
def test_each(seconds: float, unit: str, text: str) -> None:
    assert each(seconds, unit) == text


@pytest.mark.parametrize(
    ("count", "seconds", "text"),
    [
        *(
            (0, 5.0, ""),
            (3, 0.0, ""),
            (20, 5.0, "4.00 steps/s"),
            (1, 20.0, "20.0 s per step"),
            (5, 5.0, "1.00 s per step"),
        ),
        *((1, 0.0001, "10000 steps/s"), (3, 1000.0, "5.56 min per step")),
    ],
)
def test_rate(count: float, seconds: float, text: str) -> None:
    assert rate(count, seconds, "steps") == text


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_no_rate_is_zero(count: float, seconds: float) -> None:
    assert float(rate(count, seconds, "steps").split()[0]) > 0
