"""A finished store stays, under another name, until its successor is finished."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replaced(out: Path) -> Path:
    """Where the store is that another is to replace."""
    return out.with_name(out.name + ".replaced")


def set_aside(out: Path, *, unfinished: bool) -> None:
    """Keep a store until its successor is finished.

    Args:
        out: the store.
        unfinished: whether it is itself a successor that was not finished: then the one kept aside stays instead.
    """
    aside = replaced(out)
    if aside.exists() and unfinished:
        shutil.rmtree(out)
        return
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(out, aside)


def take_back(out: Path) -> None:
    """Remove a store in which nothing is done; what it was to replace comes back."""
    shutil.rmtree(out, ignore_errors=True)
    if replaced(out).exists() and not out.exists():
        os.rename(replaced(out), out)


def forget_replaced(out: Path) -> None:
    """Remove what was kept aside until now."""
    shutil.rmtree(replaced(out), ignore_errors=True)
