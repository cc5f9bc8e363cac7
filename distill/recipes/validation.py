"""Scores of teacher and student on the validation part, and the merge thresholds chosen there.

Every number of a validation comes from sections that training never saw; thresholds that later runs use by default are
chosen here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.affinity import affinity_targets, as_label_tensor
from distill.config import DecoderConfig, Pair
from distill.contingency import Scores
from distill.edge_scores import affinity_scores
from distill.metrics import score
from distill.recipes.joint import Joint
from distill.recipes.models import TrainedStudent, TrainedTeacher
from distill.recipes.volumes import Runtime, Segmented, student_volumes, teacher_volumes

MERGE_THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
# z, y, x; tried beside the configured ones
SEED_THRESHOLDS = ((0.8, 0.8, 0.8), (0.8, 0.9, 0.9), (0.9, 0.9, 0.9), (0.9, 0.95, 0.95), (0.97, 0.95, 0.95))


@dataclass(frozen=True)
class Swept:
    """Scores of the query segmentation at one merge threshold; None = nothing merged."""

    threshold: float | None
    scores: Scores


@dataclass(frozen=True)
class Judged:
    """One network's validation."""

    scores: Scores  # of the query segmentation at the best threshold
    unmerged: Scores  # of the queries alone
    threshold: float | None  # merge above this mean affinity; None = merging did not help
    boundary_f1: tuple[float, ...]  # per axis z, y, x: edges that must be cut, predicted below 0.5
    decoding: DecoderConfig  # with the seed thresholds that gave these scores
    labels_section: NDArray[np.uint64]  # (H, W) middle section of the segmentation
    affinity_section: NDArray[np.float32]  # (3, H, W) its affinities
    sweep: tuple[Swept, ...]  # every threshold that was tried

    def to_dict(self) -> dict[str, Any]:
        """For metrics.jsonl and the weights file's notes."""
        return {
            "voi_split": self.scores.voi_split,
            "voi_merge": self.scores.voi_merge,
            "voi": self.scores.voi_sum,
            "arand": self.scores.arand,
            "voi_unmerged": self.unmerged.voi_sum,
            "merge_threshold": self.threshold,
            "seed_thresholds": list(self.decoding.seeds.thresholds),
            "boundary_f1_zyx": [round(f, 4) for f in self.boundary_f1],
        }

    def sweep_rows(self) -> list[list[float | None]]:
        """For metrics.jsonl: threshold (None = nothing merged), VOI split, VOI merge, ARAND."""
        return [[s.threshold, s.scores.voi_split, s.scores.voi_merge, s.scores.arand] for s in self.sweep]


def judge(
    segmented: Segmented,
    labels: NDArray[np.uint64],
    decoding: DecoderConfig,
    thresholds: Sequence[float] = MERGE_THRESHOLDS,
) -> Judged:
    """Score a segmentation at every merge threshold and keep the one with the lowest VOI.

    Args:
        segmented: supervoxels, contacts and affinities of the validation part.
        labels: (D, H, W) ground truth of the same part.
        decoding: how it was decoded.
        thresholds: candidates, beside no merging.
    """
    sweep = tuple(Swept(t, score(segmented.labels(t), labels)) for t in (None, *thresholds))
    unmerged, best = sweep[0], min(sweep, key=lambda one: one.scores.voi_sum)
    targets = affinity_targets(as_label_tensor(labels))
    edges = affinity_scores(segmented.affinity, targets.target.numpy(), targets.valid.numpy())
    middle = len(labels) // 2
    return Judged(
        best.scores,
        unmerged.scores,
        best.threshold,
        tuple(edge.boundary.f1 for edge in edges),
        decoding,
        segmented.labels(best.threshold)[middle],
        segmented.affinity[:, middle],
        sweep,
    )


def validate(
    joint: Joint, config: Pair, raw: NDArray[Any], labels: NDArray[np.uint64], runtime: Runtime
) -> dict[str, Judged]:
    """The networks that training changes through the shared decoder on the validation part, at the best of a few seed
    thresholds.

    Args:
        joint: in evaluation mode, with the weights to judge.
        config: of the run.
        raw: (D, H, W) grey values.
        labels: (D, H, W) ground truth.
        runtime: device and precision.
    """
    z, y, x = raw.shape
    student, teacher = views(joint, config)
    decodings = seed_candidates(config.teacher.decoder)
    found: dict[str, list[Segmented]] = {}
    if student is not None:
        found["student"] = student_volumes(student, iter(raw), (z, y, x), runtime, decodings)
    if teacher is not None:
        found["teacher"] = teacher_volumes(teacher, raw, runtime, decodings)
    return {name: best_of(volumes, labels, decodings) for name, volumes in found.items()}


def best_of(volumes: Sequence[Segmented], labels: NDArray[np.uint64], decodings: Sequence[DecoderConfig]) -> Judged:
    """The first of the segmentations with the lowest VOI, each at its best merge threshold."""
    judged = [judge(volume, labels, decoding) for volume, decoding in zip(volumes, decodings, strict=True)]
    return min(judged, key=lambda one: one.scores.voi_sum)


def seed_candidates(decoding: DecoderConfig) -> list[DecoderConfig]:
    """The configured decoding and, where seeds are cut at edge thresholds, the same with the other thresholds."""
    looks_at_seeds = decoding.queries.startswith("guided") or decoding.cues == "segmentation"
    if decoding.seeds.kind != "edges" or not looks_at_seeds:
        return [decoding]
    thresholds = dict.fromkeys([decoding.seeds.thresholds, *SEED_THRESHOLDS])
    return [
        decoding.model_copy(update={"seeds": decoding.seeds.model_copy(update={"thresholds": t})}) for t in thresholds
    ]


def views(joint: Joint, config: Pair) -> tuple[TrainedStudent | None, TrainedTeacher | None]:
    """The joint module's parts as trained networks; None for one that training does not change."""
    decoding, here = config.teacher.decoder, Path("training")
    student = teacher = None
    if joint.student is not None:
        student = TrainedStudent(joint.student, joint.slab, joint.decoder, decoding, {}, here)
    if joint.teacher is not None and config.teacher_learns:
        teacher = TrainedTeacher(joint.teacher, joint.decoder, config.teacher, {}, here)
    return student, teacher
