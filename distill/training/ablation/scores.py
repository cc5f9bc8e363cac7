"""Scores of one trained network for an ablation: query decoder, watershed + waterz, boundaries.

Thresholds are chosen on the validation part. Where there is a test part the scores are of that one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.config import DataConfig
from distill.core.affinity import affinity_targets, as_label_tensor
from distill.core.atomic import write_text
from distill.core.choices import Network
from distill.core.normalisation import UNCHANGED, Normaliser
from distill.evaluation.affinities import affinity_scores
from distill.evaluation.contingency import Scores
from distill.evaluation.metrics import score
from distill.inference.in_memory import SegmentedVolume, student_volume, teacher_volume
from distill.inference.options import WATERZ_THRESHOLD, Runtime
from distill.models.load import load_student, load_teacher
from distill.segmentation.agglomeration import waterz
from distill.training.data import Labelled, LabelledPart, read_part
from distill.training.validation import MERGE_THRESHOLDS, pooled

WATERZ_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_VERSION = 2  # of what is kept; raised when the way of scoring changes


@dataclass(frozen=True)
class ScoredParts:
    """What is chosen on, and what is scored, normalised; the same where there is no test part."""

    validation: Sequence[LabelledPart]
    test: Sequence[LabelledPart] = ()


@dataclass(frozen=True)
class MethodScores:
    """One segmentation; VOI in bits, preset `skimage`."""

    voi_split: float
    voi_merge: float
    voi: float
    arand: float
    threshold: float | None  # None = no merging

    @staticmethod
    def of(scores: Scores, threshold: float | None) -> MethodScores:
        """Select the fields that a table shows."""
        return MethodScores(scores.voi_split, scores.voi_merge, scores.voi_sum, scores.arand, threshold)


@dataclass(frozen=True)
class NetworkScores:
    """One network's scores."""

    step: int | None  # of the weights, chosen on validation
    query: MethodScores  # merge threshold chosen on validation
    waterz_published: MethodScores | None  # at 0.5; None without waterz
    waterz_chosen: MethodScores | None  # threshold chosen on validation
    boundary_f1_zyx: tuple[float, float, float]  # edges that must be cut, predicted below 0.5


def waterz_is_here() -> bool:
    """Return whether waterz is installed."""
    try:
        import waterz as library
    except ModuleNotFoundError:
        return False
    return library is not None


def score_network(
    segment: Callable[[NDArray[Any]], SegmentedVolume], parts: ScoredParts, step: int | None, *, with_waterz: bool
) -> NetworkScores:
    """Segment the validation parts, choose, segment the parts that are scored, score.

    Scores of several volumes are pooled as in a validation (`distill.training.validation.pooled`).

    Args:
        segment: a network with the query decoder, over normalised sections (D, H, W).
        parts: labelled volumes.
        step: of the weights.
        with_waterz: also agglomerate the affinities with waterz.
    """
    waterz_at: Sequence[float] = WATERZ_THRESHOLDS if with_waterz else ()
    seen = _score_parts(segment, parts.validation, (None, *MERGE_THRESHOLDS), waterz_at)
    merge = min(seen.merged, key=lambda t: seen.merged[t].voi_sum)
    chosen = min(seen.waterz, key=lambda t: seen.waterz[t].voi_sum) if seen.waterz else WATERZ_THRESHOLD
    if parts.test:
        waterz_at = (WATERZ_THRESHOLD, chosen) if with_waterz else ()
        seen = _score_parts(segment, parts.test, (merge,), waterz_at)
    of_waterz = {t: MethodScores.of(seen.waterz[t], t) for t in (WATERZ_THRESHOLD, chosen) if t in seen.waterz}
    return NetworkScores(
        step,
        MethodScores.of(seen.merged[merge], merge),
        of_waterz.get(WATERZ_THRESHOLD),
        of_waterz.get(chosen),
        seen.boundary_f1,
    )


@dataclass(frozen=True)
class _Scored:
    """Pooled scores of some volumes, by threshold."""

    merged: dict[float | None, Scores]
    waterz: dict[float, Scores]
    boundary_f1: tuple[float, float, float]


