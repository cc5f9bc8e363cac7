"""Thresholds come from the validation part, and merging must earn its place."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.config import DecoderConfig, SeedConfig
from distill.core.geometry import Box
from distill.core.known import OTHER_ID, UNKNOWN_ID
from distill.evaluation.metrics import score
from distill.inference.assembly import Assembly, Piece
from distill.inference.in_memory import SegmentedVolume
from distill.training.validation import (
    MERGE_THRESHOLDS,
    SEED_THRESHOLDS,
    judge_together,
    score_validation,
    seed_candidates,
    try_thresholds,
)

SHAPE = (3, 16, 32)
DECODING = DecoderConfig()


def truth() -> NDArray[np.uint64]:
    """Two neurons side by side."""
    labels = np.ones(SHAPE, np.uint64)
    labels[..., 16:] = 2
    return labels


def segmented(supervoxels: NDArray[np.uint64], between: float) -> SegmentedVolume:
    """Affinity 0.82 everywhere, but `between` across the neurons' border."""
    affinity = np.full((3, *SHAPE), 0.82, np.float32)
    affinity[2, :, :, 16] = between
    assembly = Assembly((1, 1, 1))
    ids = assembly.add([Piece(Box.of_shape(SHAPE), supervoxels)], affinity)
    return SegmentedVolume(ids, assembly, affinity)


def quarters() -> NDArray[np.uint64]:
    """Each neuron in two pieces."""
    return (np.arange(SHAPE[2]) // 8 + 1).astype(np.uint64)[None, None].repeat(3, 0).repeat(16, 1)


def test_the_best_threshold_is_kept() -> None:
    found = score_validation(segmented(quarters(), 0.1), truth(), DECODING)
    assert found.scores.voi_sum == pytest.approx(0, abs=1e-12)
    assert found.unmerged.voi_split == pytest.approx(1)
    assert found.threshold == 0.8  # the highest candidate below 0.82: merge as little as will do
    assert found.to_dict()["merge_threshold"] == 0.8
    assert found.to_dict()["voi_unmerged"] == pytest.approx(1)


def test_merging_that_does_not_help_is_left_out() -> None:
    found = score_validation(segmented(truth(), 0.99), truth(), DECODING)
    assert found.threshold is None
    assert found.scores == found.unmerged
    assert found.scores.voi_sum == pytest.approx(0, abs=1e-12)


def test_every_candidate_is_tried() -> None:
    given = segmented(quarters(), 0.72)
    found = score_validation(given, truth(), DECODING)
    every = {t: score(given.labels(t), truth()).voi_sum for t in (None, *MERGE_THRESHOLDS)}
    assert found.scores.voi_sum == min(every.values())
    assert every[found.threshold] == min(every.values())
    assert every[0.5] > min(every.values())  # 0.72 is passed: everything one object


def test_boundary_scores_per_axis() -> None:
    """All border edges of x are found; y and z have none to find."""
    found = score_validation(segmented(truth(), 0.1), truth(), DECODING)
    assert found.boundary_f1[2] == 1.0
    missed = score_validation(segmented(truth(), 0.9), truth(), DECODING)
    assert missed.boundary_f1[2] == 0.0


def test_middle_section_is_kept_for_the_figures() -> None:
    given = segmented(quarters(), 0.1)
    found = score_validation(given, truth(), DECODING)
    np.testing.assert_array_equal(found.labels_section, given.labels(found.threshold)[1])
    np.testing.assert_array_equal(found.affinity_section, given.affinity[:, 1])


def test_several_volumes_share_one_threshold_and_are_weighted_by_voxels() -> None:
    """One wants contacts of 0.72 merged, the other, three times as large, those above 0.8 alone."""
    small, large = segmented(quarters(), 0.1), segmented(quarters(), 0.72)
    counted = truth()
    counted[:, 8:] = 0  # half of the small one's voxels have no label
    tried = [try_thresholds(small, counted), try_thresholds(large, truth())]
    found = judge_together(tried, DECODING, ["a", "b"])
    rows = []
    for one, two in zip(*(t.scores for t in tried), strict=True):
        a, b = one.scores, two.scores
        assert a.voxels * 2 == b.voxels
        rows.append((one.threshold, a.voi_split / 3 + 2 * b.voi_split / 3, a.voi_merge / 3 + 2 * b.voi_merge / 3))
    best = min(rows, key=lambda row: row[1] + row[2])
    assert found.threshold == best[0]
    assert (found.scores.voi_split, found.scores.voi_merge) == pytest.approx(best[1:])
    assert [row[0] for row in found.sweep_rows()] == [row[0] for row in rows]
    np.testing.assert_allclose([row[1:3] for row in found.sweep_rows()], [row[1:] for row in rows], atol=1e-12)
    assert found.scores.voxels == tried[0].scores[0].scores.voxels * 3
    assert [one.name for one in found.volumes] == ["a", "b"]
    at = [row[0] for row in rows].index(found.threshold)
    assert [one.scores for one in found.volumes] == [t.scores[at].scores for t in tried]
    f1 = np.average([t.boundary_f1 for t in tried], axis=0, weights=[1, 2])
    assert found.boundary_f1 == pytest.approx(tuple(f1))
    np.testing.assert_array_equal(found.labels_section, small.labels(found.threshold)[1])
    assert [one["raw"] for one in found.to_dict()["volumes"]] == ["a", "b"]


def test_one_volume_is_judged_as_it_is() -> None:
    given = segmented(quarters(), 0.72)
    alone, listed = (
        score_validation(given, truth(), DECODING),
        judge_together([try_thresholds(given, truth())], DECODING, ["a"]),
    )
    assert alone.to_dict() == listed.to_dict()
    assert "volumes" not in alone.to_dict()


def test_unknown_voxels_do_not_count_in_a_validation() -> None:
    labels, given = truth(), segmented(quarters(), 0.1)
    labels[:, :8] = UNKNOWN_ID
    labels[:, 8:, :4] = OTHER_ID
    found = score_validation(given, labels, DECODING)
    other = given.supervoxels.copy()
    other[(labels == UNKNOWN_ID) | (labels == OTHER_ID)] = 1
    affinity = given.affinity.copy()
    affinity[:, :, :8] = 0.3  # every edge there has an unknown end
    assembly = Assembly((1, 1, 1))
    again = score_validation(
        SegmentedVolume(assembly.add([Piece(Box.of_shape(SHAPE), other)], given.affinity), assembly, affinity),
        labels,
        DECODING,
    )
    assert found.unmerged.voi_split == again.unmerged.voi_split
    assert found.unmerged.voxels == again.unmerged.voxels == 3 * 8 * 28
    # of the two known borders the one between neurons is found, that of a neuron with OTHER is missed
    assert found.boundary_f1[2] == again.boundary_f1[2] == pytest.approx(2 / 3)


def test_seed_thresholds_to_try() -> None:
    for alone in (DecoderConfig(seeds=SeedConfig(kind="mean")), DecoderConfig(queries="learned", prior="none")):
        assert seed_candidates(alone) == [alone]
    own = DecoderConfig(seeds=SeedConfig(kind="edges", thresholds=(0.1, 0.2, 0.3)))
    tried = seed_candidates(own)
    assert tried[0] == own
    assert [one.seeds.thresholds for one in tried] == [(0.1, 0.2, 0.3), *SEED_THRESHOLDS]
    again = seed_candidates(tried[2])
    assert [one.seeds.thresholds for one in again].count(SEED_THRESHOLDS[1]) == 1
