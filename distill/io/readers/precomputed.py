"""Neuroglancer precomputed volumes, whose axes are x, y, z; turned round to z, y, x, channels first."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.errors import SourceError
from distill.core.memory import check_memory
from distill.core.notes import note
from distill.core.reasons import readable, shown
from distill.io.readers.array import Cut, Index, Reading, StoredArray, missing_dataset, stored_type
from distill.io.readers.chunks import Chunks, chunk_counts, open_chunks, stored_files
from distill.io.readers.names import inner_path
from distill.io.readers.remote import Place, read_document, read_object

_FILE = "info"
_ENCODINGS = ("raw", "jpeg", "png", "compressed_segmentation")
_PACKED = (".gz", ".br")  # as CloudVolume names the chunks that it compresses


def is_precomputed(folder: Place) -> bool:
    """Return whether a folder is a Neuroglancer precomputed volume."""
    return read_document(folder, _FILE) is not None


def load_precomputed(path: Place, dataset: str | None) -> StoredArray:
    """Read the header of a scale of a precomputed volume: its key, the finest one by default."""
    with readable(f"{path}/{_FILE}"):
        info = read_object(path, _FILE) or {}
        scales = {str(scale["key"]): scale for scale in info["scales"]}
        dtype, channels = stored_type(str(path), info["data_type"]), int(info["num_channels"])
        if channels < 1 or info.get("type") not in (None, "image", "segmentation"):
            raise SourceError(f"{path}/{_FILE}: found type {shown(info.get('type'))}, expected image or segmentation")
    if not scales or (dataset is not None and dataset not in scales):
        raise missing_dataset(path, dataset or "", list(scales))
    key = dataset or next(iter(scales))
    scale = scales[key]
    name = f"{path}:{dataset}" if dataset else str(path)
    inner_path(path, key)
    with readable(f"{path}/{_FILE}"):
        resolution = tuple(float(n) for n in scale["resolution"][::-1])
        start = [int(n) for n in scale.get("voxel_offset", (0, 0, 0))]
        shape = tuple(int(n) for n in scale["size"])
        chunk = tuple(int(n) for n in scale["chunk_sizes"][0])
        if len(shape) != 3 or len(chunk) != 3 or len(start) != 3 or min(chunk) < 1 or min(shape) < 0:
            raise SourceError(f"{path}/{_FILE}: found size {shape} and chunks {chunk}, expected three numbers each")
    encoding = str(scale.get("encoding"))
    if encoding not in _ENCODINGS:
        raise SourceError(
            f"{name}: cannot be read: it is packed as {encoding}, expected one of {', '.join(_ENCODINGS)}: "
            "CloudVolume copies it into such a one"
        )
    check_memory(name, "a chunk", (channels, *chunk), dtype)
    many = (channels,) if channels > 1 else ()
    spec = {"driver": "neuroglancer_precomputed", "scale_index": list(scales).index(key)}
    named = partial(_chunk_name, key, shape, chunk, start)
    files = None if scale.get("sharding") else named
    where = Chunks(path, spec, name, files, chunk_counts(shape, chunk))
    opener: Any = partial(open_chunks, where, True)
    if files is not None and isinstance(path, Path):
        packed = _packed_files(path, key)
        if packed:
            there = frozenset(stored_files(path / key))
            opener = partial(_open_packed, _Packed(path, key, spec, name, shape, chunk, start, packed, there))
    return StoredArray(
        name,
        dataset,
        "precomputed",
        (*many, *shape[::-1]),
        dtype,
        resolution,
        tuple(n * nm for n, nm in zip(start[::-1], resolution, strict=True)),
        {"type": info.get("type")},
        opener,
        (*many, *chunk[::-1]),
        None if encoding == "raw" else encoding,
        tuple("czyx" if many else "zyx"),
        {"segmentation": True, "image": False}.get(str(info.get("type"))),
        chunked=where if opener.func is open_chunks else None,
    )


def _chunk_name(key: str, shape: tuple[int, ...], chunk: tuple[int, ...], start: list[int], at: tuple[int, ...]) -> str:
    """Return the file of a chunk: `KEY/x0-x1_y0-y1_z0-z1`."""
    spans = (f"{s + k * c}-{s + min((k + 1) * c, n)}" for k, c, n, s in zip(at, chunk, shape, start, strict=True))
    return f"{key}/{'_'.join(spans)}"


@dataclass(frozen=True)
class _Packed:
    """A volume on this machine some of whose chunks are named after their compression."""

    folder: Path
    key: str
    spec: Mapping[str, Any]
    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    start: list[int]
    packed: Mapping[str, str]  # name of the file by that of the chunk
    there: frozenset[str]

    def file(self, at: tuple[int, ...]) -> Path | None:
        """Return the file of a chunk; None where there is none."""
        name = _chunk_name(self.key, self.shape, self.chunk, self.start, at).rpartition("/")[2]
        found = name if name in self.there else self.packed.get(name)
        return None if found is None else self.folder / self.key / found


def _packed_files(path: Path, key: str) -> dict[str, str]:
    folder = path / key
    if not folder.is_dir():
        return {}
    found = {}
    for file in folder.iterdir():
        base, dot, ending = file.name.rpartition(".")
        if f"{dot}{ending}" in _PACKED and re.fullmatch(r"-?\d+--?\d+_-?\d+--?\d+_-?\d+--?\d+", base):
            found[base] = file.name
    return found


@contextmanager
def _open_packed(packed: _Packed, reading: Reading) -> Iterator[Cut]:
    """Read through a store in memory, into which the chunks that a part needs are unpacked."""
    import tensorstore

    counts = chunk_counts(packed.shape, packed.chunk)
    lost = sum(packed.file(at) is None for at in itertools.product(*map(range, counts)))
    if lost:
        total = int(np.prod(counts))
        text = f"{packed.name}: {lost:,} of {total:,} chunks are missing"
        if reading.missing == "refuse":
            raise SourceError(f"{text}; expected a whole copy, or --missing zero to read them as empty")
        if reading.missing == "report":
            note(f"{text} and read as background")

    def cut(index: Index) -> Any:
        context = tensorstore.Context()
        memory = {"driver": "memory"}
        keys = tensorstore.KvStore.open(memory, context=context).result()
        keys.write(_FILE, (packed.folder / _FILE).read_bytes()).result()
        stored = index[::-1]  # x, y, z(, c)
        for at in itertools.product(
            *(range(part.start // c, -(-part.stop // c)) for part, c in zip(stored, packed.chunk, strict=False))
        ):
            file = packed.file(at)
            if file is not None:
                name = _chunk_name(packed.key, packed.shape, packed.chunk, packed.start, at)
                keys.write(name, _unpacked(file)).result()
        store = tensorstore.open({**packed.spec, "kvstore": memory}, open=True, read=True, context=context).result()
        store = store[tensorstore.d[:].translate_to[0]]
        if store.shape[-1] == 1 and len(index) == 3:
            store = store[..., 0]
        return np.asarray(store[stored].read().result()).T

    with readable(packed.name):
        yield cut


def _unpacked(file: Path) -> bytes:
    with readable(file):
        content = file.read_bytes()
        if file.suffix == ".gz":
            return gzip.decompress(content)
        if file.suffix == ".br":
            try:
                from imagecodecs import brotli_decode
            except ImportError:
                raise SourceError(
                    f"{file}: is packed with brotli, expected the package that unpacks it: pip install imagecodecs"
                ) from None
            return bytes(brotli_decode(content))
        return content
