"""Zarr arrays, version 2 and 3, and where OME-Zarr places them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.io.readers.array import (
    Attributes,
    Cut,
    StoredArray,
    missing_dataset,
    nm_per_unit,
    numbers,
    placement,
    readable,
)
from distill.io.readers.remote import Place, above, kvstore, read_document


def zarr_node(folder: Place) -> tuple[str, Attributes] | None:
    """What Zarr node a folder is.

    Returns:
        'array2', 'group2', 'array3' or 'group3' with the node's attributes; None where it is no Zarr node.

    Raises:
        SourceError: its metadata is not valid JSON, or its host cannot be reached.
    """
    with readable(folder):
        text = read_document(folder, "zarr.json")
        if text is not None:
            node = json.loads(text)
            return f"{node['node_type']}3", dict(node.get("attributes", {}))
        for name in ("array", "group"):
            if read_document(folder, f".z{name}") is not None:
                return f"{name}2", json.loads(read_document(folder, ".zattrs") or "{}")
    return None


def zarr_ranks(path: Place) -> dict[str, int]:
    """Rank of every array below a group, by path; hidden folders and the inside of arrays are not looked into.

    A remote group is not listed: its arrays are those that consolidated metadata or `multiscales` name.
    """
    if not isinstance(path, Path):
        return _named_ranks(path)
    ranks: dict[str, int] = {}
    for folder, below, _ in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        node = zarr_node(Path(folder))
        if node and node[0].startswith("array"):
            below.clear()
            ranks[Path(folder).relative_to(path).as_posix()] = len(_header(Path(folder), node[0])["shape"])
    return ranks


def _named_ranks(path: Place) -> dict[str, int]:
    ranks = {}
    with readable(path):
        group = json.loads(read_document(path, "zarr.json") or "{}")
        nodes = (group.get("consolidated_metadata") or {}).get("metadata", {})
        nodes |= json.loads(read_document(path, ".zmetadata") or "{}").get("metadata", {})
        for name, node in nodes.items():
            if "shape" in node:
                ranks[name.removesuffix("/.zarray")] = len(node["shape"])
        for name in [] if ranks else _levels(path):
            node = zarr_node(path / name)
            if node and node[0].startswith("array"):
                ranks[name] = len(_header(path / name, node[0])["shape"])
    return ranks


def first_level(path: Place) -> str | None:
    """The finest array of a group that is one OME-Zarr image; None for any other node."""
    levels = _levels(path)
    return levels[0] if levels else None


def _levels(path: Place) -> list[str]:
    """Arrays of a group that is one OME-Zarr image, the finest first."""
    node = zarr_node(path)
    if node is None or node[0].startswith("array"):
        return []
    with readable(path):
        images = node[1].get("ome", node[1]).get("multiscales") or []
        return [str(level["path"]).strip("/") for level in images[0]["datasets"]] if len(images) == 1 else []


def load_zarr(path: Place, dataset: str | None) -> StoredArray:
    """The header of an array: the folder itself or one inside it; of an OME-Zarr image its finest level."""
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
    # A local header is read without tensorstore: its threads would make a later fork unsafe.
    with readable(folder):
        header = _header(folder, node[0])
        dtype = np.dtype(header["data_type" if version == "3" else "dtype"]).newbyteorder("=")
        shape, chunks, codec = tuple(header["shape"]), _zarr_chunks(header), _zarr_codec(header)
    resolution, offset = placement(attributes)
    ome = _ome_placement(folder) if resolution is None else (None, None)
    return StoredArray(
        f"{path}:{dataset}" if dataset else str(path),
        dataset,
        f"zarr{version}",
        shape,
        dtype,
        resolution or ome[0],
        offset or ome[1],
        attributes,
        partial(_open_zarr, folder, "zarr3" if version == "3" else "zarr"),
        chunks,
        codec,
    )


def _header(folder: Place, node: str) -> dict[str, Any]:
    """Metadata document of an array, 'array2' or 'array3'."""
    with readable(folder):
        found: dict[str, Any] = json.loads(read_document(folder, "zarr.json" if node == "array3" else ".zarray") or "")
        return found


@contextmanager
def _open_zarr(folder: Place, driver: str) -> Iterator[Cut]:
    with readable(folder):
        store = open_tensorstore(folder, driver)
        yield lambda index: np.asarray(store[index].read().result())


def open_tensorstore(folder: Place, driver: str, write: bool = False) -> Any:
    """Open one Zarr array.

    Args:
        folder: the array's own folder.
        driver: 'zarr' for Zarr v2, 'zarr3'.
        write: whether it may be written.
    """
    import tensorstore

    return tensorstore.open(_zarr_spec(folder, driver), open=True, read=True, write=write).result()


def create_tensorstore(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Create one Zarr v3 array, in a folder of its own that holds none yet, from its metadata document."""
    import tensorstore

    tensorstore.open(_zarr_spec(folder, "zarr3") | {"metadata": metadata}, create=True).result()


def _zarr_spec(folder: Place, driver: str) -> dict[str, Any]:
    return {"driver": driver, "kvstore": kvstore(folder)}


def _zarr_chunks(header: Mapping[str, Any]) -> tuple[int, ...]:
    """Extent of what is read in one go: a chunk, or an inner chunk of a shard."""
    if "chunks" in header:
        return tuple(header["chunks"])
    for codec in header["codecs"]:
        if codec["name"] == "sharding_indexed":
            return tuple(codec["configuration"]["chunk_shape"])
    return tuple(header["chunk_grid"]["configuration"]["chunk_shape"])


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


def _ome_placement(folder: Place) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Resolution and offset in nm from the OME-Zarr 0.4 or 0.5 `multiscales` of a group above the array."""
    for group, name in above(folder):
        node = zarr_node(group)
        if node is None:
            break
        multiscales = node[1].get("ome", node[1]).get("multiscales")
        if multiscales:
            with readable(group):
                return _ome_scale(multiscales[0], name)
    return None, None


def _ome_scale(image: Mapping[str, Any], name: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Scale and translation of one dataset; none unless its axes end in z, y, x with one known unit each."""
    units = [nm_per_unit(axis.get("unit")) for axis in image["axes"][-3:]]
    levels = [level for level in image["datasets"] if level["path"].strip("/") == name]
    simple = "".join(axis["name"] for axis in image["axes"]).endswith("zyx") and not image.get(
        "coordinateTransformations"
    )
    if not (simple and levels):
        return None, None
    nm = [unit for unit in units if unit is not None]
    steps = {step["type"]: step.get(step["type"]) for step in levels[0]["coordinateTransformations"]}
    scale, move = numbers(steps.get("scale")), numbers(steps.get("translation"))
    if len(nm) != 3 or scale is None or not steps.keys() <= {"scale", "translation"}:
        return None, None
    resolution = tuple(value * unit for value, unit in zip(scale[-3:], nm, strict=True))
    return resolution, move and tuple(value * unit for value, unit in zip(move[-3:], nm, strict=True))
