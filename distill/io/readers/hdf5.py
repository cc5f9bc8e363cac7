"""HDF5 files: datasets, the other files that they are made of, and the filters that unpack them.

HDF5 reads as the fill value what is not there: chunks that were never written, and parts of virtual datasets whose
source is missing or unreadable. Both are looked for when a dataset is opened.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import SourceError
from distill.core.notes import note
from distill.io.readers.array import Cut, Reading, StoredArray, axis_names, missing_dataset, placement, plain, readable

_FILTERS = {
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
}
_DEEP = 4  # virtual datasets of virtual datasets


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file for reading.

    Raises:
        SourceError: it is missing, in use by a writer, or no HDF5 file.
    """
    import h5py

    with readable(path):
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise _explained(path, error) from error
        with file:
            yield file


def _explained(path: Path, error: OSError) -> BaseException:
    text = str(error)
    if "unable to lock file" in text or "already open for write" in text or "file is already open" in text:
        return SourceError(
            f"{path}: is open for writing in another program; expected that to be closed, or a copy of the file "
            "(HDF5_USE_FILE_LOCKING=FALSE reads it as it is)"
        )
    if "file signature not found" in text:
        return SourceError(f"{path}: cannot be read: found something else than HDF5, expected an HDF5 file")
    if "truncated file" in text:
        return SourceError(f"{path}: cannot be read: the HDF5 file is cut off, expected a whole copy of it")
    return error


