"""Match objects of a segmentation and its ground truth, and find voxels in split and merge errors.

Voxels are judged as VOI and adapted Rand error count them under the preset `skimage`: ground truth 0 is ignored and
segment 0 is an ordinary segment. The overlap of an object with its largest partner is correct, the rest is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.core.errors import ShapeError
from distill.core.labels import Integers
from distill.evaluation.contingency import Contingency

Ids = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.uint8]

SPLIT, MERGE = 1, 2  # bits of an error code


@dataclass(frozen=True)
class Partners:
    """Largest and second largest partner of every object and of every segment; ties go to the smaller id.

    Attributes:
        truth: (N,) ground-truth ids, ascending.
        segment_of: (N, 2) the segments with the largest overlap with each; the same twice if there is only one.
        segments: (M,) segment ids that contain a counted voxel, ascending; may include 0.
        truth_of: (M, 2) the ground-truth objects with the largest overlap with each.
    """

    truth: Ids
    segment_of: Ids
    segments: Ids
    truth_of: Ids


def main_partners(table: Contingency) -> Partners:
    """Find the partners of all objects by their overlap in a contingency table.

    Raises:
        DistillError: no ground-truth voxel has been counted.
    """
    pairs = table.pairs()
    truth, segment_of = _largest(pairs.u, pairs.v, pairs.count)
    segments, truth_of = _largest(pairs.v, pairs.u, pairs.count)
    return Partners(truth, segment_of, segments, truth_of)


def error_codes(segmentation: Integers, labels: Integers, partners: Partners, neurons: Integers | None = None) -> Codes:
    """Mark erroneous voxels.

    Args:
        segmentation: segment ids of any shape.
        labels: ground-truth ids of the same shape, 0 = ignored.
        partners: of the volume that contains both arrays.
        neurons: ground truth of the merges, where `labels` are connected pieces of its ids; by default the labels.

    Returns:
        Same shape, uint8: 0 = correct or ignored, `SPLIT` where the voxel lies outside the largest segment of its
            object, `MERGE` where it lies outside the largest object of its segment, or both bits.

    Raises:
        ShapeError: the shapes differ.
    """
    if segmentation.shape != labels.shape:
        raise ShapeError(f"segmentation: found shape {segmentation.shape}, expected that of labels {labels.shape}")
    split = _look_up(labels, partners.truth, partners.segment_of[:, 0]) != segmentation
    merge = _look_up(segmentation, partners.segments, partners.truth_of[:, 0]) != (
        labels if neurons is None else neurons
    )
    return _codes(split, merge, labels)


def largest_wrong_pieces(
    segmentation: Integers, labels: Integers, partners: Partners, neurons: Integers | None = None
) -> Codes:
    """Mark the erroneous voxels in the second largest fragment of their object or segment.

    Args:
        segmentation: as for `error_codes`.
        labels: as for `error_codes`.
        partners: as for `error_codes`.
        neurons: as for `error_codes`.

    Returns:
        Codes as in `error_codes`, with fewer bits set.
    """
    split = _look_up(labels, partners.truth, partners.segment_of[:, 1]) == segmentation
    merge = _look_up(segmentation, partners.segments, partners.truth_of[:, 1]) == (
        labels if neurons is None else neurons
    )
    return _codes(split, merge, labels) & error_codes(segmentation, labels, partners, neurons)


def _largest(ids: Ids, partners: Ids, count: npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
    order = np.lexsort((partners, -count, ids))
    distinct, first, number = np.unique(ids[order], return_index=True, return_counts=True)
    return distinct, partners[order][np.stack([first, first + (number > 1)], axis=1)]


def _look_up(ids: Integers, known: Ids, values: Ids) -> Ids:
    """Return the value of every id; 0 for unknown ids."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    where = np.minimum(np.searchsorted(known, distinct.astype(np.uint64)), len(known) - 1)
    found: Ids = np.where(known[where] == distinct, values[where], np.uint64(0))
    return found[inverse].reshape(ids.shape)


def _codes(split: npt.NDArray[np.bool_], merge: npt.NDArray[np.bool_], labels: Integers) -> Codes:
    codes = SPLIT * split.astype(np.uint8) + MERGE * merge.astype(np.uint8)
    codes[labels == 0] = 0
    return codes
