"""Write volumes atomically; existing data is never modified in place.

CREMI files are written under a temporary name and then renamed; Zarr arrays (version 3) are filled chunk by chunk. Axes
are z, y, x (c, z, y, x with channels); resolution and offset are in nm.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import hidden, put_in_place, replacing
from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.geometry import Box, Nanometres
from distill.io.readers.array import missing_dataset, plain, reason
from distill.io.readers.zarr import create_tensorstore, open_tensorstore, zarr_node, zarr_ranks
from distill.io.volume import (
    Volume,
    checked_offset,
    checked_resolution,
    open_volume,
)

AXES = ("c", "z", "y", "x")
_PLACE_KEYS = ("resolution", "offset", "units", "axis_names")


@dataclass(frozen=True)
class ZarrArray:
    """A Zarr array open for writing.

    A chunk is replaced atomically on disk. Writers in different processes must not share chunks.

    Attributes:
        path: the store.
        dataset: path of the array inside it.
        shape: (z, y, x) or (c, z, y, x) in voxels.
        dtype: type of the array; no other is accepted.
        chunks: extent of one chunk, same axes.
    """

    path: Path
    dataset: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    _store: Any = field(repr=False, compare=False)

    def write(self, box: Box, array: NDArray[Any]) -> None:
        """Write one part and wait until it is on disk.

        Args:
            box: voxels to write.
            array: (z, y, x) or (c, z, y, x) of the size of the box, of type `dtype`.

        Raises:
            ShapeError: the box leaves the array, or shape or type differ.
            SourceError: a write error.
        """
        whole = Box.of_shape(self.shape[-3:])
        if not whole.contains(box):
            raise ShapeError(
                f"{self}: found box {box.start} to {box.stop}, expected one within (0, 0, 0) to {whole.stop}"
            )
        expected = (*self.shape[:-3], *box.shape)
        if array.shape != expected or array.dtype != self.dtype:
            raise ShapeError(f"{self}: found {array.shape} {array.dtype}, expected {expected} {self.dtype}")
        with writing(f"{self}"):
            self._store[(..., *box.slices)].write(array).result()

    def write_section(self, z: int, array: NDArray[Any]) -> None:
        """Write section `z`, an array (y, x) or (c, y, x); raises as `write`."""
        _, height, width = self.shape[-3:]
        self.write(Box((z, 0, 0), (z + 1, height, width)), np.expand_dims(array, -3))

    def volume(self) -> Volume:
        """Open the data written so far for reading."""
        return open_volume(f"{self.path}:{self.dataset}", missing="zero")

    def __str__(self) -> str:
        return f"{self.path}:{self.dataset}"


def create_zarr(
    path: str | Path,
    dataset: str,
    *,
    shape: Sequence[int],
    dtype: np.typing.DTypeLike,
    resolution: Nanometres,
    offset: Nanometres = (0.0, 0.0, 0.0),
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ZarrArray:
    """Create an array, filled with zeros, in a new or an existing Zarr v3 store.

    Args:
        path: the store; created with its parent folders if necessary.
        dataset: path of the array inside; intermediate groups are created if necessary.
        shape: (z, y, x) or (c, z, y, x) in voxels.
        dtype: boolean, integer or floating-point type.
        resolution: voxel size z, y, x in nm.
        offset: position of voxel (0, 0, 0) in nm.
        chunks: extent of one chunk, same axes; (1, 512, 512) with all channels by default. Clipped to `shape`.
        shards: extent of the files that hold many chunks each, same axes, taken up to a multiple of the chunks; a file
            per chunk by default.
        attributes: further attributes of the array; must be plain JSON.
        overwrite: replace an array of that name; without it an existing one is refused.

    Raises:
        ShapeError: shape, chunks or type cannot be stored.
        SourceError: the target exists, is not a Zarr v3 store, or cannot be written; existing data is untouched.
    """
    store = Path(path)
    name = f"{store}:{dataset}"
    metadata = array_metadata(name, tuple(shape), np.dtype(dtype), chunks, shards)
    own = {key: plain(value) for key, value in (attributes or {}).items()}
    if reserved := own.keys() & set(_PLACE_KEYS):
        raise DistillError(f"{name}: found attribute {min(reserved)!r}, expected it as an argument of its own")
    place = checked_resolution(name, resolution), checked_offset(name, offset)
    axes = list(AXES[-len(shape) :])
    metadata["attributes"] = dict(zip(_PLACE_KEYS, (*map(list, place), "nm", axes), strict=True)) | own
    metadata["dimension_names"] = axes
    _check_json(name, own)
    folder = _array_folder(store, dataset)
    _check_target(store, folder, name, overwrite)
    with writing(name):
        _make_groups(store, folder)
        created = hidden(folder, "new")
        try:
            create_tensorstore(created, metadata)
            put_in_place(created, folder)
        finally:
            shutil.rmtree(created, ignore_errors=True)
    return open_zarr_for_writing(store, dataset)


def open_zarr_for_writing(path: str | Path, dataset: str) -> ZarrArray:
    """Open an existing Zarr v3 array to continue writing.

    Raises:
        SourceError: there is no such array, or it is not Zarr v3, or it cannot be opened.
    """
    store = Path(path)
    folder = _array_folder(store, dataset)
    if not store.exists():
        raise SourceError(f"{store}: no such file")
    node = zarr_node(folder)
    if node is None or node[0].startswith("group"):
        raise missing_dataset(store, dataset, list(zarr_ranks(store)))
    if node[0] != "array3":
        raise SourceError(f"{store}:{dataset}: found a Zarr v2 array, expected Zarr v3 for writing")
    with writing(f"{store}:{dataset}"):
        array = open_tensorstore(folder, "zarr3", write=True)
    chunks = tuple(array.chunk_layout.write_chunk.shape)
    return ZarrArray(store, dataset, tuple(array.shape), np.dtype(array.dtype.numpy_dtype), chunks, array)


def write_group_attributes(path: str | Path, attributes: Mapping[str, Any]) -> None:
    """Update the attributes of a Zarr v3 group atomically; other keys are kept.

    Args:
        path: folder of the group.
        attributes: plain JSON values by key.

    Raises:
        SourceError: there is no such group, a value is not plain JSON, or the disk refuses.
    """
    folder = Path(path)
    node = zarr_node(folder)
    if node is None or node[0] != "group3":
        raise SourceError(f"{folder}: found {node[0] if node else 'no Zarr node'}, expected a Zarr v3 group")
    new = {key: plain(value) for key, value in attributes.items()}
    _check_json(str(folder), new)
    file = folder / "zarr.json"
    with writing(folder):
        document = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, document | {"attributes": {**node[1], **new}})


def array_metadata(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: Sequence[int] | None,
    shards: Sequence[int] | None,
) -> dict[str, Any]:
    """Build the Zarr v3 metadata of an array, without its attributes; chunks and shards as for `create_zarr`.

    Raises:
        ShapeError: shape, chunks or type cannot be stored.
    """
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ShapeError(f"{name}: found shape {shape}, expected (z, y, x) or (c, z, y, x), each at least 1")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ShapeError(
            f"{name}: found type {dtype}, expected a boolean, integer or floating-point type up to 64 bits"
        )
    wanted = tuple(chunks) if chunks is not None else (*shape[:-3], 1, 512, 512)
    if len(wanted) != len(shape) or min(wanted) < 1:
        raise ShapeError(f"{name}: found chunks {wanted}, expected {len(shape)} extents, each at least 1")
    clipped = [min(int(a), int(b)) for a, b in zip(wanted, shape, strict=True)]
    if math.prod(clipped) * dtype.itemsize >= 2**31:
        raise ShapeError(f"{name}: found chunks {tuple(clipped)} of {dtype}, expected less than 2 GiB each")
    blosc = {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": dtype.itemsize, "blocksize": 0}
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [little, {"name": "blosc", "configuration": blosc}]
    file_extent = clipped
    if shards is not None:
        if len(shards) != len(shape) or min(shards) < 1:
            raise ShapeError(f"{name}: found shards {tuple(shards)}, expected {len(shape)} extents, each at least 1")
        file_extent = [-(-min(int(s), n) // c) * c for s, n, c in zip(shards, shape, clipped, strict=True)]
        index = [little, {"name": "crc32c"}]
        sharding = {"chunk_shape": clipped, "codecs": codecs, "index_codecs": index, "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "shape": [int(extent) for extent in shape],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": file_extent}},
        "codecs": codecs,
        "fill_value": False if dtype.kind == "b" else 0,
    }


def resize_zarr(path: str | Path, dataset: str, depth: int) -> ZarrArray:
    """Change the number of sections of a Zarr v3 array by updating its metadata only.

    Args:
        path: the store.
        dataset: path of the array inside it.
        depth: sections, at least 1.

    Returns:
        The array, open for writing.

    Raises:
        SourceError: there is no such array, or the disk refuses.
    """
    folder = _array_folder(Path(path), dataset)
    with writing(f"{path}:{dataset}"):
        document = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        document["shape"][-3] = depth
        write_json(folder / "zarr.json", document)
    return open_zarr_for_writing(path, dataset)


def _check_json(name: str, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SourceError(f"{name}: attribute {key!r} cannot be written as JSON: {reason(error)}") from error


def _array_folder(store: Path, dataset: str) -> Path:
    parts = dataset.split("/")
    if any(part in ("", ".", "..") or part.startswith((".", "__")) for part in parts):
        raise SourceError(f"{store}: found dataset {dataset!r}, expected a path of plain names such as volumes/labels")
    return store.joinpath(*parts)


def _check_target(store: Path, folder: Path, name: str, overwrite: bool) -> None:
    """Check that the target is a Zarr v3 store and would not overwrite a group, or an array without permission."""
    groups = [store, *reversed([group for group in folder.parents if store in group.parents])]
    for group in groups:
        if not group.exists():
            return
        node = zarr_node(group) if group.is_dir() else None
        if node is None and not (group.is_dir() and not any(group.iterdir())):
            raise SourceError(f"{group}: found something that is no Zarr store, expected a Zarr v3 group or nothing")
        if node is not None and node[0] != "group3":
            raise SourceError(f"{group}: found a Zarr {node[0][:-1]} (version {node[0][-1]}), expected a Zarr v3 group")
    if folder.exists():
        node = zarr_node(folder)
        if node is None or not node[0].startswith("array"):
            raise SourceError(f"{name}: found a group or something that is no array, expected an array or nothing")
        if not overwrite:
            raise SourceError(
                f"{name}: found an existing array, expected nothing there unless overwriting is asked for"
            )


def _make_groups(store: Path, folder: Path) -> None:
    for group in [store, *reversed([group for group in folder.parents if store in group.parents])]:
        group.mkdir(parents=True, exist_ok=True)
        if not (group / "zarr.json").exists():
            write_json(group / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document atomically, and wait until it is on disk."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Provide a temporary name next to `target`, whose folder is created; see `replacing`.

    Raises:
        SourceError: `target` is a folder.
    """
    if target.is_dir():
        raise SourceError(f"{target}: found a folder, expected a file name to write to")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, alone=False) as temporary:
        yield temporary


@contextmanager
def writing(name: str | Path) -> Iterator[None]:
    """Convert every exception of a failed write to a `SourceError` that names the target and the reason."""
    try:
        yield
    except DistillError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise SourceError(f"{name}: cannot be written: {reason(error)}") from error
