"""Refuse sizes that do not fit in memory before memory is taken: a damaged or hostile header may claim any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import SourceError
from distill.core.reasons import shown

_SHARE = 0.8  # of the memory that is free


def check_memory(name: str, what: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Make sure that an array can be held.

    Args:
        name: of the source, for messages.
        what: of it, such as `a chunk`.
        shape: of the array.
        dtype: of the array.

    Raises:
        SourceError: it would take more than four fifths of the memory that is free.
    """
    needed = math.prod(int(n) for n in shape) * dtype.itemsize
    if needed < 2**26:  # bytes; not worth a look
        return
    free = free_memory()
    if free is not None and needed > _SHARE * free:
        raise SourceError(
            f"{name}: {what} of shape {shown(list(shape))} {dtype} takes {_gigabytes(needed)}, expected at most "
            f"{_gigabytes(int(_SHARE * free))}, what is free on this machine"
        )


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number < 10**18 else "more than 1,000,000,000 GB"


def free_memory() -> int | None:
    """Return the free bytes of this machine or container; None if the system does not report them."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return max(min(found), 0) if found else None
