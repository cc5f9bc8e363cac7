"""What every figure must hold to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def _texts_inside(fig: Figure, apart: tuple[str, ...] = ()) -> None:
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    renderer = canvas.get_renderer()
    hidden = {
        id(label)
        for ax in fig.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if id(text) not in hidden]
    boxes = [(text, Text.get_window_extent(text, renderer)) for text in texts]
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= fig.bbox.width + 1, text
        assert box.y1 <= fig.bbox.height + 1, text
    kept = [(text, box) for text, box in boxes if str(text.get_gid()).split()[0] in apart]
    for (a, one), (b, two) in itertools.combinations(kept, 2):
        clear = min(one.x1, two.x1) - max(one.x0, two.x0) <= 1 or min(one.y1, two.y1) - max(one.y0, two.y0) <= 1.5
        assert clear, (a, b)


@pytest.fixture(scope="session")
def texts_inside() -> Callable[..., None]:
    """No text leaves a figure, and no two of those whose gid begins with one of some words overlap."""
    return _texts_inside
