"""Command line: parse options, call one function, convert errors to exit codes.

0 success, 1 internal error, 2 invalid input or usage, 130 interrupted. Heavy imports are inside the commands, so that
`distill --help` responds at once.
"""

from __future__ import annotations

import sys

import typer

# They register their commands:
from distill.cli import bench, data, evaluate, figures, fragments, init, plan, review, segment, sweep, train  # noqa: F401
from distill.cli.app import CommandInterrupted, app
from distill.cli.console import say_error
from distill.cli.stopping import leaving_at_once, say_how_to_continue, signals_end_the_command
from distill.core.allocator import keep_freed_memory, let_idle_threads_sleep
from distill.core.errors import DistillError
from distill.core.notes import LOGGER, Lines


def main() -> None:
    """Run the process's entry point."""
    with leaving_at_once():
        command()


def command() -> None:
    """Run the command of `sys.argv`; user errors become one line and exit code 2.

    Raises:
        SystemExit: always, unless the exit code is 0.
    """
    keep_freed_memory()
    let_idle_threads_sleep()
    lines = Lines(say_error)
    LOGGER.addHandler(lines)
    try:
        with signals_end_the_command():
            _run()
    finally:
        lines.finish()
        LOGGER.removeHandler(lines)


def _run() -> None:
    try:
        if app(standalone_mode=False, prog_name="distill") == 130:  # Ctrl-C before a command started
            _stopped("interrupted")
    except DistillError as error:
        _fail(str(error))
    except (CommandInterrupted, typer.Abort, KeyboardInterrupt) as stop:
        _stopped(str(stop) or "interrupted")
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            typer.echo(str(error), err=True)
            sys.exit(2)
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            _fail(error.format_message().replace("Value error, ", ""), error.exit_code)
        if (short := _memory(error)) is not None:
            _fail(short, 1)
        raise


def _memory(error: Exception) -> str | None:
    """Say which option makes a command take less memory; None if that is not what it lacks."""
    from distill.core.reasons import too_large

    said = too_large(error)
    less = {
        "stream": "stream with a smaller --tile N and --no-segment",
        "segment": "a smaller --block Z,Y,X, or fewer --workers",
        "train": "a smaller student.training.crop or student.training.batch",
        "finetune": "a smaller student.training.crop or student.training.batch",
    }
    given = next((less[word] for word in sys.argv[1:] if word in less), "a part of the volume by --sections or a box")
    return None if said is None else f"{said}; expected less at a time: {given}"


def _stopped(message: str) -> None:
    say_how_to_continue(app)
    _fail(message, 130)


def _fail(message: str, code: int = 2) -> None:
    typer.echo("distill: " + " ".join(message.split()), err=True)
    sys.exit(code)
