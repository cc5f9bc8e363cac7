"""Expected run length: the distance over which a neuron can be followed through a segmentation before an error.

M. Januszewski et al., High-precision automated reconstruction of neurons with flood-filling networks, Nature Methods 15
(2018). A point is drawn uniformly by length from the ground-truth skeletons; its run is the length of its skeleton that
is correct and in the same segment. The mean over all points is

    ERL = sum over skeletons k and segments s of L(k, s)^2 / sum over skeletons k of L(k),

where L(k, s) is the length of the edges of k with both ends in s, 0 for a segment that merges, and L(k) that of k. A
perfect segmentation has sum L(k)^2 / sum L(k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.evaluation.run_length.skeletons import Skeleton


@dataclass(frozen=True)
class Traced:
    """Edges of one skeleton inside the volume by class: correct, or one class of error. Lengths in nm.

    Attributes:
        name: of the skeleton.
        length: total length of edges with both ends inside.
        correct: with both ends in one segment that does not merge.
        split: with ends in two segments, neither of which merges.
        merged: with an end in a segment that merges, and none in segment 0.
        omitted: with an end in segment 0.
        run: expected run length on this skeleton alone.
        segments: number of segments other than 0 at its nodes.
        outside: length of edges that leave the volume or lie outside it, not included in the others.
    """

    name: str
    length: float
    correct: float
    split: float
    merged: float
    omitted: float
    run: float
    segments: int
    outside: float


@dataclass(frozen=True)
class Merger:
    """A segment that merges skeletons."""

    segment: int
    skeletons: tuple[str, ...]


@dataclass(frozen=True)
class RunLength:
    """Expected run length of a segmentation. Lengths in nm.

    Attributes:
        erl: expected run length.
        ideal: expected run length of a perfect segmentation on the same skeletons.
        merge_nodes: minimum number of nodes of each of two skeletons that makes a segment a merger.
        skeletons: skeletons with length inside the volume, in the given order.
        mergers: by segment id.
        nodes: nodes inside the volume.
        outside_nodes: number of nodes outside the volume.
    """

    erl: float
    ideal: float
    merge_nodes: int
    skeletons: tuple[Traced, ...]
    mergers: tuple[Merger, ...]
    nodes: int
    outside_nodes: int

    @property
    def normalised(self) -> float:
        """Return the fraction of the ideal run length, 0 to 1."""
        return self.erl / self.ideal

    def total(self, name: str) -> float:
        """Sum one class of length over the skeletons."""
        return float(sum(getattr(one, name) for one in self.skeletons))

    def to_dict(self) -> dict[str, Any]:
        """Return all values by name, ready for JSON."""
        kinds = ("length", "correct", "split", "merged", "omitted", "outside")
        return {
            "erl_um": self.erl / 1000,
            "erl_nm": self.erl,
            "ideal_erl_um": self.ideal / 1000,
            "ideal_erl_nm": self.ideal,
            "normalised": self.normalised,
            "merge_nodes": self.merge_nodes,
            "n_skeletons": len(self.skeletons),
            "nodes": self.nodes,
            "nodes_outside": self.outside_nodes,
            **{f"{kind}_nm": self.total(kind) for kind in kinds},
            "mergers": [asdict(one) for one in self.mergers],
            "skeletons": [asdict(one) for one in self.skeletons],
        }


def run_length(
    skeletons: Sequence[Skeleton],
    segments: Sequence[NDArray[np.uint64]],
    inside: Sequence[NDArray[np.bool_]],
    merge_nodes: int = 1,
) -> RunLength:
    """Compute the expected run length of a segmentation on ground-truth skeletons.

    An edge with an end outside the volume is removed: it contributes neither to a run nor to the length of its
    skeleton. The remainder of a skeleton counts as one neuron, even if it consists of several parts.

    Args:
        skeletons: nodes in nm.
        segments: for each skeleton (N,) segment ids at its nodes, 0 = none; any value at nodes outside.
        inside: for each skeleton (N,) whether a node lies in the volume.
        merge_nodes: a segment with at least this many nodes of each of two or more skeletons merges them, and no edge
            with an end in it is correct.

    Raises:
        ShapeError: an array does not fit its skeleton.
        DistillError: `merge_nodes` is below 1, or no edge lies inside the volume.
    """
    if merge_nodes < 1:
        raise DistillError(f"--merge-nodes: found {merge_nodes}, expected at least 1")
    for skeleton, ids, within in zip(skeletons, segments, inside, strict=True):
        if ids.shape != (len(skeleton.nodes),) or within.shape != ids.shape:
            found = f"{len(skeleton.nodes)} nodes, ids {ids.shape}, inside {within.shape}"
            raise ShapeError(f"{skeleton.name}: found {found}, expected one id a node")
    mergers = _mergers(skeletons, segments, inside, merge_nodes)
    merging = np.array([one.segment for one in mergers], np.uint64)
    traced: list[Traced] = []
    runs: list[float] = []
    for skeleton, ids, within in zip(skeletons, segments, inside, strict=True):
        one, squares = _trace(skeleton, ids, within, merging)
        if one.length > 0:
            traced.append(one)
            runs.append(squares)
    total = sum(one.length for one in traced)
    if not total:
        raise DistillError("skeletons: found no edge with both ends inside the segmentation, expected some")
    return RunLength(
        erl=sum(runs) / total,
        ideal=sum(one.length**2 for one in traced) / total,
        merge_nodes=merge_nodes,
        skeletons=tuple(traced),
        mergers=mergers,
        nodes=sum(int(within.sum()) for within in inside),
        outside_nodes=sum(int((~within).sum()) for within in inside),
    )


def _mergers(
    skeletons: Sequence[Skeleton],
    segments: Sequence[NDArray[np.uint64]],
    inside: Sequence[NDArray[np.bool_]],
    merge_nodes: int,
) -> tuple[Merger, ...]:
    covered: dict[int, list[str]] = {}
    for skeleton, ids, within in zip(skeletons, segments, inside, strict=True):
        here, counts = np.unique(ids[within & (ids != 0)], return_counts=True)
        for segment in here[counts >= merge_nodes].tolist():
            covered.setdefault(segment, []).append(skeleton.name)
    return tuple(Merger(segment, tuple(names)) for segment, names in sorted(covered.items()) if len(names) > 1)


def _trace(
    skeleton: Skeleton, ids: NDArray[np.uint64], inside: NDArray[np.bool_], merging: NDArray[np.uint64]
) -> tuple[Traced, float]:
    """Classify the edges of one skeleton, and return its sum of squared runs in nm^2."""
    within = inside[skeleton.edges].all(1)
    lengths, ends = skeleton.lengths, ids[skeleton.edges]
    omitted = within & (ends == 0).any(1)
    merged = within & ~omitted & np.isin(ends, merging).any(1)
    split = within & ~omitted & ~merged & (ends[:, 0] != ends[:, 1])
    correct = within & ~(omitted | merged | split)
    where = np.unique(ends[correct, 0], return_inverse=True)[1]
    runs = np.bincount(where, weights=lengths[correct]).astype(np.float64)
    squares = float(runs @ runs)
    kinds = [float(lengths[kind].sum()) for kind in (within, correct, split, merged, omitted, ~within)]
    length, right, apart, joined, missed, outside = kinds
    segments = len(np.unique(ids[inside & (ids != 0)]))
    run = squares / length if length else 0.0
    return Traced(skeleton.name, length, right, apart, joined, missed, run, segments, outside), squares
