"""Store of a growing stream: Zarr v3 arrays in shards of one layer, with OME-Zarr 0.5 metadata.

A layer is written when it is full and is not modified afterwards. It is complete only once its files and the folders
that contain them are on disk. The remains of an incomplete layer are removed before the layer is rewritten.

Legend: K offsets, E embedding channels, L sections of a layer, H W = y x.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity_conventions import attributes
from distill.core.atomic import flush
from distill.core.choices import StoredEmbedding
from distill.core.geometry import Box, Nanometres, Triple
from distill.io.writers.levels import Level, ome_image
from distill.io.writers.store import (
    ZarrArray,
    create_zarr,
    open_zarr_for_writing,
    resize_zarr,
    write_group_attributes,
    writing,
)

INNER = 128  # voxels of a chunk along y and x: with 16 sections as many as in 64 x 64 x 64
SHARD = 1024  # of a layer's file: smaller for an embedding, whose channels are encoded together
EMBEDDING_SHARD = 512
SECTION_SHARD, SECTION_INNER = 2048, 256


@dataclass(frozen=True)
class StreamLayout:
    """Contents of a store.

    Attributes:
        size: (H, W).
        depth: sections per layer.
        offsets: K affinity offsets.
        embedding: type of the stored embedding.
        channels: E.
        segment: whether there are supervoxels.
        resolution: nm, z y x.
        offset: nm of the first section.
    """

    size: tuple[int, int]
    depth: int
    offsets: tuple[Triple, ...]
    embedding: StoredEmbedding
    channels: int
    segment: bool
    resolution: Nanometres
    offset: Nanometres

    @property
    def section_bytes(self) -> int:
        """Return the bytes buffered per section until its layer is full."""
        each = {"none": 0, "uint8": 1, "float16": 2}[self.embedding]
        return self.size[0] * self.size[1] * (len(self.offsets) + each * self.channels)


class StreamStore:
    """Arrays of a stream, open for writing layer by layer."""

    def __init__(self, path: Path, layout: StreamLayout) -> None:
        """Open the arrays created by `create`."""
        self.path, self.layout = path, layout
        self.affinity = open_zarr_for_writing(path, "affinity")
        self.embedding = open_zarr_for_writing(path, "embedding") if layout.embedding != "none" else None
        self.supervoxels = open_zarr_for_writing(path, "supervoxels") if layout.segment else None

    @staticmethod
    def create(path: Path, layout: StreamLayout, total: int | None) -> None:
        """Create the arrays and their metadata; if the number of sections is unknown, with one layer."""
        depth = total or layout.depth
        place: dict[str, Any] = {"resolution": layout.resolution, "offset": layout.offset}
        count, inner = len(layout.offsets), (layout.depth, INNER, INNER)
        create_zarr(
            path,
            "affinity",
            shape=(count, depth, *layout.size),
            dtype=np.uint8,
            chunks=(1, *inner),
            shards=(count, layout.depth, SHARD, SHARD),
            attributes=attributes(layout.offsets),
            **place,
        )
        if layout.embedding != "none":
            create_zarr(
                path,
                "embedding",
                shape=(layout.channels, depth, *layout.size),
                dtype=layout.embedding,
                chunks=(1, *inner),
                shards=(layout.channels, layout.depth, EMBEDDING_SHARD, EMBEDDING_SHARD),
                attributes=embedding_attributes(layout.embedding),
                **place,
            )
        if layout.segment:
            create_zarr(
                path,
                "supervoxels",
                shape=(depth, *layout.size),
                dtype=np.uint64,
                chunks=(1, SECTION_INNER, SECTION_INNER),
                shards=(1, SECTION_SHARD, SECTION_SHARD),
                **place,
            )
        names = ["affinity"] + ["embedding"] * (layout.embedding != "none") + ["supervoxels"] * layout.segment
        write_group_attributes(path, {"ome": ome(names, layout.resolution, layout.offset)})

    @property
    def depth(self) -> int:
        """Number of sections that the arrays can hold."""
        return self.affinity.shape[1]

    def resize(self, depth: int) -> None:
        """Resize all arrays to another number of sections."""
        if depth == self.depth:
            return
        self.affinity = resize_zarr(self.path, "affinity", depth)
        if self.embedding is not None:
            self.embedding = resize_zarr(self.path, "embedding", depth)
        if self.supervoxels is not None:
            self.supervoxels = resize_zarr(self.path, "supervoxels", depth)

    def write_layer(self, first: int, affinity: NDArray[np.uint8], embedding: NDArray[Any] | None) -> None:
        """Write a layer from section `first`, (K, L, H, W) and (E, L, H, W), and wait until it is on disk."""
        box = self._box(first, affinity.shape[1])
        self.affinity.write(box, affinity)
        if self.embedding is not None and embedding is not None:
            self.embedding.write(box, embedding)
        self.make_layer_durable(first)

    def write_piece(
        self, z: int, rows: slice, columns: slice, affinity: NDArray[np.uint8], embedding: NDArray[Any] | None
    ) -> None:
        """Write part of a section, (K, h, w) and (E, h, w); it is on disk after `make_layer_durable`."""
        box = Box((z, rows.start, columns.start), (z + 1, rows.stop, columns.stop))
        self.affinity.write(box, affinity[:, None])
        if self.embedding is not None and embedding is not None:
            self.embedding.write(box, embedding[:, None])

    def make_layer_durable(self, first: int) -> None:
        """Flush to disk the layer that begins with section `first`."""
        for array in (self.affinity, self.embedding):
            if array is not None:
                _make_durable(array, f"0/{first // self.layout.depth}")

    def write_supervoxels(self, sections: Sequence[tuple[int, NDArray[np.uint64]]]) -> None:
        """Write sections (H, W) of ids, and wait until they are on disk."""
        assert self.supervoxels is not None
        for z, ids in sections:
            self.supervoxels.write(self._box(z, 1), ids[None])
            _make_durable(self.supervoxels, f"{z}")

    def clear(self, layers: range, owned: range) -> None:
        """Remove the remains of an interrupted run from layers of affinities and sections of supervoxels."""
        for array in (self.affinity, self.embedding):
            if array is not None:
                _remove(array, "0", layers)
        if self.supervoxels is not None:
            _remove(self.supervoxels, "", owned)

    def _box(self, first: int, depth: int) -> Box:
        return Box((first, 0, 0), (first + depth, *self.layout.size))


def embedding_attributes(kept: StoredEmbedding) -> dict[str, Any]:
    """Return the attributes that convert stored values to unit vectors: value * scale + shift."""
    if kept == "uint8":
        return {"scale": 2 / 255, "shift": -1.0, "normalised": True}
    return {"scale": 1.0, "shift": 0.0, "normalised": True}


_SHOWN_FIRST = ("segmentation", "supervoxels", "affinity", "embedding").index


def ome(names: Sequence[str], resolution: Nanometres, offset: Nanometres) -> dict[str, Any]:
    """Build OME-Zarr 0.5 metadata of arrays (z, y, x) or (c, z, y, x), one multiscale image each, in nm.

    Viewers open the first image of a group: the segmentation where there is one.
    """
    whole = [Level((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), resolution, offset)]
    images = [
        ome_image(name, [name], whole, name in ("affinity", "embedding")) for name in sorted(names, key=_SHOWN_FIRST)
    ]
    return {"version": "0.5", "multiscales": images}


def _make_durable(array: ZarrArray, key: str) -> None:
    """Flush the files below a chunk folder and every folder between them and the array."""
    root = array.path / array.dataset
    folder = root / "c" / key
    with writing(f"{array}"):
        if folder.exists():
            for below in [folder, *folder.rglob("*")]:
                flush(below)
        at = folder.parent
        while at != array.path:
            if at.exists():
                flush(at)
            at = at.parent


def _remove(array: ZarrArray, key: str, numbers: range) -> None:
    folder = array.path / array.dataset / "c" / key
    if not folder.is_dir():
        return
    with writing(f"{array}"):
        for item in folder.iterdir():
            if item.name.isdecimal() and int(item.name) in numbers:
                shutil.rmtree(item)
