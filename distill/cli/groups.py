"""Groups of options that commands share: a command takes a dataclass, whose fields are its options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

Command = Callable[..., None]
_NAMED = inspect.Parameter.KEYWORD_ONLY


def grouped(command: Command) -> Command:
    """Replace every parameter of a command that is a dataclass by its fields, as options of the same names.

    Args:
        command: its other parameters are as Typer takes them; every field of the dataclasses is annotated with a
            `typer.Option`.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        group = parameter.annotation
        if not (isinstance(group, type) and is_dataclass(group)):
            parameters.append(parameter.replace(kind=_NAMED))
            continue
        hints = get_type_hints(group, include_extras=True)
        groups[parameter.name] = group, [field.name for field in fields(group)]
        for field in fields(group):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            option = parameter.replace(name=field.name, kind=_NAMED, default=default, annotation=hints[field.name])
            parameters.append(option)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: group(**{field: given.pop(field) for field in own}) for name, (group, own) in groups.items()}
        command(**given, **made)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    del run.__wrapped__  # typer would look at the command itself
    return run
