"""Who belongs to whom in a segmentation and its ground truth, and which voxels are wrong by a split or a merge.

Voxels are judged as VOI and adapted Rand error count them under the preset `skimage`: ground-truth 0 is not counted and
segment 0 is a segment like any other. What an object shares with its largest partner is right, the rest is wrong.
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
    """Largest and second largest partner of every object and of every segment; of equals, the smaller id comes first.

    Attributes:
        truth: (N,) ground-truth ids, ascending.
        segment_of: (N, 2) the segments that share most voxels with each; twice the same where there is but one.
        segments: (M,) segment ids that cover a counted voxel, ascending; may hold 0.
        truth_of: (M, 2) the ground-truth objects that share most voxels with each.
    """

    truth: Ids
    segment_of: Ids
    segments: Ids
    truth_of: Ids


def main_partners(table: Contingency) -> Partners:
    """Who belongs to whom, by voxels shared in everything that was counted.

    Raises:
        DistillError: no ground-truth voxel has been counted.
    """
    pairs = table.pairs()
    truth, segment_of = _largest(pairs.u, pairs.v, pairs.count)
    segments, truth_of = _largest(pairs.v, pairs.u, pairs.count)
    return Partners(truth, segment_of, segments, truth_of)


def error_codes(segmentation: Integers, labels: Integers, partners: Partners) -> Codes:
    """Which voxels are wrong.

    Args:
        segmentation: segment ids of any shape.
        labels: ground-truth ids of the same shape, 0 = not counted.
        partners: of the volume that both are a part of.

    Returns:
        Same shape, uint8: 0 right or not counted, `SPLIT` where the voxel lies outside the largest segment of its
        object, `MERGE` where it lies outside the largest object of its segment, or both bits.

    Raises:
        ShapeError: the shapes differ.
    """
    if segmentation.shape != labels.shape:
        raise ShapeError(f"segmentation: found shape {segmentation.shape}, expected that of labels {labels.shape}")
    split = _look_up(labels, partners.truth, partners.segment_of[:, 0]) != segmentation
    merge = _look_up(segmentation, partners.segments, partners.truth_of[:, 0]) != labels
    return _codes(split, merge, labels)


def largest_wrong_pieces(segmentation: Integers, labels: Integers, partners: Partners) -> Codes:
    """Those of the wrong voxels that lie in the second largest piece of their object or segment.

    Args:
        segmentation: as for `error_codes`.
        labels: as for `error_codes`.
        partners: as for `error_codes`.

    Returns:
        Codes as of `error_codes`, with fewer bits set.
    """
    split = _look_up(labels, partners.truth, partners.segment_of[:, 1]) == segmentation
    merge = _look_up(segmentation, partners.segments, partners.truth_of[:, 1]) == labels
    return _codes(split, merge, labels) & error_codes(segmentation, labels, partners)


def _largest(ids: Ids, partners: Ids, count: npt.NDArray[np.int64]) -> tuple[Ids, Ids]:
    order = np.lexsort((partners, -count, ids))
    distinct, first, number = np.unique(ids[order], return_index=True, return_counts=True)
    return distinct, partners[order][np.stack([first, first + (number > 1)], axis=1)]


def _look_up(ids: Integers, known: Ids, values: Ids) -> Ids:
    """The value of every id; 0 for one that is not known."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    where = np.minimum(np.searchsorted(known, distinct.astype(np.uint64)), len(known) - 1)
    found: Ids = np.where(known[where] == distinct, values[where], np.uint64(0))
    return found[inverse].reshape(ids.shape)


def _codes(split: npt.NDArray[np.bool_], merge: npt.NDArray[np.bool_], labels: Integers) -> Codes:
    codes = SPLIT * split.astype(np.uint8) + MERGE * merge.astype(np.uint8)
    codes[labels == 0] = 0
    return codes
