"""Which reader a source needs.

A source is `path[:dataset]`, or the address of a Zarr, N5 or precomputed volume: `https://host/path[:dataset]`, the
same with `s3://` or `gs://` and a bucket, with Neuroglancer's `precomputed://` and the like before it or not. Only
headers are read here; an array's `opener` cuts parts out of it later.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from distill.core.errors import SourceError
from distill.io.readers.array import StoredArray, listed, no_dataset
from distill.io.readers.hdf5_npy import hdf5_ranks, load_hdf5, load_npy, load_npz, npz_ranks
from distill.io.readers.images import TIFF_SUFFIXES, load_images, load_tiff
from distill.io.readers.n5_precomputed import is_n5, is_precomputed, load_n5, load_precomputed, n5_ranks
from distill.io.readers.remote import Place, Remote, check_reachable, parse_address
from distill.io.readers.zarr import first_level, load_zarr, zarr_node, zarr_ranks

HDF5_SUFFIXES = (".h5", ".hdf", ".hdf5")


def find_arrays(source: str | Path) -> list[StoredArray]:
    """Every array that a source holds; only the one asked for where it names a dataset.

    Raises:
        SourceError: the source is missing or unreadable, or holds no array.
    """
    path, dataset, kind = _found(source)
    if dataset is not None or not _has_many(kind):
        return [_load(kind, path, dataset)]
    names = _ranks(kind, path)
    if not names:
        raise _none_listed(path)
    return [_load(kind, path, name) for name in names]


def source_kind(source: str | Path) -> tuple[str, Place]:
    """What reads a source, `images` for sections in a file each, and its path without the dataset.

    Raises:
        SourceError: nothing of that name, or of an unknown kind.
    """
    path, dataset, kind = _found(source)
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
    path, dataset, kind = _found(source)
    if dataset is None and _has_many(kind):
        if kind == "zarr":
            dataset = _zarr_dataset(path)
        elif isinstance(path, Path):
            dataset = _choose(path, _ranks(kind, path), preferred)
    return _load(kind, path, dataset)


def _zarr_dataset(path: Place) -> str | None:
    """The array that a Zarr folder means: itself, or the finest level of the one image that it holds."""
    node = zarr_node(path)
    if node is None or node[0].startswith("array"):
        return None
    level = first_level(path)
    if level is None:
        names = list(zarr_ranks(path))
        if isinstance(path, Remote) and not names:
            raise _none_listed(path)
        raise SourceError(f"{path}: found a Zarr group, expected one of its arrays after a colon: {listed(names)}")
    return level


def _none_listed(path: Place) -> SourceError:
    if isinstance(path, Remote):
        return SourceError(f"{path}: found a group that does not list its arrays, expected an array after a colon")
    return SourceError(f"{path}: found no array inside, expected at least one")


def _choose(path: Path, ranks: Mapping[str, int], preferred: str) -> str:
    for name in (preferred, "s0"):  # the finest level of a pyramid in N5
        if name in ranks:
            return name
    for rank in (3, 4):
        names = [name for name, found in ranks.items() if found == rank]
        if len(names) == 1:
            return names[0]
        if names:
            raise SourceError(f"{path}: found {len(names)} volumes, expected one after a colon: {listed(names)}")
    raise SourceError(f"{path}: found no 3D or 4D array, expected one among: {listed(list(ranks))}")


def _found(source: str | Path) -> tuple[Place, str | None, str]:
    """Place, dataset and kind of a source."""
    address = parse_address(str(source))
    if address is None:
        path, dataset = _split(str(source))
        return path, dataset, _kind(path)
    place, dataset = address.place, address.dataset
    if isinstance(place, Path):
        place, after = _split(str(place))
        return place, dataset or after, address.kind or _kind(place)
    return place, dataset, address.kind or _remote_kind(place, dataset)


def _split(text: str) -> tuple[Path, str | None]:
    """Path and dataset of a local source; a colon that belongs to an existing path is left alone."""
    colons = [match.start() for match in re.finditer(":", text)]
    for at in [len(text), *reversed(colons)]:
        if at and os.path.exists(text[:at]):
            return Path(text[:at]), text[at + 1 :].strip("/") or None
    if glob.has_magic(text):
        return Path(text), None
    raise SourceError(f"{text[: colons[-1]] if colons and colons[-1] else text}: no such file")


def _remote_kind(place: Remote, dataset: str | None) -> str:
    """Kind of a remote folder by the metadata that lie there, or in the dataset's folder inside it."""
    for folder in [place, *([place / dataset] if dataset else [])]:
        if zarr_node(folder):
            return "zarr"
        if is_n5(folder):
            return "n5"
        if is_precomputed(folder):
            return "precomputed"
    check_reachable(place, "info")
    raise SourceError(
        f"{place}: found none of zarr.json, .zarray, .zgroup, attributes.json and info, expected a Zarr, N5 or "
        "precomputed folder; other files are read from this machine only"
    )


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


def _has_many(kind: str) -> bool:
    return kind in ("hdf5", "npz", "zarr", "n5")


def _ranks(kind: str, path: Place) -> dict[str, int]:
    """Rank of every array inside, by path."""
    if isinstance(path, Path) and kind in ("hdf5", "npz"):
        return hdf5_ranks(path) if kind == "hdf5" else npz_ranks(path)
    return zarr_ranks(path) if kind == "zarr" else n5_ranks(path)


def _load(kind: str, path: Place, dataset: str | None) -> StoredArray:
    if kind in _FOLDERS:
        return _FOLDERS[kind](path, dataset)
    assert isinstance(path, Path)
    return _FILES[kind](path, dataset)


_FOLDERS: dict[str, Callable[[Place, str | None], StoredArray]] = {
    "zarr": load_zarr,
    "n5": load_n5,
    "precomputed": load_precomputed,
}
_FILES: dict[str, Callable[[Path, str | None], StoredArray]] = {
    "hdf5": load_hdf5,
    "tiff": load_tiff,
    "images": load_images,
    "npy": load_npy,
    "npz": load_npz,
}
