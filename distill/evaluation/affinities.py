"""Compare affinities with ground truth, edge by edge, in memory or block by block.

The score to report is F1 of the boundary class (target 0, edges that must be cut). More than nine in ten edges are
connected, so the F1 of the connected class is high even for a prediction without boundaries.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import affinity_targets, as_label_tensor
from distill.core.affinity_conventions import attributes, stored_offsets
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Nanometres, Triple
from distill.evaluation.aligned import Aligned, OnBlock, align, chunk_blocks, over_blocks
from distill.io.truth import EVERYWHERE, Known, open_known
from distill.io.volume import open_volume


@dataclass(frozen=True)
class ChannelScores:
    """Scores of one channel.

    Attributes:
        offset: z, y, x in voxels from an edge's own voxel to its partner.
        histogram: its edges by target and affinity.
        threshold: minimum affinity of a connected edge.
    """

    offset: Triple
    histogram: EdgeHistogram
    threshold: float = 0.5

    @property
    def scores(self) -> EdgeScores:
        """Return precision, recall and F1 at the threshold."""
        return self.histogram.scores(self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return all scores by name, ready for JSON."""
        found = self.histogram
        return {
            "offset_zyx": list(self.offset),
            "threshold": self.threshold,
            **asdict(self.scores),
            "roc_auc": found.roc_auc,
            "boundary_average_precision": found.boundary_average_precision,
            "connected_average_precision": found.connected_average_precision,
        }


@dataclass(frozen=True)
class AffinityScores:
    """Scores of affinities.

    Attributes:
        source: of the affinities.
        channels: in the order of the file.
        labelled_only: whether edges with an end in ground truth 0 were ignored instead of counted as boundaries.
        exact: whether the histograms are exact; floating-point affinities are rounded to the nearest 1/255.
    """

    source: str
    channels: tuple[ChannelScores, ...]
    labelled_only: bool
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Return all scores by name, ready for JSON."""
        return {
            "source": self.source,
            "edges": "labelled" if self.labelled_only else "all",
            "exact": self.exact,
            "channels": [one.to_dict() for one in self.channels],
        }


def evaluate_affinity(
    affinity: str,
    labels: str,
    resolution: Nanometres | None = None,
    *,
    labelled_only: bool = False,
    known: Known = EVERYWHERE,
    workers: int = 1,
    on_block: OnBlock = lambda done, total: None,
) -> AffinityScores:
    """Score affinities at their position inside the labelled volume.

    An edge is counted if both ends lie inside the volume of the affinities. Its target is 1 if both ends carry the same
    non-zero label.

    Args:
        affinity: source of (K, Z, Y, X), uint8 or floating-point, with an attribute that names the offsets.
        labels: source of the ground truth, of the same size or larger.
        resolution: for files without one.
        labelled_only: ignore edges with an end in ground truth 0; otherwise they count as boundaries, as in training.
        known: where the ground truth is valid; edges with an end elsewhere are ignored.
        workers: number of reading and counting processes; the result does not depend on it.
        on_block: called with the number of blocks read and their total.

    Raises:
        ShapeError: voxel sizes differ, the affinities extend beyond the labels, or the source is not an affinity array.
        DistillError: bad input, no offsets, another polarity, or no edge to count.
    """
    found = open_volume(affinity, resolution=resolution)
    if found.channels is None:
        raise ShapeError(f"{found.source}: found shape {found.shape}, expected affinities: channels, z, y, x")
    if found.dtype != np.uint8 and found.dtype.kind != "f":
        raise ShapeError(f"{found.source}: found {found.dtype}, expected affinities as uint8 or floating-point numbers")
    offsets = stored_offsets(found.attributes, found.source)
    if len(offsets) != found.channels:
        raise ShapeError(
            f"{found.source}: found {found.channels} channels and {len(offsets)} offsets, expected one each"
        )
    ours = attributes(offsets)["polarity"]
    if found.attributes.get("polarity", ours) != ours:
        raise DistillError(
            f"{found.source}: found polarity {found.attributes['polarity']!r}, expected {ours!r}; invert them first"
        )
    both = align(found, open_known(labels, known, resolution=resolution, edges=True))
    histograms = [EdgeHistogram() for _ in offsets]
    work = partial(count_edges, both, offsets, labelled_only)
    with closing(over_blocks(work, chunk_blocks(both.found), workers, on_block)) as parts:
        for part in parts:
            for histogram, more in zip(histograms, part, strict=True):
                histogram.update(more)
    if not any(histogram.counts.any() for histogram in histograms):
        raise DistillError(f"{both.truth.source}: found no edge to count where {found.source} lies, expected some")
    channels = tuple(map(ChannelScores, offsets, histograms))
    return AffinityScores(found.source, channels, labelled_only, found.dtype == np.uint8)


def count_edges(both: Aligned, offsets: tuple[Triple, ...], labelled_only: bool, box: Box) -> list[EdgeHistogram]:
    """Build histograms of the edges of the voxels in one block; those of all blocks add up to the volume's.

    Args:
        both: affinities and ground truth.
        offsets: of the channels.
        labelled_only: see `evaluate_affinity`.
        box: voxels of the affinities.
    """
    values = both.found.read(box)
    reach = tuple(max(abs(offset[axis]) for offset in offsets) for axis in range(3))
    wide = box.grow((reach[0], reach[1], reach[2]), both.found.box)
    labels = both.labels(wide)
    own = box.relative_to(wide.start).slices
    histograms = []
    for channel, offset in zip(values, offsets, strict=True):
        target, valid = _edges(labels, offset, own)
        if labelled_only:
            valid &= _edges((labels != 0).astype(np.uint8), offset, own)[0]
        histogram = EdgeHistogram()
        try:
            histogram.add(channel[valid], target[valid])
        except ShapeError as error:
            raise ShapeError(f"{both.found.source}: {error}") from None
        histograms.append(histogram)
    return histograms


def _edges(
    labels: NDArray[Any], offset: Triple, own: tuple[slice, slice, slice]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which edges of a part of some labels are connected, and which have both ends inside the labels."""
    found = affinity_targets(as_label_tensor(labels), [offset])
    return found.target[0].numpy()[own] > 0.5, found.valid[0].numpy()[own]


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
