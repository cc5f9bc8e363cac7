"""Loss terms that belong to one kind of teacher, by kind; `teacher.loss.own` weights them.

Each function takes the state of a step and returns named terms, unweighted among each other unless the kind's own
configuration holds weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config import TeacherConfig
from distill.core.affinity import Targets
from distill.core.geometry import Nanometres
from distill.training.objective.descriptors import descriptor_loss
from distill.training.objective.discriminative import discriminative_loss
from distill.training.objective.losses import affinity_loss, half_resolution_loss, multi_offset_loss
from distill.training.objective.malis import malis_loss
from distill.training.objective.pixel_embedding import View, pyramid_loss
from teachers.teacher import Teacher, TeacherOutput

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class OwnStep:
    """What an own loss may use.

    Attributes:
        teacher: the network.
        config: its configuration.
        raw: (B, 1, D, H, W) in [0, 1].
        labels: (B, D, H, W) int64, see `distill.core.known`.
        targets: of the labels at the nearest neighbours.
        taught: output of the network for `raw`.
        resolution: voxel size in nm.
        generator: randomness of the step, on the CPU.
        progress: share of the run's steps that are done.
    """

    teacher: Teacher
    config: TeacherConfig
    raw: Tensor
    labels: Tensor
    targets: Targets
    taught: TeacherOutput
    resolution: Nanometres
    generator: torch.Generator
    progress: float


def _mala(step: OwnStep) -> Terms:
    logits = step.taught.affinity_logits
    assert logits is not None
    affinity = logits.float().sigmoid()
    if step.progress < step.config.mala.pointwise:
        return {"pointwise": affinity_loss(affinity, step.targets.target, step.targets.valid)}
    return {"malis": malis_loss(affinity, step.labels, step.targets)}


def _lsd(step: OwnStep) -> Terms:
    (descriptors,) = step.taught.extra
    sigma, resolution = step.config.lsd.sigma, step.resolution
    return {"descriptors": descriptor_loss(descriptors, step.labels, sigma=sigma, resolution=resolution)}


def _pea(step: OwnStep) -> Terms:
    weights, terms = step.config.pea, Terms()
    if step.taught.extra and weights.pyramid:
        terms["pyramid"] = weights.pyramid * pyramid_loss([one.float() for one in step.taught.extra], step.labels)
    if weights.views:
        view = View.drawn(step.generator)
        with torch.no_grad():
            seen: TeacherOutput = step.teacher(view.of(step.raw))
        assert seen.embedding is not None
        assert step.taught.embedding is not None
        moved = view.back(seen.embedding.float())
        terms["views"] = weights.views * multi_offset_loss(step.taught.embedding.float(), step.labels, other=moved)
    return terms


def _ml_de(step: OwnStep) -> Terms:
    margins = step.config.mlde
    assert step.taught.embedding is not None
    return {
        "discriminative": discriminative_loss(step.taught.embedding, step.labels, pull=margins.pull, push=margins.push)
    }


def _inflated(step: OwnStep) -> Terms:
    (affinity,) = step.taught.extra
    return {
        "nearest": affinity_loss(affinity, step.targets.target, step.targets.valid),
        "branch": half_resolution_loss(step.taught.decoder_input.affinity_logits, step.targets),
    }


OWN_TERMS: dict[str, Callable[[OwnStep], Terms]] = {
    "inflated": _inflated,
    "mala": _mala,
    "lsd": _lsd,
    "pea": _pea,
    "ml-de": _ml_de,
}
