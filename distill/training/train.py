"""Train teacher, student and shared decoder together, into a run folder (`distill train`)."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from distill.config import Pair
from distill.core.claim import claim
from distill.core.errors import DistillError
from distill.core.hardware import Chosen, avoid_amx, choose
from distill.core.version import VERSION
from distill.data.crops import Items
from distill.data.loading import batches
from distill.inference.options import Runtime
from distill.io.writers.output import check_folder
from distill.models.checkpoint import save_weights
from distill.models.load import find_weights, pick_device, student_metadata, teacher_metadata
from distill.training.data import LabelledPart, TrainingParts, check_normalisation, open_parts, training_crops
from distill.training.launch import compile_networks, launch, lay_out, leave
from distill.training.loop.event_files import FOLDER as EVENTS
from distill.training.loop.event_files import check_tensorboard
from distill.training.loop.loop import MetricsLog, Objective, StepReport, fit, make_optimizer
from distill.training.loop.state import Average, State, restored
from distill.training.loop.step_memory import StepMemory
from distill.training.loop.step_times import StepClock, StepTimes
from distill.training.objective.objective import Joint
from distill.training.ranks import from_environment
from distill.training.run_folder import (
    RunRecord,
    prepare_folder,
    put_best,
    restore_best,
    with_precision,
    written_configuration,
)
from distill.training.schedule.forecast import Forecast
from distill.training.schedule.planned_steps import FILE as STEPS
from distill.training.schedule.planned_steps import Trial, planned, read_steps, write_steps
from distill.training.schedule.trial import Seconds, time_steps
from distill.training.validation import Judged, validate

logger = logging.getLogger(__name__)

_FEW_SECTIONS = 3  # of the validation that is timed before the first step
_PART = "parts."  # before the names of a step's parts among the values of the log


@dataclass(frozen=True)
class FinishedTraining:
    """A training that has ended.

    Attributes:
        folder: run folder.
        judged: the last validation by network; may be empty.
        part: to validate on; of several the first.
        runtime: where to run the networks.
    """

    folder: Path
    judged: dict[str, Judged]
    part: LabelledPart
    runtime: Runtime


@dataclass(frozen=True)
class Progress:
    """Functions called during a training."""

    on_start: Callable[[int, int], None]  # steps done before, steps in all
    on_step: Callable[[StepReport, int, float | None], None]  # report, steps in all, seconds left
    on_validation: Callable[[int, dict[str, Judged], float], None]  # step, scores, seconds
    note: Callable[[str], None]  # lines that the user should see
    on_finished: Callable[[FinishedTraining], None] = lambda run: None  # weights and record are on disk by then


def train(
    config: Pair,
    out: Path,
    *,
    resume: bool,
    device: str,
    progress: Progress,
    command: list[str],
    now: Seconds = time.perf_counter,
) -> StepTimes | None:
    """Train the networks of a configuration and write the run folder.

    Args:
        config: teacher and student.
        out: run folder; must not hold a run unless `resume`.
        resume: continue from the folder's saved state, if there is one.
        device: `auto`, `cpu` or `cuda`.
        progress: see `Progress`.
        command: command line, for run.json.
        now: a clock in seconds, for the number of steps that `training.minutes` allows.

    Returns:
        Time of the steps; None on all ranks of torchrun but the first, which write and print nothing.

    Raises:
        DistillError: bad input, or another process trains into the folder; nothing has been written then.
    """
    check_folder(out)
    with claim(out) if from_environment().first else nullcontext():
        return _train(config, out, resume=resume, device=device, progress=progress, command=command, now=now)


def _train(
    config: Pair, out: Path, *, resume: bool, device: str, progress: Progress, command: list[str], now: Seconds
) -> StepTimes | None:
    """See `train`; the first rank has claimed the folder."""
    began, ranks = now(), from_environment()
    if config.student.training.tensorboard:
        check_tensorboard()
    chosen = _precision(config, out if resume else None, device)
    config = with_precision(config, chosen.precision)
    parts = open_parts(config)
    training = config.student.training
    crops = training_crops(config, parts, ranks.size, logger.warning if ranks.first else lambda text: None)
    check_normalisation(config, logger.warning if ranks.first else lambda text: None)
    fabric = launch(device, training.precision, ranks)
    if (first := fabric.broadcast(training.precision)) != training.precision:
        raise DistillError(
            f"student.training.precision: found auto, which is {first} on the first rank and {training.precision} on "
            f"rank {ranks.rank}, expected one of them by name"
        )
    torch.manual_seed(training.seed)
    joint = Joint(config, parts.resolution)
    if training.compile:
        compile_networks(joint, fabric.device)
    if joint.student is not None:
        lay_out(joint.student)
    if joint.teacher is not None and fabric.device.type == "cpu":  # on a GPU it has not been measured
        lay_out(joint.teacher)
    joint.to(fabric.device)
    optimizer = make_optimizer(joint, training)
    module, wrapped = fabric.setup(joint, optimizer)
    if not ranks.first:  # weights are the same on every rank, what is drawn later is not
        torch.manual_seed(training.seed + 1_000_003 * ranks.rank)
    state_path = out / "checkpoints" / "state.pt"
    if ranks.first:
        prepare_folder(out, config, resume)
    fabric.barrier()
    state = State(joint, wrapped, Average(joint, training.ema) if training.ema else None)
    if resume and state_path.exists():
        state.load(state_path, rank=ranks.rank, ranks=ranks.size)
        if ranks.first:
            restore_best(out, state.best)
    if ranks.first:  # nothing is said before the input is known to be good
        for line in chosen.lines:
            progress.note(line)
        for what in joint.not_started:
            logger.warning("%s of the shapes that teacher.decoder asks for; that part starts from random weights", what)
    joint.clock, memory = StepClock(fabric.device), StepMemory(training, fabric.device)
    runtime = Runtime(fabric.device, training.precision)
    trial = None
    if training.minutes is not None:
        timed = _Timed(config, parts, out, state, module, crops, fabric, runtime, now, began)
        config, trial = timed.steps(begun=resume and state_path.exists(), resume=resume)
        joint.config, training = config, config.student.training
        crops = crops.of_run(training, config.unlabelled_at)
    elif ranks.first:
        (out / STEPS).unlink(missing_ok=True)  # of an earlier start by time
    follow = partial(
        fit,
        state,
        module,
        batches(crops, state.step, fabric.device, rank=ranks.rank, ranks=ranks.size),
        training,
        fabric,
        clock=joint.clock,
        state_path=state_path,
    )
    if not ranks.first:
        follow(on_step=lambda report: None, on_validate=lambda state: None)
        leave()
        return None
    events = out / EVENTS if training.tensorboard else None
    log = MetricsLog(out / "metrics.jsonl", state.step, state.validated, events)
    book = _Bookkeeping(config, parts, out, log, runtime, progress, state, trial, memory)
    with log, RunRecord(out / "run.json", command, config, state.step, ranks.size, book.times, chosen):
        follow(on_step=book.step, on_validate=lambda s: book.validation(s, joint, compiled=training.compile))
        leave()
    progress.on_finished(FinishedTraining(out, book.last, parts.validation[0], runtime))
    return book.times


def _precision(config: Pair, begun: Path | None, device: str) -> Chosen:
    """Choose the precision of a training: `auto` is that of the resumed run, otherwise the device's fastest."""
    found = None if begun is None else written_configuration(begun)
    earlier = None if found is None else found.student.training.precision
    where = pick_device(device)
    if where.type == "cpu":
        avoid_amx()  # before the first line of the run is made
    return choose(config.student.training.precision, where, begun=earlier)


