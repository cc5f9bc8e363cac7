"""The gallery puts before next to after, the section above the side view, at one scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill.core.errors import DistillError
from viz.gallery.figure import Example, build_gallery_figure, gallery_figure

RNG = np.random.default_rng(0)
BEFORE = RNG.integers(0, 256, (6, 40, 50), dtype=np.uint8)
EXAMPLES = [
    Example(f"augment.key_{k}", BEFORE, RNG.integers(0, 256, BEFORE.shape, dtype=np.uint8), 2, f"note {k}")
    for k in range(8)
]


def test_views_are_where_they_should_be() -> None:
    fig = build_gallery_figure(EXAMPLES, (30, 6, 6))
    assert len(fig.axes) == 8
    for ax, one in zip(fig.axes, EXAMPLES, strict=True):
        image = np.asarray(ax.images[0].get_array())
        assert image.shape == (40 + 6 + 6 * 5, 50 + 6 + 50)
        for left, volume in ((0, one.before), (56, one.after)):
            assert np.array_equal(image[:40, left : left + 50], volume[2])
            for z in range(6):
                for row in range(5):  # a section is 30 nm thick, a pixel 6 nm wide
                    assert np.array_equal(image[46 + 5 * z + row, left : left + 50], volume[z, 20])
        assert (image[40:46] == 255).all()
        assert (image[:, 50:56] == 255).all()
        assert ax.get_yticks().tolist() == [20, 46 + 5 * 2 + 2]
        said = {t.get_gid(): t.get_text() for t in ax.texts}
        assert (said["title"], said["note"]) == (one.key, one.note)
        assert [t.xy[0] for t in ax.texts if t.get_gid() in ("before", "after")] == [0, 56]


@pytest.mark.parametrize(("resolution", "rows"), [((8, 8, 8), 6), ((50, 5, 5), 60), ((29, 6, 6), 30)])
def test_side_view_is_to_scale(resolution: tuple[float, float, float], rows: int) -> None:
    ax = build_gallery_figure(EXAMPLES[:1], resolution).axes[0]
    assert np.asarray(ax.images[0].get_array()).shape[0] == 46 + rows


def test_scale_bar_is_exact() -> None:
    fig = build_gallery_figure(EXAMPLES, (30, 6, 6))
    bar = next(patch for patch in fig.axes[0].patches if patch.get_gid() == "scale bar")
    assert bar.get_width() == pytest.approx(100 / 6)
    assert "100 nm" in [text.get_text() for text in fig.axes[0].texts]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_texts_stay_inside_and_apart(texts_inside: Callable[..., None], count: int) -> None:
    fig = build_gallery_figure(EXAMPLES[:count], (30, 6, 6))
    assert fig.get_size_inches()[0] <= 180 / 25.4 + 0.01
    texts_inside(fig, ("title", "note", "letter", "before", "after"))


def test_file_is_written(tmp_path: Path) -> None:
    gallery_figure(EXAMPLES[:2], (30, 6, 6), tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused() -> None:
    with pytest.raises(DistillError, match="found no example"):
        build_gallery_figure([], (30, 6, 6))
    with pytest.raises(DistillError, match=r"a: found \(5, 40, 50\) uint8"):
        build_gallery_figure([Example("a", BEFORE, BEFORE[1:], 0)], (30, 6, 6))
    with pytest.raises(DistillError, match="float64"):
        build_gallery_figure([Example("a", BEFORE, BEFORE / 255, 0)], (30, 6, 6))
    with pytest.raises(DistillError, match="found section 6, expected one of 6"):
        build_gallery_figure([Example("a", BEFORE, BEFORE, 6)], (30, 6, 6))
