"""What runs at each step, counted by hand; lengths in proportion; the number of steps that fit into a time."""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from distill.config import Pair, load_pair
from distill.core.errors import ConfigError
from distill.training.schedule.phases import Lengths, Phases, StepKind, most_steps, with_lengths, with_steps

CONFIGS = Path(__file__).resolve().parents[4] / "configs"


def pair(training: dict[str, Any], queries: dict[str, Any] | None = None, *, unlabelled: bool = False) -> Pair:
    data: dict[str, Any] = {"raw": "a.h5", "labels": "a.h5:l", "train": [0, 8], "validation": [8, 12]}
    if unlabelled:
        data["unlabelled"] = [{"raw": "b.h5"}]
    return Pair.model_validate(
        {
            "teacher": {"embedding": 16, "queries": queries or {}},
            "student": {"data": data, "training": training},
        }
    )


def test_kinds_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHANTOM", "phantom.h5")
    folder = CONFIGS / "phantom_cpu"
    words = [
        *("student.training.steps=12", "student.training.warmup=6", "student.training.teacher_every=2"),
        *("teacher.queries.start=3", "teacher.queries.every=3"),
    ]
    phases = Phases(load_pair(folder / "teacher.yaml", folder / "student.yaml", words))
    found = [str(phases.kind(step)) for step in range(12)]
    with_teacher, taught = "student + teacher", "student + teacher + distillation"
    assert found == [
        *(with_teacher, "student", with_teacher, "student + queries", with_teacher, "student"),
        *(f"{taught} + queries", "student", taught, "student + queries", taught, "student"),
    ]


lengths = st.integers(0, 30)


@given(st.integers(1, 4), st.integers(1, 5), lengths, lengths, st.integers(2, 4), st.booleans(), lengths, lengths)
def test_counts_are_those_of_all_steps(
    teacher_every: int, every: int, warmup: int, start: int, unlabelled_every: int, mixed: bool, first: int, more: int
) -> None:
    training = {"teacher_every": teacher_every, "warmup": warmup, "unlabelled_every": unlabelled_every, "steps": 60}
    phases = Phases(pair(training, {"start": start, "every": every}, unlabelled=mixed))
    last = first + 1 + more
    assert phases.counts(first, last) == Counter(phases.kind(step) for step in range(first, last))
    examples = phases.examples()
    kinds = [phases.kind(step) for step in range(60)]
    assert examples == {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}


def test_steps_without_labels_are_of_a_kind_of_their_own() -> None:
    phases = Phases(pair({"warmup": 2, "unlabelled_every": 2, "steps": 6}, unlabelled=True))
    assert [phases.kind(step).labelled for step in range(6)] == [True, True, True, False, True, False]
    assert str(phases.kind(3)) == "unlabelled + teacher + distillation"


# Lengths in proportion


@given(st.integers(1, 500), st.integers(1, 2000), lengths, lengths, lengths)
def test_phases_keep_their_share(steps: int, written: int, warmup: int, lr_warmup: int, start: int) -> None:
    given_pair = pair({"steps": written, "warmup": warmup, "lr_warmup": lr_warmup}, {"start": start})
    found = Lengths.of(with_steps(given_pair, steps))
    assert found.steps == steps
    for before, after in ((warmup, found.warmup), (lr_warmup, found.lr_warmup), (start, found.queries_start)):
        assert (after == 0) == (before == 0)
        assert abs(after - before * steps / written) <= (1 if before * steps < written else 0.5)
    assert with_lengths(given_pair, found) == with_steps(given_pair, steps)
    Pair.model_validate(with_steps(given_pair, steps).model_dump())  # as the configuration's own checks ask for


def test_the_same_number_of_steps_changes_nothing() -> None:
    whole = pair({"steps": 900, "warmup": 300, "lr_warmup": 50, "validate_every": 450}, {"start": 150})
    assert with_steps(whole, 900) == whole
    shorter = with_steps(whole, 90)
    assert Lengths.of(shorter) == Lengths(90, 30, 5, 15)
    assert shorter.student.training.validate_every == 450
    assert shorter.student.training.crop == whole.student.training.crop


def test_minutes_need_the_length_that_phases_are_written_for() -> None:
    assert pair({"minutes": 2}).student.training.steps == 200_000
    for training, queries, key in (
        ({"warmup": 30}, {}, "student.training.warmup"),
        ({"lr_warmup": 30}, {}, "student.training.lr_warmup"),
        ({}, {"start": 30}, "teacher.queries.start"),
    ):
        assert pair({**training, "minutes": 2, "steps": 90}, queries)
        with pytest.raises(ValueError, match=rf"{key}: found 30 with student\.training\.minutes alone"):
            pair({**training, "minutes": 2}, queries)


@pytest.mark.parametrize("value", ["0", "-1", ".inf", ".nan", "soon"])
def test_minutes_that_are_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHANTOM", "phantom.h5")
    folder = CONFIGS / "phantom_cpu"
    with pytest.raises(ConfigError, match=r"student\.yaml: training\.minutes: .*found"):
        load_pair(folder / "teacher.yaml", folder / "student.yaml", [f"student.training.minutes={value}"])


# Steps in a time

costs = st.floats(0.01, 50, allow_nan=False)


@given(costs, costs, st.integers(1, 20), st.floats(0, 2000, allow_nan=False))
@example(1.0, 0.0, 1, 10.0)
def test_as_many_steps_as_fit(a_step: float, a_validation: float, every: int, seconds: float) -> None:
    def cost(steps: int) -> float:
        return steps * a_step + -(-steps // every) * a_validation

    found = most_steps(seconds, cost)
    assert found == next(steps for steps in count() if cost(steps + 1) > seconds)


@given(costs, costs, costs, lengths, lengths, st.integers(1, 3), st.integers(1, 3), st.floats(0, 500))
def test_steps_of_several_kinds_fit(
    plain: float, with_teacher: float, with_queries: float, warmup: int, start: int, t: int, q: int, seconds: float
) -> None:
    """Phases in proportion make the time of n steps a staircase; what is found stands on the right one of its steps."""
    assume(warmup <= 60 and start <= 60)
    whole = pair({"steps": 60, "warmup": warmup, "teacher_every": t}, {"start": start, "every": q})

    def seconds_of(kind: StepKind) -> float:
        return plain + with_teacher * kind.teacher + with_queries * kind.queries

    def cost(steps: int) -> float:
        phases = Phases(with_steps(whole, steps))
        return sum(seconds_of(phases.kind(step)) for step in range(steps))

    found = most_steps(seconds, cost)
    if found:
        assert cost(found) <= seconds
    assert cost(found + 1) > seconds
