"""Metadata of arrays and pyramids in Zarr v2 and v3, N5 and Neuroglancer precomputed.

Shapes are z, y, x (c, z, y, x with channels), resolution and offset in nm; N5 and precomputed name their axes x, y, z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distill.core.errors import ShapeError
from distill.core.geometry import Nanometres, Triple, whole_voxels
from distill.io.writers.levels import Level, ome_image
from distill.io.writers.store import AXES, array_metadata

Format = Literal["zarr2", "zarr3", "n5", "precomputed"]
CHUNK = (16, 128, 128)  # as many voxels as 64 x 64 x 64, for sections thicker than the pixel size
_SHARD = 1024  # extent of a file along y and x
_SHARD_BYTES = 64 * 2**20
_N5 = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")
_NUMBERS = ("bool", "float16", *_N5)
_TYPES = {
    "n5": _N5,
    "precomputed": ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32"),
}


@dataclass(frozen=True)
class Written:
    """Description of an array to be written.

    Attributes:
        name: for messages.
        channels: extent of the axis before z, y, x; None without channels.
        dtype: of the stored values.
        labels: whether the values are ids.
        levels: of the pyramid, finest first.
    """

    name: str
    channels: int | None
    dtype: np.dtype[Any]
    labels: bool
    levels: tuple[Level, ...]

    def shape(self, level: Level) -> tuple[int, ...]:
        """Return the extent of a level, including channels if there are any."""
        return level.size if self.channels is None else (self.channels, *level.size)


@dataclass(frozen=True)
class Layout:
    """Layout of a pyramid in a format.

    Attributes:
        specs: tensorstore specification of each level, without the location.
        paths: folder of each level below the target; empty for the target itself.
        documents: metadata by path below the target.
        reverse: whether the format's axes are x, y, z.
    """

    specs: tuple[Mapping[str, Any], ...]
    paths: tuple[str, ...]
    documents: Mapping[str, Any]
    reverse: bool


def layout(form: Format, written: Written) -> Layout:
    """Build the layout and metadata of a pyramid.

    Raises:
        ShapeError: a type, shape or offset that the format cannot store.
    """
    allowed = _TYPES.get(form, _NUMBERS)
    if written.dtype.name not in allowed:
        raise ShapeError(f"{written.name}: found type {written.dtype}, expected one of {', '.join(allowed)} for {form}")
    make = {"zarr2": _zarr2, "zarr3": _zarr3, "n5": _n5, "precomputed": _precomputed}[form]
    return make(written)


def voxel_offset(name: str, resolution: Nanometres, offset: Nanometres) -> Triple:
    """Convert an offset to whole voxels, the only offsets that precomputed supports.

    Raises:
        ShapeError: it is not a whole number of voxels.
    """
    exact = [o / r for o, r in zip(offset, resolution, strict=True)]
    voxels = whole_voxels(exact)
    if voxels is None:
        found = ", ".join(f"{e:.6g}" for e in exact)
        raise ShapeError(
            f"{name}: found offset {offset} nm, which is {found} voxels, expected whole voxels for precomputed; "
            "give another as --offset Z,Y,X"
        )
    return voxels


def _zarr3(written: Written) -> Layout:
    documents, specs = {}, []
    side = _shard_side(written)
    for k, level in enumerate(written.levels):
        shape = written.shape(level)
        front = (1,) * (len(shape) - 3)
        document = array_metadata(
            written.name, shape, written.dtype, (*front, *CHUNK), (*front, CHUNK[0], side, side)
        ) | {"zarr_format": 3, "node_type": "array"}
        document["attributes"] = _place(written, level)
        document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
        document["dimension_names"] = list(AXES[-len(shape) :])
        specs.append({"driver": "zarr3", "metadata": document})
        documents[f"{k}/zarr.json"] = document
    image = {"ome": {"version": "0.5", "multiscales": [_image(written)]}}
    documents["zarr.json"] = {"zarr_format": 3, "node_type": "group", "attributes": image}
    return Layout(tuple(specs), tuple(str(k) for k in range(len(specs))), documents, False)


def _zarr2(written: Written) -> Layout:
    documents: dict[str, Any] = {}
    specs = []
    for k, level in enumerate(written.levels):
        shape = written.shape(level)
        document = {
            "zarr_format": 2,
            "shape": list(shape),
            "chunks": _chunks(shape),
            "dtype": written.dtype.newbyteorder("<").str,
            "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0},
            "fill_value": False if written.dtype.kind == "b" else 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        specs.append({"driver": "zarr", "metadata": document})
        documents[f"{k}/.zarray"] = document
        documents[f"{k}/.zattrs"] = _place(written, level)
    documents[".zattrs"] = {"multiscales": [{"version": "0.4"} | _image(written)]}
    documents[".zgroup"] = {"zarr_format": 2}
    return Layout(tuple(specs), tuple(str(k) for k in range(len(specs))), documents, False)


def _n5(written: Written) -> Layout:
    """Lay out a dataset, or with coarser levels a group of s0, s1, ... as expected by N5 viewers."""
    documents: dict[str, Any] = {}
    specs = []
    many = len(written.levels) > 1
    paths = [f"s{k}" if many else "" for k in range(len(written.levels))]
    for path, level in zip(paths, written.levels, strict=True):
        shape = written.shape(level)
        document = {
            "dimensions": list(shape[::-1]),
            "blockSize": _chunks(shape)[::-1],
            "dataType": written.dtype.name,
            "compression": {"type": "gzip", "level": 4},
        }
        specs.append({"driver": "n5", "metadata": document})
        more = {"downsamplingFactors": _reversed(written, level.factor, 1)} if many else {}
        documents[f"{path}/attributes.json".lstrip("/")] = document | _n5_place(written, level) | more
    if many:
        finest = written.levels[0]
        scales = [_reversed(written, level.factor, 1) for level in written.levels]
        documents["attributes.json"] = {"n5": "4.0.0", "scales": scales} | _n5_place(written, finest)
    else:
        documents["attributes.json"]["n5"] = "4.0.0"
    return Layout(tuple(specs), tuple(paths), documents, True)


def _precomputed(written: Written) -> Layout:
    multiscale = {
        "type": "segmentation" if written.labels else "image",
        "data_type": written.dtype.name,
        "num_channels": written.channels or 1,
    }
    encoding: dict[str, Any] = {"encoding": "raw"}
    if written.labels:
        encoding = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    specs, scales = [], []
    for level in written.levels:
        scale = {
            "key": "_".join(f"{n:.10g}" for n in level.resolution[::-1]),
            "size": list(level.size[::-1]),
            "resolution": list(level.resolution[::-1]),
            "voxel_offset": list(level.start[::-1]),
            **encoding,
        }
        chunk = _chunks(level.size)[::-1]
        metadata = {"multiscale_metadata": multiscale, "scale_metadata": scale | {"chunk_size": chunk}}
        specs.append({"driver": "neuroglancer_precomputed", **metadata})
        scales.append(scale | {"chunk_sizes": [chunk]})
    info = {"@type": "neuroglancer_multiscale_volume", **multiscale, "scales": scales}
    return Layout(tuple(specs), ("",) * len(specs), {"info": info}, True)


def _image(written: Written) -> dict[str, Any]:
    paths = [str(k) for k in range(len(written.levels))]
    return ome_image(written.name.rpartition("/")[2], paths, written.levels, written.channels is not None)


def _place(written: Written, level: Level) -> dict[str, Any]:
    axes = list(AXES[-3:] if written.channels is None else AXES)
    return {"resolution": list(level.resolution), "offset": list(level.offset), "units": "nm", "axis_names": axes}


def _n5_place(written: Written, level: Level) -> dict[str, Any]:
    """Return where a level lies.

    `resolution` is the level's own, as Paintera, Neuroglancer and tensorstore read it of a dataset; `pixelResolution`
    is that of the finest level, which n5-viewer and its relatives multiply by `downsamplingFactors`.
    """
    finest = _reversed(written, written.levels[0].resolution, 1.0)
    resolution, offset = _reversed(written, level.resolution, 1.0), _reversed(written, level.offset, 0.0)
    return {
        "axes": list((AXES[-3:] if written.channels is None else AXES)[::-1]),
        "units": ["nm", "nm", "nm"] + ([] if written.channels is None else [""]),
        "resolution": resolution,
        "offset": offset,
        "pixelResolution": {"unit": "nm", "dimensions": finest[:3]},
    }


def _reversed(written: Written, values: tuple[float, float, float] | Triple, channel: float) -> list[float]:
    return [*values[::-1], *([] if written.channels is None else [channel])]


def _chunks(shape: tuple[int, ...]) -> list[int]:
    return [min(n, c) for n, c in zip(shape, (*(1 for _ in shape[:-3]), *CHUNK), strict=True)]


def _shard_side(written: Written) -> int:
    """Return the side of a shard so that all its channels fit into memory."""
    side = _SHARD
    section = (written.channels or 1) * written.dtype.itemsize * CHUNK[0]
    while side > CHUNK[1] and section * side**2 > _SHARD_BYTES:
        side //= 2
    return side


def block_step(chunk: Triple, size: Triple, voxel_bytes: int, limit: int) -> Triple:
    """Return the extent of blocks of whole chunks, extended along x, then y and z, within a limit in bytes.

    Args:
        chunk: extent of the writing unit, z, y, x.
        size: extent of the array.
        voxel_bytes: of all channels of a voxel.
        limit: bytes of a block; a single chunk may exceed it.
    """
    step = list(chunk)
    for axis in (2, 1, 0):
        others = math.prod(step) // step[axis] * voxel_bytes
        times = max(1, limit // (others * chunk[axis]))
        step[axis] = min(chunk[axis] * times, -(-size[axis] // chunk[axis]) * chunk[axis])
    return step[0], step[1], step[2]
