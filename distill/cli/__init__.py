"""The command line: parse, call one function, turn our errors into an exit code.

0 done, 1 a failure inside, 2 wrong use, 130 interrupted. Everything heavy is imported inside the commands, so that
`distill --help` answers at once.
"""

from __future__ import annotations

import sys

import typer

# They register their commands:
from distill.cli import bench, data, evaluate, figures, segment, sweep, train  # noqa: F401
from distill.cli.app import Stopped, app
from distill.cli.stopping import leaving_at_once, say_how_to_continue, signals_end_the_command
from distill.core.allocator import keep_freed_memory, let_idle_threads_sleep
from distill.core.errors import DistillError


def main() -> None:
    """Entry point of the process."""
    with leaving_at_once():
        command()


def command() -> None:
    """Run the command of `sys.argv`: errors of the user become one line and exit code 2.

    Raises:
        SystemExit: always where the exit code is not 0.
    """
    keep_freed_memory()
    let_idle_threads_sleep()
    with signals_end_the_command():
        _run()


def _run() -> None:
    try:
        if app(standalone_mode=False, prog_name="distill") == 130:  # Ctrl-C before a command had begun
            _stopped("interrupted")
    except DistillError as error:
        _fail(str(error))
    except (Stopped, typer.Abort, KeyboardInterrupt) as stop:
        _stopped(str(stop) or "interrupted")
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            typer.echo(str(error), err=True)
            sys.exit(2)
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            _fail(error.format_message(), error.exit_code)
        raise


def _stopped(message: str) -> None:
    say_how_to_continue(app)
    _fail(message, 130)


def _fail(message: str, code: int = 2) -> None:
    typer.echo("distill: " + " ".join(message.split()), err=True)
    sys.exit(code)
