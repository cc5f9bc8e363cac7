"""Score teacher and student on the validation part, and select merge thresholds.

All validation scores come from sections that are not used for training. The default thresholds of later runs are
selected here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.config import DecoderConfig, Pair
from distill.core.affinity import affinity_targets, as_label_tensor
from distill.core.known import counted_truth
from distill.evaluation.affinities import affinity_scores
from distill.evaluation.contingency import Scores
from distill.evaluation.metrics import score
from distill.inference.assembly import Assembly
from distill.inference.in_memory import SegmentedVolume, student_volumes, teacher_volumes
from distill.inference.options import Runtime
from distill.models.load import TrainedStudent, TrainedTeacher
from distill.segmentation.agglomeration import merged_above
from distill.segmentation.supervoxels import supervoxels
from distill.training.data import LabelledPart
from distill.training.objective.objective import Joint

MERGE_THRESHOLDS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
FLOOD_THRESHOLDS = tuple(round(0.02 * n, 2) for n in range(5, 31))
# z, y, x; tried in addition to the configured ones
SEED_THRESHOLDS = ((0.8, 0.8, 0.8), (0.8, 0.9, 0.9), (0.9, 0.9, 0.9), (0.9, 0.95, 0.95), (0.97, 0.95, 0.95))


@dataclass(frozen=True)
class Swept:
    """Scores of the query segmentation at one merge threshold; None = nothing merged."""

    threshold: float | None
    scores: Scores


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one of several validation volumes."""

    name: str
    scores: Scores  # at the threshold that is best over all volumes


@dataclass(frozen=True)
class Judged:
    """Validation of one network; for several volumes, scores are means weighted by counted voxels."""

    scores: Scores  # of the query segmentation at the best threshold
    unmerged: Scores  # without merging
    threshold: float | None  # merge above this mean affinity; None = merging did not help
    boundary_f1: tuple[float, ...]  # per axis z, y, x: edges that must be cut, predicted below 0.5
    decoding: DecoderConfig  # with the seed thresholds that gave these scores
    labels_section: NDArray[np.uint64]  # (H, W) middle section of the segmentation, of the first volume
    affinity_section: NDArray[np.float32]  # (3, H, W) its affinities
    sweep: tuple[Swept, ...]  # every threshold that was tried
    volumes: tuple[VolumeScores, ...] = ()  # one each where there are several
    flood: Swept | None = None  # the method `flood` on the same affinities, at its best threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for metrics.jsonl and the notes of the weights file."""
        found: dict[str, Any] = {
            "voi_split": self.scores.voi_split,
            "voi_merge": self.scores.voi_merge,
            "voi": self.scores.voi_sum,
            "arand": self.scores.arand,
            "voi_unmerged": self.unmerged.voi_sum,
            "merge_threshold": self.threshold,
            "seed_thresholds": list(self.decoding.seeds.thresholds),
            "boundary_f1_zyx": [round(f, 4) for f in self.boundary_f1],
        }
        if self.flood is not None:
            found |= {
                "flood_voi": self.flood.scores.voi_sum,
                "flood_arand": self.flood.scores.arand,
                "flood_threshold": self.flood.threshold,
            }
        if self.volumes:
            found["volumes"] = [
                {"raw": one.name, "voi_split": one.scores.voi_split, "voi_merge": one.scores.voi_merge}
                | {"voi": one.scores.voi_sum, "arand": one.scores.arand, "voxels": one.scores.voxels}
                for one in self.volumes
            ]
        return found

    def sweep_rows(self) -> list[list[float | None]]:
        """Return rows for metrics.jsonl: threshold (None = nothing merged), VOI split, VOI merge, ARAND."""
        return [[s.threshold, s.scores.voi_split, s.scores.voi_merge, s.scores.arand] for s in self.sweep]


