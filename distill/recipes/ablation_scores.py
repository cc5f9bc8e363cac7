"""Scores of one trained network for an ablation: query decoder, watershed + waterz, boundaries.

Thresholds are chosen on the validation part. Where there is a test part the scores are of that one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.affinity import affinity_targets, as_label_tensor
from distill.agglomerate import waterz
from distill.config import DataConfig
from distill.contingency import Scores
from distill.edge_scores import affinity_scores
from distill.errors import SourceError
from distill.metrics import score
from distill.recipes.models import load_student, load_teacher
from distill.recipes.run_models import WATERZ_THRESHOLD
from distill.recipes.validation import MERGE_THRESHOLDS
from distill.recipes.volumes import Runtime, Segmented, student_volume, teacher_volume

WATERZ_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_VERSION = 1  # of what is kept; raised when the way of scoring changes

Network = Literal["student", "teacher"]


@dataclass(frozen=True)
class Part:
    """A labelled part of the volume."""

    raw: NDArray[Any]  # (D, H, W)
    labels: NDArray[np.uint64]  # (D, H, W)


@dataclass(frozen=True)
class Parts:
    """What is chosen on, and what is scored; the same where there is no test part."""

    validation: Part
    test: Part | None = None

    @property
    def scored(self) -> Literal["test", "validation"]:
        """The part that the scores are of."""
        return "validation" if self.test is None else "test"


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
        """The fields that a table shows."""
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
    """Whether the library is installed."""
    try:
        import waterz as library
    except ModuleNotFoundError:
        return False
    return library is not None


def score_network(
    segment: Callable[[NDArray[Any]], Segmented], parts: Parts, step: int | None, *, with_waterz: bool
) -> NetworkScores:
    """Segment the validation part, choose, segment the part that is scored, score.

    Args:
        segment: a network with the query decoder, over a volume (D, H, W).
        parts: labelled volumes.
        step: of the weights.
        with_waterz: also agglomerate the affinities with waterz.
    """
    seen = segment(parts.validation.raw)
    truth = parts.validation.labels
    merged = {None: score(seen.labels(None), truth)} | {t: score(seen.labels(t), truth) for t in MERGE_THRESHOLDS}
    merge = min(merged, key=lambda t: merged[t].voi_sum)
    agglomerated: dict[float, Scores] = {}
    if with_waterz:
        found = waterz(seen.affinity, WATERZ_THRESHOLDS)
        agglomerated = {t: score(ids, truth) for t, ids in found.items()}
    chosen = min(agglomerated, key=lambda t: agglomerated[t].voi_sum) if agglomerated else WATERZ_THRESHOLD
    query = merged[merge]
    if parts.test is not None:
        seen, truth = segment(parts.test.raw), parts.test.labels
        query = score(seen.labels(merge), truth)
        if with_waterz:
            found = waterz(seen.affinity, [WATERZ_THRESHOLD, chosen])
            agglomerated = {t: score(ids, truth) for t, ids in found.items()}
    targets = affinity_targets(as_label_tensor(truth))
    edges = affinity_scores(seen.affinity, targets.target.numpy(), targets.valid.numpy())
    z, y, x = (edge.boundary.f1 for edge in edges)
    of_waterz = {t: MethodScores.of(agglomerated[t], t) for t in (WATERZ_THRESHOLD, chosen) if t in agglomerated}
    return NetworkScores(
        step,
        MethodScores.of(query, merge),
        of_waterz.get(WATERZ_THRESHOLD),
        of_waterz.get(chosen),
        (z, y, x),
    )


def score_weights(
    weights: Path, network: Network, parts: Parts, data: DataConfig, runtime: Runtime, kept: Path, *, with_waterz: bool
) -> NetworkScores:
    """Scores of a weights file, from `kept` where the same weights have been scored on the same parts before.

    Args:
        weights: file of a student or a teacher.
        network: which of the two.
        parts: labelled volumes.
        data: where they come from.
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
        notes = student.notes

        def segment(raw: NDArray[Any]) -> Segmented:
            z, y, x = raw.shape
            return student_volume(student, iter(raw), (z, y, x), runtime)
    else:
        teacher = load_teacher(str(weights), runtime.device)
        notes = teacher.notes

        def segment(raw: NDArray[Any]) -> Segmented:
            return teacher_volume(teacher, raw, runtime)

    found = score_network(segment, parts, notes.get("step"), with_waterz=with_waterz)
    write_text(kept, json.dumps({"of": key, "scores": asdict(found)}, indent=2) + "\n")
    return found


def write_text(path: Path, text: str) -> None:
    """Write (temporary name, then rename).

    Raises:
        SourceError: the place cannot be written.
    """
    temporary = path.with_name(path.name + ".writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from None


def _kept(path: Path, key: dict[str, Any]) -> NetworkScores | None:
    """Scores that were kept for this key; None for another one or a file that cannot be read."""
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
