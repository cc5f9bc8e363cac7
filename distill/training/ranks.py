"""Rank of this process among those started by torchrun. The module does not import torch, for a fast command line."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distill.core.errors import DistillError


@dataclass(frozen=True)
class Ranks:
    """This process among the training processes.

    Attributes:
        rank: global number; rank 0 writes and prints.
        size: number of processes.
        local: number on this machine.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Return whether this process writes, validates and prints."""
        return self.rank == 0


def from_environment() -> Ranks:
    """Read the rank from the environment set by torchrun; a single process without it.

    Raises:
        DistillError: a variable set by torchrun is missing or not a number.
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
