"""Read arrays that lie in many files, one a chunk, and never take a chunk that is missing for an empty one unasked.

Tensorstore reads Zarr, N5 and precomputed. Files of CloudVolume, which gives the chunks of a precomputed volume on disk
the name of their compression (`0-64_0-64_0-64.gz`), are unpacked on the way.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import SourceError
from distill.core.notes import note
from distill.io.readers.array import Cut, Index, Reading, readable
from distill.io.readers.remote import Place, kvstore

_COUNTED = 2_000_000  # chunks; more are not looked for one by one
_ABSENT = re.compile(r"(chunk [^\n]* is missing)")


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of an array lie.

    Attributes:
        folder: of the array, with its metadata.
        spec: of tensorstore, without the place.
        name: for messages.
        files: gives the name of a chunk's file below the folder, by its number along each stored axis; None where
            chunks share files.
        counts: chunks along each stored axis.
        sparse: whether missing chunks are empty by the store's own word.
    """

    folder: Place
    spec: Mapping[str, Any]
    name: str
    files: Callable[[tuple[int, ...]], str] | None = None
    counts: tuple[int, ...] = ()
    sparse: bool = False


@contextmanager
def open_chunks(chunks: Chunks, turned: bool, reading: Reading) -> Iterator[Cut]:
    """Open an array for reading.

    Args:
        chunks: where they lie.
        turned: whether the axes are stored the other way round, x first.
        reading: what to do about chunks that are missing.
    """
    import tensorstore

    with readable(chunks.folder):

        def opened(fill: bool) -> Any:
            spec = {**chunks.spec, "kvstore": kvstore(chunks.folder), "fill_missing_data_reads": fill}
            return _from_zero(tensorstore.open(spec, open=True, read=True).result(), chunks)

        strict = opened(False)
        lenient: list[Any] = []
        said: list[str] = []

        def read(index: Index) -> Any:
            try:
                return np.asarray(strict[index].read().result())
            except ValueError as error:
                missing = _ABSENT.search(str(error))
                if missing is None:
                    raise
                said.extend([] if said else [lost_text(chunks, missing[1])])
                if reading.missing == "refuse" and not chunks.sparse:
                    raise SourceError(
                        f"{chunks.name}: {said[0]}; expected a whole copy, or --missing zero to read them as empty"
                    ) from None
                if reading.missing == "report" and not chunks.sparse:
                    note(f"{chunks.name}: {said[0]} and read as background")
            lenient.extend([] if lenient else [opened(True)])
            return np.asarray(lenient[0][index].read().result())

        yield (lambda index: read(index[::-1]).T) if turned else read


def _from_zero(store: Any, chunks: Chunks) -> Any:
    import tensorstore

    store = store[tensorstore.d[:].translate_to[0]]
    if chunks.spec["driver"] == "neuroglancer_precomputed" and store.shape[-1] == 1:
        store = store[..., 0]
    return store


def lost_text(chunks: Chunks, first: str) -> str:
    """Describe how many chunks are missing, where that can be counted; else which one was looked for."""
    count = math.prod(chunks.counts)
    if chunks.files is None or not isinstance(chunks.folder, Path) or count > _COUNTED:
        return re.sub(r"\s+", " ", first.split(" stored at ")[0]) + " is missing"
    there = stored_files(chunks.folder)
    places = itertools.product(*map(range, chunks.counts))
    lost = [name for name in map(chunks.files, places) if name not in there]
    return f"{len(lost):,} of {count:,} chunks are missing, such as {lost[0]}" if lost else first


def missing_chunks(chunks: Chunks) -> tuple[int, int] | None:
    """Count missing chunks, and those that there should be; None where that cannot be counted."""
    count = math.prod(chunks.counts)
    if chunks.files is None or not isinstance(chunks.folder, Path) or count > _COUNTED:
        return None
    there = stored_files(chunks.folder)
    places = itertools.product(*map(range, chunks.counts))
    return sum(name not in there for name in map(chunks.files, places)), count


def stored_files(folder: Path) -> set[str]:
    """Return files below a folder, by path from it."""
    found: set[str] = set()
    for path, _, names in os.walk(folder):
        way = os.path.relpath(path, folder)
        found.update(names if way == "." else (f"{way}/{name}" for name in names))
    return found


def chunk_counts(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """Return the chunks along each axis."""
    return tuple(-(-int(n) // int(c)) for n, c in zip(shape, chunk, strict=True))
