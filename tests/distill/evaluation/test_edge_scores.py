"""Scores of edges by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score, roc_curve

from distill.core.affinity_conventions import from_uint8
from distill.core.errors import ShapeError
from distill.evaluation.affinities import EdgeHistogram, affinity_scores


def test_affinity_scores_by_hand() -> None:
    target = np.array([1, 1, 1, 1, 0, 0, 0, 1], np.float32).reshape(1, 1, 2, 4)
    predicted = np.array([0.9, 0.8, 0.5, 0.1, 0.2, 0.3, 0.7, 0.0], np.float32).reshape(1, 1, 2, 4)
    valid = np.ones((1, 1, 2, 4), bool)
    valid[..., -1] = False
    (found,) = affinity_scores(predicted, target, valid)
    assert (found.boundary.precision, found.boundary.recall) == (1.0, 2 / 3)
    assert found.boundary.f1 == pytest.approx(0.8)
    assert (found.connected.precision, found.connected.recall) == (0.75, 1.0)
    assert (found.edges, found.boundary_edges) == (6, 3)
    (strict,) = affinity_scores(predicted, target, np.ones_like(valid), threshold=0.6)
    assert (strict.boundary.precision, strict.boundary.recall) == (2 / 5, 2 / 3)
    assert strict.boundary.f1 == pytest.approx(0.5)
    assert (strict.connected.precision, strict.connected.recall) == (2 / 3, 2 / 5)


def test_affinity_scores_without_a_class_and_with_wrong_shapes() -> None:
    ones, valid = np.ones((3, 2, 2, 2), np.float32), np.ones((3, 2, 2, 2), bool)
    found = affinity_scores(ones, ones, valid)
    assert len(found) == 3
    assert (found[0].boundary.f1, found[0].connected.f1, found[0].boundary_edges) == (1.0, 1.0, 0)
    assert affinity_scores(0 * ones, ones, valid)[1].boundary.f1 == 0.0
    with pytest.raises(ShapeError, match="expected one shape"):
        affinity_scores(ones, ones, valid[:2])


def histogram_of(affinity: np.ndarray, connected: np.ndarray, parts: int = 1) -> EdgeHistogram:
    found = EdgeHistogram()
    for values, truth in zip(np.array_split(affinity, parts), np.array_split(connected, parts), strict=True):
        one = EdgeHistogram()
        one.add(values, truth)
        found.update(one)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([4, 40, 256]))
def test_equals_scikit_learn(seed: int, parts: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    connected = rng.random(300) < rng.uniform(0.1, 0.9)
    connected[:2] = (True, False)
    values = np.clip(rng.normal(130 + 60 * connected, 50), 0, 255) // (256 / levels) * (256 // levels)
    affinity = values.astype(np.uint8)
    found = histogram_of(affinity, connected, parts)
    assert found.roc_auc == pytest.approx(roc_auc_score(connected, affinity), abs=1e-9)
    score = affinity.astype(float)
    expected = average_precision_score(connected, score), average_precision_score(~connected, -score)
    got = found.connected_average_precision, found.boundary_average_precision
    np.testing.assert_allclose(got, expected, atol=1e-9, rtol=0)
    for threshold in (0.2, 0.5, 128 / 255, 1.0):
        held = from_uint8(affinity) >= np.float32(threshold)
        scores = found.scores(threshold)
        for one, truth, predicted in ((scores.connected, connected, held), (scores.boundary, ~connected, ~held)):
            p, r, f, _ = precision_recall_fscore_support(truth, predicted, average="binary", zero_division=0)
            np.testing.assert_allclose((one.precision, one.recall, one.f1), (p, r, f), atol=1e-9)
    curves = found.curves()
    assert curves is not None
    false, hits, _ = roc_curve(~connected, -score, drop_intermediate=False)
    np.testing.assert_allclose(np.append(0, curves.false), false, atol=1e-12)
    np.testing.assert_allclose(np.append(0, curves.found), hits, atol=1e-12)


def test_histogram_equals_counting_the_affinities_themselves() -> None:
    rng = np.random.default_rng(4)
    affinity, target = rng.integers(0, 256, (1, 3, 8, 9), np.uint8), rng.random((1, 3, 8, 9)) < 0.6
    (expected,) = affinity_scores(from_uint8(affinity), target, np.ones_like(target))
    assert histogram_of(affinity[0].ravel(), target[0].ravel()).scores() == expected
    floats = histogram_of(from_uint8(affinity[0].ravel()), target[0].ravel())
    np.testing.assert_array_equal(floats.counts, histogram_of(affinity[0].ravel(), target[0].ravel()).counts)


def test_by_hand() -> None:
    found = histogram_of(np.array([0, 10, 10, 200], np.uint8), np.array([False, False, True, True]))
    assert found.roc_auc == (1 + 1 + 0.5 + 1) / 4
    assert found.boundary_average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found.connected_average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert histogram_of(np.zeros(0, np.uint8), np.zeros(0, bool)).scores().edges == 0


def test_one_class_alone_has_no_curve() -> None:
    found = histogram_of(np.array([3, 9], np.uint8), np.array([True, True]))
    assert found.curves() is found.roc_auc is found.boundary_average_precision is None
    assert found.connected_average_precision is None
    assert found.scores().connected.recall == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0.5, 1.5]), r"found values from 0\.5 to 1\.5, expected 0 to 1"),
        (np.array([-0.1, 0.5], np.float32), "expected 0 to 1"),
        (np.array([np.nan, 0.5]), "found values from nan"),
        (np.array([1, 2], np.uint16), "found uint16, expected uint8"),
    ],
)
def test_refuses(values: np.ndarray, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        EdgeHistogram().add(values, np.array([True, False]))
