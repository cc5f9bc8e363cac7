"""Label colours are stable, distinct and leave the background alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from distill.core.errors import DistillError
from viz.style import COLOURS, colour_of, label_colours, matched_ids, outlined, overlay


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


def test_outlines_lie_between_labels_and_nowhere_else() -> None:
    labels = np.zeros((8, 10), np.uint64)
    labels[:4, :5], labels[4:, :5], labels[:, 5:] = 1, 2, 3
    painted = np.full((8, 10, 3), 200, np.uint8)
    dark = (outlined(painted, labels) < 200).all(axis=2)
    expected = np.zeros((8, 10), bool)
    expected[4, :5] = expected[:, 5] = True
    assert np.array_equal(dark, expected)
    assert (outlined(painted, labels)[~expected] == 200).all()


def test_the_largest_segment_of_a_neuron_takes_its_colour() -> None:
    labels = np.repeat(np.array([[4, 4, 4, 7, 7, 9, 0]], np.uint64), 3, axis=0)
    segmentation = np.repeat(np.array([[1, 1, 2, 3, 3, 3, 0]], np.uint64), 3, axis=0)
    found = matched_ids(segmentation, labels)
    assert (found[:, :2] == 4).all()  # the largest part of 4
    assert len(set(found[:, 2]) & {0, 4, 7, 9}) == 0  # its second part
    assert (found[:, 3:6] == 7).all()  # a merge of 7 and 9: one colour over both
    assert (found[:, 6] == 0).all()
    assert np.array_equal(matched_ids(labels + np.uint64(50) * (labels > 0), labels), labels)


def test_a_network_and_a_method_have_one_colour_in_every_figure() -> None:
    assert colour_of("Teacher", 5) == colour_of("teacher + queries VOI", 0)
    assert colour_of("query decoder", 1) == colour_of("queries", 3)
    assert len({colour_of(name, 0) for name in ("teacher", "student", "query", "waterz", "flood", "mws")}) == 6
    assert colour_of("slice", 1) == COLOURS[1]
