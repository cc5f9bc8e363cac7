"""Teacher, student and decoder as one module that computes the weighted loss terms of a training volume.

The two phases follow Liu et al., CVPR 2024: teacher loss and slice loss only, then all four distillation terms, with
the query losses of Chen et al., ICLR 2025, on teacher and student features through the same decoder. A network that no
loss needs is not built. A frozen teacher runs without changes and without gradients.

Legend: B volumes, D sections, H W = y x, h w half resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distill.config import Pair
from distill.core.affinity import (
    Targets,
    affinity_targets,
    half_resolution,
    pair_affinity,
    unknown_edges,
)
from distill.core.geometry import Nanometres
from distill.core.known import UNKNOWN
from distill.decoder.decoder import DecoderInput, DecoderOutput
from distill.decoder.matching import Match, match
from distill.models.build import build_decoder, build_slab, build_student, build_teacher
from distill.models.load import start_decoder, start_inflated, start_student, start_teacher
from distill.segmentation.components import compact_blocks
from distill.training.loop.step_times import StepClock
from distill.training.objective.losses import (
    affinity_cross_entropy,
    affinity_loss,
    cross_dimension_loss,
    draw_points,
    grafting_loss,
    half_resolution_loss,
    instance_targets,
    multi_offset_loss,
    student_offset_loss,
)
from distill.training.objective.own_terms import OWN_TERMS, OwnStep
from distill.training.objective.query_terms import mask_terms, split_instances, taught_masks_term
from distill.training.objective.soft_masks import pairs_by_instance, pairs_by_overlap
from distill.training.schedule.phases import Phases
from students.slab_adapter import SlabAdapter
from students.student import Student
from teachers.inflated import InflatedTeacher
from teachers.orientations import draw_orientation, full_affinity, run_oriented
from teachers.teacher import Teacher, TeacherOutput


@dataclass(frozen=True)
class StudentVolume:
    """The student's output for a volume: sections 1 .. D-1, each with its previous one."""

    previous: Tensor  # (B, E, D - 1, H, W): sections 0 .. D - 2
    current: Tensor  # (B, E, D - 1, H, W): sections 1 .. D - 1
    affinity: Tensor  # (B, 3, D - 1, H, W)
    decoder_input: DecoderInput | None


