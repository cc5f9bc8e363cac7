"""Trainings in processes of their own, for tests that kill them or let two of them work together.

As a script under torchrun it plays the scenes of `test_ranks`: SCENE functions of one rank, results under a folder.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from distill.config import Pair, TrainingConfig
from distill.data.crops import Crops
from distill.training.launch import launch, leave
from distill.training.loop.loop import Interrupted, NotFiniteError, StepReport, fit, make_optimizer
from distill.training.loop.state import State
from distill.training.loop.step_times import StepClock
from distill.training.objective.objective import Joint
from distill.training.ranks import from_environment
from distill.training.schedule.trial import time_steps

NANOMETRES = (30.0, 6.0, 6.0)


def command_line(words: list[str], environment: dict[str, str], silent: Path) -> None:
    """`distill WORDS` in this process, its output in a file."""
    from distill.cli import command

    torch.set_num_threads(1)
    with silent.open("w") as file, mock.patch.dict(os.environ, environment), mock.patch.object(sys, "argv", words):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        command()


class Toy(nn.Module):
    """Two layers with dropout between them, so that every rank's random state counts; one of them idle at odd steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.seldom = nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(3, 1)

    def forward(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        hidden = nn.functional.dropout(self.first(batch).relu(), 0.4, self.training)
        terms = {"square": self.last(hidden).square().mean()}
        if step % 2 == 0:
            terms["seldom"] = self.seldom(batch).square().mean()
        return terms


class Run:
    """A toy of one rank, trained by the loop."""

    def __init__(self, fabric: Fabric, path: Path) -> None:
        self.fabric, self.path, self.config = fabric, path, TrainingConfig(steps=8, lr=0.05, save_every=3, clip=1.0)
        self.module = Toy()
        self.objective, optimizer = fabric.setup(self.module, make_optimizer(self.module, self.config))
        torch.manual_seed(100 + fabric.global_rank)
        self.state = State(self.module, optimizer, None)
        self.losses: list[dict[str, float]] = []
        self.validated = 0

    def batches(self) -> Iterator[Tensor]:
        for step in range(self.state.step, self.config.steps):
            generator = torch.Generator().manual_seed(2 * step + self.fabric.global_rank)
            yield torch.randn(4, 3, generator=generator)

    def fit(self, batches: Iterator[Tensor] | None = None, after: Callable[[int], None] = lambda step: None) -> None:
        def note(report: StepReport) -> None:
            self.losses.append(report.terms)
            after(report.step)

        def count(state: State) -> None:
            self.validated += 1

        fit(
            self.state,
            self.objective,
            batches or self.batches(),
            self.config,
            self.fabric,
            clock=StepClock(self.fabric.device),
            state_path=self.path,
            on_step=note,
            on_validate=count,
        )


def gradients(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Gradients of the real networks, norms in evaluation mode, each rank with its own item of the batch."""
    given = torch.load(folder / "given.pt", weights_only=True)
    torch.manual_seed(0)
    joint = Joint(Pair.model_validate(given["pair"]), NANOMETRES).eval()
    module, _ = fabric.setup(joint, torch.optim.SGD(joint.parameters(), lr=0.1))
    mine = slice(fabric.global_rank, fabric.global_rank + 1)
    found: dict[str, Any] = {}
    for step in (0, 1):  # the teacher runs at the first alone
        joint.zero_grad(set_to_none=True)
        terms = module((given["raw"][mine], given["labels"][mine]), step)
        fabric.backward(torch.stack(list(terms.values())).sum())
        found[str(step)] = {name: p.grad for name, p in joint.named_parameters()}
    return found


def resumed(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """An unbroken run against one that stops when the second rank alone gets a signal, and is resumed."""
    whole = Run(fabric, folder / "whole.pt")
    whole.fit()

    def stop(step: int) -> None:
        if step == 4 and fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # as torchrun and a terminal do together

    broken = Run(fabric, folder / "broken.pt")
    try:
        broken.fit(after=stop)
    except Interrupted as error:
        stopped = str(error)
    again = Run(fabric, folder / "broken.pt")
    torch.manual_seed(1)
    again.state.load(again.path, rank=fabric.global_rank, ranks=fabric.world_size)
    began = again.state.step
    again.fit()
    return {
        "stopped": stopped,
        "began": began,
        "losses": [whole.losses, broken.losses + again.losses],
        "weights": [list(run.module.parameters()) for run in (whole, again)],
        "validated": whole.validated,
    }


def not_finite(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """The second rank alone meets a batch that is not finite."""
    run = Run(fabric, folder / "spoilt.pt")

    def spoilt() -> Iterator[Tensor]:
        for step, batch in enumerate(run.batches()):
            yield batch * torch.inf if step == 5 and fabric.global_rank == 1 else batch

    try:
        run.fit(spoilt())
    except NotFiniteError as error:
        return {"message": str(error), "steps": len(run.losses)}
    return {}


def timed(fabric: Fabric, folder: Path) -> dict[str, Any]:
    """Ranks with other clocks and other times left time the steps of a run."""
    config = Pair.model_validate(torch.load(folder / "given.pt", weights_only=True)["pair"])
    torch.manual_seed(0)
    joint = Joint(config, NANOMETRES)
    objective, optimizer = fabric.setup(joint, make_optimizer(joint, config.student.training))
    raw = np.random.default_rng(0).integers(0, 255, (6, 48, 48), dtype=np.uint8)
    labels = np.ones_like(raw, dtype=np.int64)
    trial = time_steps(
        config,
        State(joint, optimizer, None),
        objective,
        Crops(raw, labels, config.student.training, config.student.augment),
        fabric,
        budget=(1.0, 1e4)[fabric.global_rank],
        state_path=folder / "timed.pt",
        now=itertools.count(0.0, (1.0, 4.0)[fabric.global_rank]).__next__,
    )
    return {"seconds": list(trial.seconds.values()), "steps": trial.steps}


def main(folder: Path) -> None:
    """All scenes, one after the other, in one set of processes."""
    torch.set_num_threads(1)
    ranks = from_environment()
    fabric = launch("cpu", "32-true", ranks)
    found = {scene.__name__: scene(fabric, folder) for scene in (gradients, resumed, not_finite, timed)}
    torch.save(found, folder / f"rank{ranks.rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
