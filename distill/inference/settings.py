"""Settings recorded in a store when it is created, and their comparison on resume."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError
from distill.io.readers.array import readable


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
    with readable(path):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise SourceError(f"{path}: found {type(found).__name__}, expected an object")
    return found


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