@dataclass(frozen=True)
class TriedThreshold:
    """Summary of one volume's segmentation that is kept after its voxels are discarded.

    Attributes:
        scores: at every merge threshold, None first.
        boundary_f1: per axis z, y, x.
        supervoxels: (H, W) middle section.
        affinity: (3, H, W) middle section.
        assembly: computes final ids of the supervoxels.
    """

    scores: tuple[Swept, ...]
    boundary_f1: tuple[float, ...]
    supervoxels: NDArray[np.uint64]
    affinity: NDArray[np.float32]
    assembly: Assembly


def try_thresholds(
    segmented: SegmentedVolume, labels: NDArray[np.uint64], thresholds: Sequence[float] = MERGE_THRESHOLDS
) -> TriedThreshold:
    """Score a segmentation at every merge threshold.

    Args:
        segmented: supervoxels, contacts and affinities of a part.
        labels: (D, H, W) ground truth of the same part, with the values of `distill.core.known`.
        thresholds: candidates, in addition to no merging.
    """
    truth = counted_truth(labels)
    sweep = tuple(Swept(t, score(segmented.labels(t), truth)) for t in (None, *thresholds))
    targets = affinity_targets(as_label_tensor(labels))
    edges = affinity_scores(segmented.affinity, targets.target.numpy(), targets.valid.numpy())
    middle = len(labels) // 2
    return TriedThreshold(
        sweep,
        tuple(edge.boundary.f1 for edge in edges),
        segmented.supervoxels[middle].copy(),
        segmented.affinity[:, middle].copy(),
        segmented.assembly,
    )


def pooled(scores: Sequence[Scores]) -> Scores:
    """Combine the scores of several volumes: means weighted by counted voxels; objects and voxels are summed."""
    if len(scores) == 1:
        return scores[0]
    weights = [one.voxels for one in scores]

    def mean(name: str) -> float:
        return float(np.average([getattr(one, name) for one in scores], weights=weights))

    return Scores(
        preset=scores[0].preset,
        voi_split=mean("voi_split"),
        voi_merge=mean("voi_merge"),
        arand=mean("arand"),
        arand_precision=mean("arand_precision"),
        arand_recall=mean("arand_recall"),
        n_true=sum(one.n_true for one in scores),
        n_pred=sum(one.n_pred for one in scores),
        voxels=sum(weights),
    )


def score_validation(
    segmented: SegmentedVolume,
    labels: NDArray[np.uint64],
    decoding: DecoderConfig,
    thresholds: Sequence[float] = MERGE_THRESHOLDS,
) -> Judged:
    """Score a segmentation at every merge threshold, and select the one with the lowest VOI.

    Args:
        segmented: supervoxels, contacts and affinities of the validation part.
        labels: (D, H, W) ground truth of the same part, with the values of `distill.core.known`.
        decoding: configuration of the decoder.
        thresholds: candidates, in addition to no merging.
    """
    return judge_together([try_thresholds(segmented, labels, thresholds)], decoding)


def judge_together(tried: Sequence[TriedThreshold], decoding: DecoderConfig, names: Sequence[str] = ()) -> Judged:
    """Pool the scores of volumes decoded in the same way, and select the threshold with the lowest mean VOI.

    Args:
        tried: one per volume, over the same thresholds.
        decoding: configuration of the decoder.
        names: of the volumes; optional for a single one.
    """
    rows = list(zip(*(one.scores for one in tried), strict=True))
    sweep = tuple(Swept(row[0].threshold, pooled([one.scores for one in row])) for row in rows)
    at = min(range(len(sweep)), key=lambda n: sweep[n].scores.voi_sum)
    best, first = sweep[at], tried[0]
    voxels = [one.scores[at].scores.voxels for one in tried]
    f1 = first.boundary_f1
    if len(tried) > 1:
        f1 = tuple(float(n) for n in np.average([one.boundary_f1 for one in tried], axis=0, weights=voxels))
    return Judged(
        best.scores,
        sweep[0].scores,
        best.threshold,
        f1,
        decoding,
        first.assembly.finish(best.threshold).apply(first.supervoxels),
        first.affinity,
        sweep,
        tuple(VolumeScores(name, one.scores[at].scores) for name, one in zip(names, tried, strict=True))
        if len(tried) > 1
        else (),
    )


