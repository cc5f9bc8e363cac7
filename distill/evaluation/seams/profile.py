"""Change of an embedding from row to row and from column to column, by distance to the window borders.

The change between two neighbouring rows is the Euclidean distance of their embedding vectors, each scaled to unit
length and averaged over a run of `along` pixels of the row: 0 (same direction) to 2 (opposite). Pixel-wise variation
averages out, such as the checkerboard drawn by a network trained with background edges at 0. A step in the same
direction along the border remains, as it does for an observer. A border b lies between rows b - 1 and b; the pair
(b - 1, b) has distance 0 to it, the pairs (b - 2, b - 1) and (b, b + 1) have distance 1, and so on. Columns are treated
in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError, ShapeError

Floats = npt.NDArray[np.float64]
ALONG = 8  # pixels of a border over which the change is averaged


@dataclass(frozen=True)
class Changes:
    """Changes along one axis: row j of `change` holds the pairs (j, j + 1); `near` is their distance to a border."""

    change: Floats  # (rows of pairs, runs)
    valid: npt.NDArray[np.bool_]
    borders: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]
    along: int


def changes_of(
    embedding: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    exclude: npt.NDArray[np.bool_] | None,
    along: int,
) -> list[Changes]:
    """Compute the changes between rows and between columns.

    Args:
        embedding: (E, Y, X) float; scaled to unit length internally (a zero vector stays zero).
        borders_y: rows b at which a window begins, 0 < b < Y.
        borders_x: columns, the same.
        exclude: (Y, X) pixels to exclude, such as a fold; a run of pairs with one of them is not counted.
        along: length of a run in pixels; 1 = single pairs.

    Raises:
        DistillError: shapes do not match, a border lies outside the section, there is no border, or a value is not
            finite.
    """
    if embedding.ndim != 3 or embedding.dtype.kind != "f" or 0 in embedding.shape:
        raise ShapeError(f"embedding: found {embedding.shape} {embedding.dtype}, expected floats (E, Y, X), not empty")
    size = embedding.shape[1:]
    if exclude is not None and (exclude.shape != size or exclude.dtype != np.bool_):
        raise ShapeError(f"exclude: found {exclude.shape} {exclude.dtype}, expected {size} bool")
    if len(borders_y) + len(borders_x) == 0:
        raise DistillError("borders: found none, expected at least one window border in y or x")
    for name, borders, extent in (("borders_y", borders_y, size[0]), ("borders_x", borders_x, size[1])):
        if any(not 0 < b < extent for b in borders):
            raise DistillError(f"{name}: found {list(borders)}, expected pixels inside 1..{extent - 1}")
    if not 1 <= along <= min(size):
        raise DistillError(f"along: found {along}, expected 1 to {min(size)} pixels")
    keep = np.ones(size, bool) if exclude is None else ~exclude
    square, square_x = _squares(embedding, keep, along)
    return [_axis(square, keep, borders_y, along), _axis(square_x.T, keep.T, borders_x, along)]


def by_segment(axis: Changes, segment: int) -> tuple[Floats, Floats]:
    """Sum changes and count valid runs per row of pairs and segment."""
    starts = np.arange(0, axis.change.shape[1], max(1, segment // axis.along))
    return np.add.reduceat(axis.change, starts, axis=1), np.add.reduceat(axis.valid.astype(np.float64), starts, axis=1)


def quotient(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    """Divide element by element; NaN where the divisor is not positive."""
    out = np.full(above.shape, np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out


def _length(embedding: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> Floats:
    square = np.zeros(keep.shape)
    for channel in embedding:
        square += np.where(keep, channel, 0).astype(np.float64) ** 2
    if not np.isfinite(square).all():
        raise DistillError("embedding: found NaN or infinite values in pixels that are not excluded, expected none")
    return np.maximum(np.sqrt(square), 1e-12)


def _squares(embedding: npt.NDArray[Any], keep: npt.NDArray[np.bool_], along: int) -> tuple[Floats, Floats]:
    """Compute squared distances of unit vectors averaged over runs: (Y - 1, runs) of rows, (runs, X - 1) of columns.

    Channels are processed one at a time to save memory, each once for both axes.
    """
    scale = 1 / _length(embedding, keep)
    size_y, size_x = keep.shape
    runs_y, runs_x = size_y // along, size_x // along
    square_y, square_x = np.zeros((size_y - 1, runs_x)), np.zeros((runs_y, size_x - 1))
    unit = np.zeros(keep.shape)
    for channel in embedding:
        np.multiply(channel, scale, out=unit, where=keep)
        square_y += np.diff(unit[:, : runs_x * along].reshape(size_y, runs_x, along).mean(axis=2), axis=0) ** 2
        square_x += np.diff(unit[: runs_y * along].reshape(runs_y, along, size_x).mean(axis=1), axis=1) ** 2
    return square_y, square_x


def _axis(square: Floats, keep: npt.NDArray[np.bool_], borders: Sequence[int], along: int) -> Changes:
    """Compute distances from their squares (rows of pairs, runs); 0 where a pixel of the run is excluded."""
    both = keep[1:] & keep[:-1]
    runs = square.shape[1]
    valid: npt.NDArray[np.bool_] = np.asarray(both[:, : runs * along].reshape(-1, runs, along).all(axis=2))
    positions = np.unique(np.asarray(borders, np.int64))
    pair = np.arange(1, len(square) + 1)
    far = np.full(len(pair), np.iinfo(np.int64).max)
    near = np.abs(pair[:, None] - positions).min(axis=1) if positions.size else far
    return Changes(np.where(valid, np.sqrt(square), 0.0), valid, positions, near, along)
