"""Output of commands: lines, progress, and the run record next to an output."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import typer

from distill.core.atomic import replacing
from distill.core.errors import DistillError
from distill.core.pace import rate, span


def say(text: str) -> None:
    typer.echo(text)


def say_error(text: str) -> None:
    typer.echo(text, err=True)


def took(began: float) -> str:
    return f"{time.perf_counter() - began:.1f} s"


class Recorded:
    """run.json next to an output: command, versions, results, seconds."""

    def __init__(self, out: Path, part: str | None = None) -> None:
        """Name the file.

        Args:
            out: the output.
            part: I/N, where several processes make one output: each has a record of its own.
        """
        if not out.name:
            raise DistillError(f"--out: found {str(out)!r}, expected a path with a name of its own")
        own = "" if part is None else f".range-{part.replace('/', '-of-')}"
        self.path = out.with_name(f"{out.name}{own}.run.json")
        self.values: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        self.began, self.started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return self.values

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            return
        seconds = round(time.perf_counter() - self.began, 2)
        record = {"command": sys.argv, "started": self.started, "seconds": seconds, **self.values}
        try:
            with replacing(self.path, alone=False) as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as failed:
            raise DistillError(f"{self.path}: cannot be written: {failed.strerror or failed}") from None


class Bar:
    """Progress with rate and time left; plain lines if the output is not a terminal."""

    def __init__(self, unit: str, *, shown: bool = True) -> None:
        self.terminal = shown and sys.stderr.isatty()
        self.unit, self.began, self.before, self.shown = unit, time.perf_counter(), 0, -math.inf
        self.first_lines: tuple[str, ...] = ()
        self.progress: Any = None
        self.task: Any = None

    def __enter__(self) -> Bar:
        if self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self.progress = Progress(*columns, console=Console(stderr=True))
            self.progress.start()
            self.task = self.progress.add_task(self.unit, total=None, note="")
        return self

    def head(self, *lines: str) -> None:
        """Set lines to print before the first progress; they are not printed if an error occurs first."""
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

    def start(self, done: int, total: int | None) -> None:
        """Start with the work already done by earlier processes; the rate counts from this point."""
        self._begin()
        self.began, self.before = time.perf_counter(), done
        if self.progress is not None:
            self.progress.update(self.task, completed=done, total=total, note="")

    def update(self, done: int, total: int | None, note: str = "", *, left: float | None = None) -> None:
        """Show the progress.

        Args:
            done: finished items, including those of earlier processes.
            total: total number; None if unknown.
            note: shown after the rate.
            left: remaining seconds, if the caller has a better estimate than the rate so far.
        """
        self._begin()
        now = time.perf_counter()
        text = pace_text(
            done - self.before, now - self.began, self.unit, note, None if total is None else total - done, left
        )
        if self.progress is not None:
            self.progress.update(self.task, completed=done, total=total, note=text)
        elif now - self.shown > 10 or done == total:
            typer.echo(f"{done}/{'?' if total is None else total} {text}".rstrip(), err=True)
            self.shown = now

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self.progress is not None:
            self.progress.console.print(text, markup=False, highlight=False)
        else:
            say_error(text)


def pace_text(
    done: int, seconds: float, unit: str, note: str = "", to_do: int | None = None, left: float | None = None
) -> str:
    """Format rate and time left, as far as known.

    Args:
        done: items finished in this process.
        seconds: elapsed time.
        unit: plural name of the items.
        note: shown after the rate.
        to_do: number of unfinished items; None if unknown.
        left: remaining seconds, if the caller has a better estimate than the rate so far.
    """
    parts = [" ".join(part for part in (rate(done, seconds, unit) or unit, note) if part)]
    if to_do == 0:
        parts.append(f"in {span(seconds)}" if done > 0 else "")
    elif left is not None:
        parts.append(f"{span(left)} left")
    elif to_do is not None and done > 1:  # the first one includes the start-up time
        parts.append(f"{span(to_do * seconds / done)} left")
    return ", ".join(part for part in parts if part)
