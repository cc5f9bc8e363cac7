"""The optimiser's loop on a toy: schedules, averages, resuming bit for bit, stopping."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from distill.config import AugmentConfig, TrainingConfig
from distill.core.errors import CheckpointError, DistillError
from distill.core.signals import TOGETHER, Requests
from distill.data import loading as sampling
from distill.data.crops import Crops
from distill.training.loop.loop import (
    Interrupted,
    MetricsLog,
    NotFiniteError,
    StepReport,
    fit,
    learning_rate,
    make_optimizer,
)
from distill.training.loop.state import Average, State
from distill.training.loop.step_times import PARTS, StepClock


class Toy(nn.Module):
    """A layer, batch norm, dropout (so that the random state matters), a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        x, y = batch
        hidden = nn.functional.dropout(self.norm(self.first(x)).relu(), 0.3, self.training)
        error = self.last(hidden) - y
        return {"square": error.square().mean(), "size": 0.01 * (1 + step) * self.last.weight.abs().mean()}


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)


def batches(first: int, bad: int = -1) -> Iterator[tuple[Tensor, Tensor]]:
    step = first
    while True:
        x, y = batch_of(step)
        yield (x * torch.inf, y) if step == bad else (x, y)
        step += 1


def training(**changes: Any) -> TrainingConfig:
    values = {
        "steps": 9,
        "lr": 0.05,
        "lr_warmup": 2,
        "schedule": "cosine",
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "clip": 0.5,
        "ema": 0.9,
        "validate_every": 4,
        "save_every": 3,
    }
    return TrainingConfig(**{**values, **changes})


class Run:
    """A toy, its state and what the loop reported."""

    def __init__(self, path: Path, config: TrainingConfig, seed: int = 0, module: nn.Module | None = None) -> None:
        torch.manual_seed(seed)
        self.path, self.config = path, config
        self.fabric = Fabric(accelerator="cpu", devices=1, plugins=[LightningEnvironment()])
        self.module = module or Toy()
        optimizer = make_optimizer(self.module, config)
        self.objective, wrapped = self.fabric.setup(self.module, optimizer)
        self.state = State(self.module, wrapped, Average(self.module, config.ema) if config.ema else None)
        self.reports: list[StepReport] = []
        self.validated: list[int] = []

    def fit(
        self,
        on_step: Callable[[StepReport], None] = lambda report: None,
        bad: int = -1,
        on_validate: Callable[[State], None] | None = None,
    ) -> None:
        def note(report: StepReport) -> None:
            self.reports.append(report)
            on_step(report)

        fit(
            self.state,
            self.objective,
            batches(self.state.step, bad),
            self.config,
            self.fabric,
            clock=StepClock(torch.device("cpu")),
            state_path=self.path,
            on_step=note,
            on_validate=on_validate or (lambda state: self.validated.append(state.step)),
        )

    def losses(self) -> list[dict[str, float]]:
        return [report.terms for report in self.reports]

    def tensors(self) -> list[Tensor]:
        optimizer = self.state.optimizer.state_dict()["state"]
        moments = [value for entry in optimizer.values() for value in entry.values()]
        average = list(self.state.average.values.values()) if self.state.average else []
        return [*self.module.state_dict().values(), *moments, *average]


# Schedules and averages


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate(schedule: str) -> None:
    config = TrainingConfig(steps=110, lr=0.2, lr_warmup=10, schedule=schedule)
    found = [learning_rate(step, config) for step in range(110)]
    assert found[:10] == pytest.approx([0.02 * (n + 1) for n in range(10)])
    if schedule == "constant":
        assert found[10:] == [0.2] * 100
    else:
        assert found[10:] == pytest.approx([0.1 * (1 + math.cos(math.pi * n / 100)) for n in range(100)])
        assert learning_rate(110, config) == pytest.approx(0)
        assert learning_rate(500, config) == pytest.approx(0)


