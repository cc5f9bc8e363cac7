"""Settings recorded in a store when it is created, and their comparison on resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError
from distill.core.reasons import json_object, read_text, shown


def read_settings(store: Path, folder: str, command: str) -> dict[str, Any]:
    """Read the settings recorded in a store.

    Args:
        store: the store.
        folder: inside the store.
        command: command that writes such stores, for messages.

    Raises:
        SourceError: it is not a store of this command.
    """
    path = settings_path(store, folder)
    if not path.is_file():
        raise SourceError(f"{store}: found no {folder}/{path.name}, expected a store of distill {command}")
    found = json_object(path, read_text(path))
    for key in _REQUIRED.get(command, ()):
        if key not in found:
            raise SourceError(f"{path}: lacks {key!r}, expected the settings as distill {command} wrote them")
    for key, (right, expected) in _FORMS.items():
        if key in found and not right(found[key]):
            raise SourceError(f"{path}: found {key} {shown(found[key])}, expected {expected}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_threshold(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 1)


def _are(right: Callable[[Any], bool], *counts: int) -> Callable[[Any], bool]:
    """Return a test for a list of such values, of one of these lengths where any are given."""
    return lambda value: isinstance(value, list) and (not counts or len(value) in counts) and all(map(right, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("created", "source", "model", "device", "precision", "embedding"), (_is_text, "text")),
    **dict.fromkeys(("first", "parts", "channels", "batch", "depth"), (_is_count, "a whole number from 0")),
    **dict.fromkeys(("merge_threshold", "threshold"), (_is_threshold, "a number from 0 to 1")),
    **dict.fromkeys(("rows", "columns"), (_are(_are(_is_count, 2)), "pairs of whole numbers")),
    "sections": (lambda value: value is None or _is_count(value), "a whole number from 0, or null"),
    "backend": (lambda value: value is None or _is_text(value), "text"),
    "method": (lambda value: value is None or _is_text(value), "text"),
    "size": (_are(_is_count, 2, 3), "two or three whole numbers"),
    "resolution": (lambda value: _are(_is_number, 3)(value) and min(value) > 0, "three positive numbers"),
    "offset": (_are(_is_number, 3), "three numbers"),
    "offsets": (_are(_are(_is_whole, 3)), "triples of whole numbers"),
    "segment": (lambda value: isinstance(value, bool), "true or false"),
    "on_bad": (lambda value: isinstance(value, dict) and all(map(_is_text, value.values())), "a text for each kind"),
    "rescaled": (lambda value: value is None or isinstance(value, dict), "an object, or null"),
}
_REQUIRED = {
    "stream": (
        *("source", "model", "precision", "backend", "sections", "resolution", "offset", "offsets", "embedding"),
        *("segment", "depth", "parts", "on_bad", "merge_threshold"),
    ),
    "segment": ("created", "source", "model", "depth", "rows", "columns", "threshold"),
}


def settings_path(store: Path, folder: str) -> Path:
    """Return the path of the settings file."""
    return store / folder / "job.json"


def check_settings(store: Path, begun: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> None:
    """Check that a store is resumed with the settings that it was created with.

    Args:
        store: for messages.
        begun: recorded settings.
        now: current settings.
        free: settings that may differ, because they do not affect results already written.

    Raises:
        SourceError: a setting differs.
    """
    every = begun.keys() | now.keys()
    for key in sorted(every, key=lambda name: (name != "rescaled", name)):  # other settings follow from it
        if key not in free and begun.get(key) != now.get(key):
            raise SourceError(
                f"{store}: was begun with {key} {_shown(begun.get(key))}, found {_shown(now.get(key))}; "
                "expected the same, or --overwrite to start again"
            )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "..."
