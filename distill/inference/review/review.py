"""Export the segmentation of a store for proofreading (`distill review`).

Nothing is segmented again: supervoxels, contacts and thresholds are those of the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import new_folder
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Nanometres, Triple
from distill.inference.review.graph import StoredGraph, read_graph
from distill.inference.review.places import (
    ContactPlaces,
    MeasuredSupervoxels,
    box_count,
    find_contacts,
    measure_supervoxels,
)
from distill.inference.review.queue import DoubtfulMerges, doubtful_merges
from distill.inference.review.tables import DoubtfulContact, write_edges, write_queue, write_supervoxels
from distill.inference.review.webknossos import LAYER, Edges, write_agglomerates, write_data_source
from distill.io.volume import Volume, open_volume, some_sections
from distill.io.writers.output import check_folder
from distill.io.writers.store import create_zarr, writing

QUEUE, EDGES, SUPERVOXELS, WEBKNOSSOS = "queue.csv", "edges.csv", "supervoxels.csv", "webknossos"
_AROUND = (-0.1, -0.05, 0.05, 0.1)  # thresholds of further agglomerate files, relative to that of the store
_CHUNK, _SHARD = (16, 128, 128), (16, 1024, 1024)


@dataclass(frozen=True)
class ReviewOptions:
    """What is written.

    Attributes:
        within: contacts whose mean affinity differs by less from the threshold are doubtful.
        most: entries of the queue.
        thresholds: of agglomerate files, in addition to that of the store; by default 0.05 and 0.1 to either side.
        overwrite: replace an earlier export.
    """

    within: float = 0.1
    most: int = 1000
    thresholds: Sequence[float] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Review:
    """What was written.

    Attributes:
        queue: doubtful contacts.
        doubtful: number of doubtful contacts before the queue was cut to its length.
        threshold: of the store.
        thresholds: of the agglomerate files.
        supervoxels: their number.
        edges: contacts of two supervoxels.
        shape: (D, H, W).
        resolution: nm.
        offset: nm.
    """

    queue: list[DoubtfulContact]
    doubtful: int
    threshold: float
    thresholds: tuple[float, ...]
    supervoxels: int
    edges: int
    shape: Triple
    resolution: Nanometres
    offset: Nanometres


def review(
    store: Path,
    out: Path,
    options: ReviewOptions = ReviewOptions(),
    *,
    on_box: Callable[[int, int], None] = lambda done, total: None,
    finish: Callable[[Review, Path], None] = lambda found, folder: None,
) -> Review:
    """Write the queue of doubtful contacts, the contact graph, and supervoxels with agglomerate files.

    Args:
        store: finished store of `distill stream` or `distill segment`, method `flood` or `query`.
        out: folder to make: queue.csv, edges.csv, supervoxels.csv, and the data set `webknossos`.
        options: see `ReviewOptions`.
        on_box: called with boxes of voxels read and their total.
        finish: called with the result and the folder before the folder gets its name, to add files.

    Returns:
        What was written.

    Raises:
        DistillError: wrong options, a store without supervoxels, or the disk refuses. `out` is complete or absent.
    """
    _check_options(options)
    _check_out(out, options.overwrite)
    graph = read_graph(store)
    thresholds = _thresholds(graph.threshold, options.thresholds)
    merges = graph.merges(min(thresholds[0], graph.threshold - options.within))
    stored = some_sections(open_volume(f"{store}:supervoxels", missing="zero"), 0, graph.sections)
    done, total = 0, 3 * box_count(stored.size)

    def step() -> None:
        nonlocal done
        done += 1
        on_box(done, total)

    dtype = np.dtype(np.uint32 if len(graph.numbers.old) < 2**32 else np.uint64)
    with writing(out), new_folder(out) as made:
        layer = create_zarr(
            made / WEBKNOSSOS,
            f"{LAYER}/1",
            shape=stored.size,
            dtype=dtype,
            resolution=stored.resolution,
            offset=stored.offset,
            chunks=_CHUNK,
            shards=_SHARD,
        )
        measured = measure_supervoxels(stored, graph.numbers, layer, step)
        segments = graph.segments(merges, graph.threshold)
        doubtful = doubtful_merges(graph, merges, measured.voxels, options.within, options.most)
        numbered = _numbered(graph, doubtful)
        listed = numbered.entry >= 0
        places = find_contacts(
            layer.volume(),
            numbered.edges.u[listed],
            numbered.edges.v[listed],
            numbered.entry[listed],
            len(doubtful.merge),
            step,
        )
        queue = _queue(doubtful, places, numbered, segments, measured, stored)
        write_queue(made / QUEUE, queue)
        write_edges(made / EDGES, numbered.edges, numbered.count)
        write_supervoxels(made / SUPERVOXELS, graph.numbers.old, segments, measured.voxels, measured.places)
        (made / WEBKNOSSOS / LAYER / "agglomerates").mkdir()
        for threshold in thresholds:
            path = made / WEBKNOSSOS / LAYER / "agglomerates" / f"merge_{threshold:g}.hdf5"
            write_agglomerates(path, graph.segments(merges, threshold), numbered.edges, measured.places)
        write_data_source(made / WEBKNOSSOS, stored.size, stored.resolution, dtype, len(graph.numbers.old))
        found = Review(
            queue,
            doubtful.found,
            graph.threshold,
            thresholds,
            len(graph.numbers.old),
            len(numbered.count),
            stored.size,
            stored.resolution,
            stored.offset,
        )
        finish(found, made)
    return found


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Contacts between supervoxels 1..S that own a voxel.

    Attributes:
        edges: (E,) with mean affinities.
        count: (E,) int64 voxel edges.
        entry: (E,) int64 entry of the queue that each belongs to, -1 for none.
    """

    edges: Edges
    count: NDArray[np.int64]
    entry: NDArray[np.int64]


