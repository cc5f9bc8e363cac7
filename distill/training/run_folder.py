"""Write the record of a run, and read a run folder without building its networks."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from distill.config import Pair
from distill.core.atomic import replacing
from distill.core.errors import SourceError
from distill.core.hardware import Chosen
from distill.core.version import VERSION
from distill.training.loop.step_times import StepTimes
from distill.training.schedule.planned_steps import planned_settings

_NO_TERM = ("step", "lr", "seconds", "waited", "parts", "validation_seconds", "loss")
_VALIDATION = "validation_"


@dataclass(frozen=True)
class RunFolder:
    """Records of a run; missing ones are empty.

    Attributes:
        path: the folder.
        record: run.json.
        rows: metrics.jsonl, in order.
        configuration: text of teacher.yaml and student.yaml by file name.
        planned: settings in which the run differs from these texts, by file and keys (see `planned_settings`).
    """

    path: Path
    record: Mapping[str, Any]
    rows: list[dict[str, Any]]
    configuration: dict[str, str]
    planned: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Last logged step."""
        return max((int(row["step"]) for row in self.rows), default=0)

    def setting(self, file: str, *keys: str) -> Any:
        """Return a configuration value of the run; None if it is not set."""
        if (file, *keys) in self.planned:
            return self.planned[file, *keys]
        try:
            found = yaml.safe_load(self.configuration.get(file, ""))
        except yaml.YAMLError:
            return None
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    @property
    def data(self) -> dict[str, Any]:
        """Keys of the labelled volume used for validation, the first of several; of its boxes, the sections."""
        found = self.setting("student.yaml", "data")
        volumes = found.get("volumes") if isinstance(found, dict) else None
        if isinstance(volumes, list):
            found = next((one for one in volumes if isinstance(one, dict) and one.get("validation")), None)
        if not isinstance(found, dict):
            return {}
        return {key: value[0] if _is_box(value) else value for key, value in found.items()}

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of a column of metrics.jsonl, such as `loss` or `validation_student.voi`."""
        outer, _, inner = name.partition(".")
        points = []
        for row in self.rows:
            value = row.get(outer)
            value = value.get(inner) if inner and isinstance(value, dict) else value
            if isinstance(value, int | float) and not isinstance(value, bool):
                points.append((float(row["step"]), float(value)))
        return points

    def terms(self) -> list[str]:
        """Names of the loss terms, in order of their first appearance."""
        names = dict.fromkeys(name for row in self.rows if "loss" in row for name in row)
        return [name for name in names if name not in _NO_TERM and not name.startswith(_VALIDATION)]

    def validations(self) -> dict[str, list[tuple[int, dict[str, Any]]]]:
        """Return (step, scores) of every validation, by network."""
        found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if name.startswith(_VALIDATION) and isinstance(value, dict):
                    found.setdefault(name.removeprefix(_VALIDATION), []).append((int(row["step"]), value))
        return found


@dataclass(frozen=True)
class Pace:
    """Time of some steps: their number, total seconds, median seconds per step, and the share spent waiting for
    data.
    """

    first: int  # number of steps before the first of them
    last: int
    seconds: float
    median: float
    waited: float


def read_run(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        SourceError: the folder holds no metrics.jsonl, or a file cannot be read.
    """
    if not (path / "metrics.jsonl").is_file():
        raise SourceError(f"{path}: found no metrics.jsonl, expected a run folder of distill train")
    try:
        rows = [_row(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        record = json.loads((path / "run.json").read_text(encoding="utf-8")) if (path / "run.json").exists() else {}
        configuration = {
            name: (path / name).read_text(encoding="utf-8")
            for name in ("teacher.yaml", "student.yaml")
            if (path / name).exists()
        }
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None
    record = record if isinstance(record, dict) else {}
    return RunFolder(path, record, [row for row in rows if row], configuration, planned_settings(path))


def pace(run: RunFolder, first: int, last: int) -> Pace | None:
    """Summarise the time of the steps after `first` up to `last`; None if none was logged."""
    before, counts, seconds, waited = 0, [], [], []
    for row in run.rows:
        if "seconds" not in row:
            continue
        step = int(row["step"])
        if first < step <= last and step > before:
            counts.append(step - max(before, first))
            seconds.append(float(row["seconds"]))
            waited.append(float(row.get("waited", math.nan)))
        before = max(before, step)
    if not counts:
        return None
    total = float(np.dot(counts, seconds))
    median = float(np.median(np.repeat(seconds, counts)))
    return Pace(first, min(last, before), total, median, float(np.dot(counts, waited)) / total if total else math.nan)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(span, list) for span in value)


def _row(line: str) -> dict[str, Any]:
    """Parse one row; empty if a crash truncated the line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("step"), int | float) else {}


class RunRecord:
    """Contents of run.json: settings, software, hardware, times and outcome. Written at the start and at the end."""

    def __init__(
        self,
        path: Path,
        command: list[str],
        config: Pair,
        first_step: int,
        ranks: int,
        times: StepTimes,
        chosen: Chosen,
    ) -> None:
        self.path, self.times = path, times
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() and first_step else {}
        self.values: dict[str, Any] = {
            "command": command,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "first_step": first_step,
            "versions": {"affinity-distill": VERSION, "torch": torch.__version__, "numpy": np.__version__},
            "python": sys.version.split()[0],
            "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            **chosen.record(),
            "processes": ranks,
            "seed": config.student.training.seed,
            "earlier": [*before.pop("earlier", []), before] if before else [],
        }
        self.began = time.perf_counter()

    def __enter__(self) -> RunRecord:
        self._write("running")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._write("done" if error is None else f"{type(error).__name__}: {error}")

    def _write(self, ended: str) -> None:
        values = {**self.values, "seconds": round(time.perf_counter() - self.began, 2), "ended": ended}
        values["time_per_step"] = self.times.to_dict()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