def test_a_warm_up_as_long_as_the_run() -> None:
    config = TrainingConfig(steps=4, lr=1.0, lr_warmup=4, schedule="cosine")
    assert [learning_rate(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_average_moves_by_its_decay_and_faster_at_the_start() -> None:
    module = nn.BatchNorm1d(1)
    average = Average(module, 0.9)
    wanted = {name: value.clone().double() for name, value in module.state_dict().items()}
    for step in range(120):
        with torch.no_grad():
            module.weight.fill_(step)
            module.running_mean.fill_(-step)
            module.num_batches_tracked.fill_(step)
        average.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name in ("weight", "running_mean"):
            wanted[name] = decay * wanted[name] + (1 - decay) * module.state_dict()[name].double()
            torch.testing.assert_close(average.values[name].double(), wanted[name], rtol=1e-5, atol=1e-5)
        assert int(average.values["num_batches_tracked"]) == step


def test_averaged_weights_are_in_place_inside_the_block_alone() -> None:
    module = nn.Linear(2, 1)
    average = Average(module, 0.9)
    first = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    own = module.weight.detach().clone()
    with average.applied(module):
        assert torch.equal(module.weight, first)
    assert torch.equal(module.weight, own)
    with pytest.raises(KeyError), average.applied(module):
        raise KeyError
    assert torch.equal(module.weight, own)
    assert torch.equal(average.values["weight"], first)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_norms_and_biases_are_not_decayed(name: str, kind: type) -> None:
    toy = Toy()
    toy.norm.bias.requires_grad_(False)
    optimizer = make_optimizer(toy, training(optimizer=name))
    assert type(optimizer) is kind
    decayed, others = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(toy.first.weight), id(toy.last.weight)]
    assert [id(p) for p in others["params"]] == [id(toy.first.bias), id(toy.norm.weight), id(toy.last.bias)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


# The loop


def test_a_run_reports_validates_and_saves(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training())
    run.fit()
    assert [report.step for report in run.reports] == list(range(1, 10))
    assert run.validated == [4, 8, 9]
    assert [report.lr for report in run.reports] == [learning_rate(step, run.config) for step in range(9)]
    for report in run.reports:
        assert set(report.terms) == {"square", "size", "loss"}
        assert report.terms["loss"] == pytest.approx(report.terms["square"] + report.terms["size"], rel=1e-5)
        assert 0 <= report.waited <= report.parts["data"] <= report.seconds
        assert set(report.parts) == set(PARTS)
        assert report.parts["teacher"] == 0  # the toy marks nothing
        assert sum(report.parts.values()) <= report.seconds
    assert run.module.training
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 9


def test_the_loop_is_the_textbook_one(tmp_path: Path) -> None:
    config = training(optimizer="adam", weight_decay=0.0, clip=0.0, ema=0.0)
    run = Run(tmp_path / "state.pt", config)
    run.fit()
    torch.manual_seed(0)
    module = Toy()
    optimizer = torch.optim.Adam(module.parameters(), lr=config.lr)
    losses = []
    for step in range(9):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        loss = sum(module(batch_of(step), step).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert [report.terms["loss"] for report in run.reports] == pytest.approx(losses, rel=1e-5)
    for a, b in zip(run.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_validation_sees_averaged_weights_in_evaluation_mode(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training(steps=5, validate_every=5))
    seen: list[bool] = []

    def validate(state: State) -> None:
        assert state.average is not None
        seen.append(not state.module.training)
        assert all(torch.equal(state.average.values[name], value) for name, value in state.module.state_dict().items())

    fit(
        run.state,
        run.objective,
        batches(0),
        run.config,
        run.fabric,
        clock=StepClock(torch.device("cpu")),
        state_path=run.path,
        on_step=lambda report: None,
        on_validate=validate,
    )
    assert seen == [True]


class Slopes(nn.Module):
    """Two parts whose gradients are 30 and 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.steep, self.flat = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        return {"steep": 30 * self.steep.weight.sum(), "flat": 0.1 * self.flat.weight.sum()}


def test_gradients_are_clipped_part_by_part(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training(steps=1, clip=2.0), module=Slopes())
    run.fit()
    assert float(run.module.steep.weight.grad) == pytest.approx(2, rel=1e-4)  # type: ignore[union-attr]
    assert float(run.module.flat.weight.grad) == pytest.approx(0.1, rel=1e-4)  # type: ignore[union-attr]


def test_a_part_that_did_not_run_has_no_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for the norm of no gradient, torch answers with a zero on the CPU, which no other device takes."""
    asked: list[int] = []
    norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda given: (asked.append(len(given)), norm(given))[1])
    module = Slopes()
    module.still = nn.Linear(3, 3)
    before = module.still.weight.clone()
    run = Run(tmp_path / "state.pt", training(steps=2, clip=2.0), module=module)
    run.fit()
    assert asked == [1, 1, 1, 1]
    assert torch.equal(run.module.still.weight, before)  # type: ignore[union-attr]


def test_without_a_limit_gradients_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> None:
        raise AssertionError("multiplied")

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", never)
    Run(tmp_path / "state.pt", training(steps=2, clip=0)).fit()


def test_the_average_leaves_out_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all that trains, whatever the number of tensors; statistics of norms included."""
    module = Toy()
    module.last.requires_grad_(False)
    average = Average(module, 0.5)
    with torch.no_grad():
        module.first.weight.add_(1)
        module.norm.running_mean.add_(1)  # type: ignore[union-attr]
    lerp, calls = torch._foreach_lerp_, []
    monkeypatch.setattr(
        torch, "_foreach_lerp_", lambda kept, now, weight: (calls.append(len(kept)), lerp(kept, now, weight))[1]
    )
    before = average.values["last.weight"].clone()
    average.update(module, 100)
    assert calls == [6]
    assert torch.allclose(average.values["first.weight"], module.first.weight - 0.5)
    assert torch.allclose(average.values["norm.running_mean"], torch.full((4,), 0.5))
    assert torch.equal(average.values["last.weight"], before)


class Killed(Exception):
    pass


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("killed_at", [3, 4, 5, 8])
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path: Path, killed_at: int, ema: float) -> None:
    whole = Run(tmp_path / "whole.pt", training(ema=ema))
    whole.fit()

    def kill(report: StepReport) -> None:
        if report.step == killed_at:
            raise Killed

    broken = Run(tmp_path / "state.pt", training(ema=ema))
    saved = (killed_at - 1) // 3 * 3
    with pytest.raises(Killed):
        broken.fit(kill)
    resumed = Run(tmp_path / "state.pt", training(ema=ema), seed=77)
    if saved:
        resumed.state.load(resumed.path)
        assert resumed.state.step == saved
    else:
        assert not resumed.path.exists()
        resumed = Run(tmp_path / "state.pt", training(ema=ema))
    resumed.fit()
    assert broken.losses() == whole.losses()[:killed_at]
    assert resumed.losses() == whole.losses()[saved:]
    assert len(resumed.tensors()) == len(whole.tensors())
    assert all(torch.equal(a, b) for a, b in zip(resumed.tensors(), whole.tensors(), strict=True))
    assert resumed.validated[-1] == 9


def test_the_state_keeps_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training())
    run.state.best = {"student": {"score": 0.5, "step": 4}}
    run.state.save(run.path)
    other = Run(tmp_path / "state.pt", training(), seed=1)
    other.state.load(other.path)
    assert other.state.best == run.state.best
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training())
    run.fit()
    again = Run(tmp_path / "state.pt", training(), seed=1)
    again.state.load(again.path)
    again.fit()
    assert again.reports == []


def test_a_state_of_another_network(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training())
    run.state.save(run.path)
    other = Run(tmp_path / "state.pt", training(), module=Slopes())
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be resumed"):
        other.state.load(other.path)
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be resumed"):
        run.state.load(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04"])
def test_a_state_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    run = Run(tmp_path / "state.pt", training())
    run.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be resumed"):
        run.state.load(run.path)


# What goes wrong


def test_a_loss_that_is_not_finite_stops_and_leaves_the_saved_state(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training())
    with pytest.raises(
        NotFiniteError, match=r"the loss of step 5 is nan \(square nan, size [\d.e-]+\).*kept in .*state"
    ):
        run.fit(bad=5)
    kept = torch.load(run.path, weights_only=True)
    assert kept["step"] == 3
    assert all(bool(value.isfinite().all()) for value in kept["module"].values())
    assert [report.step for report in run.reports] == [1, 2, 3, 4, 5]


def test_a_loss_that_is_not_finite_before_anything_was_saved(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", training())
    with pytest.raises(DistillError, match=r"the loss of step 1 is nan .* no state had been saved"):
        run.fit(bad=1)
    assert not run.path.exists()


class Cliff(nn.Module):
    """A finite loss with a gradient that is not: the root of 0 at step 2."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(1, 1, bias=False)

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        return {"root": (self.part.weight * (0 if step == 2 else 1)).square().sum().sqrt()}


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_does_not_reach_the_saved_state(tmp_path: Path, clip: float) -> None:
    run = Run(tmp_path / "state.pt", training(save_every=1, clip=clip), module=Cliff())
    with pytest.raises(NotFiniteError, match=r"the gradient of step 2 is not finite \(root 0\).*kept in .*state\.pt"):
        run.fit()
    kept = torch.load(run.path, weights_only=True)
    assert kept["step"] == 2
    assert all(bool(value.isfinite().all()) for value in kept["module"].values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole = Run(tmp_path / "whole.pt", training())
    whole.fit()

    def stop(report: StepReport) -> None:
        if report.step == 5:
            os.kill(os.getpid(), number)

    run = Run(tmp_path / "state.pt", training())
    with pytest.raises(Interrupted, match=r"stopped after step 5; state saved in .*state\.pt"):
        run.fit(stop)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert torch.load(run.path, weights_only=True)["step"] == 5
    resumed = Run(tmp_path / "state.pt", training(), seed=3)
    resumed.state.load(resumed.path)
    resumed.fit()
    assert run.losses() + resumed.losses() == whole.losses()
    assert all(torch.equal(a, b) for a, b in zip(resumed.tensors(), whole.tensors(), strict=True))


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("at", [4, 9])
def test_a_signal_in_a_validation_saves_and_stops(tmp_path: Path, ema: float, at: int) -> None:
    """The validation is repeated on resuming, with the weights and random numbers that it had."""
    setting = training(validate_every=4, save_every=100, ema=ema)
    seen: dict[str, list[Any]] = {"whole": [], "parts": []}

    def judge(name: str, state: State) -> None:
        seen[name].append((state.step, float(torch.rand(())), [v.clone() for v in state.module.state_dict().values()]))
        state.best["voi"] = state.step

    whole = Run(tmp_path / "whole.pt", setting)
    whole.fit(on_validate=lambda state: judge("whole", state))

    def broken_off(state: State) -> None:
        if state.step < at:
            return judge("parts", state)
        torch.rand(3)
        state.best["voi"] = -1.0
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the validation went on")

    run = Run(tmp_path / "state.pt", setting)
    with pytest.raises(Interrupted, match=rf"stopped in the validation after step {at}; state saved in .*state\.pt"):
        run.fit(on_validate=broken_off)
    saved = torch.load(run.path, weights_only=True)
    assert (saved["step"], saved["validated"]) == (at, at - 1)
    resumed = Run(tmp_path / "state.pt", setting, seed=3)
    resumed.state.load(resumed.path)
    resumed.fit(on_validate=lambda state: judge("parts", state))
    assert [(step, drawn) for step, drawn, _ in seen["parts"]] == [(step, drawn) for step, drawn, _ in seen["whole"]]
    for mine, theirs in zip(seen["parts"], seen["whole"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine[2], theirs[2], strict=True))
    assert run.losses() + resumed.losses() == whole.losses()
    assert all(torch.equal(a, b) for a, b in zip(resumed.tensors(), whole.tensors(), strict=True))
    assert resumed.state.best == whole.state.best


def two_signals(monkeypatch: pytest.MonkeyPatch, apart: float) -> Callable[[StepReport], None]:
    """Send two in the second step, so many seconds apart by a clock that does not wait."""
    now = iter((100.0, 100.0 + apart))
    monkeypatch.setattr("distill.training.loop.loop.Requests", lambda: Requests(lambda: next(now)))

    def send(report: StepReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    return send


def test_signals_that_arrive_together_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends every signal to the command, then to its group."""
    run = Run(tmp_path / "state.pt", training())
    with pytest.raises(Interrupted, match="stopped after step 2"):
        run.fit(two_signals(monkeypatch, 0.9 * TOGETHER))
    assert torch.load(run.path, weights_only=True)["step"] == 2


def test_a_second_signal_breaks_off_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = two_signals(monkeypatch, 1.1 * TOGETHER)
    run = Run(tmp_path / "state.pt", training())
    with pytest.raises(KeyboardInterrupt) as caught:
        run.fit(stop)
    assert not isinstance(caught.value, Interrupted)
    assert not run.path.exists()


class Scale(nn.Module):
    """One number for crops of a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(1, 1)

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        return {"scaled": self.part(batch[0].mean().view(1)).square().mean()}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["worker", "train"])
def test_an_error_ends_the_loaders_workers(tmp_path: Path, where: str) -> None:
    """They ignore signals, so a process that ended with an error would wait for them for ever."""
    config = training(crop=(2, 8, 8), workers=1, widen_borders=False)
    run = Run(tmp_path / "state.pt", config, module=Scale())
    volume = np.ones((4, 32, 32), np.uint8)
    crops = Crops(volume, volume, config, AugmentConfig(device=where))
    others = {child.pid for child in multiprocessing.active_children()}
    made = sampling.batches(crops, 0, torch.device("cpu"))
    seen: list[Any] = []

    def fail(report: StepReport) -> None:
        seen.extend(child for child in multiprocessing.active_children() if child.pid not in others)
        raise Killed

    with pytest.raises(Killed) as kept:
        fit(
            run.state,
            run.objective,
            made,
            config,
            run.fabric,
            clock=StepClock(torch.device("cpu")),
            state_path=run.path,
            on_step=fail,
            on_validate=lambda state: None,
        )
    assert kept.traceback  # its frames are alive
    assert len(seen) == 1
    assert not seen[0].is_alive()


# The log


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_is_cut_back_to_the_step_that_a_run_goes_on_from(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    assert not path.exists()
    for step in (2, 4, 4, 6):
        log.write({"step": step, "loss": step / 10})
    resumed = MetricsLog(path, 4)
    assert [row["step"] for row in rows(path)] == [2, 4, 4]
    resumed.write({"step": 5, "nested": {"voi": 1.0}})
    assert rows(path)[2:] == [{"step": 4, "loss": 0.4}, {"step": 5, "nested": {"voi": 1.0}}]
    MetricsLog(path, 0)
    assert rows(path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_row_of_a_validation_that_is_repeated_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for row in (
        {"step": 2, "validation_seconds": 1.0},
        {"step": 4, "loss": 0.1},
        {"step": 4, "validation_seconds": 1.0},
    ):
        log.write(row)
    MetricsLog(path, 4, 4)
    assert len(rows(path)) == 3
    MetricsLog(path, 4, 2)
    assert rows(path) == [{"step": 2, "validation_seconds": 1.0}, {"step": 4, "loss": 0.1}]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "validation": {"voi": 1.0}', ""])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    MetricsLog(path, 9).write({"step": 3})
    assert rows(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_run_ends_after_validations_that_found_nothing_better(tmp_path: Path) -> None:
    config = training(steps=40, validations=8, patience=2)
    assert config.validation_interval == 5
    run = Run(tmp_path / "state.pt", config)

    def best_at_ten(report: StepReport) -> None:
        if report.step == 10:
            run.state.best["student_step"] = 10

    run.fit(best_at_ten)
    assert run.state.step == 20
    assert run.validated == [5, 10, 15, 20]
    resumed = Run(tmp_path / "state.pt", config)
    resumed.state.load(tmp_path / "state.pt")
    resumed.fit()
    assert resumed.reports == []
    assert resumed.state.step == 20


@pytest.mark.parametrize(("steps", "validations", "every"), [(9, 0, 4), (9, 2, 5), (9, 9, 1), (3, 8, 1)])
def test_validations_are_spread_over_the_run(steps: int, validations: int, every: int) -> None:
    config = training(steps=steps, validations=validations)
    assert config.validation_interval == every
    assert validations == 0 or len({*range(every, steps + 1, every), steps}) <= validations