def hdf5_ranks(path: Path) -> dict[str, int]:
    """Rank of every dataset of an HDF5 file, by path."""
    import h5py

    ranks: dict[str, int] = {}

    def visit(name: str | bytes, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            ranks[plain(name)] = len(item.shape or ())

    def visit_link(name: str | bytes, link: object) -> None:
        """Count what lies in another file, or nowhere, too: it is then missed and no other array taken for it."""
        if isinstance(link, h5py.ExternalLink) or (isinstance(link, h5py.SoftLink) and not _leads(opened[0], name)):
            ranks.setdefault(plain(name), 3)

    opened: list[Any] = []

    with open_hdf5(path) as file:
        opened.append(file)
        file.visititems(visit)
        file.visititems_links(visit_link)
    return ranks


def _leads(file: Any, name: str | bytes) -> bool:
    """Return whether a link inside a file leads to something."""
    try:
        return file.get(name) is not None
    except (KeyError, RuntimeError, OSError):
        return False


def load_hdf5(path: Path, dataset: str | None) -> StoredArray:
    """Read the header of an HDF5 dataset.

    Raises:
        SourceError: it is not there, needs a filter that is not installed, or is made of files that are missing or
            lie elsewhere.
    """
    import h5py

    name = dataset or ""
    with open_hdf5(path) as file:
        item = _dataset(path, file, name)
        if not isinstance(item, h5py.Dataset):
            raise missing_dataset(path, name, list(hdf5_ranks(path)))
        if item.dtype.kind not in "biufc" or item.dtype.shape:
            raise SourceError(f"{path}:{name}: found type {item.dtype}, expected integer or floating-point numbers")
        _check_filters(path, name, item)
        lost = _unwritten(path, item)
        attributes = {key: plain(value) for key, value in _attributes(item).items()}
        return StoredArray(
            f"{path}:{name}",
            name,
            "hdf5",
            tuple(item.shape or ()),
            item.dtype.newbyteorder("="),
            *_placement(attributes),
            attributes,
            partial(_open, path, name, lost),
            item.chunks,
            item.compression,
            _axes(item, attributes),
            lost=lost or "",
        )


def _attributes(item: Any) -> dict[str, Any]:
    """Return the attributes that can be read; one of an unknown type is skipped."""
    found = {}
    for key in item.attrs:
        try:
            found[key] = item.attrs[key]
        except (OSError, TypeError, ValueError, KeyError):
            continue
    return found


def _placement(attributes: dict[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return resolution and offset as `placement` does; ImageJ's plugins write `element_size_um`, z, y, x."""
    if "resolution" not in attributes and "voxel_size" not in attributes and "element_size_um" in attributes:
        attributes = {"resolution": attributes["element_size_um"], "units": "um"}
    return placement(attributes)


def _axes(item: Any, attributes: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of axes: vigra's `axistags`, others' attributes, or the labels of dimension scales."""
    tags = attributes.get("axistags")
    if isinstance(tags, str):
        try:
            return tuple(str(axis["key"]) for axis in json.loads(tags)["axes"])
        except (ValueError, TypeError, LookupError):
            note(f"{item.file.filename}:{item.name.strip('/')}: its axistags cannot be read and are not used")
    labels = [dimension.label for dimension in item.dims]
    return axis_names(attributes) or (tuple(labels) if labels and all(labels) else None)


@contextmanager
def _open(path: Path, dataset: str, lost: str | None, reading: Reading) -> Iterator[Cut]:
    if lost is not None and reading.missing == "refuse":
        raise SourceError(
            f"{path}:{dataset}: {lost}; expected a whole copy of the file, or --missing zero to read them as they are"
        )
    if lost is not None and reading.missing == "report":
        note(f"{path}:{dataset}: {lost} and read as background")
    with open_hdf5(path) as file:
        stored = _dataset(path, file, dataset)
        yield lambda index: np.asarray(stored[index])


def _dataset(path: Path, file: Any, name: str) -> Any:
    """Return the object at a path inside a file; links are followed only to files in its folder or below."""
    import h5py

    if not name:
        return None
    parts = [part for part in name.split("/") if part]
    for at in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:at]), getlink=True) if "/".join(parts[:at]) else None
        if isinstance(link, h5py.ExternalLink):
            _inside(path, f"{path}:{'/'.join(parts[:at])}", link.filename)
            break
    item = file.get(name)
    if isinstance(item, h5py.Dataset):
        if Path(item.file.filename) != path and item.file.filename != str(path):
            path = Path(os.fsdecode(item.file.filename))
        _check_parts(path, item, _DEEP)
    return item


def _check_parts(path: Path, item: Any, deep: int) -> None:
    """Look at every file that a dataset is made of."""
    name = f"{path}:{item.name.strip('/')}"
    if item.external:
        raise SourceError(
            f"{name}: its numbers lie in another file, {os.fsdecode(item.external[0][0])}; expected a dataset of its "
            "own, as h5repack makes"
        )
    if not item.is_virtual:
        return
    for source in item.virtual_sources():
        _check_source(path, name, source, deep)


def _check_source(path: Path, name: str, source: Any, deep: int) -> None:
    import h5py

    if "%" in source.file_name.replace("%%", ""):
        raise SourceError(f"{name}: found sources {source.file_name}, expected files by name; h5repack writes one file")
    file = _inside(path, name, path.name if source.file_name == "." else source.file_name.replace("%%", "%"))
    if f"{file}:{source.dset_name.strip('/')}" == f"{os.path.realpath(path)}:{name.removeprefix(f'{path}:')}":
        raise SourceError(f"{name}: is a virtual dataset made of itself, expected one made of other datasets")
    if deep == 0:
        raise SourceError(f"{name}: found virtual datasets of virtual datasets, more than {_DEEP} deep")
    with open_hdf5(file) as opened:
        found = opened.get(source.dset_name)
        if not isinstance(found, h5py.Dataset):
            raise SourceError(f"{name}: is made of {file}:{source.dset_name.strip('/')}, which is not there")
        wanted = _wanted(source)
        if len(wanted) != len(found.shape) and wanted:
            raise SourceError(f"{name}: is made of {file}, found shape {found.shape}, expected {len(wanted)} axes")
        if any(a > b for a, b in zip(wanted, found.shape, strict=False)) or _count(source) > found.size:
            raise SourceError(
                f"{name}: is made of {file}:{source.dset_name.strip('/')}, found shape {found.shape}, expected "
                f"{' x '.join(map(str, wanted)) or f'{_count(source):,} voxels'} at least"
            )
        _check_filters(file, source.dset_name.strip("/"), found)
        if (lost := _unwritten(file, found)) is not None:
            raise SourceError(f"{name}: is made of {file}:{source.dset_name.strip('/')}, where {lost}")
        _check_parts(file, found, deep - 1)


def _wanted(source: Any) -> tuple[int, ...]:
    """Return the extent that a virtual dataset needs of a source; empty where it takes all of it."""
    try:
        _, last = source.src_space.get_select_bounds()
    except ValueError:  # the whole of a source, whose extent is not stored
        return ()
    return tuple(int(n) + 1 for n in last)


def _count(source: Any) -> int:
    return int(source.vspace.get_select_npoints())


def _inside(path: Path, name: str, other: str | bytes) -> Path:
    """Return the readable file that another file names, which must be in its folder or below."""
    text = os.fsdecode(other)
    folder = Path(os.path.realpath(path)).parent
    file = Path(os.path.realpath(folder / text))
    if not file.is_relative_to(folder):
        raise SourceError(
            f"{name}: is made of {text}, which lies outside {folder}; expected files in that folder or below it"
        )
    if not file.is_file():
        raise SourceError(f"{name}: is made of {text}, found no such file in {folder}, expected it there")
    if not os.access(file, os.R_OK):
        raise SourceError(f"{name}: is made of {file}, which may not be read; expected permission to read it")
    return file


def _check_filters(path: Path, name: str, item: Any) -> None:
    """Refuse a dataset that cannot be unpacked; the filters of hdf5plugin count where it is installed."""
    import h5py

    plan = item.id.get_create_plist()
    for number in range(plan.get_nfilters()):
        code, _, _, label = plan.get_filter(number)
        if h5py.h5z.filter_avail(code) or (_plugins() and h5py.h5z.filter_avail(code)):
            continue
        known = _FILTERS.get(code) or plain(label) or "unknown"
        raise SourceError(
            f"{path}:{name}: is packed with the HDF5 filter {code} ({known}), which is not installed; expected it from "
            "pip install hdf5plugin, or the file repacked with gzip (h5repack)"
        )


def _plugins() -> bool:
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return True


def _unwritten(path: Path, item: Any) -> str | None:
    """Describe how much of a dataset was never written; None where all of it was."""
    if item.external or not item.size:
        return None
    if item.is_virtual:
        covered = sum(source.vspace.get_select_npoints() for source in item.virtual_sources())
        return f"its sources give {covered:,} of {item.size:,} voxels" if covered < item.size else None
    if item.chunks is None:
        return "nothing of it was ever written" if item.id.get_storage_size() == 0 else None
    count = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
    stored = item.id.get_num_chunks()
    return f"{count - stored:,} of {count:,} chunks are missing" if stored < count else None
