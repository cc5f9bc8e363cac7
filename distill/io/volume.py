"""Lazy reading of volumes: HDF5, TIFF stacks, section images, NumPy files and Zarr.

A source is `path[:dataset]`. Opening one reads its header only; `Volume.read` and `Volume.sections` read what they are
asked for and keep no file open in between, so that a volume can be pickled, forked and outlive a renamed file.
Axes are z, y, x (c, z, y, x with channels); resolution and offset are in nm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.core.errors import DistillError, ShapeError, SourceError
from distill.core.geometry import Box, Nanometres, Triple
from distill.core.known import UNKNOWN_ID, as_id
from distill.core.memory import check_memory
from distill.core.notes import count, note
from distill.io.arrange import arrange
from distill.io.readers.array import Attributes, Cut, Index, Opener, Reading, StoredArray
from distill.io.readers.chunks import missing_chunks
from distill.io.selection import Selection, split_selection
from distill.io.source import find_array

RAW_DATASET = "volumes/raw"
LABELS_DATASET = "volumes/labels/neuron_ids"
RESERVED_IDS = 4  # highest ids of 32 and 64 bits: invalid, outside, transparent (BigCAT, Paintera, CREMI)
MissingParts = Literal["refuse", "report", "zero"]

_QUICK = 100_000  # chunks that are looked for when a volume is opened
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
        check_memory(self.source, "a part", (*self.shape[:-3], *box.shape), self.dtype)
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


def open_volume(
    source: str | Path,
    *,
    resolution: Nanometres | None = None,
    offset: Nanometres | None = None,
    missing: MissingParts | None = None,
    grey: bool = True,
) -> Volume:
    """Open a volume for lazy reading.

    Args:
        source: `path[:dataset]`, a folder or a glob of section images, with what `distill.io.selection` adds. A file of
            many arrays without a dataset gives `volumes/raw`, else its only 3D (else only 4D) array.
        resolution: voxel size z, y, x in nm; wins over what the file says.
        offset: position of voxel (0, 0, 0) in nm; wins over what the file says, which wins over zero.
        missing: what to do about parts that are not stored; by default they are refused.
        grey: whether numbers are read as grey values, 0 = black, where the file stores something else (see `Reading`).

    Raises:
        SourceError: the source is missing, unreadable, ambiguous, not numeric, not 3D or 4D, has no resolution, or
            lacks parts.
    """
    chosen = split_selection(str(source))[1]
    stored = arrange(find_array(source, RAW_DATASET), chosen)
    return _opened(stored, chosen, resolution, offset, Reading(grey, missing or "refuse"))


def open_grey(source: str | Path, *, resolution: Nanometres | None = None, offset: Nanometres | None = None) -> Volume:
    """Open sections for a network or a figure: one grey value a voxel.

    Args:
        source: as for `open_volume`.
        resolution: likewise.
        offset: likewise.

    Raises:
        SourceError: as `open_volume`, or more than one channel.
    """
    volume = one_channel(open_volume(source, resolution=resolution, offset=offset))
    if volume.channels is not None:
        raise SourceError(
            f"{volume.source}: found {volume.channels} channels, expected one grey value a voxel; --channel 0 to "
            f"{volume.channels - 1} takes one"
        )
    return volume


def one_channel(volume: Volume) -> Volume:
    """A volume without its axis of channels where that has one entry; one with several as it is."""
    if volume.channels != 1:
        return volume
    chunks = volume.chunks and volume.chunks[-3:]
    return replace(volume, shape=volume.shape[1:], chunks=chunks, _opener=partial(_open_one_channel, volume._opener))


def open_labels(source: str | Path, *, resolution: Nanometres | None = None, ignore: int | None = None) -> Volume:
    """Open a label volume; it reads as uint64 with 0 as background.

    Negative ids, and the four highest ids of 32 and 64 bits, are marks of what is outside, transparent or unknown
    (CREMI, BigCAT, Paintera): they read as 0, and how many voxels hold them is reported. Floats are taken where every
    one is a whole number. A file of many arrays without a dataset gives `volumes/labels/neuron_ids`.

    Args:
        source: as for `open_volume`.
        resolution: voxel size z, y, x in nm; wins over what the file says.
        ignore: stored value of voxels that read as UNKNOWN (see `distill.core.known`); -1 is 2**64 - 1 in unsigned
            files.

    Raises:
        SourceError: as `open_volume`, or the numbers are no ids or cannot be `ignore`, or the array has several
            channels.
    """
    chosen = split_selection(str(source))[1]
    stored = arrange(find_array(source, LABELS_DATASET), chosen)
    volume = one_channel(_opened(stored, chosen, resolution, None, Reading(grey=False, missing="report")))
    if volume.channels is not None:
        raise SourceError(
            f"labels must be 3D (z, y, x): found shape {volume.shape} in {volume.source}; --channel takes one channel"
        )
    value = None
    if volume.dtype.kind in "iu":
        value = None if ignore is None else as_id(ignore, volume.dtype)
        if ignore is not None and value is None:
            raise SourceError(f"{volume.source}: found labels of {volume.dtype}, which hold no {ignore} to ignore")
    else:
        value = ignore
    opener = partial(_open_ids, volume._opener, value, volume.source)
    return replace(volume, dtype=np.dtype(np.uint64), _opener=opener)


def _opened(
    stored: StoredArray, chosen: Selection, resolution: Nanometres | None, offset: Nanometres | None, reading: Reading
) -> Volume:
    """What the user says wins over metadata; what is known to be missing is refused or reported now."""
    missing = chosen.missing or ("report" if stored.sparse and reading.missing == "refuse" else reading.missing)
    reading = replace(reading, missing=missing)
    _check_missing(stored, reading)
    for name, mine, own in (("resolution", resolution, stored.resolution), ("offset", offset, stored.offset)):
        _say_other(stored.source, name, getattr(chosen, name) or mine, own)
    volume = _placed(stored, chosen.resolution or resolution, chosen.offset or offset, reading)
    if chosen.box is not None:
        volume = part(volume, chosen.box)
    text = str(chosen)
    return replace(volume, source=f"{volume.source}{text}") if text else volume


def _say_other(source: str, name: str, mine: Nanometres | None, own: Sequence[float] | None) -> None:
    """Report that the user's placement is another than the file's."""
    if mine is None or own is None:
        return
    there = tuple(own)[-3:]
    if len(there) == 3 and not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(mine, there, strict=True)):
        found, wanted = (",".join(f"{n:.6g}" for n in values) for values in (there, mine))
        note(f"{source}: --{name} {wanted} is used, the file says {found}")


def _check_missing(stored: StoredArray, reading: Reading) -> None:
    """Look for chunks that are not there before long work begins, where that is quick."""
    where = stored.chunked
    if where is None or stored.sparse or reading.missing == "zero" or math.prod(where.counts) > _QUICK:
        return
    found = missing_chunks(where)
    if not found or not found[0]:
        return
    text = f"{stored.source}: {found[0]:,} of {found[1]:,} chunks are missing"
    if reading.missing == "refuse":
        raise SourceError(f"{text}; expected a whole copy, or --missing zero to read them as empty")
    note(f"{text} and read as background")


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
    return _placed(stored, resolution, offset, Reading())


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
    depth, height, width = volume.size
    if not 0 <= first < stop <= depth:
        raise ShapeError(f"{volume.source}: found sections {first}:{stop}, expected a range within 0:{depth}")
    return part(volume, Box((first, 0, 0), (stop, height, width)))


def part(volume: Volume, box: Box) -> Volume:
    """The voxels of a box, in their place; nothing is read.

    Raises:
        ShapeError: the box holds no voxel or leaves the volume.
    """
    if not box.voxels or not volume.box.contains(box):
        raise ShapeError(
            f"{volume.source}: found box {box.start} to {box.stop}, expected one within (0, 0, 0) to {volume.size}"
        )
    if box == volume.box:
        return volume
    z, y, x = (o + n * r for o, n, r in zip(volume.offset, box.start, volume.resolution, strict=True))
    return replace(
        volume,
        shape=(*volume.shape[:-3], *box.shape),
        offset=(z, y, x),
        _opener=partial(_open_part, volume._opener, box.start),
    )


def on_grid(volume: Volume, other: Volume) -> Volume:
    """A volume on the voxel grid of another one: each voxel takes what lies at its centre.

    Args:
        volume: of voxels of any size; those of the other one whose centre lies in it are given.
        other: gives the grid.

    Returns:
        The volume itself where the voxels are of the same size.

    Raises:
        ShapeError: no voxel of the other one has its centre in the volume.
    """
    if all(math.isclose(a, b, rel_tol=_SAME_GRID) for a, b in zip(volume.resolution, other.resolution, strict=True)):
        return volume
    first, stop = [], []
    for n, r, o, wide, start in zip(
        volume.size, volume.resolution, volume.offset, other.resolution, other.offset, strict=True
    ):
        low, high = (o - start) / wide, (o + n * r - start) / wide
        first.append(math.ceil(low - 0.5 - _SAME_GRID))
        stop.append(math.ceil(high - 0.5 - _SAME_GRID))
    if any(b <= a for a, b in zip(first, stop, strict=True)):
        raise ShapeError(f"{volume.source}: has no voxel on the grid of {other.source}, of {other.resolution} nm")
    offset = tuple(o + a * r for o, a, r in zip(other.offset, first, other.resolution, strict=True))
    indices = []
    for axis in range(3):
        centres = offset[axis] + (np.arange(stop[axis] - first[axis]) + 0.5) * other.resolution[axis]
        at = np.floor((centres - volume.offset[axis]) / volume.resolution[axis] + _SAME_GRID)
        indices.append(np.clip(at, 0, volume.size[axis] - 1).astype(np.intp))
    z, y, x = offset
    return replace(
        volume,
        shape=(*volume.shape[:-3], *(len(at) for at in indices)),
        resolution=other.resolution,
        offset=(z, y, x),
        chunks=None,
        _opener=partial(_open_on_grid, volume._opener, tuple(indices)),
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
        by = ", ".join(f"{e:.4g}" for e in exact)
        raise ShapeError(
            f"{inner.source}: lies {by} voxels (z, y, x) into {outer.source}, expected whole voxels; its place "
            "in nm is given as #offset=Z,Y,X after the source"
        )
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


def _placed(stored: StoredArray, resolution: Nanometres | None, offset: Nanometres | None, reading: Reading) -> Volume:
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


@contextmanager
def _open_array(array: NDArray[Any], _reading: Reading) -> Iterator[Cut]:
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
def _open_part(opener: Opener, start: Triple) -> Iterator[Cut]:
    with opener() as cut:

        def moved(index: Index) -> NDArray[Any]:
            inside = (slice(at.start + by, at.stop + by) for at, by in zip(index[-3:], start, strict=True))
            return cut((*index[:-3], *inside))

        yield moved


@contextmanager
def _open_one_channel(opener: Opener) -> Iterator[Cut]:
    with opener() as cut:
        yield lambda index: cut((slice(0, 1), *index))[0]


@contextmanager
def _open_on_grid(opener: Opener, indices: tuple[NDArray[np.intp], ...]) -> Iterator[Cut]:
    with opener() as cut:

        def nearest(index: Index) -> NDArray[Any]:
            wanted = [at[span] for at, span in zip(indices, index[-3:], strict=True)]
            if any(not len(at) for at in wanted):
                return cut((*index[:-3], *(slice(0, len(at)) for at in wanted)))
            spans = [slice(int(at[0]), int(at[-1]) + 1) for at in wanted]
            block = cut((*index[:-3], *spans))
            return np.asarray(block[(..., *np.ix_(*(at - at[0] for at in wanted)))])

        yield nearest


@contextmanager
def _open_ids(opener: Opener, ignore: int | None, source: str) -> Iterator[Cut]:
    with opener() as cut:
        yield lambda index: _ids(cut(index), ignore, source, tuple((part.start, part.stop) for part in index))


def _ids(block: NDArray[Any], ignore: int | None, source: str, at: Hashable) -> NDArray[np.uint64]:
    """Ids of stored numbers; marks of what carries no label become 0 and are counted."""
    if block.dtype.kind == "b":
        ids = block.astype(np.uint64)
        reserved = np.zeros(block.shape, bool)
    elif block.dtype.kind == "f":
        if not (np.isfinite(block).all() and (np.floor(block) == block).all() and np.abs(block).max(initial=0) < 2**53):
            bad = block[~(np.isfinite(block) & (np.floor(block) == block))]
            found = f"{bad.flat[0]:g}" if bad.size else f"{np.abs(block).max():g}"
            raise SourceError(f"labels must be integers: found {block.dtype} with {found} in {source}")
        reserved = block < 0
        ids = np.where(reserved, 0, block).astype(np.uint64)
    else:
        limits = np.iinfo(block.dtype)
        reserved = block < 0 if limits.min < 0 else np.zeros(block.shape, bool)
        if limits.min == 0 and limits.bits >= 32:
            reserved = block > limits.max - RESERVED_IDS
        ids = block.astype(np.uint64)
    if reserved.any():
        ids[reserved] = 0
        counted = reserved if ignore is None else reserved & (block != ignore)
        number = int(np.count_nonzero(counted))
        count(f"{source}: {{}} voxels hold negative or reserved ids and count as background", number, (source, at))
    if ignore is not None:
        ids[block == ignore] = UNKNOWN_ID
    return ids
