"""Zarr arrays, version 2 and 3, and where OME-Zarr places them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError
from distill.core.memory import check_memory
from distill.core.notes import note
from distill.core.reasons import parse_json, readable, shown
from distill.io.readers.array import (
    Attributes,
    StoredArray,
    axis_names,
    missing_dataset,
    placement,
    stored_type,
)
from distill.io.readers.chunks import Chunks, chunk_counts, open_chunks
from distill.io.readers.names import inner_path
from distill.io.readers.ome import Image, image_at, images_of
from distill.io.readers.remote import Place, above, kvstore, read_document, read_object

_CODECS = ("blosc", "zlib", "gzip", "bz2", "zstd", "bytes", "endian", "crc32c", "transpose", "sharding_indexed")
_DEEP = 6  # folders below which no array is looked for


def zarr_node(folder: Place) -> tuple[str, Attributes] | None:
    """Return which kind of Zarr node a folder is.

    Returns:
        'array2', 'group2', 'array3' or 'group3' with the node's attributes; None where it is no Zarr node.

    Raises:
        SourceError: its metadata is not valid JSON, or its host cannot be reached.
    """
    node = read_object(folder, "zarr.json")
    if node is not None:
        kind = node.get("node_type")
        if kind not in ("array", "group"):
            raise SourceError(f"{folder}/zarr.json: found node_type {shown(kind)}, expected array or group")
        return f"{kind}3", _attributes(folder, node.get("attributes", {}))
    for name in ("array", "group"):
        if read_document(folder, f".z{name}") is not None:
            text = read_document(folder, ".zattrs")
            return f"{name}2", _attributes(folder, parse_json(f"{folder}/.zattrs", "{}" if text is None else text))
    return None


def _attributes(folder: Place, found: Any) -> dict[str, Any]:
    """Return the attributes, which are optional; anything but an object is left out."""
    if isinstance(found, dict):
        return dict(found)
    note(f"{folder}: its attributes are no object and are not used")
    return {}


def zarr_ranks(path: Place) -> dict[str, int]:
    """Rank of every array below a group, by path; hidden folders and the inside of arrays are not looked into.

    A remote group is not listed: its arrays are those that consolidated metadata or `multiscales` name.
    """
    if not isinstance(path, Path):
        return _named_ranks(path)
    ranks: dict[str, int] = {}
    for folder, below, _ in os.walk(path):
        way = Path(folder).relative_to(path)
        below[:] = sorted(name for name in below if not name.startswith(".")) if len(way.parts) < _DEEP else []
        node = zarr_node(Path(folder))
        if node and node[0].startswith("array"):
            below.clear()
            ranks[way.as_posix()] = len(_shape(Path(folder), _header(Path(folder), node[0])))
    return ranks


def _named_ranks(path: Place) -> dict[str, int]:
    ranks = {}
    with readable(path):
        group = read_object(path, "zarr.json") or {}
        nodes = dict((group.get("consolidated_metadata") or {}).get("metadata", {}))
        nodes |= (read_object(path, ".zmetadata") or {}).get("metadata", {})
        for name, node in nodes.items():
            if isinstance(node, dict) and "shape" in node:
                ranks[inner_path(path, name.removesuffix(".zarray"))] = len(node["shape"])
        for name in [] if ranks else _levels(path):
            node = zarr_node(path / name)
            if node and node[0].startswith("array"):
                ranks[name] = len(_shape(path / name, _header(path / name, node[0])))
    return ranks


def first_level(path: Place) -> str | None:
    """Return the finest array of a group that is one OME-Zarr image; None for any other node."""
    levels = _levels(path)
    return levels[0] if levels else None


def _levels(path: Place) -> list[str]:
    """Return arrays of a group that is one OME-Zarr image, the finest first."""
    node = zarr_node(path)
    if node is None or node[0].startswith("array"):
        return []
    images = images_of(path, node[1])
    return list(images[0].paths) if len(images) == 1 else []


def finest_arrays(path: Place, names: Sequence[str]) -> list[str]:
    """Return arrays of a group without the coarser levels of pyramids.

    Args:
        path: the group.
        names: its arrays.
    """
    coarser: set[str] = set()
    groups = {"/".join(name.split("/")[:k]) for name in names for k in range(len(name.split("/")))}
    for group in groups:
        node = zarr_node(path / group if group else path)
        for image in [] if node is None else images_of(path / group if group else path, node[1]):
            coarser |= {f"{group}/{level}".strip("/") for level in image.paths[1:]}
    return [name for name in names if name not in coarser]


def load_zarr(path: Place, dataset: str | None) -> StoredArray:
    """Read the header of an array: the folder itself or one inside it; of an OME-Zarr image its finest level."""
    dataset = None if dataset == "." else dataset
    folder = path / dataset if dataset else path
    node = zarr_node(folder)
    if node is not None and node[0].startswith("group"):
        level = first_level(folder)
        if level is not None and zarr_node(folder / level) is not None:
            dataset = f"{dataset}/{level}" if dataset else level
            folder = path / dataset
            node = zarr_node(folder)
    if node is None or node[0].startswith("group"):
        raise missing_dataset(path, dataset or "", list(zarr_ranks(path)))
    attributes = node[1]
    version = node[0][-1]
    name = f"{path}:{dataset}" if dataset else str(path)
    # A local header is read without tensorstore: its threads would make a later fork unsafe.
    with readable(folder):
        header = _header(folder, node[0])
        dtype = stored_type(name, header["data_type" if version == "3" else "dtype"])
        shape, chunks, codec = _shape(folder, header), _zarr_chunks(header), _zarr_codec(header)
        files, counts = _files(name, header, version, shape)
        _check_codecs(name, header)
    if len(chunks) != len(shape) or min(chunks, default=1) < 1:
        raise SourceError(f"{name}: found chunks {chunks}, expected a positive number for each axis of {shape}")
    check_memory(name, "a chunk", chunks, dtype)
    image = _image_of(folder)
    resolution, offset = placement(attributes)
    named = _dimension_names(header, attributes)
    if image is not None:
        resolution, offset = resolution or image.resolution, offset or image.offset
        named = named or image.axes or (tuple("tczyx") if image.five and len(shape) == 5 else None)
    where = Chunks(
        folder, {"driver": "zarr3" if version == "3" else "zarr"}, name, files, counts, _is_sparse(folder, attributes)
    )
    return StoredArray(
        name,
        dataset,
        f"zarr{version}",
        shape,
        dtype,
        resolution,
        offset,
        attributes,
        partial(open_chunks, where, False),
        chunks,
        codec,
        named,
        True if image is not None and image.labels else None,
        where.sparse,
        chunked=where,
    )


def _shape(folder: Place, header: Mapping[str, Any]) -> tuple[int, ...]:
    shape = header.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise SourceError(f"{folder}: found shape {shown(shape)}, expected whole numbers")
    return tuple(shape)


def _dimension_names(header: Mapping[str, Any], attributes: Attributes) -> tuple[str, ...] | None:
    given = header.get("dimension_names")
    if isinstance(given, list) and given and all(isinstance(name, str) and name for name in given):
        return tuple(given)
    return axis_names(attributes)


def _is_sparse(folder: Place, attributes: Attributes) -> bool:
    """Return whether what is not stored is empty: in affinities, and in the stores that this program makes."""
    if "polarity" in attributes or "neighborhood" in attributes:
        return True
    for group, _ in above(folder):
        node = zarr_node(group)
        if node is None:
            return False
        if "made_by" in node[1]:
            return True
    return False


def _files(name: str, header: Mapping[str, Any], version: str, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return how files of chunks or shards are named, and how many there are along each axis."""
    if version == "2":
        between = _separator(name, header.get("dimension_separator", "."))
        return partial(_chunk_name, "", between, not shape), chunk_counts(shape, header["chunks"])
    encoding = header.get("chunk_key_encoding", {"name": "default"})
    settings = encoding.get("configuration", {})
    counts = chunk_counts(shape, header["chunk_grid"]["configuration"]["chunk_shape"])
    if encoding["name"] == "v2":
        return partial(_chunk_name, "", _separator(name, settings.get("separator", ".")), not shape), counts
    between = _separator(name, settings.get("separator", "/"))
    return partial(_chunk_name, f"c{between}", between, not shape), counts


