"""Scores of a segmentation, and the objects with the largest errors.

VOI in bits, split = H(segmentation | ground truth), merge = H(ground truth | segmentation): see
`distill.evaluation.contingency`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.core.geometry import Nanometres
from distill.core.labels import Integers
from distill.evaluation.contingency import Contingency, Scores, marginal


@dataclass(frozen=True)
class ObjectError:
    """Contribution of one object to the variation of information.

    Attributes:
        id: the object's id.
        bits: its contribution to `voi_split` or `voi_merge`.
        voxels: its counted voxels.
        pieces: number of ids of the other labelling that overlap it.
    """

    id: int
    bits: float
    voxels: int
    pieces: int


@dataclass(frozen=True)
class ObjectBits:
    """Contribution of every ground-truth object to both errors, in ascending order of ids.

    Attributes:
        id: (N,) ground-truth ids.
        voxels: (N,) counted voxels.
        split: (N,) contribution to `voi_split` in bits.
        merge: (N,) contribution of the object's voxels to `voi_merge` in bits: those of its segments, in proportion to
            its voxels.
    """

    id: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    split: NDArray[np.float64]
    merge: NDArray[np.float64]


@dataclass(frozen=True)
class WorstObjects:
    """Ground-truth objects with the largest split errors and segments with the largest merge errors, in descending
    order.
    """

    split: tuple[ObjectError, ...]
    merged: tuple[ObjectError, ...]


def score(
    segmentation: Integers, labels: Integers, preset: str = "skimage", *, resolution: Nanometres | None = None
) -> Scores:
    """Score a segmentation against ground truth.

    Args:
        segmentation: segment ids, any integer type and shape; 0 counts as an ordinary segment.
        labels: ground-truth ids of the same shape; 0 is ignored.
        preset: protocol, see `Contingency`.
        resolution: z, y, x in nm; required by `cremi`.

    Returns:
        VOI in bits, split = H(segmentation | ground truth) and merge = H(ground truth | segmentation), and ARAND.

    Raises:
        ShapeError: shapes differ or an array is not of integers.
        DistillError: the preset is unknown or lacks its resolution, or no ground-truth voxel is left to count.
    """
    table = Contingency(preset, resolution=resolution)
    table.add(segmentation, labels)
    return table.scores()


def worst_objects(contingency: Contingency, n: int = 10) -> WorstObjects:
    """Return the objects with the largest errors, which a proofreader should inspect first.

    Args:
        contingency: filled table.
        n: maximum number of objects per list.

    Returns:
        The ground-truth objects with the largest contributions to `voi_split` and the segments with the largest
        contributions to `voi_merge`, without objects that have no error. The contributions of all objects sum to the
        score.
    """
    pairs = contingency.pairs()
    return WorstObjects(split=_worst(pairs.u, pairs.count, n), merged=_worst(pairs.v, pairs.count, n))


def object_bits(contingency: Contingency) -> ObjectBits:
    """Compute how far each ground-truth object is split, and merged with others; the sums are `voi_split` and
    `voi_merge`.
    """
    pairs = contingency.pairs()
    ids, row, true_size = marginal(pairs.u, pairs.count)
    _, column, pred_size = marginal(pairs.v, pairs.count)
    share = pairs.count / pairs.count.sum()
    split, merge = (
        np.bincount(row, weights=share * np.log2(size / pairs.count)).astype(np.float64)
        for size in (true_size[row], pred_size[column])
    )
    return ObjectBits(ids, true_size.astype(np.int64), split, merge)


def _worst(ids: NDArray[np.uint64], count: NDArray[np.int64], n: int) -> tuple[ObjectError, ...]:
    distinct, where, size = marginal(ids, count)
    bits = np.bincount(where, weights=count * np.log2(size[where] / count)) / count.sum()
    pieces = np.bincount(where)
    worst = [k for k in np.argsort(-bits, kind="stable")[:n] if pieces[k] > 1]
    return tuple(ObjectError(int(distinct[k]), float(bits[k]), int(size[k]), int(pieces[k])) for k in worst)
