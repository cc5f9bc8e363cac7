"""Connected pieces of ground truth: names, the bound, and lists of errors that are errors."""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
import pytest

from distill.core.geometry import Box
from distill.evaluation.evaluate import EvaluationOptions, evaluate_all, find_worst
from distill.evaluation.metrics import score
from distill.evaluation.worst_objects.connected import connected_pieces
from distill.io.volume import volume_from_array
from distill.io.writers.store import create_zarr

NM = (30.0, 6.0, 6.0)


def bent() -> np.ndarray:
    """Neuron 5 enters twice, in 60 and 20 pixels a section; neuron 9 is whole; 0 between them."""
    labels = np.zeros((4, 12, 20), np.uint64)
    labels[:, 1:7, 1:11] = 5
    labels[:, 9:11, 1:11] = 5
    labels[:, 1:11, 13:19] = 9
    return labels


def test_pieces_are_the_components_and_the_largest_keeps_its_id() -> None:
    labels = bent()
    found = connected_pieces(volume_from_array(labels, NM), Box.of_shape(labels.shape))
    ids = found.labels.read()
    assert found.parts == {10: (5, 2)}
    assert np.array_equal(ids == 10, cc3d.connected_components((labels == 5).astype(np.uint8)) == 2)
    assert np.array_equal(found.whole(ids), labels)
    assert (found.name(5), found.name(10), found.name(9), found.neurons) == ("5", "5 (piece 2)", "9", 1)
    assert found.bound == pytest.approx(score(ids, labels).voi_split)
    assert found.bound == pytest.approx((240 * np.log2(320 / 240) + 80 * np.log2(320 / 80)) / 560)


def test_a_region_is_cut_on_its_own() -> None:
    labels = bent()
    labels[3, 7:9, 4] = 5  # the two parts of 5 meet in the last section
    volume = volume_from_array(labels, NM)
    assert connected_pieces(volume, Box.of_shape(labels.shape)).parts == {}
    found = connected_pieces(volume, Box((0, 0, 0), (3, 12, 20)))
    assert found.parts == {10: (5, 2)}
    assert not found.labels.read(Box((3, 0, 0), (4, 12, 20))).any()


def test_a_segmentation_into_pieces_has_no_error_and_a_cut_one_is_listed() -> None:
    labels = bent()
    segmentation = labels + np.uint64(100)
    segmentation[:, 9:11, 1:11] = 200
    seen, truth = volume_from_array(segmentation, NM), volume_from_array(labels, NM)
    worst, spots, pieces = find_worst(seen, truth, "skimage", 5)
    assert (worst.split, worst.merged, spots) == ((), (), [])
    assert pieces.bound == pytest.approx(score(segmentation[labels > 0], labels[labels > 0]).voi_split)
    segmentation[2:, 9:11, 1:11] = 201
    worst, spots, _ = find_worst(volume_from_array(segmentation, NM), truth, "skimage", 5)
    assert [(error.id, error.voxels, error.pieces) for error in worst.split] == [(5, 80, 2)]
    assert [(spot.kind, spot.error.id, spot.name) for spot in spots] == [("split", 5, "5 (piece 2)")]
    assert worst.split[0].bits == pytest.approx(80 / 560)


def test_one_segment_over_two_pieces_is_no_merge() -> None:
    labels = bent()
    seen, truth = volume_from_array(labels, NM), volume_from_array(labels, NM)
    worst, spots, _ = find_worst(seen, truth, "skimage", 5)
    assert (worst.split, worst.merged, spots) == ((), (), [])


def test_scores_are_those_of_whole_neurons_and_the_bound_is_reported(tmp_path: Path) -> None:
    labels = bent()
    segmentation = labels.copy()
    segmentation[:, 9:11, 1:11] = 7
    for name, values in (("seg", segmentation), ("ids", labels)):
        stored = create_zarr(tmp_path / f"{name}.zarr", name, shape=values.shape, dtype=values.dtype, resolution=NM)
        for z, section in enumerate(values):
            stored.write_section(z, section)
    card = evaluate_all(f"{tmp_path}/seg.zarr:seg", f"{tmp_path}/ids.zarr:ids", EvaluationOptions(), lambda *_: None)
    assert card.evaluation is not None
    assert card.evaluation.scores.voi_split == pytest.approx(score(segmentation, labels).voi_split)
    assert card.spots == ()
    found = card.to_dict()["disconnected"]
    assert found == {"neurons": 1, "voi_split_bound": pytest.approx(card.evaluation.scores.voi_split)}
