"""Which of the processes that torchrun started this one is. Light: the command line asks before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distill.core.errors import DistillError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number among all, 0 writes and prints.
        size: how many there are.
        local: its number on this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, validates and prints."""
        return self.rank == 0


def from_environment() -> Ranks:
    """What torchrun put into the environment; one process alone where it did not start this one.

    Raises:
        DistillError: a variable that torchrun sets is missing or no number.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        found = os.environ.get(name, "")
        if not found.isdecimal():
            raise DistillError(f"{name}: found {found!r} in the environment, expected the number that torchrun sets")
        numbers.append(int(found))
    return Ranks(*numbers)
