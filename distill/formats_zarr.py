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

from distill.stored import Attributes, Cut, StoredArray, missing_dataset, nm_per_unit, numbers, placement, readable


def zarr_node(folder: Path) -> tuple[str, Attributes] | None:
    """What Zarr node a folder is.

    Returns:
        'array2', 'group2', 'array3' or 'group3' with the node's attributes; None where it is no Zarr node.

    Raises:
        SourceError: its metadata is not valid JSON.
    """
    with readable(folder):
        if (folder / "zarr.json").is_file():
            node = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
            return f"{node['node_type']}3", dict(node.get("attributes", {}))
        for name in ("array", "group"):
            if (folder / f".z{name}").is_file():
                extra = folder / ".zattrs"
                return f"{name}2", json.loads(extra.read_text(encoding="utf-8")) if extra.is_file() else {}
    return None


def zarr_ranks(path: Path) -> dict[str, int]:
    """Rank of every array below a group, by path; hidden folders and the inside of arrays are not looked into."""
    ranks: dict[str, int] = {}
    for folder, below, _ in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        node = zarr_node(Path(folder))
        if node and node[0].startswith("array"):
            below.clear()
            with readable(folder):
                file = Path(folder, "zarr.json" if node[0] == "array3" else ".zarray")
                ranks[Path(folder).relative_to(path).as_posix()] = len(json.loads(file.read_text("utf-8"))["shape"])
    return ranks


def load_zarr(path: Path, dataset: str | None) -> StoredArray:
    """The header of an array: the folder itself or one inside it."""
    dataset = None if dataset == "." else dataset
    folder = path / dataset if dataset else path
    node = zarr_node(folder)
    if node is None or node[0].startswith("group"):
        raise missing_dataset(path, dataset or "", list(zarr_ranks(path)))
    attributes = node[1]
    version = node[0][-1]
    # The header is read without tensorstore: its threads would make a later fork unsafe.
    with readable(folder):
        header = json.loads((folder / ("zarr.json" if version == "3" else ".zarray")).read_text(encoding="utf-8"))
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


@contextmanager
def _open_zarr(folder: Path, driver: str) -> Iterator[Cut]:
    with readable(folder):
        store = open_tensorstore(folder, driver)
        yield lambda index: np.asarray(store[index].read().result())


def open_tensorstore(folder: Path, driver: str, write: bool = False) -> Any:
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


def _zarr_spec(folder: Path, driver: str) -> dict[str, Any]:
    return {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"}}


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


def _ome_placement(folder: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Resolution and offset in nm from the OME-Zarr 0.4 or 0.5 `multiscales` of a group above the array."""
    for group in folder.absolute().parents:
        node = zarr_node(group)
        if node is None:
            break
        multiscales = node[1].get("ome", node[1]).get("multiscales")
        if multiscales:
            with readable(group):
                return _ome_scale(multiscales[0], folder.absolute().relative_to(group).as_posix())
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
