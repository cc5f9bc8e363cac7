"""From the affinities of one block to its segments, without queries: the papers' baseline.

Seeded watershed and its agglomeration: Liu et al., Cross-dimension Affinity Distillation for 3D EM Neuron
Segmentation, CVPR 2024, evaluation; waterz: Funke et al., Large Scale Image Segmentation with Structured Loss Based
Deep Learning for Connectome Reconstruction, TPAMI 2019. Mean affinity along contacts: Chen et al., Efficient Neuron
Segmentation in Electron Microscopy by Affinity-Guided Queries, ICLR 2025, whole volumes.

Affinity channel k at voxel p is the edge (p, p + o_k), offsets [[-1,0,0],[0,-1,0],[0,0,-1]]; 1 = same neuron.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from distill.core.errors import DistillError, ShapeError
from distill.core.labels import Integers, Relabelling, compact, distinct_ids, ranks, sum_pairs

Affinity = NDArray[np.floating[Any]]

_SCORING: dict[str, tuple[str, int]] = {  # waterz's scoring function and the bins of its queue (0 = exact order)
    "hist50": ("OneMinus<HistogramQuantileAffinity<RegionGraphType, 50, ScoreValue, 256>>", 256),
    "mean": ("OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>", 0),
}


@dataclass(frozen=True)
class RegionGraph:
    """Regions that touch, each pair once with u < v.

    Attributes:
        u: (E,) uint64 region id.
        v: (E,) uint64 region id.
        total: (E,) float64 sum of affinities over the contact.
        count: (E,) int64 voxel edges in the contact, at least 1.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    total: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(E,) mean affinity over the contact."""
        return self.total / self.count


def fragments(affinity: Affinity) -> NDArray[np.uint64]:
    """Over-segment every section by a seeded watershed (CAD paper's post-processing).

    The boundary map is 1 - mean of the y and x affinities. Seeds are the regional maxima (4-connected) of the distance
    to its voxels at 0.5 or above; they flood the boundary map until every voxel is taken.

    Args:
        affinity: (3 or more, Z, Y, X) float in [0, 1].

    Returns:
        (Z, Y, X) ids 1..n in scan order of sections, none in two sections, no background. A section without a
        boundary, or without anything else, is one fragment.

    Raises:
        ShapeError: not four axes with at least three channels, or not floating point.
    """
    return _all_sections(affinity)


def waterz(
    affinity: Affinity,
    thresholds: Sequence[float],
    *,
    scoring: Literal["hist50", "mean"] = "hist50",
    fragments: Integers | None = None,
) -> dict[float, NDArray[np.uint64]]:
    """Agglomerate fragments with waterz, as the papers score their affinities.

    Regions merge while their score, 1 - affinity of the contact, is below the threshold. What the library prints is
    swallowed by closing standard output of the whole process for that time.

    Args:
        affinity: (3 or more, Z, Y, X) float in [0, 1]; waterz knows no invalid edges inside a block, they count as 0.
        thresholds: scores in [0, 1]; the CAD paper's is 0.5.
        scoring: `hist50` = median of a contact from 256 bins, queue of 256 bins (CAD paper);
            `mean` = mean affinity, exact queue.
        fragments: (Z, Y, X) ids to merge, 0 stays background; by default those of `fragments`.

    Returns:
        For each threshold a (Z, Y, X) volume of compact ids.

    Raises:
        DistillError: waterz is not installed, or the scoring is unknown.
        ShapeError: shapes do not go together.
    """
    if scoring not in _SCORING:
        raise DistillError(f"scoring: found {scoring!r}, expected one of {', '.join(_SCORING)}")
    try:
        from waterz import agglomerate
    except ModuleNotFoundError as error:
        if error.name != "waterz":
            raise
        raise DistillError("waterz: not installed, expected `pip install affinity-distill[baselines]`") from None
    labels = _all_sections(affinity) if fragments is None else compact(fragments)
    _check_affinity(affinity, labels.shape)
    function, bins = _SCORING[scoring]
    edges = np.ascontiguousarray(affinity[:3], np.float32)
    ordered = sorted(set(thresholds))
    result = {}
    with _silent_stdout():  # waterz works on `labels` in place and hands out the same array at every threshold
        states = agglomerate(edges, ordered, fragments=labels, scoring_function=function, discretize_queue=bins)
        for threshold, state in zip(ordered, states, strict=True):
            result[threshold] = compact(state)
    return result


def region_graph(labels: Integers, affinity: Affinity, valid: NDArray[np.bool_] | None = None) -> RegionGraph:
    """Mean affinity along the contact of every two regions that share a nearest-neighbour edge.

    Args:
        labels: (Z, Y, X) ids; 0 = background, which touches nothing.
        affinity: (3 or more, Z, Y, X) float.
        valid: (3 or more, Z, Y, X) bool, edges to count; all edges inside the block by default.

    Returns:
        The graph, pairs in ascending order.

    Raises:
        ShapeError: shapes do not go together.
    """
    _check_affinity(affinity, labels.shape)
    if valid is not None and valid.shape != affinity.shape:
        raise ShapeError(f"valid: found shape {valid.shape}, expected that of the affinity {affinity.shape}")
    parts = []
    for axis in range(3):
        inner: list[slice] = [slice(None)] * 3
        outer = inner.copy()
        inner[axis], outer[axis] = slice(1, None), slice(None, -1)
        here, there = labels[tuple(inner)], labels[tuple(outer)]
        touch = (here != there) & (here != 0) & (there != 0)
        if valid is not None:
            touch &= valid[axis][tuple(inner)]
        a, b = here[touch], there[touch]
        parts.append(sum_pairs(np.minimum(a, b), np.maximum(a, b), values=affinity[axis][tuple(inner)][touch]))
    u, v, count, total = (np.concatenate([getattr(p, n) for p in parts]) for n in ("u", "v", "count", "total"))
    pairs = sum_pairs(u, v, count=count, values=total)
    return RegionGraph(pairs.u, pairs.v, pairs.total, pairs.count)


def agglomerate_graph(graph: RegionGraph, threshold: float) -> Relabelling:
    """Merge regions, strongest contact first, until no mean affinity is above the threshold.

    Contacts of merged regions with a common neighbour become one: sums and counts add up. Equal means go by ids,
    smallest u first, then v; a merged region is known by its smallest id.

    Args:
        graph: regions with u < v, each pair once.
        threshold: mean affinity that a contact must exceed.

    Returns:
        For every id of the graph the smallest id of its region.
    """
    ids, index = np.unique(np.concatenate([graph.u, graph.v]), return_inverse=True)
    ends = index.reshape(2, -1).tolist()
    neighbours: list[dict[int, tuple[float, int]]] = [{} for _ in range(len(ids))]
    heap = []
    for u, v, total, count in zip(*ends, graph.total.tolist(), graph.count.tolist(), strict=True):
        edge = (total, count)
        neighbours[u][v] = neighbours[v][u] = edge
        if total / count > threshold:
            heap.append((-total / count, u, v, edge))
    heapq.heapify(heap)
    parent = np.arange(len(ids))
    while heap:
        _, u, v, edge = heapq.heappop(heap)
        if neighbours[u].get(v) is not edge:  # merged or replaced since it was put in
            continue
        parent[v] = u
        del neighbours[u][v], neighbours[v][u]
        for w, (total, count) in neighbours[v].items():
            del neighbours[w][v]
            more, many = neighbours[u].get(w, (0.0, 0))
            joint = (total + more, count + many)
            neighbours[u][w] = neighbours[w][u] = joint
            if joint[0] / joint[1] > threshold:
                heapq.heappush(heap, (-joint[0] / joint[1], min(u, w), max(u, w), joint))
        neighbours[v] = {}
    while (parent[parent] != parent).any():
        parent = parent[parent]
    return Relabelling(ids, ids[parent])


def merge_by_mean_affinity(
    labels: Integers, affinity: Affinity, threshold: float, *, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.uint64]:
    """Agglomerate touching regions by the mean affinity of their contact (AGQ paper's rule, on one block).

    The result is that of `waterz(..., scoring="mean")` at 1 - threshold, but for ties: waterz keeps running means in
    float32 and takes equal ones in its own order. Affinities clipped to 1 make many ties, and then the two differ as
    much as either does under noise of 1e-9, with like scores. Here invalid edges can be left out.

    Args:
        labels: (Z, Y, X) ids, 0 = background.
        affinity: (3 or more, Z, Y, X) float.
        threshold: mean affinity that a contact must exceed; the papers' 0.3 on waterz's scale is 0.7 here.
        valid: (3 or more, Z, Y, X) bool, edges to count.

    Returns:
        (Z, Y, X) compact ids; voxels of one region stay together, background stays.

    Raises:
        ShapeError: shapes do not go together.
    """
    merged = agglomerate_graph(region_graph(labels, affinity, valid), threshold)
    ids = distinct_ids(labels)
    roots = ids.copy()
    roots[np.searchsorted(ids, merged.old)] = merged.new
    return Relabelling(ids, ranks(roots)).apply(labels)


def _all_sections(affinity: Affinity) -> NDArray[np.uint64]:
    _check_affinity(affinity, affinity.shape[1:])
    boundary = 1.0 - 0.5 * (affinity[1] + affinity[2])
    result: NDArray[np.uint64] = np.empty(boundary.shape, np.uint64)
    last = 0
    for section, labels in zip(boundary, result, strict=True):
        inside = section < 0.5
        if inside.all() or not inside.any():
            labels[...] = last + 1
            last += 1
            continue
        seeds, number = ndimage.label(local_maxima(ndimage.distance_transform_edt(inside), connectivity=1))
        labels[...] = watershed(section, seeds, connectivity=1)
        labels += np.uint64(last)
        last += number
    return result


def _check_affinity(affinity: Affinity, shape: tuple[int, ...]) -> None:
    if affinity.ndim != 4 or affinity.shape[0] < 3 or affinity.shape[1:] != shape:
        expected = ("3 or more", *shape) if len(shape) == 3 else "3 or more channels, z, y, x"
        raise ShapeError(f"affinity: found shape {affinity.shape}, expected {expected}")
    if affinity.dtype.kind != "f":
        raise ShapeError(f"affinity: found {affinity.dtype}, expected floating point in [0, 1]")


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Nothing reaches standard output, neither from Python nor from compiled code that writes to its descriptor."""
    if sys.stdout is not None:
        sys.stdout.flush()
    kept = os.dup(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)
