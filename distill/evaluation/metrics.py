"""Scores of a segmentation, and the objects that cost most.

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
    """What one object adds to the variation of information.

    Attributes:
        id: the object's id.
        bits: its share of `voi_split` or `voi_merge`.
        voxels: its counted voxels.
        pieces: ids of the other labelling that it meets.
    """

    id: int
    bits: float
    voxels: int
    pieces: int


@dataclass(frozen=True)
class ObjectBits:
    """What every ground-truth object has to do with the two errors, in ascending order of ids.

    Attributes:
        id: (N,) ground-truth ids.
        voxels: (N,) counted voxels.
        split: (N,) bits that the object adds to `voi_split`.
        merge: (N,) bits that the object's voxels add to `voi_merge`: those of the segments it lies in, by its share.
    """

    id: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    split: NDArray[np.float64]
    merge: NDArray[np.float64]


@dataclass(frozen=True)
class WorstObjects:
    """Ground-truth objects that are split most and segments that merge most, worst first."""

    split: tuple[ObjectError, ...]
    merged: tuple[ObjectError, ...]


def score(
    segmentation: Integers, labels: Integers, preset: str = "skimage", *, resolution: Nanometres | None = None
) -> Scores:
    """Score a segmentation against ground truth.

    Args:
        segmentation: segment ids, any integer type and shape; 0 is an ordinary segment here.
        labels: ground-truth ids of the same shape; 0 is not counted.
        preset: protocol, see `Contingency`.
        resolution: z, y, x in nm; needed by `cremi`.

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
    """The objects that a proofreader should look at first.

    Args:
        contingency: filled table.
        n: objects per list, at most.

    Returns:
        The ground-truth objects that add most bits to `voi_split` and the segments that add most to `voi_merge`;
        objects without error are left out. All objects together add up to the score.
    """
    pairs = contingency.pairs()
    return WorstObjects(split=_worst(pairs.u, pairs.count, n), merged=_worst(pairs.v, pairs.count, n))


def object_bits(contingency: Contingency) -> ObjectBits:
    """How far each ground-truth object is split, and merged with others; the sums are `voi_split` and `voi_merge`."""
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