def _separator(name: str, given: Any) -> str:
    if given not in (".", "/"):
        raise SourceError(f"{name}: found separator {shown(given)} between the numbers of a chunk, expected . or /")
    return str(given)


def _chunk_name(prefix: str, between: str, scalar: bool, at: tuple[int, ...]) -> str:
    return "0" if scalar else prefix + between.join(map(str, at))


def _check_codecs(name: str, header: Mapping[str, Any]) -> None:
    """Refuse what tensorstore does not unpack, with the way out."""
    used = [codec.get("name") for codec in header.get("codecs", [])]
    for one in (header.get("compressor"), *(header.get("filters") or ())):
        used += [] if one is None else [one.get("id")]
    if header.get("filters"):
        used = [one.get("id") for one in header["filters"]]
    elif all(codec in _CODECS for codec in used):
        return
    unknown = [str(codec) for codec in used if codec not in _CODECS] or [str(one) for one in used]
    raise SourceError(
        f"{name}: cannot be read: it is packed with {', '.join(unknown)}, "
        "expected blosc, zlib, gzip, bz2, zstd or nothing, and no filters: copy it with zarr-python into such an array"
    )


def _header(folder: Place, node: str) -> dict[str, Any]:
    """Return the metadata document of an array, 'array2' or 'array3'."""
    name = "zarr.json" if node == "array3" else ".zarray"
    return read_object(folder, name) or {}


