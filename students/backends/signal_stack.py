"""Keeps a thread's alternate signal stack over calls into a library that puts its own there and frees it later.

Python's handlers run on the alternate stack where there is one. OpenVINO (seen with 2026.4) leaves one behind that is
no longer there when the next signal comes: Ctrl-C would end the process with a segmentation fault.
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
    """Address, flags and bytes of the calling thread's alternate signal stack; zeros where the system has none."""
    found = _Stack()
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.sp, found.flags, found.size


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put the calling thread's alternate signal stack back in the end."""
    before = signal_stack()
    try:
        yield
    finally:
        if signal_stack() != before:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(*before)), None)
