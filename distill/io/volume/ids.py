"""Read stored numbers as ids: what carries no label becomes 0 and is counted."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.known import UNKNOWN_ID
from distill.core.notes import count
from distill.io.readers.array import Cut, Opener

RESERVED_IDS = 4  # highest ids of 32 and 64 bits: invalid, outside, transparent (BigCAT, Paintera, CREMI)


@contextmanager
def open_ids(opener: Opener, ignore: int | None, source: str) -> Iterator[Cut]:
    """Open a volume's numbers as uint64 ids.

    Args:
        opener: of the stored numbers.
        ignore: stored number that reads as UNKNOWN; None for none.
        source: for messages.
    """
    with opener() as cut:
        yield lambda index: _ids(cut(index), ignore, source, tuple((part.start, part.stop) for part in index))


def _ids(block: NDArray[Any], ignore: int | None, source: str, at: Hashable) -> NDArray[np.uint64]:
    """Convert stored numbers to ids; marks of voxels without a label become 0 and are counted."""
    if block.dtype.kind == "b":
        ids = block.astype(np.uint64)
        reserved = np.zeros(block.shape, bool)
    elif block.dtype.kind == "f":
        kind, block = block.dtype, block.astype(np.float64, copy=False)  # float16 has no 2**53
        if not (np.isfinite(block).all() and (np.floor(block) == block).all() and np.abs(block).max(initial=0) < 2**53):
            bad = block[~(np.isfinite(block) & (np.floor(block) == block))]
            found = f"{bad.flat[0]:g}" if bad.size else f"{np.abs(block).max():g}"
            raise SourceError(f"labels must be integers: found {kind} with {found} in {source}")
        reserved = block < 0
        ids = np.where(reserved, 0, block).astype(np.uint64)
    else:
        limits = np.iinfo(block.dtype)
        reserved = block < 0 if limits.min < 0 else np.zeros(block.shape, bool)
        if limits.min == 0 and limits.bits >= 32:
            reserved = block > limits.max - RESERVED_IDS
        ids = block.astype(np.uint64)
    if reserved.any():
        ids[reserved] = 0
        counted = reserved if ignore is None else reserved & (block != ignore)
        number = int(np.count_nonzero(counted))
        count(f"{source}: {{}} voxels hold negative or reserved ids and count as background", number, (source, at))
    if ignore is not None:
        ids[block == ignore] = UNKNOWN_ID
    return ids
