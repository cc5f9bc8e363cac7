"""Write the record of a run, and read a run folder without building its networks."""

from __future__ import annotations

import filecmp
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from distill.config import Pair, TrainingConfig, dump, load_pair, older_defaults
from distill.config.data import DataConfig
from distill.core.atomic import replacing
from distill.core.errors import CheckpointError, SourceError
from distill.core.hardware import AUTO, Chosen, Precision
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
        """Return the last logged step."""
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
        """Return the names of the loss terms, in order of first appearance."""
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


def prepare_folder(out: Path, config: Pair, resume: bool) -> Path:
    """Create the run folder, write the resolved configuration, and return the path of the state file.

    Raises:
        SourceError: the folder holds a run already, or cannot be written.
        CheckpointError: the run to resume has another configuration.
    """
    state_path = out / "checkpoints" / "state.pt"
    resolved = {"teacher.yaml": dump(config.teacher), "student.yaml": dump(config.student)}
    if state_path.exists() and not resume:
        raise SourceError(f"{out}: holds a run already; expected a new folder, or --resume to continue it")
    if (out / "student.yaml").exists() and not (out / "checkpoints").exists():
        raise SourceError(f"{out}: holds a configuration of yours; expected a new folder")
    different = differing_file(out, config) if state_path.exists() else None
    if different is not None:
        raise CheckpointError(f"{different}: differs from the configuration given; expected the same to resume")
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name, text in resolved.items():
            with replacing(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{out}: cannot be written: {error.strerror or error}") from None
    return state_path


def put_best(out: Path, kind: str, path: Path) -> None:
    """Copy a weights file to the best of its kind in a run folder."""
    best = out / "best" / f"{kind}.safetensors"
    best.parent.mkdir(exist_ok=True)
    with replacing(best) as temporary:
        shutil.copyfile(path, temporary)


def restore_best(out: Path, best: Mapping[str, float]) -> None:
    """Restore the best weights that the saved state records.

    A run that was killed after a validation and before its state was saved has better ones in the folder, which it may
    not meet again: other devices round otherwise.

    Args:
        out: run folder.
        best: of the state, `KIND_step` among its keys.
    """
    for kind in ("student", "teacher"):
        path = out / "checkpoints" / f"{kind}-{int(best.get(f'{kind}_step', -1)):07d}.safetensors"
        there = out / "best" / f"{kind}.safetensors"
        if path.is_file() and not (there.is_file() and filecmp.cmp(path, there, shallow=False)):
            put_best(out, kind, path)


def with_precision(config: Pair, precision: Precision) -> Pair:
    """Return the configuration with another precision."""
    training = config.student.training.model_copy(update={"precision": precision})
    return config.model_copy(update={"student": config.student.model_copy(update={"training": training})})


def written_configuration(out: Path) -> Pair | None:
    """Read the configuration of a run folder; None if it has none."""
    teacher, student = out / "teacher.yaml", out / "student.yaml"
    if not (teacher.exists() and student.exists()):
        return None
    return load_pair(teacher, student, older_defaults(student))


def differing_file(out: Path, config: Pair) -> Path | None:
    """Return the file of a run folder whose meaning differs from a configuration; None if both agree.

    Compared is what the files mean: a key that they lack because it is newer than they are has its default, and a
    precision that is `auto` is that of the folder. Memory and workers for the crops, and event files for TensorBoard,
    change no result and may differ.
    """
    teacher, student = out / "teacher.yaml", out / "student.yaml"
    found = written_configuration(out)
    if found is None:
        return None
    found, config = _without_loading(found), _without_loading(config)
    if config.student.training.precision == AUTO:
        config = with_precision(config, found.student.training.precision)
    if found.teacher != config.teacher:
        return teacher
    return student if found.student != config.student else None


def _without_loading(config: Pair) -> Pair:
    """Return the configuration with defaults for settings that affect how crops are loaded and steps are logged, but
    not which ones.
    """
    student = config.student
    data = student.data.model_copy(update={"memory": DataConfig.model_fields["memory"].default})
    defaults = {name: TrainingConfig.model_fields[name].default for name in ("workers", "tensorboard")}
    training = student.training.model_copy(update=defaults)
    return config.model_copy(update={"student": student.model_copy(update={"data": data, "training": training})})
