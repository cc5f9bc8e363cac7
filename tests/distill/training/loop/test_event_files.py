"""Event files of TensorBoard hold the scalars of metrics.jsonl, each once, also after a resume."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.training.loop.event_files import scalars
from distill.training.loop.loop import MetricsLog

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed"
)
ROW = {
    "step": 4,
    "loss": 0.5,
    "parts": {"data": 1.0, "teacher": 2},
    "validation_student": {"voi": 1.25, "merge_threshold": None, "f1": [0.5, 0.75], "sweep": [[None, 1.0]]},
    "volumes": [{"raw": "a.h5", "voi": 2.0}],
    "flag": True,
}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a folder of event files as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(log: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in map(json.loads, log.read_text().splitlines()):
        for name, value in scalars(row):
            found.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return found


def test_scalars_of_a_row() -> None:
    assert dict(scalars(ROW)) == {
        "loss": 0.5,
        "parts/data": 1.0,
        "parts/teacher": 2.0,
        "validation_student/voi": 1.25,
        "validation_student/f1/0": 0.5,
        "validation_student/f1/1": 0.75,
        "volumes/0/voi": 2.0,
    }


@needs_tensorboard
def test_rows_after_the_state_are_gone_after_a_resume(tmp_path: Path) -> None:
    path, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    (events / "plugin").mkdir(parents=True)
    with MetricsLog(path, 0, events=events) as log:
        for step in range(1, 7):
            log.write({"step": step, "loss": 1 / step})
    assert points(events)["loss"] == expected(path)["loss"]
    with MetricsLog(path, 4, events=events) as log:
        log.write({"step": 5, "loss": 7.0})
    found = points(events)["loss"]
    assert found == expected(path)["loss"]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert found[-1] == (5, 7.0)
    assert (events / "plugin").is_dir()


@needs_tensorboard
def test_a_training_writes_what_its_log_holds(train: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "student.training.steps=2").code == 0
    assert not (run / "tensorboard").exists()
    said = train(run, "student.training.steps=2", "student.training.tensorboard=true", "--resume")
    assert said.code == 0, said.err
    found = points(run / "tensorboard")
    assert found == expected(run / "metrics.jsonl")
    assert [step for step, _ in found["loss"]] == [1, 2]
    assert found["validation_student/voi"][0][0] == 2


def test_without_the_package_nothing_begins(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    said = train(tmp_path / "run", "student.training.tensorboard=true")
    assert said.code == 2
    assert "pip install 'affinity-distill[tensorboard]'" in said.err
    assert not (tmp_path / "run").exists()
