"""Readers of N5 and of Neuroglancer precomputed, written from the formats' published descriptions for tests alone.

N5: https://github.com/saalfeldlab/n5 ("File-system specification"); precomputed and compressed segmentation:
https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed and src/sliceview/compressed_segmentation.
"""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_n5(folder: Path) -> NDArray[Any]:
    """An N5 dataset whose axes are x, y, z(, c) as (c, )z, y, x; blocks that are not there are zero."""
    attributes = json.loads((folder / "attributes.json").read_text())
    size, block, kind = attributes["dimensions"], attributes["blockSize"], attributes["compression"]["type"]
    dtype = np.dtype(attributes["dataType"]).newbyteorder(">")
    array = np.zeros(size, dtype)
    for at in itertools.product(*(range(-(-n // b)) for n, b in zip(size, block, strict=True))):
        file = folder.joinpath(*map(str, at))
        if not file.exists():
            continue
        content = file.read_bytes()
        mode, rank = struct.unpack(">HH", content[:4])
        assert (mode, rank) == (0, len(size))
        extent = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
        data = content[4 + 4 * rank :]
        values = np.frombuffer(gzip.decompress(data) if kind == "gzip" else data, dtype).reshape(extent, order="F")
        # Blocks at the border may be whole or cut off.
        inside = tuple(slice(0, min(n, s - a * b)) for a, b, n, s in zip(at, block, extent, size, strict=True))
        index = tuple(slice(a * b, a * b + i.stop) for a, b, i in zip(at, block, inside, strict=True))
        array[index] = values[inside]
    return array.T


def read_precomputed(folder: Path, scale: int = 0) -> tuple[NDArray[Any], dict[str, Any]]:
    """A scale of a precomputed volume as (c, z, y, x), and what `info` says about it; every chunk must be there."""
    info = json.loads((folder / "info").read_text())
    assert info["@type"] == "neuroglancer_multiscale_volume"
    about = info["scales"][scale]
    size, start, chunk = about["size"], about["voxel_offset"], about["chunk_sizes"][0]
    channels, dtype = info["num_channels"], np.dtype(info["data_type"]).newbyteorder("<")
    array = np.zeros((*size, channels), dtype)
    for at in itertools.product(*(range(0, n, c) for n, c in zip(size, chunk, strict=True))):
        stop = [min(a + c, n) for a, c, n in zip(at, chunk, size, strict=True)]
        name = "_".join(f"{a + s}-{b + s}" for a, b, s in zip(at, stop, start, strict=True))
        content = (folder / about["key"] / name).read_bytes()
        extent = (*(b - a for a, b in zip(at, stop, strict=True)), channels)
        if about["encoding"] == "raw":
            values = np.frombuffer(content, dtype).reshape(extent, order="F")
        else:
            assert about["encoding"] == "compressed_segmentation"
            values = decode(content, extent, about["compressed_segmentation_block_size"], dtype)
        array[tuple(slice(a, b) for a, b in zip(at, stop, strict=True))] = values
    return array.T, {**info, "scale": about}


def decode(content: bytes, extent: tuple[int, ...], block: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A chunk (x, y, z, c) of compressed segmentation."""
    words = np.frombuffer(content, "<u4")
    found = np.zeros(extent, dtype)
    counts = [-(-n // b) for n, b in zip(extent, block, strict=False)]
    for channel in range(extent[3]):
        own = words[int(words[channel]) :]
        for number, at in enumerate(itertools.product(*(range(n) for n in reversed(counts)))):
            head, values_at = int(own[2 * number]), int(own[2 * number + 1])
            table_at, bits = head & 0xFFFFFF, head >> 24
            z, y, x = (a * b for a, b in zip(at, reversed(block), strict=True))
            for k, j, i in itertools.product(range(block[2]), range(block[1]), range(block[0])):
                if z + k >= extent[2] or y + j >= extent[1] or x + i >= extent[0]:
                    continue
                place = (i + block[0] * (j + block[1] * k)) * bits
                index = (int(own[values_at + place // 32]) >> place % 32) & ((1 << bits) - 1) if bits else 0
                width = dtype.itemsize // 4
                entry = own[table_at + index * width : table_at + (index + 1) * width]
                found[x + i, y + j, z + k, channel] = entry.view(dtype)[0]
    return found
