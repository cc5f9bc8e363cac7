"""Process settings that keep freed memory and let idle OpenMP threads sleep.

glibc returns every array above 32 MB to the system when it is freed, and the next array of that size is mapped page by
page again. Networks allocate and free such arrays constantly; in training on a CPU, this took a seventh of the
processor time (docs/results/speed.md).

OpenMP threads spin while they wait for work, so processes on the same cores take processor time from each other.
"""

from __future__ import annotations

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2  # mallopt(3)
_MORE = 64 << 20  # bytes requested from the system in excess of the need
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def let_idle_threads_sleep() -> bool:
    """Let OpenMP threads sleep while they wait, in this process and in its child processes.

    The setting affects libraries loaded later: call this before torch is imported.

    Returns:
        Whether the setting was changed; False if the user has set the wait policy in the environment.
    """
    if any(os.environ.get(name) for name in _WAITING):
        return False
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return True


def keep_freed_memory(*, whatever_is_set: bool = False) -> bool:
    """Let this process keep the memory it frees, up to its own peak.

    Args:
        whatever_is_set: ignore existing environment settings; dask sets them for the workers that it starts.

    Returns:
        Whether the setting was changed; False if the user has set the allocator in the environment, or without glibc.
    """
    chosen = not whatever_is_set and any(os.environ.get(name) for name in _OWN)
    if chosen or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return all(mallopt(*pair) == 1 for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _MORE)))
