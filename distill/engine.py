"""The optimiser's loop: one module that turns a batch into named loss terms, stepped, averaged, saved, resumed.

Nothing here knows about teachers or students. Devices, mixed precision and data-parallel runs are lightning-fabric's.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from distill.config import TrainingConfig
from distill.errors import CheckpointError, DistillError


class Objective(Protocol):
    """What the loop trains: `module(batch, step)` gives weighted, named terms whose sum is the loss."""

    def __call__(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Terms of one step."""


class Interrupted(KeyboardInterrupt):
    """Raised after a clean stop: the state of the last finished step has been saved."""


@dataclass
class State:
    """Everything that a resumed run needs, beside the configuration."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to a temporary name, then rename."""
        temporary = path.with_name(path.name + ".writing")
        torch.save(
            {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.values if self.average else None,
                "step": self.step,
                "best": self.best,
                "rng": torch.get_rng_state(),
            },
            temporary,
        )
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Take everything back from a saved state.

        Raises:
            CheckpointError: the file is unreadable or of another network.
        """
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(found["module"])
            self.optimizer.load_state_dict(found["optimizer"])
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path}: cannot be resumed: {reason}") from None
        if self.average is not None and found["average"] is not None:
            for name, value in found["average"].items():
                self.average.values[name].copy_(value)
        self.step, self.best = int(found["step"]), found["best"]
        torch.set_rng_state(found["rng"])


class Average:
    """Exponential moving average of a module's parameters and batch-norm statistics; counters are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module; the first steps move faster so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            kept = self.values[name]
            if value.dtype.is_floating_point:
                kept.lerp_(value.detach().to(kept.dtype), 1 - decay)
            else:
                kept.copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module carries the averaged weights inside the block."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.values)
        try:
            yield
        finally:
            module.load_state_dict(own)


def make_optimizer(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over all parameters; norms, biases and scalars are not decayed."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=training.lr)


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Linear warm-up, then constant or a cosine that would reach zero one step after the last."""
    if step < training.lr_warmup:
        return training.lr * (step + 1) / training.lr_warmup
    if training.schedule == "constant":
        return training.lr
    share = (step - training.lr_warmup) / max(1, training.steps - training.lr_warmup)
    return training.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@dataclass(frozen=True)
class StepReport:
    """What one step gave."""

    step: int  # steps done
    terms: dict[str, float]  # weighted loss terms, and their sum as `loss`
    lr: float
    seconds: float
    waited: float  # of these, for data


def fit(
    state: State,
    objective: Objective,
    batches: Iterable[Any],
    training: TrainingConfig,
    fabric: Fabric,
    *,
    state_path: Path,
    on_step: Callable[[StepReport], None],
    on_validate: Callable[[State], None],
) -> None:
    """Train from `state.step` to `training.steps`.

    Args:
        state: module, optimiser, average; advanced in place.
        objective: the same module as set up by fabric.
        batches: one a step, beginning with step `state.step`.
        training: schedule and intervals.
        fabric: device and precision.
        state_path: where the state goes every `save_every` steps, at the end, and on Ctrl-C.
        on_step: called after every step.
        on_validate: called every `validate_every` steps and after the last, with the averaged weights in place.

    Raises:
        DistillError: a loss that is not finite; the state of the last good step is kept on disk.
        Interrupted: after Ctrl-C or SIGTERM, state saved.
    """
    state.module.train()
    with _stop_signals() as stopped:
        iterator = iter(batches)
        while state.step < training.steps:
            began = time.perf_counter()
            batch = next(iterator)
            waited = time.perf_counter() - began
            lr = learning_rate(state.step, training)
            terms = _step(state, objective, batch, training, fabric, lr, state_path)
            state.step += 1
            on_step(StepReport(state.step, terms, lr, time.perf_counter() - began, waited))
            last = state.step == training.steps
            if state.step % training.validate_every == 0 or last:
                _validate(state, on_validate)
            if state.step % training.save_every == 0 or last or stopped:
                _save(state, state_path, fabric)
            if stopped:
                raise Interrupted(f"stopped after step {state.step}; state saved in {state_path}")


def _step(
    state: State, objective: Objective, batch: Any, training: TrainingConfig, fabric: Fabric, lr: float, path: Path
) -> dict[str, float]:
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    terms = objective(fabric.to_device(batch), state.step)
    loss = torch.stack([term.float() for term in terms.values()]).sum()
    value = float(loss.detach())
    if not math.isfinite(value):  # nothing is saved now: batch-norm statistics may already be spoilt
        raise _not_finite(f"the loss of step {state.step} is {value}", terms, path)
    state.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    # Part by part: the teacher's large losses must not shrink the student's steps.
    limit = training.clip or math.inf
    norms = [torch.nn.utils.clip_grad_norm_(part.parameters(), limit) for part in state.module.children()]
    if norms and not math.isfinite(float(torch.stack(norms).sum())):
        raise _not_finite(f"the gradient of step {state.step} is not finite", terms, path)
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.module, state.step)
    return {**{name: float(term.detach()) for name, term in terms.items()}, "loss": value}


def _not_finite(what: str, terms: Mapping[str, Tensor], path: Path) -> DistillError:
    listed = ", ".join(f"{name} {float(term.detach()):.4g}" for name, term in terms.items())
    kept = f"the last saved state is kept in {path}" if path.exists() else "no state had been saved yet"
    return DistillError(
        f"training: {what} ({listed}); expected a finite number; {kept}. Try a lower student.training.lr, "
        "student.training.clip=1 or student.training.precision=32-true"
    )


def _validate(state: State, on_validate: Callable[[State], None]) -> None:
    state.module.eval()
    try:
        if state.average is None:
            on_validate(state)
        else:
            with state.average.applied(state.module):
                on_validate(state)
    finally:
        state.module.train()


def _save(state: State, path: Path, fabric: Fabric) -> None:
    if fabric.is_global_zero:
        state.save(path)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of breaking off in the middle of a step; a second one breaks off."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class MetricsLog:
    """metrics.jsonl: one JSON object a line, appended and flushed; cut back to a step when a run is resumed."""

    def __init__(self, path: Path, keep_to_step: int) -> None:
        self.path = path
        if path.exists():
            kept = [row for row in _rows(path) if row["step"] <= keep_to_step]
            temporary = path.with_name(path.name + ".writing")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(temporary, path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it must carry `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Whole rows of a log; a line that was cut off by a crash is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
