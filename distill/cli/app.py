"""The typer application that all commands are registered with."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from distill.core.claim import Taken, claim
from distill.core.errors import SourceError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class CommandInterrupted(Exception):
    """A KeyboardInterrupt that typer would turn into an exit without its message."""


class CommandGroup(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise CommandInterrupted(str(stop)) from stop


class ClaimingCommand(TyperCommand):
    """A command that holds the name of what it writes, so that no other process writes it at the same time."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; one that claims its output itself, or has none, is left to it."""
        ctx.params.update({name: _expanded(value) for name, value in ctx.params.items()})
        out = ctx.params.get("out")
        if self.name in _CLAIM_THEMSELVES or not isinstance(out, Path):
            return super().invoke(ctx)
        with ExitStack() as stack:
            try:
                stack.enter_context(claim(out))
            except Taken:
                raise
            except SourceError:  # a place that cannot be written to; the command reports it in its own words
                pass
            return super().invoke(ctx)


def _expanded(value: Any) -> Any:
    """Return a value of the command line with the home folder for a leading `~`, which no shell expands in
    `--out=~/x`; a path that exists as it is written is left alone.
    """
    if isinstance(value, list | tuple):
        return type(value)(_expanded(one) for one in value)
    if not isinstance(value, str | Path) or not str(value).startswith("~") or os.path.lexists(value):
        return value
    return type(value)(os.path.expanduser(value))


class App(typer.Typer):
    """Commands of the kind `ClaimingCommand`."""

    def command(self, *given: Any, **named: Any) -> Callable[[_Function], _Function]:
        """Register a command, as `typer.Typer.command` does."""
        return super().command(*given, **{"cls": ClaimingCommand, **named})


# Some share their output, or wait for others.
_CLAIM_THEMSELVES = ("stream", "segment", "finish", "train", "finetune", "get")

app = App(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a 3D affinity teacher into a fast 2D student and segment neurons on streams of EM sections.",
)


def _versions(asked: bool) -> None:
    if asked:
        from distill.cli.versions import version_lines

        for line in version_lines():
            typer.echo(line)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_versions, is_eager=True, help="print versions, device and precision"),
    ] = False,
) -> None:
    """Distil a 3D affinity teacher into a fast 2D student and segment neurons on streams of EM sections."""
