"""Training loop: steps a module that maps a batch to named loss terms, with averaging, saving and resuming.

The loop is independent of teachers and students. lightning-fabric handles devices, mixed precision and data
parallelism.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from distill.config import TrainingConfig
from distill.core.atomic import append_line, replacing
from distill.core.errors import DistillError
from distill.core.signals import SIGNALS, Requests
from distill.training.loop.event_files import EventFiles
from distill.training.loop.state import State, random_state, set_random_state
from distill.training.loop.step_times import StepClock


class Objective(Protocol):
    """The trained module: `module(batch, step)` returns weighted, named terms whose sum is the loss.

    The set of terms depends on the step, never on the batch, because ranks average them.
    """

    def __call__(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Compute the terms of one step."""


class Interrupted(KeyboardInterrupt):
    """Raised after a clean stop: the state of the last finished step has been saved."""


class NotFiniteError(DistillError):
    """A loss or gradient that is not finite, on every rank at the same step."""


def make_optimizer(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Build Adam or AdamW over all parameters; norms, biases and scalars are not decayed."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=training.lr)


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Return the learning rate: linear warm-up, then constant or a cosine that reaches zero one step after the last."""
    if step < training.lr_warmup:
        return training.lr * (step + 1) / training.lr_warmup
    if training.schedule == "constant":
        return training.lr
    share = (step - training.lr_warmup) / max(1, training.steps - training.lr_warmup)
    return training.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@dataclass(frozen=True)
class StepReport:
    """Results of one step."""

    step: int  # number of steps done
    terms: dict[str, float]  # weighted loss terms and their sum as `loss`, means over the ranks
    lr: float
    seconds: float
    waited: float  # of these, spent waiting for data
    parts: dict[str, float]  # seconds by part, see `StepClock.parts`


def fit(
    state: State,
    objective: Objective,
    batches: Iterable[Any],
    training: TrainingConfig,
    fabric: Fabric,
    *,
    clock: StepClock,
    state_path: Path,
    on_step: Callable[[StepReport], None],
    on_validate: Callable[[State], None],
) -> None:
    """Train from `state.step` to `training.steps`, or until `patience` validations bring no improvement.

    All ranks take the same steps and stop at the same one. Only the first rank validates and writes; the others wait.

    Args:
        state: module, optimiser, average; updated in place.
        objective: the same module as set up by fabric.
        batches: one per step, starting at step `state.step`; every rank has its own.
        training: schedule and intervals.
        fabric: device, precision and ranks.
        clock: marks the parts of a step; the objective marks its own.
        state_path: file for the state, written every `save_every` steps, at the end, and on Ctrl-C.
        on_step: called after every step.
        on_validate: called every `validation_interval` steps and after the last, on the first rank, with the averaged
            weights in place.

    Raises:
        NotFiniteError: a loss or gradient is not finite on any rank; the last saved state is kept on disk.
        Interrupted: after Ctrl-C or SIGTERM on any rank, with the state saved. A validation is aborted, and repeated on
            resume; with several ranks it is completed first.
    """
    state.module.train()
    with _stop_signals(breaks_off=fabric.world_size == 1) as stopped:
        iterator = iter(batches)
        try:
            if state.validated < state.step:  # the validation that a signal aborted
                _validate(state, on_validate, stopped, fabric, state_path)
                _save(state, state_path, fabric)
            stalled = _stalled(state, training)  # a run that stopped early is not continued on resume
            while state.step < training.steps and not stalled:
                began = time.perf_counter()
                clock.start()
                asked = time.perf_counter()
                batch = next(iterator)
                waited = time.perf_counter() - asked
                lr = learning_rate(state.step, training)
                terms = take_step(state, objective, batch, training, fabric, lr, clock, state_path)
                state.step += 1
                on_step(StepReport(state.step, terms, lr, time.perf_counter() - began, waited, clock.parts()))
                last = state.step == training.steps
                if state.step % training.validation_interval == 0 or last:
                    _validate(state, on_validate, stopped, fabric, state_path)
                state.validated = state.step
                stalled = _on_any_rank(_stalled(state, training), fabric)
                stopping = _on_any_rank(bool(stopped), fabric)
                if state.step % training.save_every == 0 or last or stopping or stalled:
                    _save(state, state_path, fabric)
                if stopping:
                    raise Interrupted(f"stopped after step {state.step}; state saved in {state_path}")
        finally:
            # Ends the loader's workers, even if an exception keeps this frame alive; they ignore signals.
            if isinstance(iterator, Generator):
                iterator.close()
            del iterator


def take_step(
    state: State,
    objective: Objective,
    batch: Any,
    training: TrainingConfig,
    fabric: Fabric,
    lr: float,
    clock: StepClock,
    path: Path,
) -> dict[str, float]:
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    placed = fabric.to_device(batch)
    clock.mark("data")
    terms = objective(placed, state.step)
    loss = torch.stack([term.float() for term in terms.values()]).sum()
    own = torch.stack([term.detach().double() for term in (*terms.values(), loss)])
    means = fabric.all_reduce(own, reduce_op="mean")  # not finite on every rank if it is so on any
    clock.mark("losses")
    state.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    clock.mark("backward")
    norm = _clipped(state.module, training.clip or None)
    # One look at all results, after everything is queued: each makes a GPU wait for the CPU.
    *values, size = torch.cat([means.view(-1), norm.to(means.device, torch.float64).view(1)]).tolist()
    found = dict(zip([*terms, "loss"], values, strict=True))
    if not math.isfinite(found["loss"]):  # do not save: batch-norm statistics may already be corrupted
        raise _not_finite(f"the loss of step {state.step} is {found['loss']}", found, path)
    if not math.isfinite(size):  # the ranks have the same gradient
        raise _not_finite(f"the gradient of step {state.step} is not finite", found, path)
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.module, state.step)
    clock.mark("optimiser")
    return found


def _clipped(module: nn.Module, limit: float | None) -> Tensor:
    """Limit the norm of the gradient of each part, and return the sum of the norms, a scalar.

    Separately for each part: large losses of the teacher must not shrink the student's steps. A part that did not run
    has no gradient.
    """
    norms = []
    for part in module.children():
        moved = [one for one in part.parameters() if one.grad is not None]
        if not moved:
            continue
        norms.append(torch.nn.utils.get_total_norm([one.grad for one in moved if one.grad is not None]))
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(moved, limit, norms[-1])
    return torch.stack(norms).sum() if norms else torch.zeros((), device=next(module.parameters()).device)


def _stalled(state: State, training: TrainingConfig) -> bool:
    """Return whether `patience` validations have passed since the last improvement."""
    found = [step for name, step in state.best.items() if name.endswith("_step")]
    return bool(training.patience and found) and (
        state.step - max(found) >= training.patience * training.validation_interval
    )


def _on_any_rank(flag: bool, fabric: Fabric) -> bool:
    if fabric.world_size == 1:
        return flag
    found = fabric.all_reduce(torch.full((), float(flag), device=fabric.device), reduce_op="sum")
    return bool(found > 0)


def _not_finite(what: str, values: Mapping[str, float], path: Path) -> NotFiniteError:
    listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "loss")
    kept = f"the last saved state is kept in {path}" if path.exists() else "no state had been saved"
    return NotFiniteError(
        f"training: {what} ({listed}); expected a finite number; {kept}. Try a lower student.training.lr, "
        "student.training.clip=1 or student.training.precision=32-true"
    )


def _validate(
    state: State, on_validate: Callable[[State], None], stopped: _Stopped, fabric: Fabric, path: Path
) -> None:
    """Validate on the first rank; a signal aborts the validation and saves the state from before it.

    Raises:
        Interrupted: after a signal.
    """
    if not fabric.is_global_zero:
        return
    before, best = random_state(), dict(state.best)
    where = "after" if stopped else "in the validation after"
    try:
        with stopped.at_once(), _judged_module(state):
            on_validate(state)
    except KeyboardInterrupt:
        set_random_state(before)
        state.best = best
        _save(state, path, fabric)
        raise Interrupted(f"stopped {where} step {state.step}; state saved in {path}") from None
    state.validated = state.step


@contextmanager
def _judged_module(state: State) -> Iterator[None]:
    """Put the module into evaluation mode, with the averaged weights if there are any."""
    state.module.eval()
    try:
        with nullcontext() if state.average is None else state.average.applied(state.module):
            yield
    finally:
        state.module.train()


def _save(state: State, path: Path, fabric: Fabric) -> None:
    random = [random_state()]
    if fabric.world_size > 1:
        own = random[0].to(fabric.device)
        every = [torch.empty_like(own) for _ in range(fabric.world_size)]
        torch.distributed.all_gather(every, own)
        random = [one.cpu() for one in every]
    if fabric.is_global_zero:
        state.save(path, random)


class _Stopped:
    """Signals received."""

    def __init__(self, *, breaks_off: bool) -> None:
        self._breaks_off, self._at_once, self._count, self._requests = breaks_off, False, 0, Requests()

    def __bool__(self) -> bool:
        return self._count > 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first is kept until the step has ended, a second one aborts."""
        self._count = self._requests.note()
        if self._breaks_off and (self._at_once or self._count > 1):
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal abort the block as well."""
        self._at_once = True
        try:
            if self and self._breaks_off:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False


@contextmanager
def _stop_signals(*, breaks_off: bool) -> Iterator[_Stopped]:
    """Collect SIGINT and SIGTERM instead of aborting in the middle of a step; a second signal aborts.

    Under torchrun, a second signal is usual (from the terminal and from torchrun) and `breaks_off` is False; torchrun
    kills processes that do not stop in time.
    """
    received = _Stopped(breaks_off=breaks_off)
    before = {number: signal.signal(number, received.note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class MetricsLog:
    """metrics.jsonl: one JSON object per line, appended and flushed to disk; truncated to a step when a run is
    resumed.
    """

    def __init__(self, path: Path, keep_to_step: int, validated: int | None = None, events: Path | None = None) -> None:
        """Open the log.

        Args:
            path: file.
            keep_to_step: rows of later steps are removed.
            validated: rows of validations after this step are removed as well; by default `keep_to_step`.
            events: folder for event files of TensorBoard with the same scalars; None: none are written.
        """
        self.path = path
        judged = keep_to_step if validated is None else validated
        kept = []
        if path.exists():
            kept = [
                row for row in _rows(path) if row["step"] <= (judged if "validation_seconds" in row else keep_to_step)
            ]
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._events = None if events is None else EventFiles(events, kept)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._events is not None:
            self._events.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it must carry `step`."""
        append_line(self.path, json.dumps(dict(row)))
        if self._events is not None:
            self._events.write(row)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over complete rows of a log; a line truncated by a crash is skipped."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
