"""Training by time: the number of steps is found once, and the run is then the one with that number, bit for bit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config import Pair, load_pair
from distill.core.errors import CheckpointError, ConfigError
from distill.core.pace import span
from distill.training.run_folder import read_run
from distill.training.schedule.forecast import Forecast
from distill.training.schedule.phases import Lengths, Phases, StepKind, with_steps
from distill.training.schedule.planned_steps import Trial, planned, read_steps, times_due
from distill.training.train import Progress, train

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "phantom_cpu"
WORDS = (
    *("student.training.steps=20", "student.training.warmup=8", "student.training.lr_warmup=4"),
    *("teacher.queries.start=4", "teacher.queries.every=2", "student.training.teacher_every=2"),
    *("student.training.schedule=cosine", "student.training.ema=0.9", "student.training.validate_every=4"),
    *("student.training.save_every=3", "student.training.crop=[2,32,32]"),
)


class Ticks:
    """A clock that advances by a second at every look, and breaks down at one of them."""

    def __init__(self, tick: float = 1.0, breaks_at: int | None = None) -> None:
        self.tick, self.breaks_at, self.looks = tick, breaks_at, 0

    def __call__(self) -> float:
        self.looks += 1
        if self.looks == self.breaks_at:
            raise PowerCut
        return self.tick * self.looks


class PowerCut(Exception):
    """Ends a run at any place."""


class Reported:
    """What a run said, and a power cut after some of its steps."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.started: list[tuple[int, int]] = []
        self.left: list[float | None] = []
        self.cut_after = cut_after

    def progress(self) -> Progress:
        return Progress(lambda *at: self.started.append(at), self._step, lambda *found: None, self._note)

    def _note(self, text: str) -> None:
        if text.startswith("about "):
            self.notes.append(text)

    def _step(self, report: Any, steps: int, left: float | None) -> None:
        self.left.append(left)
        if report.step == self.cut_after:
            raise PowerCut


def nothing_judged(*given: Any) -> dict[str, Any]:
    """A validation that takes no time, but random numbers."""
    torch.rand(3)
    return {}


