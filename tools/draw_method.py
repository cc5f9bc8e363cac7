"""Draw docs/figures/method.svg, the diagram of the README: `python tools/draw_method.py`.

One file serves light and dark pages: text and arrows have a middle grey that is legible on both, boxes are filled with
translucent colours of Okabe and Ito, and nothing is white or black.
"""

from __future__ import annotations

from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "docs" / "figures" / "method.svg"
_INK = "#737d88"  # legible on white and on near-black
_SHEET, _CELL, _EDGE = "#8b949e", "#b6bec7", "#57606a"  # a section, a neurite in it, outlines
_BLUE, _ORANGE, _GREEN, _PINK = "#56B4E9", "#D55E00", "#009E73", "#CC79A7"
_SIZE = (960, 330)


def drawing() -> str:
    """Return the diagram as SVG."""
    parts = [
        _sections(20, 108),
        _text(78, 300, "EM sections", bold=True),
        _text(78, 317, "as they arrive"),
        _network(
            (250, 26), "3D teacher", _ORANGE, ("sees a block of sections,", "window by window", "in training only")
        ),
        _network((250, 196), "2D student", _BLUE, ("sees two sections at a time,", "whole, without seams", "fast")),
        _arrow([(150, 150), (196, 150), (196, 75), (244, 75)]),
        _arrow([(150, 190), (196, 190), (196, 245), (244, 245)]),
        _arrow([(350, 130), (350, 190)], _INK, dashed=True),
        _text(362, 158, "distillation: affinities,", anchor="start"),
        _text(362, 173, "embeddings, masks", anchor="start"),
        _box(546, 104, 190, 112, _GREEN),
        _text(641, 132, "shared decoder", bold=True),
        _text(641, 156, "affinities to supervoxels,"),
        _text(641, 172, "merged by their contacts,"),
        _text(641, 188, "or one mask per query"),
        _arrow([(456, 75), (506, 75), (506, 140), (540, 140)], _INK, dashed=True),
        _arrow([(456, 245), (506, 245), (506, 180), (540, 180)]),
        _arrow([(742, 160), (788, 160)]),
        _neurons(808, 78),
        _text(868, 300, "neurons", bold=True),
        _text(868, 317, "one id each, in 3D"),
    ]
    width, height = _SIZE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" role="img">\n'
        "<title>EM sections enter a 3D teacher and a 2D student; the teacher is distilled into the student; a shared "
        "decoder turns affinities into neurons</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, *, bold: bool = False, anchor: str = "middle") -> str:
    weight = ' font-weight="bold" font-size="15"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{_INK}"{weight}>{words}</text>'


def _box(x: float, y: float, wide: float, tall: float, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{tall:g}" rx="8" fill="{colour}" fill-opacity="0.16" '
        f'stroke="{colour}" stroke-width="2"/>'
    )


def _network(corner: tuple[float, float], name: str, colour: str, lines: tuple[str, ...]) -> str:
    x, y = corner
    words = [_text(x + 100, y + 46 + 17 * k, line) for k, line in enumerate(lines)]
    return "\n".join([_box(x, y, 200, 98, colour), _text(x + 100, y + 25, name, bold=True), *words])


def _arrow(points: list[tuple[float, float]], colour: str = _INK, *, dashed: bool = False) -> str:
    path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
    (before_x, before_y), (x, y) = points[-2:]
    tip = (
        f"{x:g},{y:g} {x - 9:g},{y - 5:g} {x - 9:g},{y + 5:g}"
        if before_y == y
        else (f"{x:g},{y:g} {x - 5:g},{y - 9:g} {x + 5:g},{y - 9:g}")
    )
    assert before_x < x or before_y < y, "arrows point to the right or down"
    line = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{line}/>'
        f'<polygon points="{tip}" fill="{colour}"/>'
    )


_CELLS = (  # neurites of a section as polygons in a unit square, and their colours
    (((0.02, 0.04), (0.46, 0.02), (0.52, 0.30), (0.30, 0.44), (0.03, 0.38)), _BLUE),
    (((0.52, 0.03), (0.97, 0.03), (0.97, 0.46), (0.62, 0.50), (0.56, 0.28)), _ORANGE),
    (((0.03, 0.45), (0.30, 0.50), (0.40, 0.72), (0.30, 0.97), (0.03, 0.97)), _GREEN),
    (((0.36, 0.48), (0.53, 0.36), (0.64, 0.56), (0.97, 0.53), (0.97, 0.97), (0.38, 0.97), (0.47, 0.72)), _PINK),
)


def _sheet(x: float, y: float, coloured: bool) -> str:
    """Draw one section in a slanted view, its neurites outlined or coloured."""
    side, lean, flat = 92.0, 0.26, 0.62

    def place(point: tuple[float, float]) -> str:
        u, v = point
        return f"{x + side * (u + lean * (1 - v)):.1f},{y + side * flat * v:.1f}"

    frame = " ".join(map(place, ((0, 0), (1, 0), (1, 1), (0, 1))))
    drawn = [f'<polygon points="{frame}" fill="{_SHEET}" stroke="{_EDGE}" stroke-width="1.2"/>']
    for cell, colour in _CELLS:
        corners = " ".join(map(place, cell))
        fill = colour if coloured else _CELL
        drawn.append(f'<polygon points="{corners}" fill="{fill}" stroke="{_EDGE}" stroke-linejoin="round"/>')
    return "\n".join(drawn)


def _sections(x: float, y: float) -> str:
    return "\n".join(_sheet(x, y + 36 * k - 40, coloured=False) for k in reversed(range(4)))


def _neurons(x: float, y: float) -> str:
    return "\n".join(_sheet(x, y + 36 * k - 10, coloured=True) for k in reversed(range(4)))


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
