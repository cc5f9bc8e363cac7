"""Write a volume block by block into the arrays of a pyramid through tensorstore.

Memory: two blocks of the volume, or one block of a level and the data that it is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from distill.core.geometry import Box, Triple, grid
from distill.io.readers.remote import Place, kvstore
from distill.io.volume import Volume
from distill.io.writers.metadata import Layout, Written, block_step
from distill.io.writers.store import writing

BLOCK_BYTES = 64 * 2**20
_COARSE_BYTES = 8 * 2**20  # bytes of a block of a coarser level, which is computed from up to eight times as much data

OnBlock = Callable[[int, int], None]


@dataclass(frozen=True)
class OpenLevel:
    """An array open for writing.

    Attributes:
        chunk: extent of the writing unit, z, y, x.
        whole: its voxels in its own grid.
        limit: bytes written at a time, unless a chunk is larger.
    """

    chunk: Triple
    whole: Box
    limit: int
    _store: Any = field(repr=False, compare=False)


def open_levels(place: Place, plan: Layout, written: Written, first: int = 0) -> list[OpenLevel]:
    """Open the levels of a pyramid for writing in a folder that contains none of them; writes no metadata.

    Args:
        place: the folder.
        plan: layout of the pyramid.
        written: the pyramid.
        first: first level to open.

    Raises:
        SourceError: tensorstore cannot open a level.
    """
    import tensorstore

    found = []
    with writing(written.name):
        for k in range(first, len(written.levels)):
            spec, path, level = plan.specs[k], plan.paths[k], written.levels[k]
            folder = place / path if path else place
            # Chunks of zeros are written, too: what is missing is then known to be missing.
            more = {"store_data_equal_to_fill_value": True}
            store = tensorstore.open(
                {**spec, **more, "kvstore": kvstore(folder)}, open=True, read=True, write=True, assume_metadata=True
            ).result()
            found.append(_open_level(_turned(store, plan, written.channels), level.start, level.size, k))
    return found


def reopen_level(store: Any) -> OpenLevel:
    """Open a level of an existing array: a tensorstore of z, y, x or c, z, y, x that starts at 0."""
    z, y, x = store.shape[-3:]
    return _open_level(store, (0, 0, 0), (z, y, x), 0)


def count_blocks(levels: Sequence[OpenLevel], written: Written) -> int:
    """Count the blocks in which levels are written."""
    return sum(len(_blocks(level, written)) for level in levels)


def copy_volume(source: Volume, finest: OpenLevel, written: Written, on_block: Callable[[], None]) -> None:
    """Write a volume; the next block is read while the previous one is written.

    Args:
        source: volume of the finest level's size.
        finest: destination.
        written: description of the pyramid.
        on_block: called after each block.

    Raises:
        SourceError: a part cannot be read or written.
    """
    origin = finest.whole.start
    pending: Any = None
    try:
        with source.reading() as read:
            for box in _blocks(finest, written):
                block = np.ascontiguousarray(read(box.relative_to(origin)), written.dtype)
                _wait(pending, written, on_block)
                with writing(written.name):
                    pending = finest._store[(..., *box.slices)].write(block)
        _wait(pending, written, on_block)
    except BaseException:
        if pending is not None:
            pending.exception()  # all writes have ended before the caller cleans up
        raise


def _wait(pending: Any, written: Written, on_block: Callable[[], None]) -> None:
    if pending is not None:
        with writing(written.name):
            pending.result()
        on_block()


def coarsen(levels: Sequence[OpenLevel], written: Written, on_block: Callable[[], None]) -> None:
    """Compute the coarser levels, each from the previous one.

    Args:
        levels: finest first; the finest is complete.
        written: description of the pyramid; labels and booleans take the most frequent value.
        on_block: called after each block.

    Raises:
        SourceError: a part cannot be read or written.
    """
    import tensorstore

    method: Literal["mode", "mean"] = "mode" if written.labels or written.dtype.kind == "b" else "mean"
    for k in range(1, len(levels)):
        step = [1] * (0 if written.channels is None else 1) + list(written.levels[k].step)
        view = tensorstore.downsample(levels[k - 1]._store, step, method)
        for box in _blocks(levels[k], written):
            with writing(written.name):
                index = (..., *box.slices)
                levels[k]._store[index].write(view[index].read().result()).result()
            on_block()


def _open_level(store: Any, start: Triple, size: Triple, k: int) -> OpenLevel:
    z, y, x = store.chunk_layout.write_chunk.shape[-3:]
    whole = Box.of_shape(size).shift(start)
    return OpenLevel((z or size[0], y or size[1], x or size[2]), whole, _COARSE_BYTES if k else BLOCK_BYTES, store)


def _turned(store: Any, plan: Layout, channels: int | None) -> Any:
    """Return the store with axes z, y, x or c, z, y, x."""
    if not plan.reverse:
        return store
    turned = store.T
    return turned[0] if turned.rank == 4 and channels is None else turned


def _blocks(level: OpenLevel, written: Written) -> list[Box]:
    voxel = written.dtype.itemsize * (written.channels or 1)
    return grid(level.whole, block_step(level.chunk, level.whole.shape, voxel, level.limit))
