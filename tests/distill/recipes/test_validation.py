"""Thresholds come from the validation part, and merging must earn its place."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.config import DecoderConfig, SeedConfig
from distill.geometry import Box
from distill.metrics import score
from distill.recipes.validation import MERGE_THRESHOLDS, SEED_THRESHOLDS, judge, seed_candidates
from distill.recipes.volumes import Assembly, Piece, Segmented

SHAPE = (3, 16, 32)
DECODING = DecoderConfig()


def truth() -> NDArray[np.uint64]:
    """Two neurons side by side."""
    labels = np.ones(SHAPE, np.uint64)
    labels[..., 16:] = 2
    return labels


def segmented(supervoxels: NDArray[np.uint64], between: float) -> Segmented:
    """Affinity 0.82 everywhere, but `between` across the neurons' border."""
    affinity = np.full((3, *SHAPE), 0.82, np.float32)
    affinity[2, :, :, 16] = between
    assembly = Assembly((1, 1, 1))
    ids = assembly.add([Piece(Box.of_shape(SHAPE), supervoxels)], affinity)
    return Segmented(ids, assembly, affinity)


def quarters() -> NDArray[np.uint64]:
    """Each neuron in two pieces."""
    return (np.arange(SHAPE[2]) // 8 + 1).astype(np.uint64)[None, None].repeat(3, 0).repeat(16, 1)


def test_the_best_threshold_is_kept() -> None:
    found = judge(segmented(quarters(), 0.1), truth(), DECODING)
    assert found.scores.voi_sum == pytest.approx(0, abs=1e-12)
    assert found.unmerged.voi_split == pytest.approx(1)
    assert found.threshold == 0.8  # the highest candidate below 0.82: merge as little as will do
    assert found.to_dict()["merge_threshold"] == 0.8
    assert found.to_dict()["voi_unmerged"] == pytest.approx(1)


def test_merging_that_does_not_help_is_left_out() -> None:
    found = judge(segmented(truth(), 0.99), truth(), DECODING)
    assert found.threshold is None
    assert found.scores == found.unmerged
    assert found.scores.voi_sum == pytest.approx(0, abs=1e-12)


def test_every_candidate_is_tried() -> None:
    given = segmented(quarters(), 0.72)
    found = judge(given, truth(), DECODING)
    every = {t: score(given.labels(t), truth()).voi_sum for t in (None, *MERGE_THRESHOLDS)}
    assert found.scores.voi_sum == min(every.values())
    assert every[found.threshold] == min(every.values())
    assert every[0.5] > min(every.values())  # 0.72 is passed: everything one object


def test_boundary_scores_per_axis() -> None:
    """All border edges of x are found; y and z have none to find."""
    found = judge(segmented(truth(), 0.1), truth(), DECODING)
    assert found.boundary_f1[2] == 1.0
    missed = judge(segmented(truth(), 0.9), truth(), DECODING)
    assert missed.boundary_f1[2] == 0.0


def test_middle_section_is_kept_for_the_figures() -> None:
    given = segmented(quarters(), 0.1)
    found = judge(given, truth(), DECODING)
    np.testing.assert_array_equal(found.labels_section, given.labels(found.threshold)[1])
    np.testing.assert_array_equal(found.affinity_section, given.affinity[:, 1])


def test_seed_thresholds_to_try() -> None:
    for alone in (DecoderConfig(seeds=SeedConfig(kind="mean")), DecoderConfig(queries="learned", prior="none")):
        assert seed_candidates(alone) == [alone]
    own = DecoderConfig(seeds=SeedConfig(kind="edges", thresholds=(0.1, 0.2, 0.3)))
    tried = seed_candidates(own)
    assert tried[0] == own
    assert [one.seeds.thresholds for one in tried] == [(0.1, 0.2, 0.3), *SEED_THRESHOLDS]
    again = seed_candidates(tried[2])
    assert [one.seeds.thresholds for one in again].count(SEED_THRESHOLDS[1]) == 1
