"""Which reader a source needs; the readers of HDF5 and NumPy files.

A source is `path[:dataset]`. Only headers are read here; an array's `opener` cuts parts out of it later.
"""

from __future__ import annotations

import glob
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import SourceError
from distill.formats_chunked import is_n5, is_precomputed, load_n5, load_precomputed, n5_ranks
from distill.formats_image import TIFF_SUFFIXES, load_images, load_tiff
from distill.formats_zarr import load_zarr, zarr_node, zarr_ranks
from distill.stored import Cut, StoredArray, listed, missing_dataset, no_dataset, placement, plain, readable

HDF5_SUFFIXES = (".h5", ".hdf", ".hdf5")


def find_arrays(source: str | Path) -> list[StoredArray]:
    """Every array that a source holds; only the one asked for where it names a dataset.

    Raises:
        SourceError: the source is missing or unreadable, or holds no array.
    """
    path, dataset = _split(source)
    kind = _kind(path)
    if dataset is not None or kind not in _LISTERS:
        return [_LOADERS[kind](path, dataset)]
    names = _LISTERS[kind](path)
    if not names:
        raise SourceError(f"{path}: found no array inside, expected at least one")
    return [_LOADERS[kind](path, name) for name in names]


def source_kind(source: str | Path) -> tuple[str, Path]:
    """What reads a source, `images` for sections in a file each, and its path without the dataset.

    Raises:
        SourceError: nothing of that name, or of an unknown kind.
    """
    path, dataset = _split(source)
    kind = _kind(path)
    if kind == "images":
        no_dataset(path, dataset)
    return kind, path


def find_array(source: str | Path, preferred: str) -> StoredArray:
    """The one array that a source names or means.

    Args:
        source: `path[:dataset]`, a folder or a glob of section images.
        preferred: dataset to take where the source names none.

    Raises:
        SourceError: the source is missing, unreadable or ambiguous.
    """
    path, dataset = _split(source)
    kind = _kind(path)
    if kind == "zarr":
        node = zarr_node(path)
        if dataset is None and node is not None and node[0].startswith("group"):
            names = listed(list(zarr_ranks(path)))
            raise SourceError(f"{path}: found a Zarr group, expected one of its arrays after a colon: {names}")
    elif kind in _LISTERS and dataset is None:
        dataset = _choose(path, _LISTERS[kind](path), preferred)
    return _LOADERS[kind](path, dataset)


def _choose(path: Path, ranks: Mapping[str, int], preferred: str) -> str:
    if preferred in ranks:
        return preferred
    for rank in (3, 4):
        names = [name for name, found in ranks.items() if found == rank]
        if len(names) == 1:
            return names[0]
        if names:
            raise SourceError(f"{path}: found {len(names)} volumes, expected one after a colon: {listed(names)}")
    raise SourceError(f"{path}: found no 3D or 4D array, expected one among: {listed(list(ranks))}")


def _split(source: str | Path) -> tuple[Path, str | None]:
    """Path and dataset of a source; a colon that belongs to an existing path is left alone."""
    text = str(source)
    colons = [match.start() for match in re.finditer(":", text)]
    for at in [len(text), *reversed(colons)]:
        if at and os.path.exists(text[:at]):
            return Path(text[:at]), text[at + 1 :].strip("/") or None
    if glob.has_magic(text):
        return Path(text), None
    raise SourceError(f"{text[: colons[-1]] if colons and colons[-1] else text}: no such file")


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if not path.exists():
        return "images"
    if path.is_dir():
        if zarr_node(path):
            return "zarr"
        return "n5" if is_n5(path) else "precomputed" if is_precomputed(path) else "images"
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    if suffix in TIFF_SUFFIXES:
        return "tiff"
    if suffix in (".npy", ".npz"):
        return suffix[1:]
    if suffix == ".png":
        return "images"
    raise SourceError(
        f"{path}: found extension {suffix!r}, expected .h5 .hdf .hdf5 .tif .tiff .png .npy .npz, a Zarr, N5 or "
        "precomputed folder, or a folder or glob of section images"
    )


@contextmanager
def _open_hdf5(path: Path, dataset: str) -> Iterator[Cut]:
    import h5py

    with readable(path), h5py.File(path, "r") as file:
        stored = file[dataset]
        yield lambda index: np.asarray(stored[index])


def _hdf5_ranks(path: Path) -> dict[str, int]:
    import h5py

    ranks: dict[str, int] = {}

    def visit(name: str | bytes, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            ranks[plain(name)] = len(item.shape or ())

    with readable(path), h5py.File(path, "r") as file:
        file.visititems(visit)
    return ranks


def _load_hdf5(path: Path, dataset: str | None) -> StoredArray:
    import h5py

    name = dataset or ""
    with readable(path), h5py.File(path, "r") as file:
        item = file.get(name) if name else None
        if not isinstance(item, h5py.Dataset):
            raise missing_dataset(path, name, list(_hdf5_ranks(path)))
        attributes = {key: plain(value) for key, value in item.attrs.items()}
        return StoredArray(
            f"{path}:{name}",
            name,
            "hdf5",
            tuple(item.shape or ()),
            item.dtype.newbyteorder("="),
            *placement(attributes),
            attributes,
            partial(_open_hdf5, path, name),
            item.chunks,
            item.compression,
        )


@contextmanager
def _open_npy(path: Path) -> Iterator[Cut]:
    with readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        yield lambda index: np.array(mapped[index])


def _load_npy(path: Path, dataset: str | None) -> StoredArray:
    no_dataset(path, dataset)
    with readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = tuple(mapped.shape), mapped.dtype.newbyteorder("=")
    return StoredArray(str(path), None, "npy", shape, dtype, None, None, {}, partial(_open_npy, path))


@contextmanager
def _open_npz(path: Path, dataset: str) -> Iterator[Cut]:
    with readable(path), np.load(path, allow_pickle=False) as file:
        array = file[dataset]
        yield lambda index: np.array(array[index])


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any], bool]]:
    """Shape, type and whether compressed, by key, from the headers alone."""
    headers = {}
    with readable(path), zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            with archive.open(item) as member:
                major, _ = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            headers[item.filename.removesuffix(".npy")] = shape, dtype, item.compress_type != zipfile.ZIP_STORED
    return headers


def _npz_ranks(path: Path) -> dict[str, int]:
    headers = _npz_headers(path)
    return {
        name: len(shape) for name, (shape, _, _) in headers.items() if name not in ("resolution", "offset", "units")
    }


def _load_npz(path: Path, dataset: str | None) -> StoredArray:
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


_LISTERS: dict[str, Callable[[Path], dict[str, int]]] = {
    "hdf5": _hdf5_ranks,
    "npz": _npz_ranks,
    "zarr": zarr_ranks,
    "n5": n5_ranks,
}
_LOADERS: dict[str, Callable[[Path, str | None], StoredArray]] = {
    "hdf5": _load_hdf5,
    "tiff": load_tiff,
    "images": load_images,
    "npy": _load_npy,
    "npz": _load_npz,
    "zarr": load_zarr,
    "n5": load_n5,
    "precomputed": load_precomputed,
}
