"""Work of each step of a training, and the number of steps that fit into a given time.

The cost of a step depends on its kind: whether the 3D network runs, whether it distils into the student, whether the
query decoder runs, and whether the step uses a volume without labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from distill.config import Pair

_MOST = 10**9  # steps


@dataclass(frozen=True, order=True)
class StepKind:
    """Work of a step.

    Attributes:
        labelled: the crop has labels.
        teacher: the 3D network runs.
        distils: it distils into the student.
        queries: the query decoder runs.
    """

    labelled: bool
    teacher: bool
    distils: bool
    queries: bool

    def __str__(self) -> str:
        """Format the kind for records, such as `student + teacher + queries`."""
        parts = {"teacher": self.teacher, "distillation": self.distils, "queries": self.queries}
        return " + ".join(["student" if self.labelled else "unlabelled", *(name for name, on in parts.items() if on)])


class Phases:
    """Work of every step of a configured training."""

    def __init__(self, config: Pair) -> None:
        """Read the phases of a configuration.

        Args:
            config: of the run.
        """
        self.config = config

    def teacher_due(self, step: int) -> bool:
        """Return whether the 3D network may run: never for a student alone, otherwise every `teacher_every` labelled
        steps.
        """
        every = self.config.student.training.teacher_every
        return self.config.teacher_runs and self.config.labelled_before(step) % every == 0

    def distils(self, step: int) -> bool:
        """Return whether the teacher distils into the student, in steps in which it runs."""
        return self.config.distils and step >= self.config.student.training.warmup

    def masks(self, step: int) -> bool:
        """Return whether mask distillation runs, in labelled steps with query losses."""
        return self.config.student.loss.masks > 0 and self.teacher_due(step) and self.distils(step)

    def queries(self, step: int) -> bool:
        """Return whether a labelled step has query losses."""
        queries = self.config.teacher.queries
        since = self.config.labelled_before(step) - self.config.labelled_before(queries.start)
        due = step >= queries.start and since % queries.every == 0
        of_teacher = queries.teacher > 0 and self.teacher_due(step)
        return due and (of_teacher or queries.student > 0 or self.masks(step))

    def unlabelled_masks(self, step: int) -> bool:
        """Return whether mask distillation runs in an unlabelled step."""
        queries, turn = self.config.teacher.queries, step // self.config.student.training.unlabelled_every
        return self.config.student.loss.masks > 0 and step >= queries.start and turn % queries.every == 0

    def teacher(self, step: int) -> bool:
        """Return whether the 3D network runs in a labelled step, that is, whether a loss needs it."""
        if not self.teacher_due(step):
            return False
        loss = self.config.student.loss
        to_pairs = (loss.cross > 0 or loss.graft > 0) and self.distils(step)
        to_queries = self.queries(step) and (self.config.teacher.queries.teacher > 0 or self.masks(step))
        return self.config.teacher_losses or to_pairs or to_queries

    def kind(self, step: int) -> StepKind:
        """Return the work of a step."""
        if self.config.unlabelled_at(step):
            return StepKind(labelled=False, teacher=True, distils=True, queries=self.unlabelled_masks(step))
        teacher = self.teacher(step)
        return StepKind(
            labelled=True, teacher=teacher, distils=teacher and self.distils(step), queries=self.queries(step)
        )

    def counts(self, first: int, last: int) -> Counter[StepKind]:
        """Count the steps of each kind.

        Args:
            first: number of steps before the first one counted.
            last: number of steps after the last one counted.
        """
        found: Counter[StepKind] = Counter()
        for begin, end in pairwise(sorted({first, *(edge for edge in self._edges() if first < edge < last), last})):
            whole, rest = divmod(end - begin, self._period())
            for k in range(min(end - begin, self._period())):
                found[self.kind(begin + k)] += whole + (k < rest)
        return found

    def examples(self) -> dict[StepKind, int]:
        """Return the first step of each kind, in order."""
        found: dict[StepKind, int] = {}
        for begin, end in pairwise([*self._edges(), self.config.student.training.steps]):
            for step in range(begin, min(end, begin + self._period())):
                found.setdefault(self.kind(step), step)
        return found

    def _edges(self) -> list[int]:
        """Return the steps after which the pattern of kinds changes."""
        return sorted({0, self.config.student.training.warmup, self.config.teacher.queries.start})

    def _period(self) -> int:
        training = self.config.student.training
        every = math.lcm(training.teacher_every, self.config.teacher.queries.every)
        return every * (training.unlabelled_every if self.config.student.data.unlabelled else 1)


def with_steps(config: Pair, steps: int) -> Pair:
    """Return the same training with another number of steps and proportional phases.

    `student.training.warmup`, `student.training.lr_warmup` and `teacher.queries.start` keep their fraction of the run,
    with at least one step each unless they are 0. Intervals (`validate_every`, `save_every`, `log_every`) are
    unchanged.

    Args:
        config: the original training.
        steps: at least 1.
    """
    training, queries = config.student.training, config.teacher.queries

    def scaled(length: int) -> int:
        return max(1, (2 * length * steps + training.steps) // (2 * training.steps)) if length else 0

    lengths = Lengths(steps, scaled(training.warmup), scaled(training.lr_warmup), scaled(queries.start))
    return with_lengths(config, lengths)


@dataclass(frozen=True)
class Lengths:
    """Steps of a run and of its phases, see `TrainingConfig` and `QueryLoss`."""

    steps: int
    warmup: int
    lr_warmup: int
    queries_start: int

    @classmethod
    def of(cls, config: Pair) -> Lengths:
        """Return the lengths of a configuration."""
        training = config.student.training
        return cls(training.steps, training.warmup, training.lr_warmup, config.teacher.queries.start)


def with_lengths(config: Pair, lengths: Lengths) -> Pair:
    """Return the same training with other lengths."""
    changes = {"steps": lengths.steps, "warmup": lengths.warmup, "lr_warmup": lengths.lr_warmup}
    training = config.student.training.model_copy(update=changes)
    queries = config.teacher.queries.model_copy(update={"start": lengths.queries_start})
    return config.model_copy(
        update={
            "student": config.student.model_copy(update={"training": training}),
            "teacher": config.teacher.model_copy(update={"queries": queries}),
        }
    )


def most_steps(seconds: float, cost: Callable[[int], float]) -> int:
    """Return the number of steps that fit into a time.

    Args:
        seconds: the time.
        cost: seconds taken by a number of steps, an increasing function.

    Returns:
        A number n with cost(n) <= seconds < cost(n + 1); 0 if not even one step fits.
    """
    if cost(1) > seconds:
        return 0
    fits, too_many = 1, 2
    while too_many < _MOST and cost(too_many) <= seconds:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if cost(middle) <= seconds:
            fits = middle
        else:
            too_many = middle
    return fits
