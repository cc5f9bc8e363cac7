"""Preserve a thread's alternate signal stack across calls into a library that replaces it and later frees it.

Python's handlers run on the alternate stack if there is one. OpenVINO (observed with 2026.4) leaves a pointer to a
freed stack, and the next signal, such as Ctrl-C, would end the process with a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int, int]:
    """Return address, flags and size in bytes of the calling thread's alternate signal stack; zeros if the system has
    none.
    """
    found = _Stack()
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.sp, found.flags, found.size


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Restore the calling thread's alternate signal stack on exit."""
    before = signal_stack()
    try:
        yield
    finally:
        if signal_stack() != before:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(*before)), None)
