"""Options of `distill segment` that `distill stream` does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.core.geometry import Triple

Network = Literal["student", "teacher"]
Method = Literal["flood", "query", "waterz", "mws"]


def merges_contacts(method: str) -> bool:
    """Whether supervoxels are joined at the end, by the contacts of the whole volume, and not inside blocks."""
    return method in ("flood", "query")


def compares_tiles(method: str) -> bool:
    """Whether instances of overlapping tiles are joined by the voxels that they share."""
    return method == "query"


@dataclass(frozen=True)
class Blocking:
    """How a volume is divided into blocks, and who processes them."""

    block: Triple | None = None  # voxels; None: the decoder's depth and 1024 x 1024
    workers: int = 0
    scheduler: str | None = None
    retries: int = 2
    resume: bool = False