def validate(joint: Joint, config: Pair, parts: Sequence[LabelledPart], runtime: Runtime) -> dict[str, Judged]:
    """Validate the networks that training changes on the validation parts, at the best of several seed thresholds.

    Args:
        joint: in evaluation mode, with the weights to validate.
        config: of the run.
        parts: at least one; they are segmented one after another.
        runtime: device and precision.
    """
    student, teacher = views(joint, config)
    decodings = seed_candidates(config.teacher.decoder)
    tried: dict[str, list[list[TriedThreshold]]] = {}  # by network, volume, decoder configuration
    flooded: dict[str, list[list[Swept]]] = {}  # by network, volume, threshold
    for part in parts:
        z, y, x = part.raw.shape
        if student is not None:
            found = student_volumes(student, iter(part.raw), (z, y, x), runtime, decodings)
            tried.setdefault("student", []).append([try_thresholds(one, part.labels) for one in found])
            flooded.setdefault("student", []).append(try_flood(found[0].affinity, part.labels))
        if teacher is not None:
            found = teacher_volumes(teacher, part.raw, runtime, decodings)
            tried.setdefault("teacher", []).append([try_thresholds(one, part.labels) for one in found])
            flooded.setdefault("teacher", []).append(try_flood(found[0].affinity, part.labels))
    names = [part.name for part in parts]
    return {
        network: replace(best_of(volumes, decodings, names), flood=best_flood(flooded[network]))
        for network, volumes in tried.items()
    }


def try_flood(affinity: NDArray[np.float32], labels: NDArray[np.uint64]) -> list[Swept]:
    """Score the method `flood` at every threshold.

    Args:
        affinity: (3, D, H, W) of a validation part.
        labels: (D, H, W) ground truth of the same part, with the values of `distill.core.known`.
    """
    truth = counted_truth(labels)
    found = merged_above(supervoxels(affinity), affinity, FLOOD_THRESHOLDS)
    return [Swept(threshold, score(ids, truth)) for threshold, ids in found.items()]


def best_flood(volumes: Sequence[Sequence[Swept]]) -> Swept:
    """Return the threshold with the lowest mean VOI over several volumes."""
    rows = [Swept(row[0].threshold, pooled([one.scores for one in row])) for row in zip(*volumes, strict=True)]
    return min(rows, key=lambda one: one.scores.voi_sum)


def best_of(
    volumes: Sequence[Sequence[TriedThreshold]], decodings: Sequence[DecoderConfig], names: Sequence[str]
) -> Judged:
    """Return the first decoder configuration with the lowest VOI, at its best merge threshold.

    Args:
        volumes: by volume and decoder configuration.
        decodings: the configurations.
        names: of the volumes.
    """
    ways = zip(*volumes, strict=True)
    judged = [judge_together(tried, decoding, names) for tried, decoding in zip(ways, decodings, strict=True)]
    return min(judged, key=lambda one: one.scores.voi_sum)


def seed_candidates(decoding: DecoderConfig) -> list[DecoderConfig]:
    """Return the configured decoding and, if seeds use edge thresholds, variants with the other thresholds."""
    looks_at_seeds = decoding.queries.startswith("guided") or decoding.cues == "segmentation"
    if decoding.seeds.kind != "edges" or not looks_at_seeds:
        return [decoding]
    thresholds = dict.fromkeys([decoding.seeds.thresholds, *SEED_THRESHOLDS])
    return [
        decoding.model_copy(update={"seeds": decoding.seeds.model_copy(update={"thresholds": t})}) for t in thresholds
    ]


def views(joint: Joint, config: Pair) -> tuple[TrainedStudent | None, TrainedTeacher | None]:
    """Return the trained parts of the joint module as networks for inference; None for one that training does not
    change.
    """
    decoding, here = config.teacher.decoder, Path("training")
    student = teacher = None
    if joint.student is not None:
        student = TrainedStudent(joint.student, joint.slab, joint.decoder, decoding, {}, here)
    if joint.teacher is not None and config.teacher_learns:
        teacher = TrainedTeacher(joint.teacher, joint.decoder, config.teacher, {}, here)
    return student, teacher
