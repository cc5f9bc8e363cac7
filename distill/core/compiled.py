"""Compile loops over voxels and graphs with numba, at their first call.

The machine code is kept in `__pycache__` next to the source, or in the user's cache where that is read-only. Functions
release the interpreter's lock. Modules of compiled functions are imported inside the functions that call them, for
numba itself takes a second to import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

Compiled = TypeVar("Compiled", bound=Callable[..., object])


def compiled(function: Compiled) -> Compiled:
    """Compile a function for the types of each call, without a cache on disk where none can be written."""
    try:
        made: Compiled = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place to write a cache
        made = numba.njit(nogil=True)(function)
    return made