@pytest.fixture(autouse=True, scope="module")
def only_steps() -> Iterator[None]:
    """Validations are tested elsewhere, and take longer than the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.training.train.validate", nothing_judged)
        yield


@pytest.fixture(scope="module")
def pair(phantom: Path, tiny: tuple[str, ...]) -> Callable[..., Pair]:
    def make(*words: str) -> Pair:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PHANTOM", str(phantom))
            return load_pair(CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", [*tiny, *WORDS, *words])

    return make


def run(
    config: Pair, out: Path, now: Callable[[], float], *, resume: bool = False, cut_after: int | None = None
) -> Reported:
    reported = Reported(cut_after)
    train(config, out, resume=resume, device="cpu", progress=reported.progress(), command=["distill"], now=now)
    return reported


def rows(folder: Path) -> list[dict[str, Any]]:
    times = ("seconds", "waited", "validation_seconds", "parts")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in found]


def same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    a, b = (torch.load(folder / "checkpoints" / "state.pt", weights_only=True) for folder in (one, other))
    assert (a["step"], a["best"]) == (b["step"], b["best"])
    for part in ("module", "average"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part]), part
    for key, moments in a["optimizer"]["state"].items():
        assert all(torch.equal(value, b["optimizer"]["state"][key][name]) for name, value in moments.items())
    assert all(torch.equal(x, y) for x, y in zip(a["rng"], b["rng"], strict=True))


MINUTES = "student.training.minutes=0.8"


@pytest.fixture(scope="module")
def by_time(pair: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reported]:
    """A run by time that nothing disturbed."""
    folder = tmp_path_factory.mktemp("minutes") / "run"
    return folder, run(pair(MINUTES), folder, Ticks(1))


def test_a_run_by_time_is_the_run_with_its_number_of_steps(
    by_time: tuple[Path, Reported], pair: Callable[..., Pair], tmp_path: Path
) -> None:
    folder, reported = by_time
    kept = json.loads((folder / "steps.json").read_text())
    lengths = Lengths(*(kept[name] for name in ("steps", "warmup", "lr_warmup", "queries_start")))
    assert 3 < lengths.steps < 12
    assert lengths == Lengths.of(with_steps(pair(), lengths.steps))
    assert reported.started == [(0, lengths.steps)]
    words = [f"student.training.{name}={kept[name]}" for name in ("steps", "warmup", "lr_warmup")]
    run(pair(*words, f"teacher.queries.start={lengths.queries_start}"), tmp_path / "run", Ticks())
    same(folder, tmp_path / "run")
    assert not (tmp_path / "run" / "steps.json").exists()
    assert not list(folder.glob(".timed*"))


def test_what_it_says(by_time: tuple[Path, Reported]) -> None:
    folder, reported = by_time
    steps = json.loads((folder / "steps.json").read_text())["steps"]
    (line,) = reported.notes
    assert line.startswith("about ")
    assert f": {steps} steps at " in line
    assert line.endswith("trial steps of 4 kinds, fixed for student.training.minutes=0.8")
    assert reported.left[-1] == 0
    assert all(left is not None for left in reported.left)


def test_others_see_the_number_of_steps(by_time: tuple[Path, Reported]) -> None:
    folder, _ = by_time
    kept, found = json.loads((folder / "steps.json").read_text()), read_run(folder)
    assert found.setting("student.yaml", "training", "steps") == found.steps == kept["steps"]
    assert found.setting("student.yaml", "training", "warmup") == kept["warmup"]
    assert found.setting("teacher.yaml", "queries", "start") == kept["queries_start"]
    assert found.setting("student.yaml", "training", "minutes") == 0.8
    assert found.setting("student.yaml", "training", "crop") == [2, 32, 32]


@pytest.mark.parametrize("look", [20])
def test_a_cut_while_steps_are_timed_leaves_nothing_that_counts(
    pair: Callable[..., Pair], by_time: tuple[Path, Reported], tmp_path: Path, look: int
) -> None:
    folder, out = by_time[0], tmp_path / "run"
    with pytest.raises(PowerCut):
        run(pair(MINUTES), out, Ticks(1, look))
    assert not (out / "steps.json").exists()
    run(pair(MINUTES), out, Ticks(1), resume=True)
    same(out, folder)


@pytest.mark.parametrize("step", [1, 4])
def test_a_cut_later_keeps_the_number_of_steps_whatever_the_clock_says_then(
    pair: Callable[..., Pair], by_time: tuple[Path, Reported], tmp_path: Path, step: int
) -> None:
    """Before the first state is saved, and after a validation."""
    folder, out = by_time[0], tmp_path / "run"
    with pytest.raises(PowerCut):
        run(pair(MINUTES), out, Ticks(1), cut_after=step)
    reported = run(pair(MINUTES), out, Ticks(0.01), resume=True)
    same(out, folder)
    steps = json.loads((out / "steps.json").read_text())["steps"]
    begun = 3 if step > 3 else 0
    assert reported.started == [(begun, steps)]
    assert (f"{steps - begun} of {steps} steps left at " in reported.notes[0]) == bool(begun)


def test_a_finished_run_stays_as_it_is(
    pair: Callable[..., Pair], by_time: tuple[Path, Reported], tmp_path: Path
) -> None:
    folder, _ = by_time
    before = rows(folder)
    reported = run(pair(MINUTES), folder, Ticks(7), resume=True)
    assert (rows(folder), reported.notes, reported.left) == (before, [], [])


def test_a_number_of_steps_of_another_start_does_not_count(
    pair: Callable[..., Pair], by_time: tuple[Path, Reported], tmp_path: Path
) -> None:
    """Cut before the first state: the folder may be begun with another configuration, or by steps."""
    out = tmp_path / "run"
    for words in ((MINUTES,), ("student.training.minutes=0.7",), ("student.training.steps=9",)):
        with pytest.raises(PowerCut):
            run(pair(*words), out, Ticks(1), resume=True, cut_after=1)
        found = json.loads((out / "steps.json").read_text()) if (out / "steps.json").exists() else None
        assert (None if found is None else found["minutes"]) == pair(*words).student.training.minutes


def test_a_run_that_has_begun_is_not_resumed_without_its_number(
    pair: Callable[..., Pair], by_time: tuple[Path, Reported], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(PowerCut):
        run(pair(MINUTES), out, Ticks(1), cut_after=5)
    (out / "steps.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"steps\.json: cannot be read: .*; expected the number of steps"):
        run(pair(MINUTES), out, Ticks(1), resume=True)
    assert read_steps(out, pair(MINUTES), begun=False) is None


def test_too_little_time(pair: Callable[..., Pair], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minutes: found 0\.8, of which 0 s are left after \d+ trial"):
        run(pair(MINUTES), tmp_path / "run", Ticks(20))


# Arithmetic of the plan and the forecast


KINDS = [StepKind(*on) for on in itertools.product((False, True), repeat=4)]
TIMES = Trial({k: 1.0 + 2 * k.teacher + 4 * k.queries + 8 * k.distils for k in KINDS}, 8, validation=30, saving=0.5)


def by_hand(config: Pair, trial: Trial, first: int = 0) -> float:
    training, phases, found = config.student.training, Phases(config), 0.0
    for step in range(first + 1, training.steps + 1):
        last = step == training.steps
        found += trial.seconds[phases.kind(step - 1)]
        found += trial.validation * (step % training.validate_every == 0 or last)
        found += trial.saving * (step % training.save_every == 0 or last)
    return found


@pytest.mark.parametrize("seconds", [60, 61, 100, 333, 1000])
def test_the_plan_fills_the_time_and_no_more(pair: Callable[..., Pair], seconds: float) -> None:
    config = pair(MINUTES)
    trial = TIMES
    found = planned(config, trial, seconds)
    steps = found.student.training.steps
    assert trial.of_run(found) == pytest.approx(by_hand(found, trial))
    assert by_hand(found, trial) <= seconds < by_hand(with_steps(config, steps + 1), trial)


@pytest.mark.parametrize(("every", "first", "last"), [(4, 0, 8), (4, 0, 9), (4, 3, 9), (4, 8, 9), (4, 9, 9), (1, 0, 3)])
def test_times_due(every: int, first: int, last: int) -> None:
    due = [step for step in range(first + 1, last + 1) if step % every == 0 or step == last]
    assert times_due(every, first, last) == len(due)


def test_the_forecast_of_a_trial(pair: Callable[..., Pair]) -> None:
    config, trial = planned(pair(MINUTES), TIMES, 400), TIMES
    forecast = Forecast(config, 0, trial)
    for step in (0, 1, 7):
        assert forecast.left(step) == pytest.approx(by_hand(config, trial, step))
    assert forecast.left(config.student.training.steps) == 0
    assert forecast.opening().startswith(f"about {span(by_hand(config, trial, 0))}: ")
    assert Forecast(config, 0).opening() == ""


def test_a_run_by_steps_says_how_long_once_it_has_timed_some(pair: Callable[..., Pair]) -> None:
    config = pair("student.training.steps=60", "student.training.warmup=0", "teacher.queries.start=40")
    forecast = Forecast(config, 0)
    assert forecast.left(0) is None
    # the first steps are slow, and steps with the teacher cost 3 s, without it 1 s
    said = [forecast.add(step, 99.0 if step < 4 else 1.0 + 2.0 * (step % 2)) for step in range(1, 16)]
    assert said[11] == (
        "about 2 min left: 48 steps at 2.00 s, timed over steps 4 to 12; longer once queries begin at step 40; "
        "validations come on top"
    )
    assert [text for n, text in enumerate(said) if n != 11] == [""] * 14
    assert forecast.left(56) == pytest.approx(3 + 1 + 3 + 1, abs=3)  # queries have not been timed
    forecast.validated(10)
    assert forecast.left(59) == pytest.approx(forecast._of_steps(59) + 10)


def test_a_forecast_of_a_resumed_run_times_its_own_steps(pair: Callable[..., Pair]) -> None:
    config = replace_steps(pair(), 100)
    forecast = Forecast(config, 80)
    said = [forecast.add(step, 50.0 if step < 84 else 2.0) for step in range(81, 101)]
    assert [n for n, text in enumerate(said) if text] == [11]
    assert said[11].startswith("about 16 s left: 8 steps at 2.00 s, timed over steps 84 to 92")


def replace_steps(config: Pair, steps: int) -> Pair:
    training = config.student.training.model_copy(update={"steps": steps})
    return config.model_copy(update={"student": config.student.model_copy(update={"training": training})})


def test_a_kind_that_was_not_timed_costs_as_much_as_the_dearest(pair: Callable[..., Pair]) -> None:
    config = pair()
    seen = replace(TIMES, seconds={kind: value for kind, value in TIMES.seconds.items() if kind.queries})
    assert seen.of_steps(config) > TIMES.of_steps(config)
