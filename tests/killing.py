"""A process that dies at any of its own file operations, in this process, so that thousands of deaths are cheap.

From the moment of death on every operation that would change a file fails, so that no cleanup that a real process
would not have done is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_OPERATIONS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "remove")


class Killed(BaseException):
    """The process is no more."""


class Killer:
    """Counts operations that change files, and ends the process at one of them."""

    def __init__(self, at: int) -> None:
        """End at operation `at`, counted from 0; never at -1."""
        self.at, self.count, self.dead = at, 0, False

    def step(self) -> None:
        """Count an operation that is about to be done."""
        self.dead = self.dead or self.count == self.at
        self.count += 1
        if self.dead:
            raise Killed


@contextmanager
def killed_at(at: int) -> Iterator[Killer]:
    """Within the block, die at operation `at`."""
    killer = Killer(at)
    with pytest.MonkeyPatch.context() as patch:
        for name in _OPERATIONS:
            patch.setattr(os, name, _counted(killer, getattr(os, name)))
        yield killer


def _counted(killer: Killer, done: Callable[..., Any]) -> Callable[..., Any]:
    def operation(*given: Any, **named: Any) -> Any:
        killer.step()
        return done(*given, **named)

    return operation
