"""Estimate the duration of a training from the time of its steps, or from a trial before the first step."""

from __future__ import annotations

from distill.config import Pair
from distill.core.pace import number, span
from distill.training.schedule.phases import Phases, StepKind
from distill.training.schedule.planned_steps import Trial, times_due

_LEFT_OUT = 3  # first steps of a process: they allocate, and wait for the first crops
_TIMED = 9  # steps after them


class Forecast:
    """Estimate of the remaining time of a run, from the mean times of each kind of step."""

    def __init__(self, config: Pair, first: int, trial: Trial | None = None) -> None:
        """Start at the beginning of a run, or of a resumed part.

        Args:
            config: of the run, with its number of steps.
            first: steps done already.
            trial: timings from before the first step, if any.
        """
        self._config, self.phases, self._first, self._trial = config, Phases(config), first, trial
        self._steps = config.student.training.steps
        self._sums: dict[StepKind, tuple[float, int]] = {}
        self._validations: list[float] = []

    def opening(self) -> str:
        """Return the message of a run of given duration before its first step; empty for other runs."""
        if self._trial is None or self._first >= self._steps:
            return ""
        left = self._steps - self._first
        mean = self._trial.of_steps(self._config, self._first) / left
        training = self._config.student.training
        count = times_due(training.validation_interval, self._first, self._steps)
        validations = f"{count} validation{'s' if count > 1 else ''} of about {span(self._trial.validation)}"
        steps = f"{self._steps} steps" if not self._first else f"{left} of {self._steps} steps left"
        return (
            f"about {span(self._trial.of_run(self._config, self._first))}: {steps} at {number(mean)} s, and "
            f"{validations}; timed over {self._trial.steps} trial steps of {len(self._trial.seconds)} kinds, fixed for "
            f"student.training.minutes={training.minutes:g}"
        )

    def add(self, step: int, seconds: float) -> str:
        """Add the time of a step.

        Args:
            step: steps done with it.
            seconds: of it.

        Returns:
            The message of a run by steps, once, when enough steps have been timed; otherwise empty.
        """
        done = step - self._first
        if done <= _LEFT_OUT:
            return ""
        kind = self.phases.kind(step - 1)
        before, count = self._sums.get(kind, (0.0, 0))
        self._sums[kind] = before + seconds, count + 1
        if self._trial is not None or done != _LEFT_OUT + _TIMED or step == self._steps:
            return ""
        left, known = self._steps - step, all(kind in self._sums for kind in self.phases.counts(step, self._steps))
        seconds_left = self._of_steps(step)
        text = (
            f"about {span(seconds_left)} left: {left} steps at {number(seconds_left / left)} s, timed over steps "
            f"{step - _TIMED + 1} to {step}"
        )
        later = self._begin_later(step)
        if later:
            text += f"; longer once {' and '.join(later)}"
        elif not known:
            text += ", which were not of every kind"
        return text + "; validations come on top"

    def validated(self, seconds: float) -> None:
        """Add the time of a validation."""
        self._validations.append(seconds)

    def left(self, step: int) -> float | None:
        """Return the remaining seconds after a step; None before any was timed."""
        if not self._sums and self._trial is None:
            return None
        training = self._config.student.training
        found = self._of_steps(step)
        trial = self._trial
        if self._validations or trial is not None:
            one = sum(self._validations) / len(self._validations) if self._validations else 0.0
            one = one or (trial.validation if trial is not None else 0.0)
            found += one * times_due(training.validation_interval, step, self._steps)
        if trial is not None:
            found += trial.saving * times_due(training.save_every, step, self._steps)
        return found

    def _of_steps(self, step: int) -> float:
        means = dict(self._trial.seconds) if self._trial is not None else {}
        means |= {kind: total / count for kind, (total, count) in self._sums.items()}
        dearest = max(means.values())
        counts = self.phases.counts(step, self._steps)
        return sum(count * means.get(kind, dearest) for kind, count in counts.items())

    def _begin_later(self, step: int) -> list[str]:
        training, queries = self._config.student.training, self._config.teacher.queries
        begins = {"distillation": training.warmup if self._config.distils else 0, "queries": queries.start}
        return [f"{what} begin{'s' * (what != 'queries')} at step {at}" for what, at in begins.items() if at > step]
