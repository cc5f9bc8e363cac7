"""What crops are cut from: arrays in memory, or a box of files of any size.

A worker process opens its own files when it first reads; nothing that another process has opened is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import as_label_tensor
from distill.core.errors import ShapeError, SourceError
from distill.core.geometry import Box, Triple
from distill.core.known import OTHER, UNKNOWN
from distill.core.normalisation import Correction, Normaliser, check_finite
from distill.io.readers.array import readable
from distill.io.truth import Truth
from distill.io.volume import Volume

_THREADED = ("zarr2", "zarr3", "n5", "precomputed")  # read by tensorstore, whose threads do not survive a fork
_OF_PARENTS: list[ExitStack] = []  # files that the process before a fork had opened: never closed here
_WHOLE = 2**24  # pixels of the largest section that is looked at as a whole
_SQUARE, _SQUARES = 256, 8  # pixels of a square's side, squares along each axis
_MOST_SECTIONS = 32  # that squares are held of at a time
_SLAB = 2**22  # voxels of labels that are read at a time


class CropSource(Protocol):
    """A box of a volume, read in boxes of its own voxels.

    Attributes:
        shape: extent z, y, x.
        partial: whether labels may be UNKNOWN or OTHER (`distill.core.known`).
        volume: the image, where it lies in a file.
        start: its voxel at which the box begins.
        threaded: whether reading starts threads that do not survive a fork.
    """

    shape: Triple
    partial: bool
    volume: Volume | None
    start: Triple
    threaded: bool

    def raw(self, box: Box) -> NDArray[Any]:
        """Return grey values as stored (D, h, w)."""

    def labels(self, box: Box) -> NDArray[np.int64] | None:
        """Return the labels (D, h, w); None for a volume without."""


class ArraySource:
    """Arrays in memory."""

    def __init__(self, raw: NDArray[Any], labels: NDArray[Any] | None) -> None:
        """Take arrays (D, H, W); labels of any integer type, None for a volume without."""
        z, y, x = raw.shape
        self.shape: Triple = (z, y, x)
        self.image = raw
        self.truth = None if labels is None else as_label_tensor(labels).numpy()
        self.partial = self.truth is not None and bool(np.isin(self.truth, (UNKNOWN, OTHER)).any())
        self.volume: Volume | None = None
        self.start: Triple = (0, 0, 0)
        self.threaded = False

    def raw(self, box: Box) -> NDArray[Any]:
        """See `CropSource`."""
        return self.image[box.slices]

    def labels(self, box: Box) -> NDArray[np.int64] | None:
        """See `CropSource`."""
        return None if self.truth is None else np.array(self.truth[box.slices])


class FileSource:
    """A box of files, read on demand."""

    def __init__(self, volume: Volume, truth: Truth | None, box: Box) -> None:
        """Name what is read; nothing is opened yet.

        Args:
            volume: the image.
            truth: its labels; None without.
            box: voxels of the image.
        """
        self.shape, self.start = box.shape, box.start
        self.volume: Volume | None = volume
        self.partial = truth is not None and not truth.whole
        self.box, self.truth = box, truth
        self.files = (volume, *(() if truth is None else truth.files))
        self.threaded = any(file.kind in _THREADED for file in self.files)
        self._open = _OpenFiles(self.files)

    def raw(self, box: Box) -> NDArray[Any]:
        """See `CropSource`."""
        return self._open.read(0, box.shift(self.box.start))

    def labels(self, box: Box) -> NDArray[np.int64] | None:
        """See `CropSource`."""
        if self.truth is None:
            return None
        found = self.truth.read(box.shift(self.box.start), lambda number, where: self._open.read(1 + number, where))
        return found.view(np.int64)

    @property
    def held_bytes(self) -> int:
        """Return the memory that the box needs in bytes (see `HeldSource`)."""
        assert self.volume is not None
        return self.box.voxels * (self.volume.dtype.itemsize + (0 if self.truth is None else 4))

    def held(self) -> HeldSource:
        """Return the same source in memory.

        Raises:
            SourceError: a file cannot be read.
        """
        found = HeldSource(self)
        self._open.close()
        return found


class HeldSource:
    """A box of files in memory, labels as numbers of 32 bits that stand for their ids."""

    def __init__(self, source: FileSource) -> None:
        """Read the whole box."""
        depth, height, width = source.shape
        self.shape, self.partial, self.threaded = source.shape, source.partial, False
        self.volume: Volume | None = source.volume
        self.start = source.start
        self.image = source.raw(Box.of_shape(source.shape))
        self.numbers: NDArray[np.uint32] | None = None
        if source.truth is None:
            return
        self.numbers = np.empty(source.shape, np.uint32)
        known: dict[int, int] = {}
        step = max(1, _SLAB // (height * width))
        for z in range(0, depth, step):
            stop = min(depth, z + step)
            labels = source.labels(Box((z, 0, 0), (stop, height, width)))
            assert labels is not None
            flat = labels.ravel()
            starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # of runs of one id
            ids, where = np.unique(flat[starts], return_inverse=True)
            new = np.array([known.setdefault(one, len(known)) for one in ids.tolist()], np.uint32)
            self.numbers[z:stop] = np.repeat(new[where], np.diff(starts, append=flat.size)).reshape(labels.shape)
        self.ids = np.array(list(known), np.int64)

    def raw(self, box: Box) -> NDArray[Any]:
        """See `CropSource`."""
        return self.image[box.slices]

    def labels(self, box: Box) -> NDArray[np.int64] | None:
        """See `CropSource`."""
        return None if self.numbers is None else self.ids[self.numbers[box.slices]]


def section_corrections(source: CropSource, normaliser: Normaliser) -> list[Correction]:
    """Compute the normalisation of each section of a source from the whole section of its image.

    Of sections of more than 16 million pixels 64 squares decide that are spread evenly, except for the kind `local`.

    Args:
        source: sections are read once, one chunk's depth of them at a time.
        normaliser: of the network.

    Returns:
        One a section of the source.

    Raises:
        SourceError: a file cannot be read, or has grey values that are no numbers or cannot be brought to a scale.
        ShapeError: the same of arrays in memory.
    """
    volume = source.volume
    depth, height, width = source.shape
    if volume is None:
        return [normaliser.of(section) for section in source.raw(Box.of_shape(source.shape))]
    if isinstance(source, HeldSource) and (height, width) == volume.size[1:]:
        return corrections_of(source.raw(Box.of_shape(source.shape)), normaliser, volume, source.start[0])
    kind, first = normaliser.normalisation.kind, source.start[0]
    if kind == "none" and volume.dtype.kind != "f":
        return [normaliser.of(np.zeros((1, 1), volume.dtype))] * depth
    if kind == "local" or volume.size[1] * volume.size[2] <= _WHOLE:
        return corrections_of(volume.sections(first, first + depth), normaliser, volume, first)
    with volume.reading() as read:
        return corrections_of(_squares(volume, read, first, first + depth), normaliser, volume, first)


def corrections_of(
    sections: Iterable[NDArray[Any]], normaliser: Normaliser, volume: Volume, first: int
) -> list[Correction]:
    """Compute the normalisation of sections, or of pixels sampled from them.

    Args:
        sections: (H, W) each, or any part of them that decides.
        normaliser: of the network.
        volume: that they are of, for messages.
        first: number of the first one.

    Raises:
        SourceError: grey values that are no numbers or cannot be brought to a scale; names volume and section.
    """
    found = []
    for z, section in enumerate(sections, first):
        try:
            check_finite(section)
            found.append(normaliser.of(section))
        except ShapeError as error:
            raise SourceError(f"{volume.source}: section {z}: {error}") from None
    return found


def _squares(volume: Volume, read: Callable[[Box], NDArray[Any]], first: int, stop: int) -> Iterator[NDArray[Any]]:
    """Iterate over pixels (1, N) of squares sampled from each section."""
    rows, columns = (np.linspace(0, max(0, size - _SQUARE), _SQUARES).astype(int).tolist() for size in volume.size[1:])
    chunk = min(volume.chunks[-3], _MOST_SECTIONS) if volume.chunks else 1
    z = first
    while z < stop:
        end = min(stop, (z // chunk + 1) * chunk)
        boxes = [Box((z, y, x), (end, y + _SQUARE, x + _SQUARE)) for y in rows for x in columns]
        squares = [read(box.intersect(volume.box)) for box in boxes]
        for n in range(end - z):
            yield np.concatenate([square[n].ravel() for square in squares])[None]
        z = end


class _OpenFiles:
    """Files of this process, opened when they are first read and left open."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self._volumes = tuple(volumes)
        self._process: int | None = None
        self._stack = ExitStack()
        self._readers: dict[int, Callable[[Box], NDArray[Any]]] = {}

    def read(self, number: int, box: Box) -> NDArray[Any]:
        if self._process != os.getpid():
            if self._readers:
                _OF_PARENTS.append(self._stack)
            self._process, self._stack, self._readers = os.getpid(), ExitStack(), {}
        reader = self._readers.get(number)
        if reader is None:
            reader = self._readers[number] = self._stack.enter_context(self._volumes[number].reading())
        with readable(self._volumes[number].source):
            return reader(box)

    def close(self) -> None:
        if self._process == os.getpid():
            self._stack.close()
        self._process, self._readers = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_volumes": self._volumes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_volumes"])  # type: ignore[misc]
