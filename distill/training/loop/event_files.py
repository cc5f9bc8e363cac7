"""Scalars of metrics.jsonl as event files of TensorBoard (`student.training.tensorboard`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import ConfigError

FOLDER = "tensorboard"  # in the run folder
_CURVES = ("step", "sweep")  # keys of a row that are no scalars over steps


def check_tensorboard() -> None:
    """Check that event files can be written.

    Raises:
        ConfigError: the package tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "student.training.tensorboard: found true, but the package tensorboard is not installed; expected it, by "
            "pip install 'affinity-distill[tensorboard]', or false"
        )


class EventFiles:
    """Event files that hold the same scalars as a log.

    metrics.jsonl is the record of a run: files of an earlier start are removed, and all rows kept from it are written
    again, so that a resumed run has every point once.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Open the files.

        Args:
            folder: of the event files; others in it are left alone.
            rows: of the log so far.
        """
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        for row in rows:
            self._add(row)
        self._writer.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append the scalars of one row of the log, and flush them to disk."""
        self._add(row)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()

    def _add(self, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, int(row["step"]))


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Iterate over the numbers of a row of metrics.jsonl as (name, value); nested names are joined by `/`."""
    for key, value in row.items():
        if key not in _CURVES:
            yield from _numbers(key, value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _CURVES:
                yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _numbers(f"{name}/{at}", inner)
