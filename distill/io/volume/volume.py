"""A volume: a lazily read array with its place in the world.

`Volume.read` and `Volume.sections` read what they are asked for and keep no file open in between, so that a volume can
be pickled, forked and outlive a renamed file. Axes are z, y, x (c, z, y, x with channels); resolution and offset are in
nm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box, Nanometres, Triple
from distill.core.memory import check_memory
from distill.core.notes import warn
from distill.io.readers.array import Attributes, Cut, Index, Opener, Reading, StoredArray

NO_RESOLUTION = "no resolution found"  # in the message of sources without one
_FINEST = 0.2  # nm; cryo-EM of single molecules reaches this, volumes of tissue do not
_BLOCK_BYTES = 256 * 2**20


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
        """Return the extent z, y, x in voxels."""
        z, y, x = self.shape[-3:]
        return z, y, x

    @property
    def channels(self) -> int | None:
        """Number of channels; None for a 3D volume."""
        return self.shape[0] if len(self.shape) == 4 else None

    @property
    def box(self) -> Box:
        """Return the whole volume."""
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
        check_memory(self.source, "a part", (*self.shape[:-3], *box.shape), self.dtype)
        with self._opener() as cut:
            return self._native(cut(self._index(box)))

    @contextmanager
    def reading(self) -> Iterator[Callable[[Box], NDArray[Any]]]:
        """Return a function that reads like `read`, for many parts: the file stays open during the block.

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
        check_memory(self.source, "a section", (self.channels or 1, height, width), self.dtype)
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


def volume_from_array(
    array: ArrayLike, resolution: Nanometres, offset: Nanometres = (0.0, 0.0, 0.0), source: str = "array"
) -> Volume:
    """Build a volume over an array in memory.

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
    return placed(stored, resolution, offset, Reading())


def placed(stored: StoredArray, resolution: Nanometres | None, offset: Nanometres | None, reading: Reading) -> Volume:
    """Make a volume of an array in order: what is given wins over what the file says.

    Raises:
        SourceError: it is no volume, or has no resolution.
    """
    name, shape = stored.source, stored.shape
    if len(shape) not in (3, 4):
        raise SourceError(f"{name}: found shape {shape}, expected 3 axes (z, y, x) or 4 axes (c, z, y, x)")
    if 0 in shape:
        raise SourceError(f"{name}: found an empty array of shape {shape}, expected at least one voxel")
    if stored.dtype.kind not in "biuf":
        raise SourceError(f"{name}: found type {stored.dtype}, expected integer or floating-point numbers")
    given = resolution if resolution is not None else stored.resolution
    if given is None:
        raise SourceError(f"{name}: {NO_RESOLUTION}; give it as --resolution Z,Y,X in nm, e.g. --resolution 30,6,6")
    place = offset if offset is not None else stored.offset or (0.0, 0.0, 0.0)
    drop = 1 if len(shape) == 4 else 0
    dtype = stored.dtype if not reading.grey or stored.grey_dtype is None else stored.grey_dtype
    return Volume(
        source=name,
        kind=stored.kind,
        shape=shape,
        dtype=dtype,
        resolution=checked_resolution(name, given[drop:] if len(given) == 4 else given),
        offset=checked_offset(name, place[drop:] if len(place) == 4 else place),
        attributes=stored.attributes,
        _opener=partial(stored.opener, reading),
        chunks=stored.chunks,
    )


def checked_resolution(name: str, found: Sequence[float]) -> Nanometres:
    """Return three positive finite numbers, or raise an error that names where they came from.

    Raises:
        SourceError: anything else.
    """
    values = tuple(float(value) for value in found)
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise SourceError(f"{name}: found resolution {values}, expected three positive numbers Z,Y,X in nm")
    if min(values) < _FINEST:
        found_nm = ", ".join(f"{value:g}" for value in values)
        warn(
            f"{name}: found voxels of {found_nm} nm, smaller than any in electron microscopy: micrometres or "
            "millimetres without their unit? Give nm by --resolution Z,Y,X"
        )
    return values[0], values[1], values[2]


def checked_offset(name: str, found: Sequence[float]) -> Nanometres:
    """Return three finite numbers, or raise an error that names where they came from.

    Raises:
        SourceError: anything else.
    """
    values = tuple(float(value) for value in found)
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise SourceError(f"{name}: found offset {values}, expected three numbers Z,Y,X in nm")
    return values[0], values[1], values[2]


@contextmanager
def _open_array(array: NDArray[Any], _reading: Reading) -> Iterator[Cut]:
    yield lambda index: np.array(array[index])