def _score_parts(
    segment: Callable[[NDArray[Any]], SegmentedVolume],
    parts: Sequence[LabelledPart],
    merges: Sequence[float | None],
    agglomerated: Sequence[float],
) -> _Scored:
    merged: dict[float | None, list[Scores]] = {t: [] for t in merges}
    by_waterz: dict[float, list[Scores]] = {t: [] for t in agglomerated}
    edges = []
    for part in parts:
        seen, truth = segment(part.raw), part.counted
        for merge, scores in merged.items():
            scores.append(score(seen.labels(merge), truth))
        if by_waterz:
            for threshold, ids in waterz(seen.affinity, list(by_waterz)).items():
                by_waterz[threshold].append(score(ids, truth))
        targets = affinity_targets(as_label_tensor(part.labels))
        found = affinity_scores(seen.affinity, targets.target.numpy(), targets.valid.numpy())
        edges.append([edge.boundary.f1 for edge in found])
    if len(edges) == 1:
        z, y, x = edges[0]
    else:
        weights = [scores.voxels for scores in next(iter(merged.values()))]
        z, y, x = (float(f1) for f1 in np.average(edges, axis=0, weights=weights))
    return _Scored(
        {t: pooled(scores) for t, scores in merged.items()},
        {t: pooled(scores) for t, scores in by_waterz.items()},
        (z, y, x),
    )


def read_parts(opened: Sequence[Labelled], normaliser: Normaliser) -> ScoredParts:
    """Read and normalise what is scored, by statistics of whole sections, which boxes of them do not have."""
    validation, test = (
        [read_part(one, name, normaliser) for one in opened if getattr(one.entry, name) is not None]
        for name in ("validation", "test")
    )
    return ScoredParts(validation, test)


def score_weights(
    weights: Path,
    network: Network,
    opened: Sequence[Labelled],
    data: DataConfig,
    runtime: Runtime,
    kept: Path,
    *,
    with_waterz: bool,
) -> NetworkScores:
    """Score a weights file, or read its scores from `kept` if the same weights were scored on the same parts.

    Args:
        weights: file of a student or a teacher.
        network: which of the two.
        opened: labelled volumes.
        data: their configuration.
        runtime: device and precision.
        kept: JSON file, written under a temporary name first.
        with_waterz: also agglomerate the affinities with waterz.

    Raises:
        DistillError: the weights do not load, or the place cannot be written.
    """
    key = {
        "version": _VERSION,
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "data": data.model_dump(mode="json"),
        "precision": runtime.precision,
        "waterz": with_waterz,
    }
    before = _kept(kept, key)
    if before is not None:
        return before
    if network == "student":
        student = load_student(str(weights), runtime.device)
        notes, normalisation = student.notes, student.normaliser.normalisation
        student = replace(student, normaliser=UNCHANGED)

        def segment(raw: NDArray[Any]) -> SegmentedVolume:
            z, y, x = raw.shape
            return student_volume(student, iter(raw), (z, y, x), runtime)
    else:
        teacher = load_teacher(str(weights), runtime.device)
        notes, normalisation = teacher.notes, teacher.normaliser.normalisation
        teacher = replace(teacher, normaliser=UNCHANGED)

        def segment(raw: NDArray[Any]) -> SegmentedVolume:
            return teacher_volume(teacher, raw, runtime)

    parts = read_parts(opened, Normaliser(normalisation, data.invert))
    found = score_network(segment, parts, notes.get("step"), with_waterz=with_waterz)
    write_text(kept, json.dumps({"of": key, "scores": asdict(found)}, indent=2) + "\n")
    return found


def _kept(path: Path, key: dict[str, Any]) -> NetworkScores | None:
    """Return stored scores with this key; None if there are none or the file is unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["of"] != key:
            return None
        scores = dict(found["scores"])
        for name in ("query", "waterz_published", "waterz_chosen"):
            scores[name] = None if scores[name] is None else MethodScores(**scores[name])
        scores["boundary_f1_zyx"] = tuple(scores["boundary_f1_zyx"])
        return NetworkScores(**scores)
    except (OSError, ValueError, KeyError, TypeError):
        return None
