"""Load and validate the configuration of a pair from YAML files and `KEY=VALUE` overrides.

Unknown keys are errors that suggest the nearest known key.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from distill.config.networks import TeacherConfig
from distill.config.pair import Pair, StudentConfig
from distill.core.errors import ConfigError, SourceError
from distill.core.reasons import json_kind, read_yaml

_NUMBERS = re.compile(r"\s*-?[\d.]+(\s*,\s*-?[\d.]+)+\s*")  # 6,96,96 as in options of the command line
_GROUP = r"Input should be a valid dictionary(?: or (?:instance|object) .*)?$"


def load_pair(teacher: str | Path, student: str | Path, overrides: Sequence[str] = ()) -> Pair:
    """Read, override and validate both files.

    Args:
        teacher: teacher.yaml.
        student: student.yaml.
        overrides: `teacher.KEY=VALUE` or `student.KEY=VALUE`, nested keys with dots, values as YAML, or numbers
            separated by commas.

    Raises:
        ConfigError: a file is missing or not a mapping, a key is unknown (the nearest known one is suggested), or a
            value is invalid.
    """
    names, files = {"teacher": str(teacher), "student": str(student)}, (Path(teacher), Path(student))
    values = dict(zip(names, map(_read, files), strict=True))
    return checked_pair(with_overrides(values, overrides, names), names)


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Apply overrides to the values of both files, check their keys, and expand environment variables.

    Args:
        values: under `teacher` and `student`; not modified.
        overrides: `teacher.KEY=VALUE` or `student.KEY=VALUE`, nested keys with dots, values as YAML.
        names: names of the two files, for messages.

    Raises:
        ConfigError: a key is unknown (the nearest known one is suggested), or a value is not YAML.
    """
    found: dict[str, Any] = copy.deepcopy(dict(values))
    for text in overrides:
        try:
            _override(found, text)
        except ConfigError as error:
            file = names.get(text.partition(".")[0])
            raise ConfigError(f"{error} (in {file})" if file else str(error)) from None
    _known_keys(found["teacher"], TeacherConfig, names["teacher"], "")
    _known_keys(found["student"], StudentConfig, names["student"], "")
    expanded: dict[str, Any] = _expand(found)
    return expanded


def older_defaults(student: Path) -> list[str]:
    """Return overrides that give keys missing from an older resolved student.yaml the meaning they had in that version.

    Raises:
        ConfigError: the file is missing or not a mapping.
    """
    data = _read(student).get("data")
    known = isinstance(data, dict) and "normalisation" in data
    return [] if known else ["student.data.normalisation=none"]


def checked_pair(values: Mapping[str, Any], names: Mapping[str, str]) -> Pair:
    """Build and validate a pair from the values of both files.

    Args:
        values: under `teacher` and `student`.
        names: names of the two files, for messages.

    Raises:
        ConfigError: a value is invalid, or values are incompatible.
    """
    try:
        return Pair.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, names)) from None


def dump(config: BaseModel) -> str:
    """Format the resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path)
    except SourceError as error:
        raise ConfigError(str(error)) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found {json_kind(found)}, expected a mapping of keys")
    return found


def _override(found: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    part, dot, rest = key.partition(".")
    if not equals or not dot or part not in found:
        raise ConfigError(f"{text}: expected teacher.KEY=VALUE or student.KEY=VALUE")
    node = found[part]
    *path, last = rest.split(".")
    for step in path:
        if isinstance(node, list):  # entries by number
            if not step.isdecimal() or int(step) >= len(node):
                raise ConfigError(f"{text}: found {step!r}, expected a number below {len(node)}")
            node = node[int(step)]
        else:
            node = node.setdefault(step, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"{text}: {step!r} holds a value, not a group of keys")
    if isinstance(node, list):
        raise ConfigError(f"{text}: {path[-1]!r} holds a list, expected a number and a key of its entries")
    try:
        node[last] = yaml.safe_load(f"[{value}]" if _NUMBERS.fullmatch(value) else value)
    except yaml.YAMLError:
        raise ConfigError(f"{text}: the value is not YAML") from None


def _known_keys(values: Any, model: type[BaseModel], where: str, prefix: str) -> None:
    if isinstance(values, list):  # of groups of keys
        for number, entry in enumerate(values):
            _known_keys(entry, model, where, f"{prefix}{number}.")
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        field = model.model_fields.get(str(key))
        if field is None:
            known = list(_all_keys(model))
            leaves = [name for name in known if name.rpartition(".")[2] == str(key)]
            near = leaves or difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"expected one of {sorted(model.model_fields)}"
            raise ConfigError(f"{where}: unknown key {prefix + str(key)!r}; {hint}")
        inner = _model_of(field.annotation)
        if inner is not None:
            _known_keys(value, inner, where, f"{prefix}{key}.")


def _all_keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        inner = _model_of(field.annotation)
        if inner is not None:
            yield from (f"{name}.{key}" for key in _all_keys(inner))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any) -> Any:
    """Expand environment variables in strings: `${NAME}` or `${NAME:-default}`."""
    if isinstance(value, dict):
        return {key: _expand(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner) for inner in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        filled = os.environ.get(match[1], match[2])
        if filled is None:
            raise ConfigError(f"{value}: the environment variable {match[1]} is not set")
        return filled

    return _VARIABLE.sub(fill, value)


def _explain(error: ValidationError, names: Mapping[str, str]) -> str:
    first = error.errors()[0]
    part, *rest = [str(step) for step in first["loc"]] or ["pair"]
    key = ".".join(rest)
    message = re.sub(_GROUP, "Input should be a group of keys", first["msg"].removeprefix("Value error, "))
    message = message.replace("a valid tuple", "a list")
    if part not in names:
        return f"{names['teacher']} with {names['student']}: {message}"
    found = f", found {first['input']!r}" if key and first["type"] not in ("missing", "value_error") else ""
    return f"{names[part]}: {key + ': ' if key else ''}{message}{found}"
