"""Label colours are stable, distinct and leave the background alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from distill.core.errors import DistillError
from viz.style import label_colours, overlay


def test_golden_colours() -> None:
    assert label_colours(np.array([0, 1, 2, 3, 2**63 + 5], np.uint64)).tolist() == [
        [0, 0, 0],
        [8, 186, 230],
        [167, 122, 0],
        [213, 165, 255],
        [0, 181, 209],
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_a_colour_depends_on_the_id_alone(dtype: type) -> None:
    ids = np.array([7, 0, 101, 7], dtype)
    colours = label_colours(ids)
    assert colours.dtype == np.uint8
    assert np.array_equal(colours, label_colours(ids.astype(np.uint64)))
    assert np.array_equal(colours[::-1], label_colours(ids[::-1]))
    assert np.array_equal(colours[0], colours[3])


@given(st.integers(1, 2**64 - 1))
def test_every_label_is_bright(label: int) -> None:
    assert label_colours(np.array([label], np.uint64)).max() > 100


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89])
def test_close_ids_look_different(step: int) -> None:
    lab = rgb2lab(label_colours(np.arange(1, 1000))[None] / 255)[0]
    assert np.percentile(deltaE_ciede2000(lab[step:], lab[:-step]), 2) > 3.5
    if step <= 3:
        assert deltaE_ciede2000(lab[step:], lab[:-step]).min() > 12


def test_overlay_blends_labels_and_keeps_background() -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    labels = rng.integers(0, 4, (9, 7))
    painted = overlay(raw, labels, 0.3)
    for y in range(9):
        for x in range(7):
            grey = np.full(3, raw[y, x], float)
            colour = label_colours(labels[y, x : x + 1])[0]
            expected = grey if labels[y, x] == 0 else 0.7 * grey + 0.3 * colour
            assert np.abs(painted[y, x] - expected).max() <= 0.51
    assert np.array_equal(overlay(raw, labels, 0.0), np.repeat(raw[..., None], 3, axis=2))
    assert np.array_equal(overlay(raw.T, labels.T, 0.3), painted.transpose(1, 0, 2))


def test_no_labels() -> None:
    assert label_colours(np.zeros(0, np.int64)).shape == (0, 3)
    raw = np.full((2, 3), 9, np.uint8)
    assert (overlay(raw, np.zeros((2, 3), np.uint8)) == 9).all()


@pytest.mark.parametrize(("ids", "word"), [(np.array([1.0]), "whole numbers"), (np.array([-1]), "-1")])
def test_bad_ids_are_refused(ids: np.ndarray, word: str) -> None:
    with pytest.raises(DistillError, match=word):
        label_colours(ids)


def test_bad_overlays_are_refused() -> None:
    raw, labels = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint64)
    with pytest.raises(DistillError, match="same shape"):
        overlay(raw, labels[:3])
    with pytest.raises(DistillError, match="uint8"):
        overlay(raw.astype(np.float32), labels)
    with pytest.raises(DistillError, match="alpha"):
        overlay(raw, labels, 1.5)
