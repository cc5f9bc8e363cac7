"""Which reader a source needs.

A source is `path[:dataset]`, or the address of a Zarr, N5 or precomputed volume: `https://host/path[:dataset]`, the
same with `s3://` or `gs://` and a bucket, with Neuroglancer's `precomputed://` and the like before it or not. Only
headers are read first; an array's `opener` cuts parts out of it later.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.core.errors import SourceError
from distill.io.readers.array import StoredArray, listed, no_dataset
from distill.io.readers.hdf5 import hdf5_ranks, load_hdf5
from distill.io.readers.images import IMAGE_SUFFIXES, load_images
from distill.io.readers.n5 import finest_levels, is_n5, load_n5, n5_ranks
from distill.io.readers.npy import load_npy, load_npz, npz_ranks
from distill.io.readers.precomputed import is_precomputed, load_precomputed
from distill.io.readers.remote import Place, Remote, check_reachable, local_path, parse_address
from distill.io.readers.tiff import SUFFIXES as TIFF_SUFFIXES
from distill.io.readers.tiff import load_tiff
from distill.io.readers.zarr import finest_arrays, first_level, load_zarr, zarr_node, zarr_ranks
from distill.io.selection import split_selection

HDF5_SUFFIXES = (".h5", ".hdf", ".hdf5")
_DEEP, _WIDE = 4, 64  # folders down and in each, within which a container without metadata at its root is looked for


@dataclass(frozen=True)
class Unreadable:
    """An array of a file that others can be read from.

    Attributes:
        source: its name.
        dataset: path inside the file.
        reason: why it cannot be read.
    """

    source: str
    dataset: str
    reason: str


def find_arrays(source: str | Path) -> list[StoredArray | Unreadable]:
    """Return every array that a source holds; only the one asked for where it names a dataset.

    Raises:
        SourceError: the source is missing or unreadable, or holds no array.
    """
    text, _ = split_selection(str(source))
    path, dataset, kind = _found(text)
    if dataset is not None or not _has_many(kind):
        return [_load(kind, path, dataset)]
    names = _ranks(kind, path)
    if not names:
        raise _none_listed(path)
    found: list[StoredArray | Unreadable] = []
    for name in names:
        try:
            found.append(_load(kind, path, name))
        except SourceError as error:
            if len(names) == 1:
                raise
            found.append(Unreadable(f"{path}:{name}", name, str(error)))
    return found


def source_kind(source: str | Path) -> tuple[str, Place]:
    """Return what reads a source, `images` for sections in a file each, and its path without the dataset.

    Raises:
        SourceError: nothing of that name, or of an unknown kind.
    """
    path, dataset, kind = _found(split_selection(str(source))[0])
    if kind == "images":
        no_dataset(path, dataset)
    return kind, path


def find_array(source: str | Path, preferred: str) -> StoredArray:
    """Return the one array that a source names or means.

    Args:
        source: `path[:dataset]`, a folder or a glob of section images.
        preferred: dataset to take where the source names none.

    Raises:
        SourceError: the source is missing, unreadable or ambiguous.
    """
    path, dataset, kind = _found(split_selection(str(source))[0])
    if dataset is None and _has_many(kind):
        dataset = _meant(kind, path, preferred)
    elif dataset is not None and kind == "zarr" and isinstance(path, Path):
        node = zarr_node(path / dataset)
        if node is not None and node[0].startswith("group"):  # such as the image of a converter one group further down
            inner = _meant(kind, path / dataset, preferred)
            dataset = f"{dataset}/{inner}" if inner else dataset
    return _load(kind, path, dataset)


def is_local(source: str) -> bool:
    """Return whether a source lies on this machine."""
    address = parse_address(split_selection(source)[0])
    return address is None or isinstance(address.place, Path)


def local_source(source: str) -> Path | None:
    """Return the file or folder of a source, without dataset and selection; None if it is not on this machine."""
    place = _found(split_selection(source)[0])[0]
    return place if isinstance(place, Path) else None


def is_result(source: str) -> bool:
    """Return whether a source lies in a store that this program has made from an image."""
    place = local_source(source) if is_local(source) else None
    node = None if place is None or not place.is_dir() else zarr_node(place)
    return node is not None and "made_by" in node[1]


def _meant(kind: str, path: Place, preferred: str) -> str | None:
    """Return the array that a container without a dataset means: its only image, at its finest level."""
    if kind == "zarr":
        node = zarr_node(path)
        if node is not None and node[0].startswith("array"):
            return None
    ranks = _ranks(kind, path)
    if kind == "zarr" and not ("labels" in preferred and any("labels" in name.split("/") for name in ranks)):
        level = first_level(path)
        if level is not None:
            return level
    if isinstance(path, Remote) and not ranks:
        raise _none_listed(path)
    names = finest_arrays(path, list(ranks)) if kind == "zarr" else finest_levels(list(ranks))
    return _choose(path, {name: ranks[name] for name in names}, preferred)


def _none_listed(path: Place) -> SourceError:
    if isinstance(path, Remote):
        return SourceError(f"{path}: found a group that does not list its arrays, expected an array after a colon")
    return SourceError(f"{path}: found no array inside, expected at least one")


def _choose(path: Place, ranks: Mapping[str, int], preferred: str) -> str:
    # The neurons of a store that stream or segment wrote; the finest level of a pyramid in N5.
    for name in (preferred, *(["segmentation"] if "labels" in preferred else []), "s0"):
        if name in ranks:
            return name
    volumes = [name for name, rank in ranks.items() if rank >= 3]
    # Labels of an OME-Zarr image lie in a group of that name inside it.
    labels = [name for name in volumes if "labels" in name.split("/")[:-1]]
    wanted = labels if "labels" in preferred else [name for name in volumes if name not in labels]
    for names in (wanted, volumes):
        for choice in ([name for name in names if ranks[name] == 3], names):
            if len(choice) == 1:
                return choice[0]
        if names:
            raise SourceError(f"{path}: found {len(names)} volumes, expected one after a colon: {listed(names)}")
    raise SourceError(f"{path}: found no 3D or 4D array, expected one among: {listed(list(ranks))}")


def _found(source: str | Path) -> tuple[Place, str | None, str]:
    """Return place, dataset and kind of a source."""
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
    """Return the path and dataset of a local source; a colon that belongs to an existing path is left alone."""
    text = str(local_path(text)) if text.startswith("~") else text
    colons = [match.start() for match in re.finditer(":", text)]
    for at in [len(text), *reversed(colons)]:
        if at and os.path.exists(text[:at]):
            return Path(text[:at]), text[at + 1 :].strip("/") or None
    if glob.has_magic(text):
        return Path(text), None
    raise SourceError(f"{text[: colons[-1]] if colons and colons[-1] else text}: no such file")


def _remote_kind(place: Remote, dataset: str | None) -> str:
    """Return the kind of a remote folder by the metadata that lie there, or in the dataset's folder inside it."""
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
        return _folder_kind(path) or "images"
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    if suffix in TIFF_SUFFIXES:
        return "tiff"
    if suffix in (".npy", ".npz"):
        return suffix[1:]
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if suffix == ".zip":
        raise SourceError(f"{path}: found a zip file, expected what is in it: unzip it, and give the folder")
    raise SourceError(
        f"{path}: found extension {suffix!r}, expected .h5 .hdf .hdf5 .npy .npz {' '.join(IMAGE_SUFFIXES)}, a Zarr, N5 "
        "or precomputed folder, or a folder or glob of section images"
    )


def _folder_kind(path: Path) -> str | None:
    """Format of a folder by its metadata, or by those below it where its root has none; None for section images."""
    if (kind := _own_kind(path)) is not None:
        return kind
    for folder, below, files in os.walk(path):
        inside = Path(folder)
        if inside == path and any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in files):
            return None
        if inside != path and (kind := _own_kind(inside)) in ("zarr", "n5"):
            return kind
        below[:] = sorted(name for name in below if name[0] != ".")[:_WIDE]
        if len(inside.relative_to(path).parts) >= _DEEP:
            below.clear()
    return None


def _own_kind(path: Path) -> str | None:
    if zarr_node(path):
        return "zarr"
    return "n5" if is_n5(path) else "precomputed" if is_precomputed(path) else None


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
