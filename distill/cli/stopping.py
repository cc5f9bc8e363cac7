"""Stop commands on Ctrl-C and SIGTERM, at once on the second signal, and print the command that continues."""

from __future__ import annotations

import atexit
import ctypes
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from distill.core.signals import SIGNALS, Requests


@contextmanager
def signals_end_the_command() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, and let a second signal end the process immediately.

    Python calls its handlers between two of its own instructions. A thread therefore counts the signals: a second one
    also ends the process while a library computes. Several within half a second count as one, see
    `distill.core.signals`.

    Signals that the parent process ignores remain ignored. In other threads than the main one, nothing changes. Under
    torchrun, which forwards signals, no number of them ends a rank at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler in usual]
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        with nullcontext() if _is_one_of_many() else _second_ends_at_once(ours):
            yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


@contextmanager
def _second_ends_at_once(numbers: Sequence[int]) -> Iterator[None]:
    """End the process at the second request to stop, from a thread that is notified by the interpreter's C handler."""
    received, written = os.pipe()
    os.set_blocking(written, False)
    requests = Requests()

    def watch() -> None:
        while arrived := os.read(received, 64):
            for number in arrived:
                if number in numbers and requests.note() > 1:
                    end_by(number)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(written)
        watcher.join()
        os.close(received)


def end_by(number: int) -> None:
    """End this process by a signal, from any thread."""
    ctypes.CDLL(None).signal(number, None)  # the default; Python's own function works in the main thread alone
    os.kill(os.getpid(), number)


def _is_one_of_many() -> bool:
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process without freeing the memory of its libraries, which takes a second or more after torch.

    All other steps of a normal exit are performed: threads are joined and exit functions called, this one last because
    it is registered first.
    """
    code = 1

    def leave() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # the interpreter reports it as usual
            return
        os._exit(code)

    atexit.register(leave)
    try:
        yield
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
        raise


def continuing(application: typer.Typer, argv: Sequence[str]) -> str:
    """Return the command line that continues the interrupted command.

    Args:
        application: the commands.
        argv: arguments of the process.

    Returns:
        The same command, with `--resume` instead of `--overwrite` if the command supports it.
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
    """Print the command that continues to standard error."""
    typer.echo(f"continue with: {continuing(application, sys.argv)}", err=True)
