"""Lazy reading of volumes: HDF5, TIFF stacks, section images, NumPy files and Zarr.

A source is `path[:dataset]`. Opening one reads its header only; `Volume.read` and `Volume.sections` read what they are
asked for and keep no file open in between, so that a volume can be pickled, forked and outlive a renamed file.
Axes are z, y, x (c, z, y, x with channels); resolution and offset are in nm.
"""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.errors import DistillError, ShapeError, SourceError
from distill.geometry import Box, Nanometres, Triple

if TYPE_CHECKING:
    import tifffile

Index = tuple[slice, ...]
Cut = Callable[[Index], NDArray[Any]]
Opener = Callable[[], AbstractContextManager[Cut]]
Attributes = Mapping[str, Any]

HDF5_SUFFIXES = (".h5", ".hdf", ".hdf5")
TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png")
RAW_DATASET = "volumes/raw"
LABELS_DATASET = "volumes/labels/neuron_ids"
NO_LABEL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

_BLOCK_BYTES = 256 * 2**20
_NM_PER_UNIT = {"nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "mm": 1e6, "millimeter": 1e6, "angstrom": 0.1}
_NM_PER_UNIT |= dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "micrometer", "micrometre"), 1e3)
# What the libraries below were seen to raise on truncated and altered files.
_UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, SyntaxError, AttributeError),
    *(ArithmeticError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)


@dataclass(frozen=True)
class StoredArray:
    """An array as a file holds it: of any rank, and placed only if the file says where.

    Attributes:
        source: `path[:dataset]`, the name used in messages.
        dataset: path inside the file; None for files that hold one array.
        kind: 'hdf5', 'tiff', 'images', 'npy', 'npz', 'zarr2' or 'zarr3'.
        shape: extent per axis in voxels.
        dtype: type in native byte order.
        resolution: nm per axis as the file gives it, unchecked; None where it gives none.
        offset: nm per axis; None where the file gives none.
        attributes: the file's attributes as plain Python values.
        opener: opens the file; the function it gives cuts a part out.
        chunks: extent of what is read in one go; None where any part is as cheap.
        compression: codec; None where not compressed.
    """

    source: str
    dataset: str | None
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    resolution: tuple[float, ...] | None
    offset: tuple[float, ...] | None
    attributes: Attributes
    opener: Opener = field(repr=False)
    chunks: tuple[int, ...] | None = None
    compression: str | None = None


