"""State of a training loop: weights, optimiser moments, averages and random state, with saving and loading."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.atomic import replacing
from distill.core.errors import CheckpointError


@dataclass
class State:
    """Everything that a resumed run needs in addition to the configuration.

    Attributes:
        module: the trained module.
        optimizer: its optimiser.
        average: averaged weights, if there are any.
        step: number of steps done.
        validated: equal to `step`, or lower if the validation after the last step was interrupted.
        best: scores and steps of the best weights.
        pending: values since the last row of the log, by name, oldest first.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    validated: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, list[float]] = field(default_factory=dict)

    def save(self, path: Path, random: Sequence[Tensor] | None = None) -> None:
        """Write the state atomically.

        Args:
            path: file.
            random: `random_state` of every rank in order; None for this process alone.
        """
        values = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values if self.average else None,
            "step": self.step,
            "validated": self.validated,
            "best": self.best,
            "pending": self.pending,
            "rng": [random_state()] if random is None else list(random),
        }
        with replacing(path) as temporary:
            torch.save(values, temporary)

    def load(self, path: Path, *, rank: int = 0, ranks: int = 1) -> None:
        """Restore a saved state.

        Args:
            path: file.
            rank: number of this process.
            ranks: number of training processes.

        Raises:
            CheckpointError: the file is unreadable, or belongs to another network or another number of processes.
        """
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            random = found["rng"] if isinstance(found["rng"], list) else [found["rng"]]  # a tensor before version 0.2
            if len(random) != ranks:
                raise CheckpointError(
                    f"{path}: cannot be resumed: saved by {len(random)} processes, found {ranks}; expected as many "
                    f"(torchrun with {len(random)} in all), for the batches depend on it"
                )
            self.module.load_state_dict(found["module"])
            self.optimizer.load_state_dict(found["optimizer"])
            if self.average is not None:
                for name, value in self.average.values.items():
                    value.copy_(found["average"][name])
            self.step, self.best = int(found["step"]), found["best"]
            self.validated = int(found.get("validated", self.step))
            self.pending = found.get("pending", {})
            set_random_state(random[rank])
        except CheckpointError:
            raise
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path}: cannot be resumed: {reason}") from None


class Average:
    """Exponential moving average of a module's parameters and batch-norm statistics; counters are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Update the average with the module's values; the first updates have a larger weight, so that the start is
        forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        kept: list[Tensor] = []
        now: list[Tensor] = []
        for name, value in module.state_dict().items():
            if name in fixed:
                continue
            if value.dtype.is_floating_point:
                kept.append(self.values[name])
                now.append(value.detach())
            else:
                self.values[name].copy_(value)
        if kept:
            torch._foreach_lerp_(kept, now, 1 - decay)  # one kernel for all of them on a GPU

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Replace the module's weights by the averaged weights inside the block."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.values)
        try:
            yield
        finally:
            module.load_state_dict(own)


@contextmanager
def restored(state: State) -> Iterator[None]:
    """Restore weights, optimiser, averages, step and random states after the block to their values before it."""
    module = {name: value.detach().clone() for name, value in state.module.state_dict().items()}
    average = {name: value.clone() for name, value in state.average.values.items()} if state.average else {}
    optimizer, step, random = copy.deepcopy(state.optimizer.state_dict()), state.step, random_state()
    try:
        yield
    finally:
        state.module.load_state_dict(module)
        for name, value in average.items():
            assert state.average is not None
            state.average.values[name].copy_(value)
        state.optimizer.load_state_dict(optimizer)
        state.optimizer.zero_grad(set_to_none=True)
        state.step = step
        set_random_state(random)


def random_state() -> Tensor:
    """Return the state of torch's random generators on the CPU and, if there is one, on this process's GPU, as bytes
    (uint8).
    """
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state()]) if torch.cuda.is_available() else state


def set_random_state(state: Tensor) -> None:
    """Restore the output of `random_state`; the GPU part is ignored if there is no GPU, and vice versa."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].clone())
    if len(state) > own and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[own:].clone())
