"""`train`: a teacher, a student and the query decoder that they share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.python.running import Progress, Where

if TYPE_CHECKING:
    from distill.config.pair import Pair
    from distill.training.loop.step_times import StepTimes
    from distill.training.train import Progress as TrainingProgress


@dataclass(frozen=True)
class TrainedRun:
    """A finished training.

    Attributes:
        folder: run folder, which `load` opens.
        config: that was trained.
        steps: number of steps.
        validated: VOI sum of the last validation, by network.
        times: of the steps of this process; None on all ranks of torchrun but the first.
    """

    folder: Path
    config: Pair
    steps: int
    validated: dict[str, float]
    times: StepTimes | None


def train(
    teacher: Where,
    student: Where,
    out: Where,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    progress: Progress | TrainingProgress | None = None,
) -> TrainedRun:
    """Train a 3D teacher, a 2D student and the query decoder that they share.

    Args:
        teacher: teacher.yaml.
        student: student.yaml.
        out: run folder.
        overrides: `KEY=VALUE` texts, such as `student.training.steps=2000`.
        resume: continue the run in `out`, if there is one.
        device: `auto`, `cpu` or `cuda`.
        progress: called with the steps done and their number; the functions of
            `distill.training.train.Progress` also receive losses, scores and lines for the user.

    Raises:
        DistillError: bad input, or another process trains into the folder.
    """
    from distill.config import load_pair
    from distill.models.load import pick_device
    from distill.training.train import Progress as TrainingProgress
    from distill.training.train import train as run

    pair = load_pair(Path(teacher), Path(student), list(overrides))
    pick_device(device)
    seen = _Seen(progress if isinstance(progress, TrainingProgress) else _silent(progress))
    watched = TrainingProgress(seen.start, seen.step, seen.validation, seen.to.note, seen.to.on_finished)
    times = run(pair, Path(out), resume=resume, device=device, progress=watched, command=list(sys.argv))
    return TrainedRun(Path(out), pair, seen.steps, seen.scores, times)


class _Seen:
    """Keeps the last step and scores while it hands them on."""

    def __init__(self, to: TrainingProgress) -> None:
        self.to, self.steps = to, 0
        self.scores: dict[str, float] = {}

    def start(self, done: int, total: int) -> None:
        self.steps = done
        self.to.on_start(done, total)

    def step(self, report: Any, total: int, left: float | None) -> None:
        self.steps = report.step
        self.to.on_step(report, total, left)

    def validation(self, step: int, judged: Any, seconds: float) -> None:
        self.scores.update({name: float(found.scores.voi_sum) for name, found in judged.items()})
        self.to.on_validation(step, judged, seconds)


def _silent(progress: Progress | None) -> TrainingProgress:
    from distill.training.train import Progress as TrainingProgress
    from viz.report.report import report_after_training

    def on_steps(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)

    return TrainingProgress(
        on_steps,
        lambda report, total, left: on_steps(report.step, total),
        lambda step, judged, seconds: None,
        lambda line: None,
        report_after_training,
    )
