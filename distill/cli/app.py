"""The typer application that all commands are registered with."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class Stopped(Exception):
    """A KeyboardInterrupt that typer would turn into an exit without its message."""


class Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(str(stop)) from stop


app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distil a 3D affinity teacher into a fast 2D student and segment neurons on streams of EM sections.",
)
