"""Names that a store's metadata give to its parts, none of which may lead out of the store."""

from __future__ import annotations

from typing import Any

from distill.core.errors import SourceError


def inner_path(store: object, name: Any) -> str:
    """Check a path that metadata name.

    Args:
        store: for messages.
        name: of a part of the store, with `/` between folders.

    Returns:
        The path without slashes at its ends; empty for the store itself, which some metadata call `.` or nothing.

    Raises:
        SourceError: it is no text, absolute, or climbs out of the store.
    """
    if not isinstance(name, str):
        raise SourceError(f"{store}: its metadata name a part {name!r}, expected a path as text")
    if name in ("", ".", "./"):
        return ""
    parts = name.rstrip("/").removeprefix("./").split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise SourceError(f"{store}: its metadata name a part {name!r}, expected a path inside it")
    return "/".join(parts)
