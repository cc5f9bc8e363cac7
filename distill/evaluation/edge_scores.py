"""Compare affinities with ground truth, edge by edge.

The score to report is F1 of the boundary class (target 0, edges that must be cut). More than nine in ten edges are
connected, so the F1 of the connected class is high even for a prediction without boundaries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError

BINS = 256


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class of edges: 1 if the class is neither present nor predicted, 0 for 0/0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class EdgeScores:
    """Agreement of one affinity channel with its target.

    Attributes:
        boundary: scores of the boundary edges (target 0).
        connected: scores of the connected edges (target 1).
        edges: number of valid edges.
        boundary_edges: number of valid edges with target 0.
    """

    boundary: ClassScores
    connected: ClassScores
    edges: int
    boundary_edges: int


def affinity_scores(
    predicted: NDArray[np.floating[Any]], target: NDArray[Any], valid: NDArray[np.bool_], threshold: float = 0.5
) -> list[EdgeScores]:
    """Compute precision, recall and F1 of predicted affinities, per offset.

    Args:
        predicted: (K, Z, Y, X) affinity in [0, 1]; connected if at least the threshold.
        target: (K, Z, Y, X), 1 = same object.
        valid: (K, Z, Y, X) bool; other edges are ignored.
        threshold: minimum affinity of a connected edge.

    Returns:
        One entry per channel.

    Raises:
        ShapeError: the three shapes differ, or there are not four axes.
    """
    if predicted.ndim != 4 or predicted.shape != target.shape or predicted.shape != valid.shape:
        found = f"predicted {predicted.shape}, target {target.shape}, valid {valid.shape}"
        raise ShapeError(f"affinities: found {found}, expected one shape K, Z, Y, X")
    result = []
    for channel, truth, counted in zip(predicted, target, valid, strict=True):
        connected, true_connected = channel[counted] >= threshold, truth[counted] > 0.5
        both = int(np.count_nonzero(connected & true_connected))
        neither = int(np.count_nonzero(~(connected | true_connected)))
        missed = int(np.count_nonzero(connected)) - both
        extra = connected.size - both - neither - missed
        result.append(_edge_scores(both, neither, missed, extra))
    return result


@dataclass(frozen=True)
class Curves:
    """Scores of detecting boundaries as affinity below t, for every t, in ascending order.

    Attributes:
        found: (T,) fraction of the boundary edges that are cut: recall, the true positive rate.
        false: (T,) fraction of the connected edges that are cut: the false positive rate.
        precision: (T,) fraction of the cut edges that are boundaries.
    """

    found: NDArray[np.float64]
    false: NDArray[np.float64]
    precision: NDArray[np.float64]


class EdgeHistogram:
    """Histogram of the edges of one channel by target and by affinity in steps of 1/255, summed over blocks.

    These 512 counts determine the scores at every threshold. They are exact for affinities stored as uint8, which match
    the bins; floating-point affinities are rounded to the nearest step.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros((2, BINS), np.int64)

    def add(self, affinity: NDArray[Any], connected: NDArray[np.bool_]) -> None:
        """Count edges.

        Args:
            affinity: (N,) uint8, 0..255, or floating-point in [0, 1].
            connected: (N,) whether the target is 1.

        Raises:
            ShapeError: another type, or a value outside the range.
        """
        if affinity.dtype.kind == "f":
            if affinity.size and not (affinity.min() >= 0 and affinity.max() <= 1):  # also false for NaN
                raise ShapeError(f"affinities: found values from {affinity.min()} to {affinity.max()}, expected 0 to 1")
            affinity = np.rint(affinity * 255).astype(np.uint8)
        if affinity.dtype != np.uint8:
            raise ShapeError(f"affinities: found {affinity.dtype}, expected uint8 or floating-point numbers")
        keys = affinity.astype(np.int64) + BINS * connected
        self.counts += np.bincount(keys, minlength=2 * BINS).reshape(2, BINS)

    def update(self, other: EdgeHistogram) -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts

    def scores(self, threshold: float = 0.5) -> EdgeScores:
        """Compute precision, recall and F1 of both classes, as `affinity_scores` does.

        Args:
            threshold: minimum affinity of a connected edge.
        """
        first = math.ceil(threshold * 255)
        missed, both = self.counts[:, first:].sum(1).tolist()
        neither, extra = self.counts[:, :first].sum(1).tolist()
        return _edge_scores(both, neither, missed, extra)

    def curves(self) -> Curves | None:
        """Compute ROC and precision-recall curves of the boundaries; None if one of the classes is empty."""
        boundary, connected = self.counts
        if not boundary.any() or not connected.any():
            return None
        used = np.flatnonzero(self.counts.any(0))
        hits, false = np.cumsum(boundary[used]), np.cumsum(connected[used])
        return Curves(hits / hits[-1], false / false[-1], hits / (hits + false))

    @property
    def roc_auc(self) -> float | None:
        """Compute the area under the ROC curve; None if a class is empty.

        This is the probability that a connected edge has a higher affinity than a boundary edge, counting ties as one
        half. It does not depend on which class is called positive.
        """
        curves = self.curves()
        if curves is None:
            return None
        return float(np.trapezoid(np.append(0.0, curves.found), np.append(0.0, curves.false)))

    @property
    def boundary_average_precision(self) -> float | None:
        """Sum precision times the increase in recall over the thresholds, for boundary edges."""
        return _average_precision(*self.counts)

    @property
    def connected_average_precision(self) -> float | None:
        """Sum precision times the increase in recall over the thresholds, for connected edges."""
        boundary, connected = self.counts[:, ::-1]
        return _average_precision(connected, boundary)


def _average_precision(hits: NDArray[np.int64], false: NDArray[np.int64]) -> float | None:
    if not hits.any() or not false.any():
        return None
    total = np.cumsum(hits)
    precision = total / np.maximum(total + np.cumsum(false), 1)
    return float(precision @ hits / total[-1])


def _edge_scores(both: int, neither: int, missed: int, extra: int) -> EdgeScores:
    """Compute scores from the edges connected in both prediction and target, in neither, in the target only, in the
    prediction only.
    """
    boundary, connected = _class_scores(neither, extra, missed), _class_scores(both, missed, extra)
    return EdgeScores(boundary, connected, both + neither + missed + extra, neither + missed)


def _class_scores(hits: int, false: int, missed: int) -> ClassScores:
    if hits + false + missed == 0:
        return ClassScores(1.0, 1.0, 1.0)
    precision, recall = hits / max(hits + false, 1), hits / max(hits + missed, 1)
    return ClassScores(precision, recall, 2 * hits / (2 * hits + false + missed))
