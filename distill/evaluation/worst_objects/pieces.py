"""Locate the fragments of selected objects: voxel counts and extents of every pair of ids in every section."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.core.geometry import Box
from distill.core.labels import concatenate
from distill.evaluation.aligned import Aligned

Ids = NDArray[np.uint64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PieceRows:
    """One row for every section in which a pair of ids has voxels, in ascending order of (z, u, v).

    Attributes:
        u: (R,) ground-truth id, never 0.
        v: (R,) segment id.
        z: (R,) section of the segmentation.
        count: (R,) voxels.
        low: (R, 2) smallest y and x.
        high: (R, 2) one past the largest y and x.
    """

    u: Ids
    v: Ids
    z: Ints
    count: Ints
    low: Ints
    high: Ints

    def hull(self, rows: NDArray[np.intp]) -> Box:
        """Return the smallest box around some rows."""
        (top, left), (bottom, right) = self.low[rows].min(0).tolist(), self.high[rows].max(0).tolist()
        z = self.z[rows]
        return Box((int(z.min()), top, left), (int(z.max()) + 1, bottom, right))


def pieces_in(both: Aligned, split: Ids, merged: Ids, box: Box) -> PieceRows:
    """Collect the rows of one block.

    Args:
        both: segmentation and ground truth.
        split: ground-truth ids to look for.
        merged: segment ids to look for.
        box: voxels of the segmentation.
    """
    found, truth = both.found.read(box), both.labels(box)
    _, height, width = found.shape
    v, u = found.ravel(), truth.ravel()
    new = np.empty(v.size, bool)
    np.not_equal(v[1:], v[:-1], out=new[1:])
    new[1:] |= u[1:] != u[:-1]
    new[::width] = True  # runs do not continue across rows
    starts = np.flatnonzero(new)
    wanted = (u[starts] != 0) & (np.isin(u[starts], split) | np.isin(v[starts], merged))
    length = np.diff(starts, append=v.size)[wanted]
    starts = starts[wanted]
    line, x = np.divmod(starts, width)
    z, y = np.divmod(line, height)
    place = np.stack([y, x], 1) + np.array(box.start[1:])
    end = np.stack([y + 1, x + length], 1) + np.array(box.start[1:])
    return _grouped(PieceRows(u[starts], v[starts], z + box.start[0], length, place, end))


def collect(parts: Iterable[PieceRows]) -> PieceRows:
    """Combine the rows of all blocks."""
    return _grouped(concatenate(parts))


def _grouped(rows: PieceRows) -> PieceRows:
    if not len(rows.u):
        return rows
    order = np.lexsort((rows.v, rows.u, rows.z))
    u, v, z = rows.u[order], rows.v[order], rows.z[order]
    first = np.flatnonzero(np.append(True, (u[1:] != u[:-1]) | (v[1:] != v[:-1]) | (z[1:] != z[:-1])))
    return PieceRows(
        u[first],
        v[first],
        z[first],
        np.add.reduceat(rows.count[order], first),
        np.minimum.reduceat(rows.low[order], first, axis=0),
        np.maximum.reduceat(rows.high[order], first, axis=0),
    )
