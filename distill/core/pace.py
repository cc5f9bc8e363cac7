"""Format rates and durations."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Format a number with three significant digits and no exponent: 1234 -> `1230`, 1.5 -> `1.50`, 0.00123 ->
    `0.00123`.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    places = 2 - math.floor(math.log10(abs(rounded)))  # rounding 9.999 gives 10
    return f"{rounded:.{max(0, places)}f}"


def span(seconds: float) -> str:
    """Format a duration: `8 s`, `12 min`, `3 h 05 min`, `2 d 4 h`; never `0 s`."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def each(seconds: float, unit: str) -> str:
    """Format the time per item: `2.30 s per step`, `4.20 min per block`.

    Args:
        seconds: per item.
        unit: plural name of the items.
    """
    one = unit.removesuffix("es") if unit.endswith("xes") else unit.removesuffix("s")
    for name, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{number(seconds / length)} {name} per {one}"
    return f"{number(seconds)} s per {one}"


def rate(count: float, seconds: float, unit: str) -> str:
    """Format a rate: `4.20 steps/s`, or the time per item if it is at least a second; empty if there is no rate.

    Args:
        count: number of items.
        seconds: elapsed time.
        unit: plural name of the items.
    """
    if count <= 0 or seconds <= 0:
        return ""
    return each(seconds / count, unit) if seconds >= count else f"{number(count / seconds)} {unit}/s"
