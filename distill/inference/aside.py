"""Keep a finished store under another name until its successor is finished."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.core.atomic import discard, flush
from distill.inference.settings import settings_path
from distill.io.readers.zarr import zarr_node
from distill.io.writers.output import replaced

_FOLDERS = ("stream", "blocks")  # of the settings of stores that are made over a long time


def made_by(out: Path) -> dict[str, Any] | None:
    """Return how a finished store was made; None where it is not finished."""
    node = zarr_node(out)
    found = None if node is None else node[1].get("made_by")
    return found if isinstance(found, dict) else None


def is_unfinished(out: Path) -> bool:
    """Return whether a store was started but has no result."""
    return any(settings_path(out, folder).is_file() for folder in _FOLDERS) and made_by(out) is None


def set_aside(out: Path) -> None:
    """Keep a store, if there is one, until its successor is finished.

    Of two that could come back the finished one stays: a successor that was not finished goes where an earlier store is
    kept already.

    Args:
        out: the store.
    """
    if not os.path.lexists(out):
        return
    aside = replaced(out)
    if os.path.lexists(aside):
        if is_unfinished(out):
            discard(out)
            return
        discard(aside)
    os.rename(out, aside)
    flush(out.absolute().parent)


def take_back(out: Path) -> None:
    """Remove a store without completed work, and restore the store that it was to replace."""
    with suppress(OSError):  # the first error is the one to report
        discard(out)
        if os.path.lexists(replaced(out)) and not os.path.lexists(out):
            os.rename(replaced(out), out)


def forget_replaced(out: Path) -> None:
    """Remove the store kept so far."""
    with suppress(OSError):
        discard(replaced(out))
