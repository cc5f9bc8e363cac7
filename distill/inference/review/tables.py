"""Write the queue of doubtful contacts, the supervoxels and their edges as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import replacing
from distill.inference.review.webknossos import Edges
from distill.io.writers.store import writing

_ROWS = 2**16  # written together


@dataclass(frozen=True)
class DoubtfulContact:
    """A contact to look at; the fields are the columns of `queue.csv`.

    Attributes:
        rank: from 1, the most important first.
        merged: yes or no, whether both sides are one segment.
        score: mean affinity of the contact.
        x_nm: position in nm, as are `y_nm` and `z_nm`.
        y_nm: see `x_nm`.
        z_nm: see `x_nm`.
        x: voxel of the store, as are `y` and `z`.
        y: see `x`.
        z: see `x`.
        segment_a: id in `segmentation` on one side.
        segment_b: id on the other side; the same if `merged`.
        supervoxel_a: number of the supervoxel on one side of the voxel.
        supervoxel_b: number on the other side.
        smaller_voxels: voxels of the smaller side.
        contact_edges: voxel edges of the contact.
        weight: by which the queue is ordered, see `distill.inference.review.queue.DoubtfulMerges`.
    """

    rank: int
    merged: str
    score: float
    x_nm: float
    y_nm: float
    z_nm: float
    x: int
    y: int
    z: int
    segment_a: int
    segment_b: int
    supervoxel_a: int
    supervoxel_b: int
    smaller_voxels: int
    contact_edges: int
    weight: float


def write_queue(path: Path, queue: Iterable[DoubtfulContact]) -> None:
    """Write the queue, one row per contact; numbers have six significant digits at least."""
    with writing(path), replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(DoubtfulContact)])
        for one in queue:
            writer.writerow([f"{value:.10g}" if isinstance(value, float) else value for value in astuple(one)])


def write_edges(path: Path, edges: Edges, count: NDArray[np.int64]) -> None:
    """Write one row per contact of two supervoxels.

    Args:
        path: file to write.
        edges: with mean affinities.
        count: voxel edges of each contact.
    """
    names = ("supervoxel_a", "supervoxel_b", "score", "contact_edges")
    _write_columns(path, names, (edges.u, edges.v, edges.affinity, count))


def write_supervoxels(
    path: Path,
    ids: NDArray[np.uint64],
    segments: NDArray[np.uint64],
    voxels: NDArray[np.int64],
    places: NDArray[np.int64],
) -> None:
    """Write one row per supervoxel.

    Args:
        path: file to write.
        ids: (S,) in the array `supervoxels` of the store.
        segments: (S,) in its array `segmentation`.
        voxels: (S,) of each.
        places: (S, 3) z, y, x of a voxel inside.
    """
    names = ("supervoxel", "store_id", "segment", "voxels", "x", "y", "z")
    numbers = np.arange(1, len(ids) + 1)
    _write_columns(path, names, (numbers, ids, segments, voxels, *places.T[::-1]))


def _write_columns(path: Path, names: Sequence[str], columns: Sequence[NDArray[np.generic]]) -> None:
    with writing(path), replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(names) + "\r\n")
        for first in range(0, len(columns[0]), _ROWS):
            lists = [column[first : first + _ROWS].tolist() for column in columns]
            file.writelines(",".join(map(_text, row)) + "\r\n" for row in zip(*lists, strict=True))


def _text(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
