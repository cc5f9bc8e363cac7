"""How well a segmentation agrees with ground truth.

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

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Nanometres
from distill.core.labels import Integers, PairSums, sum_pairs
from distill.evaluation.borders import border_mask

Beyond = tuple[tuple[int, int], tuple[int, int]]

_CHUNK_VOXELS = 2**22  # bounds the temporary arrays of one step over a large volume
_SPARE_PAIRS = 2**20  # held unsorted before pairs are added up


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

    def add(self, segmentation: Integers, labels: Integers, beyond: Beyond = ((0, 0), (0, 0))) -> None:
        """Count one block of voxels; no voxel may be added twice.

        Args:
            segmentation: segment ids, any integer type and shape; (Z, Y, X) under `cremi`.
            labels: ground-truth ids of the same shape, 0 = not counted.
            beyond: rows before and after the segmentation's, and columns, that `labels` (Z, Y, X) has more. `cremi`
                asks for whole sections, or for blocks with `border_reach` more on every side that is no side of the
                section: then blocks add up to the whole.

        Raises:
            ShapeError: shapes differ, an array is not of integers, or `cremi` gets other than three axes.
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
        """Add what another table of the same preset has counted; tables can be added in any order.

        Raises:
            DistillError: the presets differ.
        """
        if other.preset != self.preset:
            raise DistillError(f"preset: found a table of {other.preset!r}, expected one of {self.preset!r}")
        self._voxels += other._voxels
        self._parts += other._parts
        self._shorten()

    @property
    def voxels(self) -> int:
        """Voxels that were added, counted or not."""
        return self._voxels

    @property
    def counted(self) -> int:
        """Voxels with ground truth that were counted."""
        return sum(int(part.count.sum()) for part in self._parts)

    def _shorten(self) -> None:
        if sum(len(part.u) for part in self._parts) > 2 * len(self._parts[0].u) + _SPARE_PAIRS:
            self._join()

    def _join(self) -> None:
        parts = self._parts
        u, v, count = (np.concatenate([getattr(p, name) for p in parts]) for name in ("u", "v", "count"))
        parts[:] = [sum_pairs(u, v, count=count)]

    def pairs(self) -> PairSums:
        """Voxels (`count`) shared by each ground-truth id `u` and segment `v`.

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
        """Scores of everything added so far.

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


def marginal(
    ids: NDArray[np.uint64], count: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.float64]]:
    """Distinct ids, each entry's position among them, and the voxels of each."""
    distinct, where = np.unique(ids, return_inverse=True)
    return distinct, where, np.bincount(where, weights=count).astype(np.float64)


def _check_labels(name: str, array: Integers) -> None:
    if array.dtype.kind not in "iu":
        raise ShapeError(f"{name}: found {array.dtype}, expected integer ids")
    if not array.ndim:
        raise ShapeError(f"{name}: found a single number, expected an array of ids")
