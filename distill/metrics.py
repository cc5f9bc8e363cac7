"""How well a segmentation or an affinity agrees with ground truth.

Variation of information: M. Meila, Comparing clusterings, J. Multivariate Analysis 98 (2007).
Adapted Rand error: I. Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
connectomics, Front. Neuroanat. 9:142 (2015). CREMI's border mask and score: protocol of
the challenge, cremi.org.

Directions, everywhere: split = H(segmentation | ground truth), bits lost to over-segmentation;
merge = H(ground truth | segmentation), bits lost to under-segmentation.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.errors import DistillError, ShapeError
from distill.geometry import Nanometres
from distill.ids import Integers, PairSums, sum_pairs

_CHUNK_VOXELS = 2**24  # bounds the temporary arrays of one step over a large volume


@dataclass(frozen=True)
class Preset:
    """What a published protocol counts.

    Attributes:
        border_nm: ground truth this close to a border of its section is not counted; None counts all of it.
        lone_zeros: whether ARAND takes each voxel of segment 0 for an object of its own and counts a voxel as a pair
            with itself (CREMI), instead of taking 0 for an ordinary segment and counting true pairs (scikit-image).
    """

    border_nm: float | None = None
    lone_zeros: bool = False


PRESETS: dict[str, Preset] = {
    "skimage": Preset(),
    "cremi": Preset(border_nm=25.0, lone_zeros=True),
    "agq": Preset(),
    "cad": Preset(),
}


@dataclass(frozen=True)
class Scores:
    """Agreement of a segmentation with its ground truth.

    Attributes:
        preset: name of the protocol.
        voi_split: H(segmentation | ground truth) in bits.
        voi_merge: H(ground truth | segmentation) in bits.
        arand: adapted Rand error, 1 - F1 of the pairs of voxels that are put together.
        arand_precision: share of the pairs joined by the segmentation that the ground truth joins too; falls with
            merges. scikit-image 0.26 returns this one under the name of recall, and the other way about.
        arand_recall: share of the pairs joined by the ground truth that the segmentation joins too; falls with splits.
        n_true: ground-truth objects counted.
        n_pred: segments other than 0 that cover a counted voxel.
        voxels: voxels counted.
    """

    preset: str
    voi_split: float
    voi_merge: float
    arand: float
    arand_precision: float
    arand_recall: float
    n_true: int
    n_pred: int
    voxels: int

    @property
    def voi_sum(self) -> float:
        """Variation of information in bits."""
        return self.voi_split + self.voi_merge

    @property
    def cremi_score(self) -> float | None:
        """CREMI's ranking number sqrt(VOI * ARAND); None under another preset."""
        return math.sqrt(self.voi_sum * max(self.arand, 0.0)) if self.preset == "cremi" else None

    def to_dict(self) -> dict[str, str | int | float | None]:
        """All numbers by name, ready for JSON."""
        return {**asdict(self), "voi_sum": self.voi_sum, "cremi_score": self.cremi_score}


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
class WorstObjects:
    """Ground-truth objects that are split most and segments that merge most, worst first."""

    split: tuple[ObjectError, ...]
    merged: tuple[ObjectError, ...]


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


