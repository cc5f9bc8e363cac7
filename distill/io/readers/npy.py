"""Read NumPy files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.memory import check_memory
from distill.io.readers.array import Cut, Reading, StoredArray, missing_dataset, no_dataset, placement, plain, readable


@contextmanager
def _open_npy(path: Path, _reading: Reading) -> Iterator[Cut]:
    with readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        yield lambda index: np.array(mapped[index])


def columns(file: Any, **kinds: str) -> list[NDArray[Any]]:
    """Read the arrays of a table that an NPZ file holds.

    Args:
        file: open NPZ file.
        kinds: allowed NumPy kinds of the type by name of the array.

    Returns:
        The arrays in the order of the names.

    Raises:
        ValueError: an array is no column of such a type, or they differ in length.
    """
    found = [file[name] for name in kinds]
    for name, column in zip(kinds, found, strict=True):
        if column.ndim != 1 or column.dtype.kind not in kinds[name]:
            raise ValueError(f"its table holds {name} of shape {column.shape} and type {column.dtype.name}")
        if len(column) != len(found[0]):
            raise ValueError(f"its table holds {len(found[0])} of {next(iter(kinds))} and {len(column)} of {name}")
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise ValueError(f"its table holds {name} that are no numbers")
    return found


def load_npy(path: Path, dataset: str | None) -> StoredArray:
    """Read the header of an NPY file."""
    no_dataset(path, dataset)
    with readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = tuple(mapped.shape), mapped.dtype.newbyteorder("=")
    return StoredArray(str(path), None, "npy", shape, dtype, None, None, {}, partial(_open_npy, path))


@contextmanager
def _open_npz(path: Path, dataset: str, _reading: Reading) -> Iterator[Cut]:
    with readable(path), np.load(path, allow_pickle=False) as file:
        array = file[dataset]
        yield lambda index: np.array(array[index])


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any], bool]]:
    """Read shape, type and compression of each key from the headers alone."""
    headers = {}
    with readable(path), zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            with archive.open(item) as member:
                major, _ = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            if math.prod(shape) * dtype.itemsize > item.file_size:
                raise SourceError(
                    f"{path}: {item.filename} is cut off: found {item.file_size:,} bytes for {shape} {dtype}"
                )
            check_memory(f"{path}:{item.filename}", "the array, which is unpacked in one piece,", shape, dtype)
            headers[item.filename.removesuffix(".npy")] = shape, dtype, item.compress_type != zipfile.ZIP_STORED
    return headers


def npz_ranks(path: Path) -> dict[str, int]:
    """Return the rank of every array of an NPZ file, by key, except resolution and offset."""
    headers = _npz_headers(path)
    return {
        name: len(shape) for name, (shape, _, _) in headers.items() if name not in ("resolution", "offset", "units")
    }


def load_npz(path: Path, dataset: str | None) -> StoredArray:
    """Read the header of an array of an NPZ file."""
    headers = _npz_headers(path)
    name = dataset or ""
    if name not in headers:
        raise missing_dataset(path, name, list(headers))
    shape, dtype, compressed = headers[name]
    with readable(path), np.load(path, allow_pickle=False) as file:
        keys = ("resolution", "voxel_size", "offset", "units")
        attributes = {key: plain(file[key]) for key in keys if key in headers and key != name}
    return StoredArray(
        f"{path}:{name}",
        name,
        "npz",
        shape,
        dtype.newbyteorder("="),
        *placement(attributes),
        attributes,
        partial(_open_npz, path, name),
        shape,
        "deflate" if compressed else None,
    )
