"""N5 containers and Neuroglancer precomputed volumes, both of which name their axes x, y, z.

Sizes, resolutions and offsets are turned round to z, y, x; a precomputed volume's channels come first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import SourceError
from distill.io.readers.array import Cut, Index, StoredArray, missing_dataset, nm_per_unit, numbers, readable
from distill.io.readers.remote import Place, kvstore, read_document

_N5_FILE, _PRECOMPUTED_FILE = "attributes.json", "info"


def is_n5(folder: Place) -> bool:
    """Whether a folder is an N5 container, group or dataset."""
    return read_document(folder, _N5_FILE) is not None


def is_precomputed(folder: Place) -> bool:
    """Whether a folder is a Neuroglancer precomputed volume."""
    return read_document(folder, _PRECOMPUTED_FILE) is not None


def n5_ranks(path: Place) -> dict[str, int]:
    """Rank of every dataset below a folder, by path; the folder itself is `.`. A remote folder is not listed."""
    if not isinstance(path, Path):
        attributes = _n5_attributes(path)
        return {".": len(attributes["dimensions"])} if "dimensions" in attributes else {}
    ranks: dict[str, int] = {}
    for folder, below, _ in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        attributes = _n5_attributes(Path(folder))
        if "dimensions" in attributes:
            below.clear()
            ranks[Path(folder).relative_to(path).as_posix()] = len(attributes["dimensions"])
    return ranks


def load_n5(path: Place, dataset: str | None) -> StoredArray:
    """The header of an N5 dataset: the folder itself or one inside it; of a pyramid `s0`, its finest level."""
    dataset = None if dataset == "." else dataset
    folder = path / dataset if dataset else path
    attributes = _n5_attributes(folder)
    if "dimensions" not in attributes and (finest := _n5_attributes(folder / "s0")):
        dataset = f"{dataset}/s0" if dataset else "s0"
        folder, attributes = path / dataset, finest
    if "dimensions" not in attributes:
        raise missing_dataset(path, dataset or "", list(n5_ranks(path)))
    with readable(folder):
        shape = tuple(int(extent) for extent in attributes["dimensions"][::-1])
        chunks = tuple(int(extent) for extent in attributes["blockSize"][::-1])
        dtype = np.dtype(attributes["dataType"])
        codec = str(attributes.get("compression", {}).get("type", "raw"))
    resolution, offset = _n5_placement(attributes)
    return StoredArray(
        f"{path}:{dataset}" if dataset else str(path),
        dataset,
        "n5",
        shape,
        dtype,
        resolution,
        offset,
        attributes,
        partial(_open_reversed, folder, {"driver": "n5"}),
        chunks,
        None if codec == "raw" else codec,
    )


def load_precomputed(path: Place, dataset: str | None) -> StoredArray:
    """The header of a scale of a precomputed volume: its key, the finest one by default."""
    with readable(path):
        info = json.loads(read_document(path, _PRECOMPUTED_FILE) or "")
        scales = {str(scale["key"]): scale for scale in info["scales"]}
        dtype, channels = np.dtype(info["data_type"]), int(info["num_channels"])
    if not scales or (dataset is not None and dataset not in scales):
        raise missing_dataset(path, dataset or "", list(scales))
    key = dataset or next(iter(scales))
    scale = scales[key]
    with readable(path):
        resolution = tuple(float(n) for n in scale["resolution"][::-1])
        start = [int(n) for n in scale.get("voxel_offset", (0, 0, 0))[::-1]]
        shape = tuple(int(n) for n in scale["size"][::-1])
        chunks = tuple(int(n) for n in scale["chunk_sizes"][0][::-1])
    many = (channels,) if channels > 1 else ()
    spec = {"driver": "neuroglancer_precomputed", "scale_index": list(scales).index(key)}
    return StoredArray(
        f"{path}:{dataset}" if dataset else str(path),
        dataset,
        "precomputed",
        (*many, *shape),
        dtype,
        resolution,
        tuple(n * nm for n, nm in zip(start, resolution, strict=True)),
        {"type": info.get("type")},
        partial(_open_reversed, path, spec),
        (*many, *chunks),
        None if scale.get("encoding") == "raw" else str(scale.get("encoding")),
    )


@contextmanager
def _open_reversed(folder: Place, spec: Mapping[str, Any]) -> Iterator[Cut]:
    """Parts of an array whose axes are stored the other way round, its origin at 0."""
    import tensorstore

    with readable(folder):
        store = tensorstore.open({**spec, "kvstore": kvstore(folder)}, open=True, read=True).result()
        store = store[tensorstore.d[:].translate_to[0]]
        if spec["driver"] == "neuroglancer_precomputed" and store.shape[-1] == 1:
            store = store[..., 0]

        def cut(index: Index) -> Any:
            return np.asarray(store[index[::-1]].read().result()).T

        yield cut


def _n5_attributes(folder: Place) -> dict[str, Any]:
    with readable(folder):
        text = read_document(folder, _N5_FILE)
        found = json.loads(text) if text is not None else {}
    if not isinstance(found, dict):
        raise SourceError(f"{folder}/{_N5_FILE}: found {type(found).__name__}, expected an object")
    return found


def _n5_placement(attributes: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Resolution and offset in nm, z, y, x; N5 gives both in the order of `dimensions`, x first."""
    units = attributes.get("units", "nm")
    pixel = attributes.get("pixelResolution")
    given = attributes.get("resolution", attributes.get("voxel_size"))
    if given is None and isinstance(pixel, dict):
        given, units = pixel.get("dimensions"), pixel.get("unit", "um")
    elif given is None and isinstance(pixel, list):
        given = pixel
    scales = {nm_per_unit(name) for name in (units[:3] if isinstance(units, list) else [units])}
    scale = scales.pop() if len(scales) == 1 else None
    if scale is None:
        return None, None
    found = (numbers(given), numbers(attributes.get("offset")))
    resolution, offset = (many and tuple(number * scale for number in reversed(many)) for many in found)
    return resolution, offset
