"""Configuration of a training: a teacher, a student, and constraints between the two.

The pairs of files in `configs/` state the source of each value.
"""

from __future__ import annotations

from pydantic import (
    BaseModel,
    model_validator,
)

from distill.config.data import DataConfig, Strict
from distill.config.networks import TeacherConfig
from distill.config.student_network import StudentNetwork
from distill.config.training import AugmentConfig, DistillLoss, TrainingConfig


class StudentConfig(StudentNetwork):
    """student.yaml: the 2D network, distillation, data and training.

    With `weights`, the student, its adapter and, if its shapes match, the decoder are initialised from another run. If
    both teacher and student provide a decoder, the student's is used.
    """

    encoder_weights: str | None = None  # from a hub, e.g. `imagenet`; for `smp`
    weights: str | None = None  # of a trained student: run folder, weights file or bundled model
    loss: DistillLoss = DistillLoss()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()


class Pair(Strict):
    """A teacher and its student."""

    teacher: TeacherConfig
    student: StudentConfig

    @model_validator(mode="after")
    def _fit(self) -> Pair:
        if not (self.student_runs or self.teacher_learns):
            raise ValueError("every loss is 0; expected one at least above 0 that trains the student or the teacher")
        if not self._every_step_has_a_loss():
            raise ValueError(
                "student.loss.slice: 0 leaves steps without any loss; expected student.training.teacher_every 1, and "
                "student.training.warmup 0 where the teacher has no loss of its own"
            )
        if self.student.weights is not None and not self.student_runs:
            raise ValueError(
                "student.weights: set, but no loss trains the student; expected one above 0, or no weights"
            )
        if self.student.loss.graft and self.teacher.embedding != self.student.embedding:
            raise ValueError(
                f"student.loss.graft: compares embeddings, but teacher.embedding is {self.teacher.embedding} and "
                f"student.embedding {self.student.embedding}; expected the same number, or student.loss.graft 0"
            )
        from_embedding = self.student.loss.cross_from == "embedding" and not self.teacher.has_own_head
        if self.student.loss.cross and from_embedding and not self.teacher.embedding:
            raise ValueError("student.loss.cross_from: 'embedding' needs teacher.embedding > 0; expected 'logits'")
        queries = self.teacher.queries
        if self.student.loss.masks and not (queries.cross_entropy or queries.dice):
            raise ValueError(
                "student.loss.masks: multiplies teacher.queries.cross_entropy and teacher.queries.dice, found both 0; "
                "expected one above 0, or student.loss.masks 0"
            )
        return self

    @model_validator(mode="after")
    def _phases_have_a_length(self) -> Pair:
        training = self.student.training
        lengths: dict[str, BaseModel] = {f"student.training.{key}": training for key in ("warmup", "lr_warmup")}
        lengths["teacher.queries.start"] = self.teacher.queries
        if training.minutes is None or "steps" in training.model_fields_set:
            return self
        for key, holder in lengths.items():
            name = key.rpartition(".")[2]
            if name in holder.model_fields_set and getattr(holder, name):
                raise ValueError(
                    f"{key}: found {getattr(holder, name)} with student.training.minutes alone, expected "
                    "student.training.steps as well: the length that it is written for; it keeps its share of the run"
                )
        return self

    @model_validator(mode="after")
    def _unlabelled_steps_have_losses(self) -> Pair:
        loss, queries = self.student.loss, self.teacher.queries
        if self.student.data.unlabelled and not (
            loss.cross
            or (loss.graft and loss.graft_from == "teacher")
            or (loss.masks and queries.every == 1 and queries.start <= self.student.training.warmup)
        ):
            raise ValueError(
                "student.data.unlabelled: no loss at every step without labels; expected student.loss.cross above 0, "
                "student.loss.graft with graft_from teacher, or student.loss.masks at every step after the warm-up "
                "(teacher.queries.every 1, start no later than the warm-up)"
            )
        return self

    def unlabelled_at(self, step: int) -> bool:
        """Return whether a step uses unlabelled volumes: after the warm-up, the last of every `unlabelled_every`."""
        training = self.student.training
        phase = step % training.unlabelled_every == training.unlabelled_every - 1
        return bool(self.student.data.unlabelled) and step >= training.warmup and phase

    def labelled_before(self, step: int) -> int:
        """Return the number of labelled steps before this one, which `teacher_every` and similar keys count."""
        training = self.student.training
        if not self.student.data.unlabelled or step <= training.warmup:
            return step
        return step - (step // training.unlabelled_every - training.warmup // training.unlabelled_every)

    @property
    def distils(self) -> bool:
        """Return whether the teacher distils into the student."""
        loss = self.student.loss
        return any((loss.cross, loss.graft, loss.masks))

    @property
    def student_runs(self) -> bool:
        """Return whether any loss needs the 2D network; otherwise the teacher is trained alone."""
        return self.distils or any((self.student.loss.slice, self.teacher.queries.student))

    @property
    def teacher_runs(self) -> bool:
        """Return whether any loss needs the 3D network; otherwise the student is trained alone."""
        return self.distils or self.teacher_losses or bool(self.teacher.queries.teacher)

    @property
    def teacher_learns(self) -> bool:
        """Return whether training changes the output of teacher and decoder, so that it must be validated."""
        return self.teacher_runs and (not self.teacher.frozen or bool(self.teacher.queries.teacher))

    @property
    def teacher_losses(self) -> bool:
        """Return whether the teacher has losses."""
        loss = self.teacher.loss
        own = self.teacher.has_own_loss and loss.own
        return not self.teacher.frozen and any((loss.multi_offset, loss.affinity, own))

    def _every_step_has_a_loss(self) -> bool:
        queries, loss, training = self.teacher.queries, self.student.loss, self.student.training
        queries_at_each = queries.start == 0 and queries.every == 1
        distilled = loss.cross or loss.graft or (loss.masks and queries_at_each)
        with_teacher = (
            self.teacher_losses or (distilled and training.warmup == 0) or (queries.teacher and queries_at_each)
        )
        return bool(
            loss.slice or (queries.student and queries_at_each) or (with_teacher and training.teacher_every == 1)
        )
