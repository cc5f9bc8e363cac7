"""Lazy reading of volumes: HDF5, TIFF stacks, section images, NumPy files and Zarr.

A source is `path[:dataset]`. Opening one reads its header only; `Volume.read` and `Volume.sections` read what they are
asked for and keep no file open in between, so that a volume can be pickled, forked and outlive a renamed file.
Axes are z, y, x (c, z, y, x with channels); resolution and offset are in nm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.geometry import Box, Nanometres, Triple
from distill.core.known import UNKNOWN_ID, as_id
from distill.io.readers.array import Attributes, Cut, Index, Opener, StoredArray
from distill.io.source import find_array

RAW_DATASET = "volumes/raw"
LABELS_DATASET = "volumes/labels/neuron_ids"
NO_LABEL = UNKNOWN_ID  # as CREMI stores it

_BLOCK_BYTES = 256 * 2**20
_SAME_GRID = 1e-3  # of a voxel


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
        inverted: whether the file says that 0 is white; values are read as they are stored.
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
    inverted: bool = False

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

    @contextmanager
    def reading(self) -> Iterator[Callable[[Box], NDArray[Any]]]:
        """A function that reads like `read`, for many parts: the file stays open during the block.

        Raises:
            SourceError: the file cannot be read.
        """
        with self._opener() as cut:
            yield lambda box: self._native(cut(self._index(box)))

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
    return _placed(find_array(source, RAW_DATASET), resolution, offset)


def open_labels(source: str | Path, *, resolution: Nanometres | None = None, ignore: int | None = None) -> Volume:
    """Open a label volume; it reads as uint64 with 0 as background.

    CREMI marks voxels without a label by -1, or by the same bits as an unsigned 0xffffffffffffffff: every negative id
    and that one uint64 value read as 0. An HDF5 file without a dataset gives `volumes/labels/neuron_ids`.

    Args:
        source: as for `open_volume`.
        resolution: voxel size z, y, x in nm; wins over what the file says.
        ignore: stored value of voxels that read as UNKNOWN (see `distill.core.known`); -1 is 2**64 - 1 in unsigned
            files.

    Raises:
        SourceError: as `open_volume`, or the stored type is not an integer or cannot hold `ignore`, or the array is
            not 3D.
    """
    volume = _placed(find_array(source, LABELS_DATASET), resolution, None)
    if volume.dtype.kind not in "iu":
        raise SourceError(f"labels must be integers: found {volume.dtype} in {volume.source}")
    if volume.channels is not None:
        raise SourceError(f"labels must be 3D (z, y, x): found shape {volume.shape} in {volume.source}")
    stored = None if ignore is None else as_id(ignore, volume.dtype)
    if ignore is not None and stored is None:
        raise SourceError(f"{volume.source}: found labels of {volume.dtype}, which hold no {ignore} to ignore")
    return replace(volume, dtype=np.dtype(np.uint64), _opener=partial(_open_ids, volume._opener, stored))


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


def every_section(volume: Volume, step: int) -> Volume:
    """Every `step`-th section of a volume, the first one included; nothing is read.

    Isotropic volumes become anisotropic ones that way, as serial sections are: the voxels get `step` times as thick.

    Args:
        volume: z, y, x, with or without channels.
        step: at least 1.

    Raises:
        ShapeError: a step below 1.
    """
    if step < 1:
        raise ShapeError(f"{volume.source}: found a step of {step} sections, expected at least 1")
    if step == 1:
        return volume
    *before, depth, height, width = volume.shape
    z, y, x = volume.resolution
    return replace(
        volume,
        shape=(*before, -(-depth // step), height, width),
        resolution=(z * step, y, x),
        chunks=None,
        _opener=partial(_open_every, volume._opener, step),
    )


def some_sections(volume: Volume, first: int, stop: int) -> Volume:
    """Consecutive sections of a volume, in their place; nothing is read.

    Args:
        volume: z, y, x, with or without channels.
        first: first section.
        stop: one past the last.

    Raises:
        ShapeError: the sections are not there, or there are none.
    """
    depth = volume.size[0]
    if not 0 <= first < stop <= depth:
        raise ShapeError(f"{volume.source}: found sections {first}:{stop}, expected a range within 0:{depth}")
    *before, _, height, width = volume.shape
    z, y, x = volume.offset
    return replace(
        volume,
        shape=(*before, stop - first, height, width),
        offset=(z + first * volume.resolution[0], y, x),
        _opener=partial(_open_some, volume._opener, first),
    )


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


def voxel_shift(inner: Volume, outer: Volume) -> Triple:
    """Voxel of `outer` at which voxel (0, 0, 0) of `inner` lies.

    Raises:
        ShapeError: they do not share a voxel grid: their resolutions differ by more than 0.1 %, or their offsets by
            part of a voxel.
    """
    if any(abs(a - b) > _SAME_GRID * b for a, b in zip(inner.resolution, outer.resolution, strict=True)):
        raise ShapeError(
            f"{inner.source}: voxels of {inner.resolution} nm, expected those of {outer.source}, {outer.resolution} nm"
        )
    exact = [(a - b) / r for a, b, r in zip(inner.offset, outer.offset, outer.resolution, strict=True)]
    z, y, x = (round(e) for e in exact)
    if any(abs(e - n) > _SAME_GRID for e, n in zip(exact, (z, y, x), strict=True)):
        raise ShapeError(f"{inner.source}: lies {exact} voxels into {outer.source}, expected whole voxels")
    return z, y, x


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
        inverted=stored.inverted,
    )


@contextmanager
def _open_array(array: NDArray[Any]) -> Iterator[Cut]:
    yield lambda index: np.array(array[index])


@contextmanager
def _open_every(opener: Opener, step: int) -> Iterator[Cut]:
    with opener() as cut:

        def thinned(index: Index) -> NDArray[Any]:
            *channels, z, y, x = index
            sections = range(z.start * step, z.stop * step, step)
            parts = [cut((*channels, slice(there, there + 1), y, x)) for there in sections]
            return np.concatenate(parts, axis=-3)

        yield thinned


@contextmanager
def _open_some(opener: Opener, first: int) -> Iterator[Cut]:
    with opener() as cut:

        def moved(index: Index) -> NDArray[Any]:
            *channels, z, y, x = index
            return cut((*channels, slice(z.start + first, z.stop + first), y, x))

        yield moved


@contextmanager
def _open_ids(opener: Opener, ignore: int | None) -> Iterator[Cut]:
    with opener() as cut:
        yield lambda index: _ids(cut(index), ignore)


def _ids(block: NDArray[Any], ignore: int | None = None) -> NDArray[np.uint64]:
    ids = (np.maximum(block, 0) if block.dtype.kind == "i" else block).astype(np.uint64)
    ids[ids == NO_LABEL] = 0
    if ignore is not None:
        ids[block == ignore] = UNKNOWN_ID
    return ids
