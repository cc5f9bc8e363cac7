"""Settings of the process: freed memory is kept, and idle threads sleep.

The C library of Linux gives every array above 32 MB back to the system when it is freed, and the next one of that size
is filled page by page again. Networks free and allocate such arrays all the time: in training on a CPU a seventh of the
processor time went into it (docs/speed.md).

OpenMP's threads spin while they wait for work, so that processes that share cores take each other's time.
"""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2  # mallopt(3)
_MORE = 64 << 20  # bytes asked for at a time beyond what is needed
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def let_idle_threads_sleep() -> bool:
    """Let OpenMP's threads sleep while they wait, here and in processes that this one starts.

    It counts for libraries that are loaded afterwards: call it before torch is imported.

    Returns:
        Whether anything was changed: not where the user has set how threads wait by the environment.
    """
    if any(os.environ.get(name) for name in _WAITING):
        return False
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return True


def keep_freed_memory(*, whatever_is_set: bool = False) -> bool:
    """Let this process keep what it frees, up to its own peak.

    Args:
        whatever_is_set: the environment is not the user's: dask sets it for the workers that it starts.

    Returns:
        Whether anything was changed: not where the user has set the allocator by the environment, nor without glibc.
    """
    chosen = not whatever_is_set and any(os.environ.get(name) for name in _OWN)
    if chosen or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return all(mallopt(*pair) == 1 for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _MORE)))