class Joint(nn.Module):
    """All networks that are trained together, and their losses."""

    teacher: Teacher | None  # None: the student is trained alone
    student: Student | None  # None, and no slab: the teacher is trained alone
    slab: SlabAdapter | None

    def __init__(self, config: Pair, resolution: Nanometres) -> None:
        """Build the networks needed by the losses; the student first, so that its initial weights do not depend on the
        teacher.

        Raises:
            CheckpointError: `teacher.weights` or `student.weights` do not match.
        """
        super().__init__()
        self.config = config
        self.resolution = resolution
        self.student = self.slab = self.teacher = None
        if config.student_runs:
            self.student = build_student(config.student, weights=config.student.encoder_weights)
            self.slab = build_slab(self.student, config.teacher.fused)
        self.decoder = build_decoder(config.teacher.decoder, config.teacher.fused, resolution)
        self.clock = StepClock(torch.device("cpu"))  # replaced by the clock of the training loop
        self.not_started: list[str] = []  # description of weights without a matching decoder
        weights = config.teacher.weights
        started = True
        if config.teacher_runs:
            self.teacher = build_teacher(config.teacher)
            started = weights is None or start_teacher(self.teacher, self.decoder, weights)
            if config.teacher.student is not None and isinstance(self.teacher, InflatedTeacher):
                start_inflated(self.teacher, config.teacher.student)
            if config.teacher.frozen:
                self.teacher.eval().requires_grad_(False)
        elif weights is not None:  # so that a student alone can be compared with one that has this teacher
            started = start_decoder(self.decoder, weights)
        self.not_started += [] if started else [f"teacher.weights: {weights} has no decoder"]
        weights = config.student.weights
        if self.student is not None and self.slab is not None and weights is not None:
            started = start_student(self.student, self.slab, self.decoder, weights)
            self.not_started += [] if started else [f"student.weights: {weights} has no adapter and decoder"]

    def train(self, mode: bool = True) -> Joint:
        """Set the training mode; a frozen teacher stays in evaluation mode, so that its norm statistics do not
        change.
        """
        super().train(mode)
        if self.teacher is not None and self.config.teacher.frozen:
            self.teacher.eval()
        return self

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> Mapping[str, Tensor]:
        """Compute the weighted loss terms of one step.

        Args:
            batch: raw (B, 1, D, H, W) in [0, 1] and labels (B, D, H, W) int64, with unknown voxels marked
                (`distill.core.known`) and ignored by all terms.
            step: number of steps done; determines the phase, whether there are labels, and the random seed.
        """
        raw, labels = batch
        if self.config.unlabelled_at(step):
            return self._unlabelled_terms(raw, step)
        phases = Phases(self.config)
        with_queries = phases.queries(step)
        targets = affinity_targets(labels)
        self.clock.mark("losses")
        taught = self._taught(raw, step)
        self.clock.mark("teacher")
        seen = None
        terms: dict[str, Tensor] = {}
        if self.student is not None:
            seen = self.view(raw, with_queries and (self.config.teacher.queries.student > 0 or phases.masks(step)))
            self.clock.mark("student")
            terms.update(self._slice_term(seen, targets))
            terms.update(self._offset_term(seen, labels, step))
        if taught is not None:
            terms.update(self._teacher_terms(taught, raw, labels, targets, step))
            if seen is not None and phases.distils(step):
                terms.update(self._distillation(taught, seen, labels, targets))
        if with_queries:
            terms.update(self._query_terms(taught, seen, labels, step))
        return terms

    def _unlabelled_terms(self, raw: Tensor, step: int) -> dict[str, Tensor]:
        """Compute the distillation terms on a volume without labels.

        The teacher's output is a fixed target: no gradient reaches it, and its norm statistics are not updated by a
        volume without losses of its own.
        """
        assert self.teacher is not None
        nothing = raw.new_zeros((len(raw), *raw.shape[2:]), dtype=torch.int64)
        targets = affinity_targets(nothing)  # for the edges that there are
        learning = self.teacher.training
        with torch.no_grad():
            self.teacher.eval()
            taught = self._oriented(raw, step)
        self.teacher.train(learning)
        self.clock.mark("teacher")
        queries, with_masks = self.config.teacher.queries, Phases(self.config).unlabelled_masks(step)
        seen = self.view(raw, with_masks)
        self.clock.mark("student")
        terms = self._distillation(taught, seen, None, targets)
        if with_masks:
            given = self._decoder_inputs(taught, seen)
            decoded = self._decode(given, step)
            of_student, taught_masks = slice(len(raw), None), decoded.masks[-1][: len(raw)].detach()
            pairs = pairs_by_overlap(decoded.masks[0][of_student], taught_masks)
            points = draw_points(taught_masks[:, 0], queries.points, self._drawing(step)) if queries.points else None
            taught_term = taught_masks_term(decoded, of_student, taught_masks, pairs, points, queries)
            terms["masks"] = self.config.student.loss.masks * taught_term
        return {f"unlabelled_{name}": term for name, term in terms.items()}

    def view(self, raw: Tensor, with_slab: bool) -> StudentVolume:
        """Run the student over all slice pairs; every section is encoded once."""
        assert self.student is not None
        assert self.slab is not None
        batch, _, depth, _, _ = raw.shape
        encoded = self.student.encode(raw.transpose(1, 2).flatten(0, 1))
        index = torch.arange(batch * depth, device=raw.device).view(batch, depth)[:, :-1].flatten()
        pair = self.student.decode(encoded.rows(index), encoded.rows(index + 1))
        affinity = pair_affinity(pair.previous.float(), pair.current.float())
        slab = None
        if with_slab:
            parts: tuple[Tensor, ...] = (pair.half, pair.full, affinity)
            if self.config.teacher.queries.detach_student:
                parts = tuple(part.detach() for part in parts)
            slab = self.slab(*parts, depth - 1)
        return StudentVolume(
            previous=_volumes(pair.previous, batch),
            current=_volumes(pair.current, batch),
            affinity=_volumes(affinity, batch),
            decoder_input=slab,
        )

    def _taught(self, raw: Tensor, step: int) -> TeacherOutput | None:
        """Run the teacher; None in steps in which no loss needs it."""
        if self.teacher is None or not Phases(self.config).teacher(step):
            return None
        if self.config.teacher.frozen:
            with torch.no_grad():
                return self._oriented(raw, step)
        found: TeacherOutput = self.teacher(raw)
        return found

    def _oriented(self, raw: Tensor, step: int) -> TeacherOutput:
        """Run the teacher on one of its orientations, drawn for this step; see `TeacherConfig.orientations`."""
        assert self.teacher is not None
        drawn = draw_orientation(self.config.teacher.orientations, self._drawing(step))
        return run_oriented(self.teacher, raw, drawn)

    def _slice_term(self, seen: StudentVolume, targets: Targets) -> dict[str, Tensor]:
        weight = self.config.student.loss.slice
        if not weight:
            return {}
        return {"slice": weight * affinity_loss(seen.affinity, targets.target[:, :, 1:], targets.valid[:, :, 1:])}

    def _offset_term(self, seen: StudentVolume, labels: Tensor, step: int) -> dict[str, Tensor]:
        loss = self.config.student.loss
        if not loss.multi_offset:
            return {}
        y, x = torch.randint(loss.offset_grid, (2,), generator=self._drawing(step), device="cpu").tolist()
        found = student_offset_loss(
            seen.previous.float(), seen.current.float(), labels, loss.offsets, grid=loss.offset_grid, phase=(y, x)
        )
        return {"offsets": loss.multi_offset * found}

    def _teacher_terms(
        self, taught: TeacherOutput, raw: Tensor, labels: Tensor, targets: Targets, step: int
    ) -> dict[str, Tensor]:
        config, weights = self.config.teacher, self.config.teacher.loss
        terms: dict[str, Tensor] = {}
        if config.frozen:
            return terms
        if weights.multi_offset:
            assert taught.embedding is not None
            terms["teacher_offsets"] = weights.multi_offset * multi_offset_loss(taught.embedding.float(), labels)
        if weights.affinity and taught.affinity_logits is not None:
            terms["teacher_affinity"] = weights.affinity * affinity_cross_entropy(
                taught.affinity_logits, targets.target, targets.valid
            )
        elif weights.affinity:
            terms["teacher_affinity"] = weights.affinity * half_resolution_loss(
                taught.decoder_input.affinity_logits, targets
            )
        if weights.own and config.has_own_loss:
            assert self.teacher is not None
            progress, drawing = step / self.config.student.training.steps, self._drawing(step)
            given = OwnStep(self.teacher, config, raw, labels, targets, taught, self.resolution, drawing, progress)
            found = OWN_TERMS[config.kind](given)
            terms.update({f"teacher_{name}": weights.own * value for name, value in found.items()})
        return terms

    def _distillation(
        self, taught: TeacherOutput, seen: StudentVolume, labels: Tensor | None, targets: Targets
    ) -> dict[str, Tensor]:
        loss = self.config.student.loss
        terms: dict[str, Tensor] = {}
        embedding = taught.embedding
        if embedding is not None:
            embedding = (embedding.detach() if loss.detach_teacher else embedding).float()
        if loss.cross:
            valid = targets.valid[:, :, 1:]
            if taught.affinity_logits is not None or loss.cross_from == "embedding":
                full = full_affinity(taught)
                assert full is not None
                given, mine = full[:, :, 1:], seen.affinity
            else:
                given = taught.decoder_input.affinity_logits[:, :, 1:].float().sigmoid()
                mine, valid = half_resolution(seen.affinity), half_resolution(valid.float()) > 0
                if labels is not None:
                    valid &= half_resolution(unknown_edges(labels)[:, :, 1:].float()) == 0
            given = given.detach() if loss.detach_teacher else given
            terms["cross"] = loss.cross * cross_dimension_loss(mine, given, valid)
        without_labels = loss.graft_from == "teacher"
        if loss.graft and (without_labels or labels is not None):
            assert embedding is not None
            terms["graft"] = loss.graft * grafting_loss(
                seen.previous.float(),
                seen.current.float(),
                embedding,
                None if without_labels else labels,
                loss.graft_distances,
                known=labels,
            )
        return terms

    def _query_terms(
        self, taught: TeacherOutput | None, seen: StudentVolume | None, labels: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Compute the mask losses of both networks against the labels, and of the student against the teacher's
        masks.
        """
        weights = self.config.teacher.queries
        with_masks = taught is not None and Phases(self.config).masks(step)
        given = self._decoder_inputs(taught if weights.teacher or with_masks else None, seen)
        instances = compact_blocks(instance_targets(split_instances(labels[:, 1:])))
        decoded = self._decode(given, step)
        known = instances != UNKNOWN
        batch, generator = len(labels), self._drawing(step)
        terms: dict[str, Tensor] = {}
        matches = match(decoded.masks[0], instances.repeat(len(given), 1, 1, 1))
        pairs: dict[str, list[Match]] = {}
        for row, name in enumerate(given):
            part = slice(row * batch, (row + 1) * batch)
            factor = weights.teacher if name == "teacher" else weights.student
            pairs[name] = matches[part]
            points = draw_points(instances, weights.points, generator) if weights.points else None
            if factor:
                found = mask_terms(decoded, part, instances, pairs[name], points, weights, generator)
                terms.update({f"{name}_{key}": factor * value for key, value in found.items()})
            if with_masks and name == "student":
                taught_masks = decoded.masks[-1][:batch].detach()
                shared = pairs_by_instance(pairs["student"], pairs["teacher"], taught_masks, known)
                taught_term = taught_masks_term(decoded, part, taught_masks, shared, points, weights, known)
                terms["masks"] = self.config.student.loss.masks * taught_term
        return terms

    def _decoder_inputs(self, taught: TeacherOutput | None, seen: StudentVolume | None) -> dict[str, DecoderInput]:
        """Return the available decoder inputs, the teacher's first."""
        weights = self.config.teacher.queries
        given: dict[str, DecoderInput] = {}
        if taught is not None:
            whole = taught.decoder_input
            alone = weights.detach_teacher or not weights.teacher  # only read, for its masks
            features = whole.features.detach() if alone else whole.features
            given["teacher"] = DecoderInput(features[:, :, 1:], whole.affinity_logits[:, :, 1:].float().detach())
        if seen is not None and seen.decoder_input is not None:
            given["student"] = DecoderInput(
                seen.decoder_input.features, seen.decoder_input.affinity_logits.float().detach()
            )
        return given

    def _decode(self, given: Mapping[str, DecoderInput], step: int) -> DecoderOutput:
        """Decode the blocks of both networks as one batch, so that the batch norms see all data that they are used
        for.
        """
        parts = list(given.values())
        both = DecoderInput(
            torch.cat([part.features.to(parts[0].features.dtype) for part in parts]),
            torch.cat([part.affinity_logits for part in parts]),
        )
        self.clock.mark("losses")
        seed = self.config.student.training.seed
        decoded: DecoderOutput = self.decoder(both, order="random", rng=np.random.default_rng((seed, 2, step)))
        self.clock.mark("decoder")
        return decoded

    def _drawing(self, step: int) -> torch.Generator:
        """Return the generator of the voxels drawn by a step's query losses."""
        return torch.Generator().manual_seed(self.config.student.training.seed * 1_000_003 + step)


def _volumes(pairs: Tensor, batch: int) -> Tensor:
    """Rearrange pairs of sections, sample by sample (B * (D - 1), C, H, W), to volumes (B, C, D - 1, H, W)."""
    volumes: Tensor = pairs.unflatten(0, (batch, -1))  # type: ignore[no-untyped-call]
    return volumes.transpose(1, 2)
