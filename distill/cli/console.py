"""What commands print: lines, progress, and the record beside an output."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import typer

from distill.errors import DistillError


def say(text: str) -> None:
    typer.echo(text)


def say_error(text: str) -> None:
    typer.echo(text, err=True)


def took(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


class Recorded:
    """run.json beside an output: command, versions, what was done, seconds."""

    def __init__(self, out: Path) -> None:
        if not out.name:
            raise DistillError(f"--out: found {str(out)!r}, expected a path with a name of its own")
        self.path = out.with_name(out.name + ".run.json")
        self.values: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        self.began, self.started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return self.values

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            return
        seconds = round(time.perf_counter() - self.began, 2)
        record = {"command": sys.argv, "started": self.started, "seconds": seconds, **self.values}
        temporary = self.path.with_name(self.path.name + ".writing")
        try:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as failed:
            raise DistillError(f"{self.path}: cannot be written: {failed.strerror or failed}") from None


class Bar:
    """Progress with rate and time left; plain lines when the output is no terminal."""

    def __init__(self, unit: str, *, shown: bool = True) -> None:
        self.terminal = shown and sys.stderr.isatty()
        self.unit, self.began, self.shown, self.first = unit, time.perf_counter(), 0.0, -1
        self.first_lines: tuple[str, ...] = ()
        self.progress: Any = None
        self.task: Any = None

    def __enter__(self) -> Bar:
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self.progress = Progress(*columns, console=Console(stderr=True))
            self.progress.start()
            self.task = self.progress.add_task(self.unit, total=None, note="")
        return self

    def head(self, *lines: str) -> None:
        """Set lines to print before the first progress: not at all where an error comes first."""
        self.first_lines = lines

    def _begin(self) -> None:
        lines, self.first_lines = self.first_lines, ()
        for text in lines:
            self.line(text)

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._begin()
        if self.progress is not None:
            self.progress.stop()

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Show that `done` of `total` are finished; of a number that is not known yet if it is None."""
        self._begin()
        now = time.perf_counter()
        if self.first < 0:
            self.first, self.began = done, now
        rate = (done - self.first) / (now - self.began) if done > self.first else 0.0
        text = f"{rate:.2f} {self.unit}/s {note}".rstrip()
        if self.progress is not None:
            self.progress.update(self.task, completed=done, total=total, note=text)
        elif now - self.shown > 10 or done == total:
            left = f", {(total - done) / rate:.0f} s left" if total is not None and rate and done < total else ""
            typer.echo(f"{done}/{'?' if total is None else total} {text}{left}", err=True)
            self.shown = now

    def line(self, text: str) -> None:
        """A line above the bar."""
        (self.progress.console.print if self.progress is not None else say_error)(text)
