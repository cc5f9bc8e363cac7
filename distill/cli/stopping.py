"""Ctrl-C and SIGTERM: end what runs, at once with the second one, and print the command that continues."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_end_the_command() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is, and let a second signal end the process whatever it does.

    Signals that the parent process has set to be ignored stay so. Only the main thread can do this; elsewhere nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler in usual]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def continuing(application: typer.Typer, argv: Sequence[str]) -> str:
    """The command line that continues what was interrupted.

    Args:
        application: the commands.
        argv: as the process was called.

    Returns:
        The same command, with `--resume` in place of `--overwrite` where the command has it.
    """
    name = Path(argv[0]).name if argv else ""
    start = ["python", "-m", "distill"] if name == "__main__.py" else ["distill"]
    words = list(argv[1:])
    command: Any = typer.main.get_command(application)
    for word in argv[1:]:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command = command.commands[word]
    options = {option for parameter in command.params for option in parameter.opts}
    if "--resume" in options:
        words = [word for word in words if word not in ("--overwrite", "--resume")] + ["--resume"]
    return shlex.join([*start, *words])


def say_how_to_continue(application: typer.Typer) -> None:
    """Print the command that continues, on standard error."""
    typer.echo(f"continue with: {continuing(application, sys.argv)}", err=True)