@dataclass(frozen=True)
class _Timed:
    """Determine the number of steps of a run of given duration."""

    config: Pair  # as it was written
    parts: TrainingParts
    out: Path
    state: State
    module: Objective
    crops: Items
    fabric: Fabric
    runtime: Runtime
    now: Seconds
    began: float

    def steps(self, *, resume: bool, begun: bool) -> tuple[Pair, Trial]:
        """Return the configuration with its number of steps, either recorded earlier or determined now and recorded.

        All ranks take part and get the same.
        """
        kept = self._shared(lambda: read_steps(self.out, self.config, begun=begun) if resume else None)
        if kept is not None:
            return kept
        trial = time_steps(
            self.config,
            self.state,
            self.module,
            self.crops,
            self.fabric,
            budget=self._left(),
            state_path=self.out / "checkpoints" / "state.pt",
            now=self.now,
        )
        found = self._shared(lambda: self._fixed(trial))
        assert found is not None
        return found

    def _fixed(self, trial: Trial) -> tuple[Pair, Trial]:
        trial = replace(trial, validation=self._validation(), saving=self._saving())
        fixed = planned(self.config, trial, self._left())
        write_steps(self.out, self.config, fixed, trial)
        return fixed, trial

    def _left(self) -> float:
        """Return the remaining seconds of the run."""
        assert self.config.student.training.minutes is not None
        return 60 * self.config.student.training.minutes - (self.now() - self.began)

    def _shared(self, find: Callable[[], tuple[Pair, Trial] | None]) -> tuple[Pair, Trial] | None:
        """Broadcast the result or the error of the first rank."""
        found: tuple[Pair, Trial] | DistillError | None = None
        if self.fabric.is_global_zero:
            try:
                found = find()
            except DistillError as error:
                found = error
        found = self.fabric.broadcast(found)
        if isinstance(found, DistillError):
            raise found
        return found

    def _validation(self) -> float:
        """Estimate the seconds of a whole validation from that of a few sections."""
        part, joint = self.parts.validation[0], self.state.module
        few = (slice(_FEW_SECTIONS), *(slice(side) for side in self.config.teacher.decoder.block[1:]))
        tried = replace(part, raw=part.raw[few], labels=part.labels[few])
        if not tried.counted.any():  # partial labels
            tried = part
        assert isinstance(joint, Joint)
        with restored(self.state):
            joint.eval()
            began = self.now()
            validate(joint, self.config, [tried], self.runtime)
            seconds = self.now() - began
            joint.train()
        return seconds * sum(one.raw.size for one in self.parts.validation) / tried.raw.size

    def _saving(self) -> float:
        began = self.now()
        with tempfile.TemporaryDirectory(dir=self.out, prefix=".timed.") as folder:
            self.state.save(Path(folder) / "state.pt")
        return self.now() - began