def open_tensorstore(folder: Place, driver: str, write: bool = False) -> Any:
    """Open one Zarr array.

    Args:
        folder: the array's own folder.
        driver: 'zarr' for Zarr v2, 'zarr3'.
        write: whether it may be written; chunks of zeros are then stored like others, so that what is missing is known
            to be missing.
    """
    import tensorstore

    spec = _zarr_spec(folder, driver)
    if write:
        spec["store_data_equal_to_fill_value"] = True
    return tensorstore.open(spec, open=True, read=True, write=write).result()


def create_tensorstore(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Create one Zarr v3 array, in a folder of its own that holds none yet, from its metadata document."""
    import tensorstore

    tensorstore.open(_zarr_spec(folder, "zarr3") | {"metadata": metadata}, create=True).result()


def _zarr_spec(folder: Place, driver: str) -> dict[str, Any]:
    return {"driver": driver, "kvstore": kvstore(folder)}


def _zarr_chunks(header: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the extent of what is read in one go: a chunk, or an inner chunk of a shard."""
    if "chunks" in header:
        return tuple(int(n) for n in header["chunks"])
    for codec in header["codecs"]:
        if codec["name"] == "sharding_indexed":
            return tuple(int(n) for n in codec["configuration"]["chunk_shape"])
    return tuple(int(n) for n in header["chunk_grid"]["configuration"]["chunk_shape"])


def _zarr_codec(metadata: Mapping[str, Any]) -> str | None:
    """Name of the compressor in the metadata of a Zarr array, v2 or v3."""
    if "codecs" not in metadata:
        compressor = metadata.get("compressor") or {}
        name = compressor.get("cname", compressor.get("id"))
        return None if name is None else str(name)
    for codec in metadata["codecs"]:
        settings = codec.get("configuration", {})
        if codec["name"] == "sharding_indexed":
            return _zarr_codec(settings)
        if codec["name"] in ("blosc", "gzip", "zstd"):
            return str(settings.get("cname", codec["name"]))
    return None


def _image_of(folder: Place) -> Image | None:
    """Return what the OME-Zarr metadata of a group above an array state about it."""
    for group, name in above(folder):
        node = zarr_node(group)
        if node is None:
            return None
        found = image_at(group, node[1], name)
        if found is not None:
            return found
    return None
