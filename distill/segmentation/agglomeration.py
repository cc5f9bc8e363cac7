"""Segment the affinities of one block without queries: the papers' baseline.

Seeded watershed and its agglomeration: Liu et al., Cross-dimension Affinity Distillation for 3D EM Neuron
Segmentation, CVPR 2024, evaluation; waterz: Funke et al., Large Scale Image Segmentation with Structured Loss Based
Deep Learning for Connectome Reconstruction, TPAMI 2019. Mean affinity along contacts: Chen et al., Efficient Neuron
Segmentation in Electron Microscopy by Affinity-Guided Queries, ICLR 2025, whole volumes.

Affinity channel k at voxel p is the edge (p, p + o_k), offsets [[-1,0,0],[0,-1,0],[0,0,-1]]; 1 = same neuron.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError, ShapeError
from distill.core.labels import Integers, Relabelling, compact, concatenate, distinct_ids, ranks, sum_pairs

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
        """Return the (E,) mean affinity over the contact."""
        return self.total / self.count

    @classmethod
    def concatenate(cls, graphs: Iterable[RegionGraph]) -> RegionGraph:
        """List the contacts of several graphs; a pair that several of them have is listed as often."""
        none = np.zeros(0, np.uint64)
        return concatenate([cls(none, none, np.zeros(0), np.zeros(0, np.int64)), *graphs])

    def summed(self) -> RegionGraph:
        """Add up the contacts of every pair of regions, in either order; regions do not touch themselves."""
        apart = self.u != self.v
        low, high = np.minimum(self.u, self.v)[apart], np.maximum(self.u, self.v)[apart]
        pairs = sum_pairs(low, high, count=self.count[apart], values=self.total[apart])
        return RegionGraph(pairs.u, pairs.v, pairs.total, pairs.count)


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
        raise DistillError("waterz: not installed, expected `pip install 'affinity-distill[baselines]'`") from None
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
    """Compute the mean affinity along the contact of every two regions that share a nearest-neighbour edge.

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
    from distill.segmentation.contact_graph import sum_contacts

    every = np.zeros((0, 0, 0, 0), bool) if valid is None else valid
    u, v, total, count = sum_contacts(np.asarray(labels).astype(np.uint64, copy=False), affinity, every)
    order = np.lexsort((v, u))
    return RegionGraph(u[order], v[order], total[order], count[order])


def contacts_across(before: Integers, after: Integers, affinity: Affinity) -> RegionGraph:
    """Sum the contacts of regions across a plane.

    Args:
        before: (...) ids of the voxels in front of the plane; 0 = background, which touches nothing.
        after: (...) ids of the voxels behind it.
        affinity: (...) of the edges between them.
    """
    touch = (before != after) & (before != 0) & (after != 0)
    u, v = before[touch], after[touch]
    pairs = sum_pairs(np.minimum(u, v), np.maximum(u, v), values=affinity[touch])
    return RegionGraph(pairs.u, pairs.v, pairs.total, pairs.count)


@dataclass(frozen=True)
class Merges:
    """Merges of regions in the order in which they fall; each is that of the threshold just below its mean.

    Attributes:
        ids: (N,) uint64 all regions of the graph, ascending.
        keeps: (M,) int32 place in `ids` of one of the two regions: what it holds by then is merged.
        goes: (M,) int32 that of the other one.
        means: (M,) float64 mean affinity of the contact at that time, never rising.
        looks: contacts that were moved or looked at, a measure of the work.
    """

    ids: NDArray[np.uint64]
    keeps: NDArray[np.int32]
    goes: NDArray[np.int32]
    means: NDArray[np.float64]
    looks: int

    def above(self, threshold: float) -> Relabelling:
        """Return for every id the smallest id of its region after all merges with a mean above the threshold.

        The threshold is at least the one that the merges were computed for.
        """
        count = int(np.searchsorted(-self.means, -threshold, side="left"))
        return Relabelling(self.ids, groups_of(self.ids, self.keeps[:count], self.goes[:count]))


def groups_of(ids: NDArray[np.uint64], keeps: NDArray[np.int32], goes: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return the smallest id of the group of each id (N,), ascending, after merges given by places in `ids`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(keeps), np.int8), (keeps, goes)), shape=(len(ids),) * 2)
    members = connected_components(graph, directed=False)[1]
    _, first, where = np.unique(members, return_index=True, return_inverse=True)
    return ids[first[where]]


def agglomerate_graph(graph: RegionGraph, threshold: float) -> Relabelling:
    """Merge regions, strongest contact first, until no mean affinity is above the threshold.

    See `merges_above` for the rule.

    Args:
        graph: regions with u < v, each pair once, in any order.
        threshold: mean affinity that a contact must exceed.

    Returns:
        For every id of the graph the smallest id of its region.
    """
    return merges_above(graph, threshold).above(threshold)


def merges_above(graph: RegionGraph, threshold: float) -> Merges:
    """Merge regions, strongest contact first, until no mean affinity is above the threshold, and list the merges.

    Contacts of merged regions with a common neighbour become one: sums and counts add up, so that a mean never
    exceeds the higher of the two, and what is merged at a higher threshold is the beginning of the list. Of equal means
    the contact whose first pair of ids is the smallest goes first, by u, then v.

    Args:
        graph: regions with u < v, each pair once, in any order.
        threshold: mean affinity that a contact must exceed.
    """
    from distill.segmentation.contact_graph import merge_strongest

    ids, index = np.unique(np.concatenate([graph.u, graph.v]), return_inverse=True)
    first, second = index.astype(np.int32).reshape(2, -1)
    order = np.lexsort((second, first))
    keeps, goes, means, looks, _ = merge_strongest(
        len(ids),
        first[order],
        second[order],
        graph.total[order].astype(np.float64),
        graph.count[order].astype(np.int64),
        threshold,
        np.zeros(len(ids), np.bool_),
    )
    return Merges(ids, keeps, goes, means, looks)


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
    return merged_above(labels, affinity, [threshold], valid=valid)[threshold]


def merged_above(
    labels: Integers, affinity: Affinity, thresholds: Sequence[float], *, valid: NDArray[np.bool_] | None = None
) -> dict[float, NDArray[np.uint64]]:
    """Merge as `merge_by_mean_affinity` does, at several thresholds in one run.

    Args:
        labels: (Z, Y, X) ids, 0 = background.
        affinity: (3 or more, Z, Y, X) float.
        thresholds: one at least.
        valid: (3 or more, Z, Y, X) bool, edges to count.

    Returns:
        For each threshold (Z, Y, X) compact ids.
    """
    merges = merges_above(region_graph(labels, affinity, valid), min(thresholds))
    ids = distinct_ids(labels)
    touching = np.searchsorted(ids, merges.ids)
    found = {}
    for threshold in thresholds:
        roots = ids.copy()
        roots[touching] = merges.above(threshold).new
        found[threshold] = Relabelling(ids, ranks(roots)).apply(labels)
    return found


def _all_sections(affinity: Affinity) -> NDArray[np.uint64]:
    from scipy import ndimage
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

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
    """Discard standard output, of Python and of compiled code that writes to its descriptor."""
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
