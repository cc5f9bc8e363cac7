"""Number of steps of a training by time: determined once, stored in the run folder, never changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distill.config import Pair, dump
from distill.core.atomic import replacing
from distill.core.errors import CheckpointError, ConfigError
from distill.training.schedule.phases import Lengths, Phases, StepKind, most_steps, with_lengths, with_steps

FILE = "steps.json"
STEPS_KEY = ("student.yaml", "training", "steps")  # among `planned_settings`


@dataclass(frozen=True)
class Trial:
    """Timings of a trial.

    Attributes:
        seconds: of a step, by kind; the median of several.
        steps: total number of steps timed.
        validation: seconds of a whole validation.
        saving: seconds of writing the state.
    """

    seconds: Mapping[StepKind, float]
    steps: int
    validation: float = 0.0
    saving: float = 0.0

    def of_steps(self, config: Pair, first: int = 0) -> float:
        """Return the seconds of a configuration's steps from `first`, without validations."""
        dearest = max(self.seconds.values())
        counts = Phases(config).counts(first, config.student.training.steps)
        return sum(count * self.seconds.get(kind, dearest) for kind, count in counts.items())

    def of_run(self, config: Pair, first: int = 0) -> float:
        """Return the total seconds of a configuration's training from step `first`."""
        training = config.student.training
        validations = times_due(training.validation_interval, first, training.steps)
        saves = times_due(training.save_every, first, training.steps)
        return self.of_steps(config, first) + validations * self.validation + saves * self.saving


def times_due(every: int, first: int, last: int) -> int:
    """Count how often something is due every `every` steps and after the last one.

    Args:
        every: steps between occurrences.
        first: number of steps done.
        last: steps of the run.
    """
    return last // every - first // every + int(last % every != 0) if last > first else 0


def planned(config: Pair, trial: Trial, seconds: float) -> Pair:
    """Return the configuration with the number of steps that fit into a time according to a trial.

    Args:
        config: with `student.training.minutes`.
        trial: the timings.
        seconds: remaining time for steps, validations and saving.

    Raises:
        ConfigError: not a single step fits.
    """
    steps = most_steps(seconds, lambda count: trial.of_run(with_steps(config, count)))
    if not steps:
        one = trial.of_run(with_steps(config, 1))
        raise ConfigError(
            f"student.training.minutes: found {config.student.training.minutes:g}, of which {max(0.0, seconds):.0f} s "
            f"are left after {trial.steps} trial steps; one step and its validation take {one:.0f} s; expected more "
            "minutes, or student.training.steps without them"
        )
    return with_steps(config, steps)


def write_steps(out: Path, given: Pair, fixed: Pair, trial: Trial) -> None:
    """Write the number of steps and the timings to the run folder.

    Args:
        out: run folder.
        given: the original configuration.
        fixed: with its number of steps.
        trial: the timings.
    """
    values = {
        **asdict(Lengths.of(fixed)),
        "minutes": given.student.training.minutes,
        "trial_steps": trial.steps,
        "seconds_a_step": [{**asdict(kind), "seconds": seconds} for kind, seconds in trial.seconds.items()],
        "validation_seconds": trial.validation,
        "saving_seconds": trial.saving,
        "configuration": _digest(given),
    }
    with replacing(out / FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_steps(out: Path, given: Pair, *, begun: bool) -> tuple[Pair, Trial] | None:
    """Read the configuration with the stored number of steps, and the timings.

    Args:
        out: run folder.
        given: the original configuration.
        begun: whether a state of the run has been saved.

    Returns:
        None if the run has not begun and no number is stored, or one of another configuration.

    Raises:
        CheckpointError: the run has begun, and its number of steps cannot be read.
    """
    path = out / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not begun and values["configuration"] != _digest(given):
            return None
        kinds = {_kind(one): float(one["seconds"]) for one in values["seconds_a_step"]}
        times = float(values["validation_seconds"]), float(values["saving_seconds"])
        return with_lengths(given, _lengths(values)), Trial(kinds, int(values["trial_steps"]), *times)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not begun:
            return None
        raise CheckpointError(
            f"{path}: cannot be read: {str(error) or type(error).__name__}; expected the number of steps of this run, "
            "as distill train wrote it before the first one"
        ) from None


def planned_settings(out: Path) -> dict[tuple[str, ...], int]:
    """Return settings in which a run differs from its configuration files, by file and keys; empty without minutes."""
    try:
        lengths = _lengths(json.loads((out / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    training = {"steps": lengths.steps, "warmup": lengths.warmup, "lr_warmup": lengths.lr_warmup}
    settings: dict[tuple[str, ...], int] = {("student.yaml", "training", key): n for key, n in training.items()}
    return {**settings, ("teacher.yaml", "queries", "start"): lengths.queries_start}


def _lengths(values: Mapping[str, Any]) -> Lengths:
    return Lengths(*(int(values[field.name]) for field in fields(Lengths)))


def _kind(values: Mapping[str, Any]) -> StepKind:
    return StepKind(*(bool(values[field.name]) for field in fields(StepKind)))


def _digest(config: Pair) -> str:
    return hashlib.sha256((dump(config.teacher) + dump(config.student)).encode()).hexdigest()
