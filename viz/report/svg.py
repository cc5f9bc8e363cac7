"""Line charts as SVG for a web page; colours are left to its style sheet, so that one chart fits light and dark.

Classes: `axis` lines, `grid` lines, `tick` and `label` text, `curve c0` .. `curve c3` lines, `dot`, `note` marks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

_MOST = 400  # points of a curve; more are thinned out to the extremes of each stretch
_LARGEST = 1e30  # what is beyond is as good as infinite, and its reciprocal as good as zero on a logarithmic axis
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 28, 26, 34


@dataclass(frozen=True)
class Curve:
    """A named line through (x, y) points, x ascending; values that are not finite are left out."""

    name: str
    points: Points


@dataclass(frozen=True)
class AxisNote:
    """A position on the x axis and what begins there."""

    x: float
    text: str


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str = "step",
    log: bool = False,
    notes: Sequence[AxisNote] = (),
    size: tuple[int, int] = (360, 210),
    end: float | None = None,
) -> str:
    """Draw a line chart as an SVG element.

    Args:
        title: above the chart and, with the last values, its text for those who cannot see it.
        curves: at most four, each with a colour, a marker and, where there are several, its name at its end.
        x_label: below the axis.
        log: whether y is logarithmic; ignored where a value is not positive.
        notes: vertical lines.
        size: width and height in CSS pixels at which texts have their size.
        end: where the x axis ends; the last point by default.

    Returns:
        `<svg>`, all texts escaped; without a finite point, a chart that states it.
    """
    shown = [Curve(curve.name, thinned(curve.points)) for curve in curves]
    shown = [curve for curve in shown if curve.points]
    width, height = size
    described = [f"{curve.name}: {curve.points[-1][1]:.4g} at {curve.points[-1][0]:g}" for curve in shown]
    says = f"{title}. {'; '.join(described) or 'no finite value'}."
    parts = [f'<text class="title" x="{_LEFT}" y="15">{escape(title)}</text>']
    if shown:
        right = _RIGHT + (8 * max(len(curve.name) for curve in shown) if len(shown) > 1 else 0)
        frame = _Frame.around(shown, width - right, height, log, end)
        parts += [*frame.axes(x_label), *frame.notes(notes)]
        for k, curve in enumerate(shown):
            parts += frame.curve(curve, k)
        if len(shown) > 1:
            parts += frame.names(shown)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(says)}">'
        f"{''.join(parts)}</svg>"
    )


def thinned(points: Points, most: int = _MOST) -> list[tuple[float, float]]:
    """Thin points for drawing: of each stretch the lowest and the highest, in order."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and abs(y) <= _LARGEST]
    if len(finite) <= most:
        return finite
    kept = []
    stretch = math.ceil(2 * len(finite) / (most - 2))
    for start in range(0, len(finite), stretch):
        part = finite[start : start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return [finite[0], *kept, finite[-1]]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) from `low` to `high`."""
    raw = (high - low) / about
    decade = 10.0 ** math.floor(math.log10(raw))
    step = next(decade * k for k in (1, 2, 2.5, 5, 10) if decade * k >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Data limits and the rectangle that they fill."""

    left: float
    right: float
    low: float
    high: float
    log: bool
    width: int  # right edge of the plot
    height: int

    @classmethod
    def around(cls, curves: Sequence[Curve], width: int, height: int, log: bool, end: float | None) -> _Frame:
        xs = [x for curve in curves for x, _ in curve.points]
        ys = [y for curve in curves for _, y in curve.points]
        log = log and min(ys) >= 1 / _LARGEST
        low, high = (math.log10(min(ys)), math.log10(max(ys))) if log else (min(0.0, min(ys)), max(ys))
        spare = 0.06 * (high - low) or (0.5 if log else 0.5 * abs(high)) or 0.5
        low = low - spare if log or low < 0 else low
        return cls(0.0, max(end or 0.0, max(xs), 1e-9), low, high + spare, log, width, height)

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self.left) / (self.right - self.left) * (self.width - _LEFT), 1)

    def y(self, value: float) -> float:
        up = math.log10(value) if self.log else value
        share = (up - self.low) / (self.high - self.low)
        return round(self.height - _BOTTOM - share * (self.height - _BOTTOM - _TOP), 1)

    def axes(self, x_label: str) -> list[str]:
        bottom = self.height - _BOTTOM
        parts = []
        for value in self._y_ticks():
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{self.width}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4}">{value:.4g}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{self.width}" y1="{bottom}" y2="{bottom}"/>')
        for value in ticks(self.left, self.right, max(3, (self.width - _LEFT) // 110)):
            parts.append(f'<text class="tick middle" x="{self.x(value)}" y="{bottom + 15}">{value:,g}</text>')
        middle = (_LEFT + self.width) / 2
        parts.append(f'<text class="label middle" x="{middle}" y="{self.height - 4}">{escape(x_label)}</text>')
        return parts

    def _y_ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        low, high = 10**self.low, 10**self.high
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
            if len(found) >= 3:
                return found
        return [tick for tick in ticks(low, high, 5) if tick > 0]

    def notes(self, notes: Sequence[AxisNote]) -> list[str]:
        parts = []
        for note in notes:
            if self.left < note.x < self.right:
                x = self.x(note.x)
                parts.append(f'<line class="note" x1="{x}" x2="{x}" y1="{_TOP}" y2="{self.height - _BOTTOM}"/>')
                parts.append(f'<text class="tick" x="{x + 4}" y="{_TOP + 10}">{escape(note.text)}</text>')
        return parts

    def curve(self, curve: Curve, k: int) -> list[str]:
        at = [(self.x(x), self.y(y)) for x, y in curve.points]
        parts = [f'<polyline class="curve c{k}" points="{" ".join(f"{x},{y}" for x, y in at)}"/>']
        if len(at) <= 40:
            parts += [_marker(x, y, k) for x, y in at]
        return parts

    def names(self, curves: Sequence[Curve]) -> list[str]:
        """Write names at the ends of the curves, moved apart where they would overlap."""
        order = sorted(range(len(curves)), key=lambda k: self.y(curves[k].points[-1][1]))
        parts, above = [], -math.inf
        for k in order:
            y = max(self.y(curves[k].points[-1][1]) + 4, above + 14)
            above = y
            parts.append(f'<text class="name n{k}" x="{self.width + 8}" y="{y}">{escape(curves[k].name)}</text>')
        return parts


def _marker(x: float, y: float, k: int) -> str:
    if k % 2:
        return f'<rect class="dot n{k}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    return f'<circle class="dot n{k}" cx="{x}" cy="{y}" r="3.4"/>'