def _numbered(graph: StoredGraph, doubtful: DoubtfulMerges) -> _Numbered:
    contacts, ids = graph.contacts, graph.numbers.old
    kept = np.isin(contacts.u, ids) & np.isin(contacts.v, ids)
    u, v = (graph.numbers.apply(ends[kept]) for ends in (contacts.u, contacts.v))
    return _Numbered(Edges(u, v, contacts.mean[kept]), contacts.count[kept], doubtful.contacts[kept])


def _queue(
    doubtful: DoubtfulMerges,
    found: ContactPlaces,
    numbered: _Numbered,
    segments: NDArray[np.uint64],
    measured: MeasuredSupervoxels,
    volume: Volume,
) -> list[DoubtfulContact]:
    """Return the rows of the queue.

    A contact without a place has that of the smaller supervoxel of its largest pair.
    """
    pairs, places = found.pairs.copy(), found.places.copy()
    for missing in np.flatnonzero(places[:, 0] < 0):
        entry = int(missing)
        of = np.flatnonzero(numbered.entry == entry)
        if not len(of):
            continue
        largest = of[np.argmax(numbered.count[of])]
        pairs[entry] = numbered.edges.u[largest], numbered.edges.v[largest]
        places[entry] = measured.places[min(pairs[entry] - 1, key=lambda number: measured.voxels[number])]
    rows: list[DoubtfulContact] = []
    for placed in np.flatnonzero(places[:, 0] >= 0):
        entry = int(placed)
        a, b = pairs[entry].tolist()
        z, y, x = places[entry].tolist()
        nm = [o + (at + 0.5) * r for o, at, r in zip(volume.offset, (z, y, x), volume.resolution, strict=True)]
        rows.append(
            DoubtfulContact(
                rank=len(rows) + 1,
                merged="yes" if doubtful.merged[entry] else "no",
                score=float(doubtful.score[entry]),
                x_nm=nm[2],
                y_nm=nm[1],
                z_nm=nm[0],
                x=x,
                y=y,
                z=z,
                segment_a=int(segments[a - 1]),
                segment_b=int(segments[b - 1]),
                supervoxel_a=a,
                supervoxel_b=b,
                smaller_voxels=int(doubtful.smaller[entry]),
                contact_edges=int(doubtful.area[entry]),
                weight=float(doubtful.weight[entry]),
            )
        )
    return rows


def _thresholds(own: float, others: Sequence[float] | None) -> tuple[float, ...]:
    """Return the thresholds of agglomerate files, ascending."""
    wanted = [own + step for step in _AROUND] if others is None else others
    return tuple(sorted({own, *(round(one, 6) for one in wanted if 0 <= one <= 1)}))


def _check_options(options: ReviewOptions) -> None:
    if not 0 < options.within <= 1:
        raise DistillError(f"--within: found {options.within:g}, expected a number above 0 and up to 1, such as 0.1")
    if options.most < 1:
        raise DistillError(f"--most: found {options.most}, expected 1 or more")


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier export, and that only where it is asked for."""
    check_folder(out)
    if not os.path.lexists(out):
        return
    if not (out / QUEUE).is_file() or not (out / WEBKNOSSOS).is_dir():
        raise SourceError(f"{out}: found something else than an export of distill review, expected a new path")
    if not overwrite:
        raise SourceError(f"{out}: exists already; expected a new path, or --overwrite")
