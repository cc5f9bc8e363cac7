"""Compare a segmentation with ground truth through a sparse contingency table.

Variation of information: M. Meila, Comparing clusterings, J. Multivariate Analysis 98 (2007).
Adapted Rand error: I. Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
connectomics, Front. Neuroanat. 9:142 (2015). CREMI's border mask and score: protocol of
the challenge, cremi.org.

Directions, everywhere: split = H(segmentation | ground truth), bits lost to over-segmentation;
merge = H(ground truth | segmentation), bits lost to under-segmentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Nanometres
from distill.core.labels import Integers, PairSums, Relabelling, concatenate, sum_pairs

Beyond = tuple[tuple[int, int], tuple[int, int]]

_CHUNK_VOXELS = 2**22  # limits the temporary arrays for a large volume
_SPARE_PAIRS = 2**20  # entries held unsorted before pairs are summed


@dataclass(frozen=True)
class Preset:
    """Rule of a published protocol that defines what is counted.

    Attributes:
        border_nm: ground truth this close to a label border of its section is excluded; None = nothing is excluded.
        lone_zeros: whether ARAND treats each voxel of segment 0 as a separate object and counts a voxel as a pair with
            itself (CREMI), instead of treating 0 as an ordinary segment and counting pairs of distinct voxels
            (scikit-image).
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
    """Agreement of a segmentation with ground truth.

    Attributes:
        preset: name of the protocol.
        voi_split: H(segmentation | ground truth) in bits.
        voi_merge: H(ground truth | segmentation) in bits.
        arand: adapted Rand error, 1 - F1 of the pairs of voxels that are joined.
        arand_precision: fraction of the pairs joined by the segmentation that the ground truth also joins; decreases
            with merges. scikit-image 0.26 returns this value as recall, and vice versa.
        arand_recall: fraction of the pairs joined by the ground truth that the segmentation also joins; decreases with
            splits.
        n_true: ground-truth objects counted.
        n_pred: segments other than 0 that contain a counted voxel.
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
        """Return the variation of information in bits."""
        return self.voi_split + self.voi_merge

    @property
    def cremi_score(self) -> float | None:
        """Return CREMI's ranking score sqrt(VOI * ARAND); None under other presets."""
        return math.sqrt(self.voi_sum * max(self.arand, 0.0)) if self.preset == "cremi" else None

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Return all scores by name, ready for JSON."""
        return {**asdict(self), "voi_sum": self.voi_sum, "cremi_score": self.cremi_score}


class Contingency:
    """Sparse table of the voxels that each pair (ground-truth id, segment id) has in common, summed over blocks.

    Ground truth 0 is never counted (CREMI's own samples have none; its code would count it as an object). Memory grows
    with the number of pairs that occur, not with ids or voxels.

    Args:
        preset: protocol: `skimage`, `agq` and `cad` count all ground truth except 0 (they differ in name only, as both
            papers score with scikit-image and ignore_labels=(0,)); `cremi` excludes a border of 25 nm.
        resolution: z, y, x in nm; required by `cremi`.

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

    def add(self, segmentation: Integers, labels: Integers, beyond: Beyond = ((0, 0), (0, 0))) -> None:
        """Count one block of voxels; each voxel must be added only once.

        Args:
            segmentation: segment ids, any integer type and shape; (Z, Y, X) under `cremi`.
            labels: ground-truth ids of the same shape, 0 = ignored.
            beyond: additional rows before and after those of the segmentation, and columns, in `labels` (Z, Y, X).
                `cremi` requires whole sections, or blocks with a margin of `border_reach` on every side that is not a
                side of the section; blocks then add up to the whole.

        Raises:
            ShapeError: shapes differ, an array is not of integers, or `cremi` does not get three axes.
        """
        _check_labels("segmentation", segmentation)
        _check_labels("labels", labels)
        more = (sum(beyond[0]), sum(beyond[1]))
        wanted = segmentation.shape
        if any(more):
            wanted = (*wanted[:-2], *(n + m for n, m in zip(wanted[-2:], more, strict=True)))
        if labels.shape != wanted:
            raise ShapeError(
                f"segmentation: found shape {segmentation.shape}, expected that of labels {labels.shape}"
                + (f" less {more[0]} rows and {more[1]} columns" if any(more) else "")
            )
        sections = max(1, _CHUNK_VOXELS * len(labels) // labels.size) if labels.size else 1
        for start in range(0, len(labels), sections):
            self._add_chunk(segmentation[start : start + sections], labels[start : start + sections], beyond)

    def _add_chunk(self, segmentation: Integers, labels: Integers, beyond: Beyond) -> None:
        border_nm = PRESETS[self.preset].border_nm
        if border_nm is not None and self._resolution is not None:
            labels = np.where(border_mask(labels, self._resolution, border_nm), labels.dtype.type(0), labels)
        if any(map(any, beyond)):
            (top, bottom), (left, right) = beyond
            height, width = labels.shape[-2:]
            labels = labels[..., top : height - bottom, left : width - right]
        pairs = sum_pairs(labels, segmentation)
        seen = pairs.u != 0
        self._voxels += labels.size
        self._parts.append(PairSums(pairs.u[seen], pairs.v[seen], pairs.count[seen], pairs.total[seen]))
        self._shorten()

    def update(self, other: Contingency) -> None:
        """Add the counts of another table of the same preset; the order of additions has no effect.

        Raises:
            DistillError: the presets differ.
        """
        if other.preset != self.preset:
            raise DistillError(f"preset: found a table of {other.preset!r}, expected one of {self.preset!r}")
        self._voxels += other._voxels
        self._parts += other._parts
        self._shorten()

    def relabelled(self, neuron: Callable[[int], int]) -> Contingency:
        """Return the table with other ground-truth ids, which may coincide: `neuron` is called with each once."""
        pairs = self.pairs()
        ids, which = np.unique(pairs.u, return_inverse=True)
        named = np.array([neuron(int(one)) for one in ids], np.uint64)[which]
        made = Contingency(self.preset, resolution=self._resolution)
        made._voxels = self._voxels
        made._parts = [sum_pairs(named, pairs.v, count=pairs.count)]
        return made

    def renamed(self, segments: Relabelling) -> Contingency:
        """Return the table of the same voxels after segments have got other ids, such as those of what they merge into.

        Raises:
            DistillError: a segment is not listed, or no ground-truth voxel has been counted.
        """
        found = Contingency(self.preset, resolution=self._resolution)
        pairs = self.pairs()
        found._parts = [sum_pairs(pairs.u, segments.apply(pairs.v), count=pairs.count)]
        found._voxels = self._voxels
        return found

    @property
    def voxels(self) -> int:
        """Number of voxels added, counted or not."""
        return self._voxels

    @property
    def counted(self) -> int:
        """Number of voxels counted."""
        return sum(int(part.count.sum()) for part in self._parts)

    def _shorten(self) -> None:
        if sum(len(part.u) for part in self._parts) > 2 * len(self._parts[0].u) + _SPARE_PAIRS:
            self._join()

    def _join(self) -> None:
        parts = self._parts
        listed = concatenate(parts)
        parts[:] = [sum_pairs(listed.u, listed.v, count=listed.count)]

    def pairs(self) -> PairSums:
        """Return the voxels (`count`) in common of each ground-truth id `u` and segment `v`.

        Raises:
            DistillError: no ground-truth voxel has been counted.
        """
        parts = self._parts
        if len(parts) > 1:
            self._join()
        if not parts or not len(parts[0].u):
            raise DistillError(
                f"labels: found no voxel to count among {self._voxels}, expected some ground truth other than 0"
                + (" away from borders" if PRESETS[self.preset].border_nm is not None else "")
            )
        return parts[0]

    def scores(self) -> Scores:
        """Compute the scores of everything added so far.

        Raises:
            DistillError: no ground-truth voxel has been counted.
        """
        pairs = self.pairs()
        _, row, true_size = marginal(pairs.u, pairs.count)
        segments, column, pred_size = marginal(pairs.v, pairs.count)
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
        """Compute ARAND, precision and recall from sums of squares."""
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


def marginal(
    ids: NDArray[np.uint64], count: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.float64]]:
    """Return the distinct ids, the index of each entry among them, and the voxels of each."""
    distinct, where = np.unique(ids, return_inverse=True)
    return distinct, where, np.bincount(where, weights=count).astype(np.float64)


def _check_labels(name: str, array: Integers) -> None:
    if array.dtype.kind not in "iu":
        raise ShapeError(f"{name}: found {array.dtype}, expected integer ids")
    if not array.ndim:
        raise ShapeError(f"{name}: found a single number, expected an array of ids")


def border_mask(labels: Integers, resolution: Nanometres, distance_nm: float = 25.0) -> NDArray[np.bool_]:
    """Mask voxels close to a border between labels of their own section (CREMI's protocol).

    A border voxel has one of its four in-section neighbours under another id. Distances are measured to the nearest
    border voxel, so border voxels have distance 0.

    Args:
        labels: (Z, Y, X) ids; 0 counts as an id.
        resolution: z, y, x in nm.
        distance_nm: largest distance that is masked, in nm.

    Returns:
        (Z, Y, X) bool.

    Raises:
        ShapeError: `labels` does not have three axes.
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


def border_reach(resolution: Nanometres, distance_nm: float = 25.0) -> tuple[int, int]:
    """Return the margin in rows and columns on which the mask of a block depends.

    `border_mask` of the block with this margin on every side equals the mask of the whole section inside the block.

    Args:
        resolution: z, y, x in nm.
        distance_nm: as for `border_mask`.
    """
    _, y, x = resolution
    return int(distance_nm // y) + 1, int(distance_nm // x) + 1