class Contingency:
    """Sparse table of how many voxels each pair (ground-truth id, segment id) shares, summed block by block.

    Ground-truth 0 is never counted (CREMI's own samples have none; its code would count it as an object). Memory
    grows with the number of pairs that occur, not with ids or voxels.

    Args:
        preset: protocol: `skimage`, `agq` and `cad` count all ground truth but 0 (they differ in name only, the two
            papers score with scikit-image and ignore_labels=(0,)); `cremi` leaves out a border of 25 nm.
        resolution: z, y, x in nm; needed by `cremi`.

    Raises:
        DistillError: the preset is unknown, or `cremi` has no resolution.
    """

    def __init__(self, preset: str = "skimage", *, resolution: Nanometres | None = None) -> None:
        if preset not in PRESETS:
            raise DistillError(f"preset: found {preset!r}, expected one of {', '.join(PRESETS)}")
        if PRESETS[preset].border_nm is not None and resolution is None:
            raise DistillError(f"resolution: found none, expected z, y, x in nm for preset {preset!r}")
        self.preset = preset
        self._resolution = resolution
        self._voxels = 0
        self._parts: list[PairSums] = []

    def add(self, segmentation: Integers, labels: Integers) -> None:
        """Count one block of voxels; no voxel may be added twice.

        Args:
            segmentation: segment ids, any integer type and shape; (Z, Y, X) of whole sections under `cremi`.
            labels: ground-truth ids of the same shape, 0 = not counted.

        Raises:
            ShapeError: shapes differ, an array is not of integers, or `cremi` gets other than three axes.
        """
        _check_labels("segmentation", segmentation)
        _check_labels("labels", labels)
        if segmentation.shape != labels.shape:
            raise ShapeError(f"segmentation: found shape {segmentation.shape}, expected that of labels {labels.shape}")
        sections = max(1, _CHUNK_VOXELS * len(labels) // labels.size) if labels.size else 1
        for start in range(0, len(labels), sections):
            self._add_chunk(segmentation[start : start + sections], labels[start : start + sections])

    def _add_chunk(self, segmentation: Integers, labels: Integers) -> None:
        border_nm = PRESETS[self.preset].border_nm
        if border_nm is not None and self._resolution is not None:
            labels = np.where(border_mask(labels, self._resolution, border_nm), labels.dtype.type(0), labels)
        pairs = sum_pairs(labels, segmentation)
        seen = pairs.u != 0
        self._voxels += labels.size
        self._parts.append(PairSums(pairs.u[seen], pairs.v[seen], pairs.count[seen], pairs.total[seen]))
        if sum(len(part.u) for part in self._parts) > 2 * len(self._parts[0].u) + 2**20:
            self.pairs()

    def pairs(self) -> PairSums:
        """Voxels (`count`) shared by each ground-truth id `u` and segment `v`.

        Raises:
            DistillError: no ground-truth voxel has been counted.
        """
        parts = self._parts
        if len(parts) > 1:
            u, v, count = (np.concatenate([getattr(p, name) for p in parts]) for name in ("u", "v", "count"))
            parts[:] = [sum_pairs(u, v, count=count)]
        if not parts or not len(parts[0].u):
            raise DistillError(
                f"labels: found no voxel to count among {self._voxels}, expected some ground truth other than 0"
                + (" away from borders" if PRESETS[self.preset].border_nm is not None else "")
            )
        return parts[0]

    def scores(self) -> Scores:
        """Scores of everything added so far.

        Raises:
            DistillError: no ground-truth voxel has been counted.
        """
        pairs = self.pairs()
        _, row, true_size = _marginal(pairs.u, pairs.count)
        segments, column, pred_size = _marginal(pairs.v, pairs.count)
        voxels = int(pairs.count.sum())
        share = pairs.count / voxels
        arand, precision, recall = self._adapted_rand(pairs, true_size, pred_size)
        return Scores(
            preset=self.preset,
            voi_split=float(share @ np.log2(true_size[row] / pairs.count)),
            voi_merge=float(share @ np.log2(pred_size[column] / pairs.count)),
            arand=arand,
            arand_precision=precision,
            arand_recall=recall,
            n_true=len(true_size),
            n_pred=int(np.count_nonzero(segments)),
            voxels=voxels,
        )

    def _adapted_rand(
        self, pairs: PairSums, true_size: NDArray[np.float64], pred_size: NDArray[np.float64]
    ) -> tuple[float, float, float]:
        """ARAND, precision and recall from sums of squares."""
        both, lone = pairs.count.astype(np.float64), float(pairs.count.sum())
        true_pairs, pred_pairs, both_pairs = (float(size @ size) for size in (true_size, pred_size, both))
        if PRESETS[self.preset].lone_zeros:
            zero = both[pairs.v == 0]
            in_zero = float(zero.sum())
            pred_pairs += in_zero / self._voxels - in_zero**2
            both_pairs += in_zero / self._voxels - float(zero @ zero)
        else:
            true_pairs, pred_pairs, both_pairs = true_pairs - lone, pred_pairs - lone, both_pairs - lone
        precision = both_pairs / pred_pairs if pred_pairs > 0 else 1.0
        recall = both_pairs / true_pairs if true_pairs > 0 else 1.0
        total = true_pairs + pred_pairs
        return (1.0 - 2.0 * both_pairs / total if total > 0 else 0.0), precision, recall


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


def border_mask(labels: Integers, resolution: Nanometres, distance_nm: float = 25.0) -> NDArray[np.bool_]:
    """Voxels close to a border between labels of their own section (CREMI's protocol).

    A border voxel has one of its four in-section neighbours under another id; the distance is measured to the nearest
    border voxel, so border voxels themselves are at 0.

    Args:
        labels: (Z, Y, X) ids; 0 counts as an id.
        resolution: z, y, x in nm.
        distance_nm: largest distance that is masked, in nm.

    Returns:
        (Z, Y, X) bool.

    Raises:
        ShapeError: `labels` has other than three axes.
    """
    if labels.ndim != 3:
        raise ShapeError(f"labels: found shape {labels.shape}, expected z, y, x for a border mask")
    border = np.zeros(labels.shape, bool)
    differs_y = labels[:, 1:] != labels[:, :-1]
    differs_x = labels[:, :, 1:] != labels[:, :, :-1]
    border[:, 1:] |= differs_y
    border[:, :-1] |= differs_y
    border[:, :, 1:] |= differs_x
    border[:, :, :-1] |= differs_x
    for section in border:
        if section.any():
            section[...] = ndimage.distance_transform_edt(~section, sampling=resolution[1:]) <= distance_nm
    return border


def affinity_scores(
    predicted: NDArray[np.floating[Any]], target: NDArray[Any], valid: NDArray[np.bool_], threshold: float = 0.5
) -> list[EdgeScores]:
    """Precision, recall and F1 of predicted affinities, per offset.

    The number to report is F1 of the boundary class (target 0, edges that must be cut): connected edges are more than
    nine in ten, so their F1 is high for a prediction that cuts nothing. Both classes are returned.

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
        boundary, inside = _class_scores(neither, extra, missed), _class_scores(both, missed, extra)
        result.append(EdgeScores(boundary, inside, connected.size, neither + missed))
    return result


def _marginal(
    ids: NDArray[np.uint64], count: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.float64]]:
    """Distinct ids, each entry's position among them, and the voxels of each."""
    distinct, where = np.unique(ids, return_inverse=True)
    return distinct, where, np.bincount(where, weights=count).astype(np.float64)


def _worst(ids: NDArray[np.uint64], count: NDArray[np.int64], n: int) -> tuple[ObjectError, ...]:
    distinct, where, size = _marginal(ids, count)
    bits = np.bincount(where, weights=count * np.log2(size[where] / count)) / count.sum()
    pieces = np.bincount(where)
    worst = [k for k in np.argsort(-bits, kind="stable")[:n] if pieces[k] > 1]
    return tuple(ObjectError(int(distinct[k]), float(bits[k]), int(size[k]), int(pieces[k])) for k in worst)


def _class_scores(hits: int, false: int, missed: int) -> ClassScores:
    if hits + false + missed == 0:
        return ClassScores(1.0, 1.0, 1.0)
    precision, recall = hits / max(hits + false, 1), hits / max(hits + missed, 1)
    return ClassScores(precision, recall, 2 * hits / (2 * hits + false + missed))


def _check_labels(name: str, array: Integers) -> None:
    if array.dtype.kind not in "iu":
        raise ShapeError(f"{name}: found {array.dtype}, expected integer ids")
    if not array.ndim:
        raise ShapeError(f"{name}: found a single number, expected an array of ids")
