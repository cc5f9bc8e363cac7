"""Time the parts of a training before its first step, and restore the initial state.

Trial steps of every kind of the run, one validation of a few sections and one save are timed with the run's own
networks, crops and data workers. Weights, optimiser, averages and random states are restored afterwards, so a training
whose number of steps was determined in this way is identical to one configured with this number.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning_fabric import Fabric

from distill.config import Pair
from distill.data.crops import Items
from distill.data.loading import batches
from distill.training.loop.loop import Objective, take_step
from distill.training.loop.state import State, restored
from distill.training.loop.step_times import StepClock
from distill.training.schedule.phases import Phases, StepKind
from distill.training.schedule.planned_steps import Trial

_FEWEST, _MOST = 2, 4  # timed rounds over all kinds, after one that is discarded
_SHARE = 0.05  # maximum fraction of the run's time for further rounds

Seconds = Callable[[], float]  # a clock


def time_steps(
    config: Pair,
    state: State,
    objective: Objective,
    crops: Items,
    fabric: Fabric,
    *,
    budget: float,
    state_path: Path,
    now: Seconds,
) -> Trial:
    """Time steps of every kind; all ranks take part.

    Args:
        config: of the run.
        state: initial state of the run; restored afterwards.
        objective: the module as set up by fabric.
        crops: of the run.
        fabric: device, precision and ranks.
        budget: seconds of the whole run, of which the trial takes a small share where steps are short; each rank's own.
        state_path: file of the run's state.
        now: a clock in seconds.
    """
    examples = Phases(config).examples()
    order = [step for _ in range(1 + _MOST) for step in reversed(examples.values())]  # the largest steps first
    found: dict[StepKind, list[float]] = {kind: [] for kind in examples}
    given = batches(crops, 0, fabric.device, rank=fabric.global_rank, ranks=fabric.world_size, steps=order)
    clock, began = StepClock(fabric.device), now()
    budget = _mean(budget, fabric)  # ranks must agree when to end
    state.module.train()
    with restored(state):
        iterator = iter(given)
        try:
            for turn in range(1 + _MOST):
                for kind, step in reversed(examples.items()):
                    start, state.step = now(), step
                    batch = next(iterator)
                    # At a learning rate of 0, so that the timed networks keep their initial weights.
                    take_step(state, objective, batch, config.student.training, fabric, 0.0, clock, state_path)
                    if fabric.device.type == "cuda":
                        torch.cuda.synchronize(fabric.device)
                    if turn:
                        found[kind].append(now() - start)
                if turn >= _FEWEST and _mean(now() - began, fabric) > _SHARE * budget:
                    break
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
            del iterator
    seconds = {kind: _mean(median(values), fabric) for kind, values in found.items()}
    return Trial(seconds, sum(map(len, found.values())))


def _mean(seconds: float, fabric: Fabric) -> float:
    """Average over the ranks, so that all of them reach the same decisions."""
    if fabric.world_size == 1:
        return seconds
    given: Any = torch.tensor(seconds, dtype=torch.float64, device=fabric.device)
    return float(fabric.all_reduce(given, reduce_op="mean"))
