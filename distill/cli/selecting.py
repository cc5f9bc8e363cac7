"""Options that say which part of a source is read, given to every command that reads one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from distill.core.choices import MissingData
from distill.core.errors import DistillError

_OPTIONS = {
    "box": Annotated[
        str | None, typer.Option(metavar="Z,Y,X:Z,Y,X", help="only these voxels: from the first to one past the last")
    ],
    "channel": Annotated[int | None, typer.Option(min=0, help="channel to read, from 0")],
    "time": Annotated[int | None, typer.Option(min=0, help="time point to read, from 0")],
    "axes": Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="axes of the array in its own order, such as zyxc"),
    ],
    "missing": Annotated[
        MissingData | None,
        typer.Option(help="treatment of chunks that the file lacks: refuse them, or read them as zero"),
    ],
}

Command = Callable[..., None]


def selects(*sources: str) -> Callable[[Command], Command]:
    """Give a command `--box`, `--channel`, `--time`, `--axes` and `--missing`.

    Args:
        sources: its parameters that are sources; the first takes all options, the others `--missing` alone.
    """

    def wrap(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in _OPTIONS.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            from distill.io.selection import with_selection

            chosen = {name: given.pop(name) for name in _OPTIONS}
            if chosen["box"] is not None and given.get("sections") is not None:
                raise DistillError("--box: found --sections as well, expected one of them")
            first, *others = sources
            if given[first] is not None:
                given[first] = with_selection(given[first], **chosen)
            for name in others:
                if given[name] is not None:
                    given[name] = with_selection(given[name], missing=chosen["missing"])
            command(**given)

        own = [*signature.parameters.values(), *added]
        run.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in own} | {"return": None}
        del run.__wrapped__  # typer would look at the command itself
        return run

    return wrap
