"""Write supervoxels and their agglomerations as a data set of WEBKNOSSOS.

Agglomerate files: HDF5 with the arrays of https://docs.webknossos.org/webknossos-py/spec/agglomerate_attachment.html,
which WEBKNOSSOS finds in the folder `agglomerates` of a segmentation layer
(https://docs.webknossos.org/webknossos/proofreading/segmentation_mappings.html). Supervoxels ("segments" there) have
the numbers 1..S without gaps, segments of distill are "agglomerates" 1..n.

Legend: S supervoxels, n segments, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distill.core.atomic import replacing
from distill.core.geometry import Nanometres, Triple
from distill.io.writers.store import write_json, writing

LAYER = "supervoxels"
_JOINED = 1.0  # affinity of supervoxels that are one without a contact, by the voxels that they share


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges between supervoxels 1..S.

    Attributes:
        u: (E,) uint64 number of one supervoxel.
        v: (E,) uint64 number of the other one.
        affinity: (E,) float in [0, 1].
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    affinity: NDArray[np.floating[Any]]


def write_agglomerates(path: Path, segments: NDArray[np.uint64], edges: Edges, places: NDArray[np.int64]) -> None:
    """Write an agglomerate file.

    Edges across segments are left out. A segment whose supervoxels are not connected by edges, because shared voxels
    joined them, gets edges of affinity 1 between its parts, so that it can be cut in two and is one graph.

    Args:
        path: file to write.
        segments: (S,) segment 1..n of each supervoxel 1..S.
        edges: of supervoxels.
        places: (S, 3) z, y, x of a voxel in each supervoxel.
    """
    count = int(segments.max(initial=0))
    kept = segments[_index(edges.u)] == segments[_index(edges.v)]
    within = Edges(edges.u[kept], edges.v[kept], edges.affinity[kept])
    every = _with_links(within, segments)
    order = np.lexsort((np.arange(len(segments)), segments))
    offsets = _offsets(segments, count)
    local = np.empty(len(segments), np.int64)
    local[order] = np.arange(len(segments)) - offsets[segments[order].astype(np.int64)].astype(np.int64)
    of = segments[_index(every.u)]
    ends = np.sort(np.stack([local[_index(every.u)], local[_index(every.v)]], 1), 1)
    by_segment = np.lexsort((ends[:, 1], ends[:, 0], of))
    arrays: dict[str, NDArray[Any]] = {
        "segment_to_agglomerate": np.concatenate([np.zeros(1, np.uint64), segments]),
        "agglomerate_to_segments_offsets": offsets,
        "agglomerate_to_segments": (order + 1).astype(np.uint64),
        "agglomerate_to_edges_offsets": _offsets(of, count),
        "agglomerate_to_edges": ends[by_segment].astype(np.uint64),
        "agglomerate_to_affinities": every.affinity[by_segment].astype(np.float32),
        "agglomerate_to_positions": places[order][:, ::-1].astype(np.uint64),
    }
    with writing(path), replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def write_data_source(folder: Path, shape: Triple, resolution: Nanometres, dtype: np.dtype[Any], largest: int) -> None:
    """Describe the layer of supervoxels in `datasource-properties.json`.

    Args:
        folder: of the data set, which holds the array `supervoxels/1` and the files `supervoxels/agglomerates/*.hdf5`.
        shape: z, y, x.
        resolution: z, y, x in nm.
        dtype: of the array.
        largest: number of supervoxels.
    """
    names = sorted(path.stem for path in (folder / LAYER / "agglomerates").glob("*.hdf5"))
    layer = {
        "name": LAYER,
        "category": "segmentation",
        "boundingBox": {"topLeft": [0, 0, 0], "width": shape[2], "height": shape[1], "depth": shape[0]},
        "dataFormat": "zarr3",
        "mags": [{"mag": [1, 1, 1], "path": f"./{LAYER}/1", "axisOrder": {"x": 2, "y": 1, "z": 0}}],
        "elementClass": dtype.name,
        "largestSegmentId": largest,
        "numChannels": 1,
        "attachments": {
            "agglomerates": [
                {"name": name, "path": f"./{LAYER}/agglomerates/{name}.hdf5", "dataFormat": "hdf5"} for name in names
            ]
        },
    }
    document = {
        "id": {"name": folder.name, "team": ""},
        "scale": {"factor": list(resolution[::-1]), "unit": "nanometer"},
        "dataLayers": [layer],
        "version": 1,
    }
    with writing(folder):
        write_json(folder / "datasource-properties.json", document)


def _index(numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    return numbers.astype(np.int64) - 1


def _offsets(ids: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return where the entries of each id 0..count begin in the order of ids, and their number at the end."""
    found = np.zeros(count + 2, np.uint64)
    found[1:] = np.cumsum(np.bincount(ids.astype(np.int64), minlength=count + 1))
    return found


def _with_links(edges: Edges, segments: NDArray[np.uint64]) -> Edges:
    """Add edges between the parts of segments that are not connected."""
    u, v = _index(edges.u), _index(edges.v)
    graph = coo_array((np.ones(len(u), np.int8), (u, v)), shape=(len(segments),) * 2)
    part = connected_components(graph, directed=False)[1]
    first = np.unique(part, return_index=True)[1]
    first = first[np.lexsort((first, segments[first]))]
    apart = segments[first[1:]] == segments[first[:-1]]
    before, after = (ends[apart].astype(np.uint64) + np.uint64(1) for ends in (first[:-1], first[1:]))
    return Edges(
        np.concatenate([edges.u, before]),
        np.concatenate([edges.v, after]),
        np.concatenate([edges.affinity, np.full(len(before), _JOINED)]),
    )