@dataclass(frozen=True)
class Volume:
    """A lazily read 3D (z, y, x) or channelled 4D (c, z, y, x) array with its place in the world.

    Attributes:
        source: `path[:dataset]`, the name used in messages.
        kind: 'hdf5', 'tiff', 'images', 'npy', 'npz', 'zarr2', 'zarr3' or 'array'.
        shape: (z, y, x) or (c, z, y, x) in voxels.
        dtype: type of what `read` returns, in native byte order.
        resolution: voxel size z, y, x in nm.
        offset: position of voxel (0, 0, 0) in nm, z, y, x.
        attributes: the file's attributes as plain Python values.
        chunks: extent of what the file reads in one go, same axes as `shape`; None where any part is as cheap.
    """

    source: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    resolution: Nanometres
    offset: Nanometres
    attributes: Attributes = field(compare=False)
    _opener: Opener = field(repr=False, compare=False)
    chunks: tuple[int, ...] | None = None

    @property
    def size(self) -> Triple:
        """Extent z, y, x in voxels."""
        z, y, x = self.shape[-3:]
        return z, y, x

    @property
    def channels(self) -> int | None:
        """Number of channels; None for a 3D volume."""
        return self.shape[0] if len(self.shape) == 4 else None

    @property
    def box(self) -> Box:
        """The whole volume."""
        return Box.of_shape(self.size)

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """Read one part.

        Args:
            box: voxels to read; the whole volume by default.

        Returns:
            A fresh C-contiguous array of shape (z, y, x) or (c, z, y, x) and type `dtype`.

        Raises:
            DistillError: the box leaves the volume.
            SourceError: the file cannot be read.
        """
        box = self.box if box is None else box
        if not self.box.contains(box):
            raise DistillError(
                f"{self.source}: found box {box.start} to {box.stop}, expected one within (0, 0, 0) to {self.size}"
            )
        with self._opener() as cut:
            return self._native(cut(self._index(box)))

    def sections(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[Any]]:
        """Read section after section, holding at most one chunk's depth of them.

        Args:
            start: first section.
            stop: one past the last section; all by default.

        Returns:
            Iterator over arrays (y, x) or (c, y, x) of type `dtype`, in z order.

        Raises:
            DistillError: the range leaves the volume.
            SourceError: while iterating, a section cannot be read; those before it have been given.
        """
        depth = self.size[0]
        stop = depth if stop is None else stop
        if not 0 <= start <= stop <= depth:
            raise DistillError(f"{self.source}: found sections {start} to {stop}, expected a range within 0 to {depth}")
        return self._iterate(start, stop)

    def _iterate(self, start: int, stop: int) -> Iterator[NDArray[Any]]:
        _, height, width = self.size
        section_bytes = (self.channels or 1) * height * width * self.dtype.itemsize
        chunk = self.chunks[-3] if self.chunks else 1
        step = max(1, min(chunk, _BLOCK_BYTES // max(section_bytes, 1)))
        with self._opener() as cut:
            z = start
            while z < stop:
                end = min(stop, (z // step + 1) * step)
                block = self._native(cut(self._index(Box((z, 0, 0), (end, height, width)))))
                for section in range(end - z):
                    yield np.ascontiguousarray(block[..., section, :, :])
                z = end

    def _index(self, box: Box) -> Index:
        return box.slices if self.channels is None else (slice(0, self.channels), *box.slices)

    def _native(self, block: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(block, dtype=self.dtype)


def open_volume(
    source: str | Path, *, resolution: Nanometres | None = None, offset: Nanometres | None = None
) -> Volume:
    """Open a volume for lazy reading.

    Args:
        source: `path[:dataset]`, a folder or a glob of section images. An HDF5 file without a dataset gives
            `volumes/raw`, else its only 3D (else only 4D) dataset.
        resolution: voxel size z, y, x in nm; wins over what the file says.
        offset: position of voxel (0, 0, 0) in nm; wins over what the file says, which wins over zero.

    Raises:
        SourceError: the source is missing, unreadable, ambiguous, not numeric, not 3D or 4D, or has no resolution.
    """
    return _placed(_find(source, RAW_DATASET), resolution, offset)


def open_labels(source: str | Path, *, resolution: Nanometres | None = None) -> Volume:
    """Open a label volume; it reads as uint64 with 0 as background.

    CREMI marks voxels without a label by -1, or by the same bits as an unsigned 0xffffffffffffffff: every negative id
    and that one uint64 value read as 0. An HDF5 file without a dataset gives `volumes/labels/neuron_ids`.

    Args:
        source: as for `open_volume`.
        resolution: voxel size z, y, x in nm; wins over what the file says.

    Raises:
        SourceError: as `open_volume`, or the stored type is not an integer, or the array is not 3D.
    """
    volume = _placed(_find(source, LABELS_DATASET), resolution, None)
    if volume.dtype.kind not in "iu":
        raise SourceError(f"labels must be integers: found {volume.dtype} in {volume.source}")
    if volume.channels is not None:
        raise SourceError(f"labels must be 3D (z, y, x): found shape {volume.shape} in {volume.source}")
    return replace(volume, dtype=np.dtype(np.uint64), _opener=partial(_open_ids, volume._opener))


def volume_from_array(
    array: ArrayLike, resolution: Nanometres, offset: Nanometres = (0.0, 0.0, 0.0), source: str = "array"
) -> Volume:
    """A volume over an array in memory.

    Args:
        array: (z, y, x) or (c, z, y, x) of numbers; not copied until read.
        resolution: voxel size z, y, x in nm.
        offset: position of voxel (0, 0, 0) in nm.
        source: the name used in messages.

    Raises:
        SourceError: as `open_volume`.
    """
    values = np.asarray(array)
    stored = StoredArray(
        source,
        None,
        "array",
        values.shape,
        values.dtype.newbyteorder("="),
        None,
        None,
        {},
        partial(_open_array, values),
    )
    return _placed(stored, resolution, offset)


def check_pair(raw: Volume, labels: Volume) -> None:
    """Check that an image and its labels cover the same voxels.

    Raises:
        ShapeError: their sizes differ, or their resolutions differ by more than 0.1 %.
    """
    if raw.size != labels.size:
        raise ShapeError(f"{labels.source}: found size {labels.size}, expected {raw.size} (z, y, x) as in {raw.source}")
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(raw.resolution, labels.resolution, strict=True)):
        raise ShapeError(
            f"{labels.source}: found resolution {labels.resolution} nm, expected {raw.resolution} nm as in {raw.source}"
        )


def find_arrays(source: str | Path) -> list[StoredArray]:
    """Every array that a source holds; only the one asked for where it names a dataset.

    Raises:
        SourceError: the source is missing or unreadable, or holds no array.
    """
    path, dataset = _split(source)
    kind = _kind(path)
    if dataset is not None or kind not in _LISTERS:
        return [_LOADERS[kind](path, dataset)]
    names = _LISTERS[kind](path)
    if not names:
        raise SourceError(f"{path}: found no array inside, expected at least one")
    return [_LOADERS[kind](path, name) for name in names]


def checked_resolution(name: str, found: Sequence[float]) -> Nanometres:
    """Three positive finite numbers, or a message that names where they came from.

    Raises:
        SourceError: anything else.
    """
    values = tuple(float(value) for value in found)
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise SourceError(f"{name}: found resolution {values}, expected three positive numbers Z,Y,X in nm")
    return values[0], values[1], values[2]


def checked_offset(name: str, found: Sequence[float]) -> Nanometres:
    """Three finite numbers, or a message that names where they came from.

    Raises:
        SourceError: anything else.
    """
    values = tuple(float(value) for value in found)
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise SourceError(f"{name}: found offset {values}, expected three numbers Z,Y,X in nm")
    return values[0], values[1], values[2]


@contextmanager
def readable(name: str | Path) -> Iterator[None]:
    """Turn whatever a library raises on a bad file into one `SourceError` that names the file and the reason."""
    try:
        yield
    except DistillError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{name}: no such file") from error
    except _UNREADABLE as error:
        raise SourceError(f"{name}: cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = str(error).split(" [tensorstore_spec=")[0].strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def missing_dataset(path: Path, wanted: str, names: Sequence[str]) -> SourceError:
    """The error for a dataset that is not there; names those that are, the most similar first."""
    nearest = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, wanted, name).ratio())
    return SourceError(f"{path}: found no dataset {wanted!r}, expected one of: {_listed(nearest)}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) or "(it holds none)"
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _placed(stored: StoredArray, resolution: Nanometres | None, offset: Nanometres | None) -> Volume:
    name, shape = stored.source, stored.shape
    if len(shape) not in (3, 4):
        raise SourceError(f"{name}: found shape {shape}, expected 3 axes (z, y, x) or 4 axes (c, z, y, x)")
    if 0 in shape:
        raise SourceError(f"{name}: found an empty array of shape {shape}, expected at least one voxel")
    if stored.dtype.kind not in "biuf":
        raise SourceError(f"{name}: found type {stored.dtype}, expected integer or floating-point numbers")
    given = resolution if resolution is not None else stored.resolution
    if given is None:
        raise SourceError(f"{name}: no resolution found; give it as --resolution Z,Y,X in nm, e.g. --resolution 30,6,6")
    place = offset if offset is not None else stored.offset or (0.0, 0.0, 0.0)
    drop = 1 if len(shape) == 4 else 0
    return Volume(
        source=name,
        kind=stored.kind,
        shape=shape,
        dtype=stored.dtype,
        resolution=checked_resolution(name, given[drop:] if len(given) == 4 else given),
        offset=checked_offset(name, place[drop:] if len(place) == 4 else place),
        attributes=stored.attributes,
        _opener=stored.opener,
        chunks=stored.chunks,
    )


def _find(source: str | Path, preferred: str) -> StoredArray:
    path, dataset = _split(source)
    kind = _kind(path)
    if kind == "zarr":
        node = zarr_node(path)
        if dataset is None and node is not None and node[0].startswith("group"):
            names = _listed(list(zarr_ranks(path)))
            raise SourceError(f"{path}: found a Zarr group, expected one of its arrays after a colon: {names}")
    elif kind in _LISTERS and dataset is None:
        dataset = _choose(path, _LISTERS[kind](path), preferred)
    return _LOADERS[kind](path, dataset)


def _choose(path: Path, ranks: Mapping[str, int], preferred: str) -> str:
    if preferred in ranks:
        return preferred
    for rank in (3, 4):
        names = [name for name, found in ranks.items() if found == rank]
        if len(names) == 1:
            return names[0]
        if names:
            raise SourceError(f"{path}: found {len(names)} volumes, expected one after a colon: {_listed(names)}")
    raise SourceError(f"{path}: found no 3D or 4D array, expected one among: {_listed(list(ranks))}")


def _split(source: str | Path) -> tuple[Path, str | None]:
    """Path and dataset of a source; a colon that belongs to an existing path is left alone."""
    text = str(source)
    colons = [match.start() for match in re.finditer(":", text)]
    for at in [len(text), *reversed(colons)]:
        if at and os.path.exists(text[:at]):
            return Path(text[:at]), text[at + 1 :].strip("/") or None
    if glob.has_magic(text):
        return Path(text), None
    raise SourceError(f"{text[: colons[-1]] if colons and colons[-1] else text}: no such file")


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if not path.exists():
        return "images"
    if path.is_dir():
        return "zarr" if zarr_node(path) else "images"
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    if suffix in TIFF_SUFFIXES:
        return "tiff"
    if suffix in (".npy", ".npz"):
        return suffix[1:]
    if suffix == ".png":
        return "images"
    raise SourceError(
        f"{path}: found extension {suffix!r}, expected .h5 .hdf .hdf5 .tif .tiff .png .npy .npz, a Zarr folder, "
        "or a folder or glob of section images"
    )


def _no_dataset(path: Path, dataset: str | None) -> None:
    if dataset is not None:
        raise SourceError(f"{path}: found dataset {dataset!r}, expected none: this file holds a single array")


def plain(value: Any) -> Any:
    """A value as plain Python: NumPy arrays and tuples as lists, bytes as text."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _numbers(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(number) for number in value)
    except (TypeError, ValueError):
        return (math.nan,)


def _unit(name: Any) -> float | None:
    return _NM_PER_UNIT.get(name.strip().lower().removesuffix("s")) if isinstance(name, str) else None


def _placement(attributes: Attributes) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Resolution and offset in nm from `resolution` or `voxel_size`, `offset` and `units` (nm where absent)."""
    units = attributes.get("units", "nm")
    scales = [_unit(name) for name in (units[-3:] if isinstance(units, list) else [units])]
    scale = scales[0] if scales and scales.count(scales[0]) == len(scales) else None
    if scale is None:
        return None, None
    found = (_numbers(attributes.get("resolution", attributes.get("voxel_size"))), _numbers(attributes.get("offset")))
    resolution, offset = (numbers and tuple(number * scale for number in numbers) for numbers in found)
    return resolution, offset


@contextmanager
def _open_array(array: NDArray[Any]) -> Iterator[Cut]:
    yield lambda index: np.array(array[index])


@contextmanager
def _open_ids(opener: Opener) -> Iterator[Cut]:
    with opener() as cut:
        yield lambda index: _ids(cut(index))


def _ids(block: NDArray[Any]) -> NDArray[np.uint64]:
    ids = (np.maximum(block, 0) if block.dtype.kind == "i" else block).astype(np.uint64)
    ids[ids == NO_LABEL] = 0
    return ids


@contextmanager
def _open_hdf5(path: Path, dataset: str) -> Iterator[Cut]:
    import h5py

    with readable(path), h5py.File(path, "r") as file:
        stored = file[dataset]
        yield lambda index: np.asarray(stored[index])


def _hdf5_ranks(path: Path) -> dict[str, int]:
    import h5py

    ranks: dict[str, int] = {}

    def visit(name: str | bytes, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            ranks[plain(name)] = len(item.shape or ())

    with readable(path), h5py.File(path, "r") as file:
        file.visititems(visit)
    return ranks


def _load_hdf5(path: Path, dataset: str | None) -> StoredArray:
    import h5py

    name = dataset or ""
    with readable(path), h5py.File(path, "r") as file:
        item = file.get(name) if name else None
        if not isinstance(item, h5py.Dataset):
            raise missing_dataset(path, name, list(_hdf5_ranks(path)))
        attributes = {key: plain(value) for key, value in item.attrs.items()}
        return StoredArray(
            f"{path}:{name}",
            name,
            "hdf5",
            tuple(item.shape or ()),
            item.dtype.newbyteorder("="),
            *_placement(attributes),
            attributes,
            partial(_open_hdf5, path, name),
            item.chunks,
            item.compression,
        )


@contextmanager
def _open_tiff(path: Path) -> Iterator[Cut]:
    import tifffile

    with readable(path), tifffile.TiffFile(path) as tif:
        stack = _tiff_stack(path, tif)
        if stack.mapped_at is not None:
            shape = (stack.shape[1], stack.shape[0], *stack.shape[2:]) if stack.interleaved else stack.shape
            mapped = np.memmap(path, stack.dtype.newbyteorder(tif.byteorder), "r", stack.mapped_at, shape)
            whole: NDArray[Any] = mapped.swapaxes(0, 1) if stack.interleaved else mapped
            yield lambda index: np.array(whole[index])
        elif stack.pages:
            yield partial(_cut_pages, stack)
        else:
            array = np.stack([_page_values(page) for page in tif.series[0].pages])
            loaded = array.reshape(tif.series[0].shape)
            whole = (loaded.swapaxes(0, 1) if stack.interleaved else loaded).reshape(stack.shape)
            yield lambda index: np.array(whole[index])


def _cut_pages(stack: _TiffStack, index: Index) -> NDArray[Any]:
    pages = np.arange(len(stack.pages))
    ordered = pages.reshape(stack.shape[-3::-1]).T if stack.interleaved else pages.reshape(stack.shape[:-2])
    chosen = ordered[index[:-2]]
    block = np.empty((chosen.size, *(part.stop - part.start for part in index[-2:])), stack.dtype)
    for at, page in enumerate(chosen.flat):
        block[at] = _page_values(stack.pages[int(page)])[index[-2:]]
    return block.reshape(*chosen.shape, *block.shape[-2:])


def _page_values(page: Any) -> NDArray[Any]:
    """What a TIFF page holds; a strip beyond the end of the file would read as zeros and is refused."""
    size = page.parent.filehandle.size
    if any(at + length > size for at, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise EOFError("the file is cut off")
    return np.asarray(page.asarray())


@dataclass(frozen=True)
class _TiffStack:
    """Where the sections of a TIFF file lie: memory-mapped from a byte, in a page each, or (neither) all in one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    interleaved: bool
    mapped_at: int | None
    pages: Sequence[Any]


def _tiff_stack(path: Path, tif: tifffile.TiffFile) -> _TiffStack:
    """The one greyscale stack of a TIFF file; pages written one by one count as a stack where they are alike."""
    _check_page_chain(path, tif)
    first = tif.series[0]
    kinds = list(dict.fromkeys((tuple(series.shape), str(series.dtype)) for series in tif.series))
    axes = first.axes if len(tif.series) == 1 else "Z" + first.axes
    shape = tuple(int(extent) for extent in first.shape)
    if "S" in axes:
        raise SourceError(f"{path}: found {shape[first.axes.index('S')]} channels per pixel, expected greyscale")
    if len(kinds) > 1:
        found = ", ".join(f"{shape} {dtype}" for shape, dtype in kinds[:3])
        raise SourceError(f"{path}: found pages of different size or type ({found}), expected one stack")
    if axes[-2:] != "YX" or len(axes) > 4:
        raise SourceError(f"{path}: found axes {axes} of shape {shape}, expected z, y, x or c, z, y, x")
    if len(tif.series) > 1:
        shape = (len(tif.series), *shape)
    pages = first.pages if len(tif.series) == 1 else [series.pages[0] for series in tif.series]
    mapped_at = first.dataoffset if len(tif.series) == 1 else None
    page = tuple(first.keyframe.shape)
    if mapped_at is None and (len(pages) * math.prod(page) != math.prod(shape) or None in pages):
        raise SourceError(f"{path}: cannot be read: found {len(pages)} pages of {page}, expected {shape} in all")
    paged = len(pages) == math.prod(shape[:-2]) and page == shape[-2:]
    shape = (1, *shape) if len(shape) == 2 else shape
    interleaved = axes == "ZCYX"
    if interleaved:
        shape = (shape[1], shape[0], *shape[2:])
    return _TiffStack(shape, first.dtype.newbyteorder("="), interleaved, mapped_at, pages if paged else ())


def _check_page_chain(path: Path, tif: tifffile.TiffFile) -> None:
    """Refuse a cut-off file: tifffile would take the pages before the cut for a whole, shorter stack."""
    count, pointer_at = len(tif.pages), tif.pages.next_page_offset
    if pointer_at is not None:
        tif.filehandle.seek(pointer_at)
        pointer = tif.filehandle.read(tif.tiff.offsetsize)
        if len(pointer) < tif.tiff.offsetsize or any(pointer):
            raise SourceError(f"{path}: cannot be read: found {count} pages, expected more: the file is cut off")


def _tiff_resolution(tif: tifffile.TiffFile) -> Nanometres | None:
    """Voxel size from ImageJ's metadata; resolution tags alone know no z and mostly mean 72 dots per inch."""
    metadata = tif.imagej_metadata or {}
    tags = tif.pages[0].tags
    unit, spacing = _unit(metadata.get("unit")), metadata.get("spacing")
    per_unit = [tags[name].value for name in ("YResolution", "XResolution") if name in tags]
    if unit is None or spacing is None or len(per_unit) != 2 or any(0 in ratio for ratio in per_unit):
        return None
    (y_pixels, y_units), (x_pixels, x_units) = per_unit
    return float(spacing) * unit, y_units / y_pixels * unit, x_units / x_pixels * unit


def _load_tiff(path: Path, dataset: str | None) -> StoredArray:
    import tifffile

    _no_dataset(path, dataset)
    with readable(path), tifffile.TiffFile(path) as tif:
        stack = _tiff_stack(path, tif)
        chunks = (*(1 for _ in stack.shape[:-2]), *stack.shape[-2:]) if stack.pages else stack.shape
        codec = getattr(tif.pages[0].compression, "name", "unknown").lower()
        return StoredArray(
            str(path),
            None,
            "tiff",
            stack.shape,
            stack.dtype,
            _tiff_resolution(tif),
            None,
            {key: plain(value) for key, value in (tif.imagej_metadata or {}).items()},
            partial(_open_tiff, path),
            chunks if stack.mapped_at is None else None,
            None if codec == "none" else codec,
        )


def _section(path: Path) -> NDArray[Any]:
    """One greyscale section image (y, x)."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        import tifffile

        with readable(path), tifffile.TiffFile(path) as tif:
            shape = _tiff_stack(path, tif).shape
            if math.prod(shape[:-2]) != 1:
                raise SourceError(f"{path}: found {len(tif.pages)} pages, expected one section per file")
            return _page_values(tif.pages[0]).reshape(shape[-2:])
    # Image.open would refuse sections above 179 megapixels as decompression bombs; the plugin itself does not.
    from PIL.PngImagePlugin import PngImageFile

    with readable(path), PngImageFile(path) as image:
        if image.mode not in ("1", "L", "I", "I;16", "I;16B"):
            found = 3 if image.mode == "P" else len(image.getbands())
            raise SourceError(f"{path}: found {found} channels ({image.mode}), expected greyscale")
        return np.asarray(image)


@contextmanager
def _open_images(paths: tuple[Path, ...], shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[Cut]:
    def cut(index: Index) -> NDArray[Any]:
        z, y, x = index
        block = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), dtype)
        for at, path in enumerate(paths[z]):
            section = _section(path)
            if section.shape != shape or section.dtype.newbyteorder("=") != dtype:
                raise SourceError(
                    f"{path}: found {section.shape} {section.dtype}, expected {shape} {dtype} as in {paths[0]}"
                )
            block[at] = section[y, x]
        return block

    yield cut


def _load_images(path: Path, dataset: str | None) -> StoredArray:
    _no_dataset(path, dataset)
    paths = _section_paths(path)
    first = _section(paths[0])
    height, width = first.shape
    dtype = first.dtype.newbyteorder("=")
    resolution = None
    if paths[0].suffix.lower() in TIFF_SUFFIXES:
        import tifffile

        with readable(paths[0]), tifffile.TiffFile(paths[0]) as tif:
            resolution = _tiff_resolution(tif)
    opener = partial(_open_images, paths, (height, width), dtype)
    shape = (len(paths), height, width)
    return StoredArray(str(path), None, "images", shape, dtype, resolution, None, {}, opener, (1, height, width))


def _section_paths(path: Path) -> tuple[Path, ...]:
    """The images of a folder, of a glob or of one file, in natural order: s2 before s10."""
    if path.is_dir():
        found = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.name[0] != "."]
        if not found:
            raise SourceError(f"{path}: found no section images in this folder, expected .tif, .tiff or .png files")
    else:
        found = [path] if path.exists() else [Path(item) for item in glob.glob(str(path))]
        if not found:
            raise SourceError(f"{path}: no file matches")
        for item in found:
            if item.suffix.lower() not in IMAGE_SUFFIXES:
                raise SourceError(
                    f"{item}: found extension {item.suffix!r}, expected a section image .tif, .tiff or .png"
                )
    return tuple(sorted(found, key=_natural))


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if at % 2 else part.lower() for at, part in enumerate(parts)], str(path)


@contextmanager
def _open_npy(path: Path) -> Iterator[Cut]:
    with readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        yield lambda index: np.array(mapped[index])


def _load_npy(path: Path, dataset: str | None) -> StoredArray:
    _no_dataset(path, dataset)
    with readable(path):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = tuple(mapped.shape), mapped.dtype.newbyteorder("=")
    return StoredArray(str(path), None, "npy", shape, dtype, None, None, {}, partial(_open_npy, path))


@contextmanager
def _open_npz(path: Path, dataset: str) -> Iterator[Cut]:
    with readable(path), np.load(path, allow_pickle=False) as file:
        array = file[dataset]
        yield lambda index: np.array(array[index])


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any], bool]]:
    """Shape, type and whether compressed, by key, from the headers alone."""
    headers = {}
    with readable(path), zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            with archive.open(item) as member:
                major, _ = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            headers[item.filename.removesuffix(".npy")] = shape, dtype, item.compress_type != zipfile.ZIP_STORED
    return headers


def _npz_ranks(path: Path) -> dict[str, int]:
    headers = _npz_headers(path)
    return {
        name: len(shape) for name, (shape, _, _) in headers.items() if name not in ("resolution", "offset", "units")
    }


def _load_npz(path: Path, dataset: str | None) -> StoredArray:
    headers = _npz_headers(path)
    name = dataset or ""
    if name not in headers:
        raise missing_dataset(path, name, list(headers))
    shape, dtype, compressed = headers[name]
    with readable(path), np.load(path, allow_pickle=False) as file:
        keys = ("resolution", "voxel_size", "offset", "units")
        attributes = {key: plain(file[key]) for key in keys if key in headers and key != name}
    return StoredArray(
        f"{path}:{name}",
        name,
        "npz",
        shape,
        dtype.newbyteorder("="),
        *_placement(attributes),
        attributes,
        partial(_open_npz, path, name),
        shape,
        "deflate" if compressed else None,
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


def _load_zarr(path: Path, dataset: str | None) -> StoredArray:
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
    resolution, offset = _placement(attributes)
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
    units = [_unit(axis.get("unit")) for axis in image["axes"][-3:]]
    levels = [level for level in image["datasets"] if level["path"].strip("/") == name]
    simple = "".join(axis["name"] for axis in image["axes"]).endswith("zyx") and not image.get(
        "coordinateTransformations"
    )
    if not (simple and levels):
        return None, None
    nm = [unit for unit in units if unit is not None]
    steps = {step["type"]: step.get(step["type"]) for step in levels[0]["coordinateTransformations"]}
    scale, move = _numbers(steps.get("scale")), _numbers(steps.get("translation"))
    if len(nm) != 3 or scale is None or not steps.keys() <= {"scale", "translation"}:
        return None, None
    resolution = tuple(value * unit for value, unit in zip(scale[-3:], nm, strict=True))
    return resolution, move and tuple(value * unit for value, unit in zip(move[-3:], nm, strict=True))


_LISTERS: dict[str, Callable[[Path], dict[str, int]]] = {"hdf5": _hdf5_ranks, "npz": _npz_ranks, "zarr": zarr_ranks}
_LOADERS: dict[str, Callable[[Path, str | None], StoredArray]] = {
    "hdf5": _load_hdf5,
    "tiff": _load_tiff,
    "images": _load_images,
    "npy": _load_npy,
    "npz": _load_npz,
    "zarr": _load_zarr,
}
