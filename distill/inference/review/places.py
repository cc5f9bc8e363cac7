"""Find where supervoxels and contacts are, in passes over the voxels of a store that hold one column of boxes.

Legend: S supervoxels, Q groups of contacts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.core.geometry import Box
from distill.core.labels import Relabelling
from distill.io.volume import Volume
from distill.io.writers.store import ZarrArray

_STEP = (16, 1024, 1024)  # voxels of a box
Numbers = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class MeasuredSupervoxels:
    """Sizes and places of supervoxels: arrays (S,) and (S, 3).

    Attributes:
        voxels: int64.
        places: int64 z, y, x of a voxel inside, the middle of the longest run along x.
    """

    voxels: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ContactPlaces:
    """Where contacts are.

    Attributes:
        places: (Q, 3) int64 z, y, x of the voxel at the contact that is nearest to its middle; -1 where the two sides
            touch nowhere in the store, which happens only where results were resampled.
        pairs: (Q, 2) int64 numbers of the supervoxels that touch there.
    """

    places: NDArray[np.int64]
    pairs: NDArray[np.int64]


def measure_supervoxels(
    stored: Volume, numbers: Relabelling, target: ZarrArray, on_box: Callable[[], None]
) -> MeasuredSupervoxels:
    """Write supervoxels under their numbers 1..S, and measure them.

    Args:
        stored: their ids.
        numbers: of the ids.
        target: array to write.
        on_box: called after every box.
    """
    from distill.segmentation.contact_places import measure

    count = len(numbers.old)
    voxels, longest = np.zeros(count, np.int64), np.zeros(count, np.int64)
    places = np.zeros((count, 3), np.int64)
    for column in _columns(stored.size):
        for box in column:
            found = numbers.apply(stored.read(box))
            target.write(box, found.astype(target.dtype, copy=False))
            measure(found, box.start, voxels, longest, places)
            on_box()
    return MeasuredSupervoxels(voxels, places)


def find_contacts(
    supervoxels: Volume,
    u: NDArray[np.uint64],
    v: NDArray[np.uint64],
    group: NDArray[np.int64],
    groups: int,
    on_box: Callable[[], None],
) -> ContactPlaces:
    """Find a voxel at each contact, near its middle.

    Sections without any supervoxel, which a stream leaves where it bridged them, are passed over as its networks do.

    Args:
        supervoxels: numbers 1..S, 0 = none.
        u: (P,) numbers of one side of each pair of supervoxels.
        v: (P,) numbers of the other side, larger than `u`.
        group: (P,) contact that a pair belongs to.
        groups: number of contacts Q.
        on_box: called after every box of both passes.
    """
    from distill.segmentation.contact_places import add_contacts, listed, nearest_contacts

    table = listed(u, v, group)
    sums = np.zeros((groups, 4), np.int64)
    boxes = set()
    for box, ids, before in _with_neighbours(supervoxels):
        if add_contacts(ids, before, _start(box), table, sums):
            boxes.add(box)
        on_box()
    middles = sums[:, 1:] / np.maximum(sums[:, :1], 1)
    nearest, places = np.full(groups, np.inf), np.full((groups, 5), -1, np.int64)
    scale = np.array(supervoxels.resolution)
    for box, ids, before in _with_neighbours(supervoxels, boxes):
        nearest_contacts(ids, before, _start(box), table, middles, scale, nearest, places)
        on_box()
    return ContactPlaces(places[:, :3], places[:, 3:])


def box_count(size: tuple[int, int, int]) -> int:
    """Return the number of boxes of a pass over a volume."""
    return sum(len(column) for column in _columns(size))


def _columns(size: tuple[int, int, int]) -> list[list[Box]]:
    """Return the boxes of each column along z."""
    depth, height, width = size
    return [
        [
            Box((z, y, x), (z + _STEP[0], y + _STEP[1], x + _STEP[2])).intersect(Box.of_shape(size))
            for z in range(0, depth, _STEP[0])
        ]
        for y in range(0, height, _STEP[1])
        for x in range(0, width, _STEP[2])
    ]


def _start(box: Box) -> tuple[int, int, int]:
    """Return where the voxels begin that are read for a box."""
    z, y, x = box.start
    return z, max(0, y - 1), max(0, x - 1)


def _with_neighbours(volume: Volume, wanted: set[Box] | None = None) -> Iterator[tuple[Box, Numbers, Numbers]]:
    """Iterate over boxes, with one more row and column before them and the last section that is not empty.

    Args:
        volume: numbers of supervoxels.
        wanted: boxes to yield; by default all.

    Yields:
        The box, its (D, H, W) ids from `_start` on, and (H, W) ids of the section before.
    """
    for column in _columns(volume.size):
        last: Numbers | None = None
        for box in column:
            ids = volume.read(Box(_start(box), box.stop)).astype(np.uint64, copy=False)
            if wanted is None or box in wanted:
                yield box, ids, np.zeros(ids.shape[1:], np.uint64) if last is None else last
            filled = ids[ids.any((1, 2))]
            last = filled[-1].copy() if len(filled) else last
