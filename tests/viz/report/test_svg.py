"""Charts: what is drawn lies where its numbers say, and is well-formed whatever the numbers are."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viz.report.svg import AxisNote, Curve, line_chart, thinned, ticks

FINITE = st.floats(-1e6, 1e6, allow_nan=False)
POINTS = st.lists(st.tuples(st.integers(1, 10**6), st.floats(allow_nan=True, allow_infinity=True)), max_size=30)


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def polyline(root: ElementTree.Element, k: int = 0) -> list[tuple[float, float]]:
    points = root.findall("polyline")[k].attrib["points"].split()
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points)]


def texts(root: ElementTree.Element, kind: str) -> list[tuple[float, float, str]]:
    found = [one for one in root.iter("text") if kind in one.attrib["class"].split()]
    return [(float(one.attrib["x"]), float(one.attrib["y"]), one.text or "") for one in found]


@given(FINITE, st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_inside(low: float, width: float, about: int) -> None:
    if low + width == low or abs(low) > 1e6 * width:
        return
    found = ticks(low, low + width, about)
    assert 1 <= len(found) <= about + 1
    slack = 1e-6 * width
    assert all(low - slack <= tick <= low + width + slack for tick in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    for step in steps:
        assert step == pytest.approx(steps[0], rel=1e-6)
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digits - round_one) for round_one in (1, 2, 2.5, 5, 10)) < 1e-3


def test_points_lie_where_the_ticks_say() -> None:
    root = parsed(line_chart("Loss", [Curve("loss", [(0, 0.0), (500, 1.0), (1000, 2.0)])]))
    (x0, y0), (x1, y1), (x2, y2) = polyline(root)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert y0 > y1 > y2
    ends = {text: y - 4 for _, y, text in texts(root, "end")}
    assert ends["0"] == pytest.approx(y0, abs=0.2)
    assert ends["2"] == pytest.approx(y2, abs=0.2)
    steps = {text: x for x, _, text in texts(root, "middle")}
    assert steps["1,000"] == pytest.approx(x2, abs=0.2)


def test_logarithmic_axis_and_its_fallback() -> None:
    root = parsed(line_chart("Loss", [Curve("loss", [(0, 100.0), (1, 10.0), (2, 1.0)])], log=True))
    (_, y0), (_, y1), (_, y2) = polyline(root)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert {"1", "10", "100"} <= {text for *_, text in texts(root, "end")}
    root = parsed(line_chart("Loss", [Curve("loss", [(0, 4.0), (1, 2.0), (2, 0.0)])], log=True))
    (_, y0), (_, y1), (_, y2) = polyline(root)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)


def test_notes_inside_the_axis_alone() -> None:
    curve = Curve("loss", [(0, 1.0), (100, 2.0)])
    root = parsed(line_chart("Loss", [curve], notes=[AxisNote(50, "halfway"), AxisNote(200, "never")]))
    lines = [one for one in root.iter("line") if one.attrib["class"] == "note"]
    (x0, _), (x1, _) = polyline(root)
    assert [float(one.attrib["x1"]) for one in lines] == [pytest.approx((x0 + x1) / 2, abs=0.2)]
    assert "halfway" in "".join(root.itertext())
    assert "never" not in "".join(root.itertext())


def test_names_of_close_curves_stay_apart() -> None:
    curves = [Curve(f"network {k}", [(0, 1.0), (10, 1.0 + k / 1000)]) for k in range(4)]
    root = parsed(line_chart("VOI", curves))
    heights = sorted(y for _, y, _ in texts(root, "name"))
    assert len(heights) == 4
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))
    assert {one.attrib["class"] for one in root.iter("polyline")} == {f"curve c{k}" for k in range(4)}


@given(
    st.lists(POINTS, min_size=1, max_size=4),
    st.booleans(),
    st.text(st.characters(codec="utf-8", categories=("L", "P", "S"))),
)
def test_any_numbers_give_a_well_formed_chart(many: list[list[tuple[int, float]]], log: bool, title: str) -> None:
    curves = [Curve(f"<{k}>&", sorted(points)) for k, points in enumerate(many)]
    root = parsed(line_chart(title, curves, log=log))
    assert root.attrib["aria-label"].startswith(f"{title}. ")
    finite = [k for k, points in enumerate(many) if any(math.isfinite(y) and abs(y) <= 1e30 for _, y in points)]
    assert len(root.findall("polyline")) >= len(finite)
    assert ("no finite value" in root.attrib["aria-label"]) == (not root.findall("polyline"))
    for k in range(len(root.findall("polyline"))):
        assert all(52 <= x <= 360 and 26 <= y <= 210 - 34 for x, y in polyline(root, k))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2000))
def test_thinning_keeps_ends_and_extremes(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).normal(size=count).tolist()
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thinned(points, 50)
    assert len(kept) <= 50 if count > 50 else kept == points
    assert set(kept) <= set(points)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert (min(y for _, y in kept), max(y for _, y in kept)) == (min(values), max(values))