class _Bookkeeping:
    """Log steps, validate, and keep the best weights."""

    def __init__(
        self,
        config: Pair,
        parts: TrainingParts,
        out: Path,
        log: MetricsLog,
        runtime: Runtime,
        progress: Progress,
        state: State,
        trial: Trial | None,
        memory: StepMemory,
    ) -> None:
        self.config, self.parts, self.out, self.log = config, parts, out, log
        self.runtime, self.progress, self.state, self.memory = runtime, progress, state, memory
        self.times = StepTimes()
        self.last: dict[str, Judged] = {}
        self.forecast = Forecast(config, state.step, trial)
        progress.on_start(state.step, config.student.training.steps)
        self._say(self.forecast.opening())

    def _say(self, text: str) -> None:
        if text:
            self.progress.note(text)

    def step(self, report: StepReport) -> None:
        """Collect terms in the state, so that a resumed run loses none, and log means every `log_every` steps."""
        training, pending = self.config.student.training, self.state.pending
        values = {**report.terms, "seconds": report.seconds, "waited": report.waited}
        for name, value in {**values, **{_PART + part: value for part, value in report.parts.items()}}.items():
            pending.setdefault(name, []).append(value)
        if report.step % training.log_every == 0 or report.step == training.steps:
            means = {name: float(np.mean(values)) for name, values in pending.items()}
            row = {name: value for name, value in means.items() if not name.startswith(_PART)}
            parts = {name.removeprefix(_PART): value for name, value in means.items() if name.startswith(_PART)}
            self.log.write({"step": report.step, "lr": report.lr, **row, "parts": parts})
            pending.clear()
        self.times.add(report.seconds, report.parts)
        self._say(self.memory.after(report.step, self.forecast.phases.kind(report.step - 1)))
        self._say(self.forecast.add(report.step, report.seconds))
        self.progress.on_step(report, training.steps, self.forecast.left(report.step))

    def validation(self, state: State, joint: Joint, *, compiled: bool) -> None:
        """Validate the trained networks, save their weights, and keep the best of each."""
        began = time.perf_counter()
        # Blocks of other shapes than in training are not worth compiling for.
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            judged = validate(joint, self.config, self.parts.validation, self.runtime)
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {"step": state.step, "validation_seconds": seconds}
        for name, found in judged.items():
            row[f"validation_{name}"] = {**found.to_dict(), "sweep": found.sweep_rows()}
        self.log.write(row)
        for kind, found in judged.items():
            self._keep(kind, found, state, joint)
        teacher = self.config.teacher
        if self.config.teacher_runs and "teacher" not in judged and teacher.weights is not None:
            put_best(self.out, "teacher", find_weights(teacher.weights, "teacher"))  # so that the run folder is whole
        self.last = judged
        self.memory.skip()
        self.forecast.validated(seconds)
        self.progress.on_validation(state.step, judged, seconds)

    def _keep(self, kind: str, found: Judged, state: State, joint: Joint) -> None:
        config, resolution = self.config, self.parts.resolution
        notes = {
            "step": state.step,
            "validation": found.to_dict(),
            "merge_threshold": found.threshold,
            "flood_threshold": None if found.flood is None else found.flood.threshold,
            "resolution": list(resolution),
            "data": config.student.data.model_dump(mode="json"),
            "version": VERSION,
        }
        path = self.out / "checkpoints" / f"{kind}-{state.step:07d}.safetensors"
        if kind == "student":
            assert joint.student is not None
            assert joint.slab is not None
            modules: dict[str, torch.nn.Module] = {
                "student": joint.student,
                "slab": joint.slab,
                "decoder": joint.decoder,
            }
            save_weights(
                path,
                "student",
                modules,
                student_metadata(config.student, config.teacher.fused, found.decoding, resolution),
                notes,
            )
        else:
            assert joint.teacher is not None
            modules = {"teacher": joint.teacher, "decoder": joint.decoder}
            metadata = teacher_metadata(config.teacher, found.decoding, resolution, config.student.data.normalisation)
            save_weights(path, "teacher", modules, metadata, notes)
        voi = found.scores.voi_sum
        if voi < state.best.get(f"{kind}_voi", float("inf")):
            state.best.update({f"{kind}_voi": voi, f"{kind}_step": state.step})
            put_best(self.out, kind, path)
