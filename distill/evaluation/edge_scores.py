"""How well affinities agree with ground truth, edge by edge.

The number to report is F1 of the boundary class (target 0, edges that must be cut): connected edges are more than nine
in ten, so their F1 is high for a prediction that cuts nothing.
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
    """Precision, recall and F1 of one class of edges: 1 where the class is neither present nor predicted, 0 for 0/0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class EdgeScores:
    """Agreement of one affinity channel with its target.

    Attributes:
        boundary: scores of the edges that must be cut.
        connected: scores of the edges that must hold.
        edges: valid edges.
        boundary_edges: those of them whose target is 0.
    """

    boundary: ClassScores
    connected: ClassScores
    edges: int
    boundary_edges: int


def affinity_scores(
    predicted: NDArray[np.floating[Any]], target: NDArray[Any], valid: NDArray[np.bool_], threshold: float = 0.5
) -> list[EdgeScores]:
    """Precision, recall and F1 of predicted affinities, per offset.

    Args:
        predicted: (K, Z, Y, X) affinity in [0, 1]; connected where it reaches the threshold.
        target: (K, Z, Y, X), 1 = same object.
        valid: (K, Z, Y, X) bool; other edges are not counted.
        threshold: affinity from which on an edge is connected.

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
    """Scores of finding boundaries by "affinity below t", for every t, from the strictest on.

    Attributes:
        found: (T,) share of the boundary edges that are cut: recall, the true positive rate.
        false: (T,) share of the connected edges that are cut, the false positive rate.
        precision: (T,) share of the cut edges that are boundaries.
    """

    found: NDArray[np.float64]
    false: NDArray[np.float64]
    precision: NDArray[np.float64]


class EdgeHistogram:
    """Edges of one channel by target and by affinity in steps of 1/255, summed block by block.

    Everything that a threshold can say is in these 512 counts: exact for affinities stored as uint8, which are their
    own bins; floating-point affinities go to the nearest step.
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
            if affinity.size and not (affinity.min() >= 0 and affinity.max() <= 1):  # false for a NaN too
                raise ShapeError(f"affinities: found values from {affinity.min()} to {affinity.max()}, expected 0 to 1")
            affinity = np.rint(affinity * 255).astype(np.uint8)
        if affinity.dtype != np.uint8:
            raise ShapeError(f"affinities: found {affinity.dtype}, expected uint8 or floating-point numbers")
        keys = affinity.astype(np.int64) + BINS * connected
        self.counts += np.bincount(keys, minlength=2 * BINS).reshape(2, BINS)

    def update(self, other: EdgeHistogram) -> None:
        """Add what another histogram has counted."""
        self.counts += other.counts

    def scores(self, threshold: float = 0.5) -> EdgeScores:
        """Precision, recall and F1 of both classes, as `affinity_scores` has them.

        Args:
            threshold: affinity from which on an edge is connected.
        """
        first = math.ceil(threshold * 255)
        missed, both = self.counts[:, first:].sum(1).tolist()
        neither, extra = self.counts[:, :first].sum(1).tolist()
        return _edge_scores(both, neither, missed, extra)

    def curves(self) -> Curves | None:
        """ROC and precision-recall curve of the boundaries; None where one of the classes is empty."""
        boundary, connected = self.counts
        if not boundary.any() or not connected.any():
            return None
        used = np.flatnonzero(self.counts.any(0))
        hits, false = np.cumsum(boundary[used]), np.cumsum(connected[used])
        return Curves(hits / hits[-1], false / false[-1], hits / (hits + false))

    @property
    def roc_auc(self) -> float | None:
        """Area under the ROC curve: how often a connected edge has the higher affinity of a connected and a boundary
        edge, ties counting half. The same whichever class is called positive. None where a class is empty."""
        curves = self.curves()
        if curves is None:
            return None
        return float(np.trapezoid(np.append(0.0, curves.found), np.append(0.0, curves.false)))

    @property
    def boundary_average_precision(self) -> float | None:
        """Sum of precision times the growth of recall over the thresholds, for edges that must be cut."""
        return _average_precision(*self.counts)

    @property
    def connected_average_precision(self) -> float | None:
        """The same for edges that must hold."""
        boundary, connected = self.counts[:, ::-1]
        return _average_precision(connected, boundary)


def _average_precision(hits: NDArray[np.int64], false: NDArray[np.int64]) -> float | None:
    if not hits.any() or not false.any():
        return None
    total = np.cumsum(hits)
    precision = total / np.maximum(total + np.cumsum(false), 1)
    return float(precision @ hits / total[-1])


def _edge_scores(both: int, neither: int, missed: int, extra: int) -> EdgeScores:
    """From edges that are connected in prediction and target, in neither, in the prediction or the target alone."""
    boundary, connected = _class_scores(neither, extra, missed), _class_scores(both, missed, extra)
    return EdgeScores(boundary, connected, both + neither + missed + extra, neither + missed)


def _class_scores(hits: int, false: int, missed: int) -> ClassScores:
    if hits + false + missed == 0:
        return ClassScores(1.0, 1.0, 1.0)
    precision, recall = hits / max(hits + false, 1), hits / max(hits + missed, 1)
    return ClassScores(precision, recall, 2 * hits / (2 * hits + false + missed))
