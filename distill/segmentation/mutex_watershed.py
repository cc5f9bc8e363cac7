"""From affinities to segments by the mutex watershed, without seeds and without a threshold to choose.

Wolf et al., The Mutex Watershed: Efficient, Parameter-Free Image Partitioning, ECCV 2018; Wolf et al., The Mutex
Watershed and its Objective, TPAMI 2020. All edges are taken in order of their weight: an attractive one joins its two
segments unless something keeps them apart, a repulsive one keeps them apart unless they are one already.

Affinity channel k at voxel p is the edge (p, p + o_k); 1 = same neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import edge_slices
from distill.core.affinity_conventions import to_mwatershed, to_waterz
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple
from distill.core.labels import compact
from distill.segmentation.supervoxels import spanning_forest


def mutex_watershed(
    affinity: NDArray[np.floating[Any]], offsets: Sequence[Triple], *, bias: float = 0.5, min_voxels: int = 100
) -> NDArray[np.uint64]:
    """Segment one block.

    With long-range offsets, the rule as published: edges to nearest neighbours attract with the weight a, all others
    repel with the weight 1 - a. `bias` moves weight from one kind to the other: a - (bias - 0.5) and
    1 - a + (bias - 0.5); edges whose weight is not above 0 are left out.

    With nearest neighbours alone nothing would repel and all would become one. Then every edge carries the sign of
    a - bias and is taken by its magnitude: edges above the bias join, strongest first, and those below it keep apart
    what nothing surer has joined yet. Unlike single linkage, one leak in a membrane does not merge two neurons whose
    border holds surer edges against it.

    Along membranes many voxels join nothing, or only each other (a third of the voxels on the student's affinities).
    Those in pieces below `min_voxels` go to the piece that reaches them by the strongest path over nearest edges
    (`distill.segmentation.supervoxels`; ours). Where no piece is large enough, all stay as they are.

    Equal weights go in the library's own order, which is the same in every run.

    Args:
        affinity: (K, Z, Y, X) float in [0, 1]; edges that leave the block are not looked at.
        offsets: K edges (z, y, x) in voxels. Those of one step along one axis are the nearest.
        bias: in [0, 1]; a higher one splits more. 0.5 is the published rule.
        min_voxels: 0 or 1 leaves out what follows the watershed: single voxels are 0 then.

    Returns:
        (Z, Y, X) compact ids; 0 = voxels that no edge has joined to another one, if they stay as they are.

    Raises:
        DistillError: mwatershed is not installed, the bias is outside [0, 1], or a nearest offset (-1 along one axis)
            is missing although pieces are to be flooded.
        ShapeError: not four axes, another number of channels than of offsets, not floating point, or not finite.
    """
    _check(affinity, offsets, bias)
    try:
        from mwatershed import agglom
    except ModuleNotFoundError as error:
        if error.name != "mwatershed":
            raise
        raise DistillError("mwatershed: not installed, expected `pip install 'affinity-distill[baselines]'`") from None
    shape = affinity.shape[1:]
    inside = [k for k, offset in enumerate(offsets) if any(offset) and _has_edges(offset, shape)]
    if not inside:
        return np.zeros(shape, np.uint64)
    signed = np.empty((len(inside), *shape), np.float64)
    published = any(not _nearest(offset) for offset in offsets)
    for row, k in zip(signed, inside, strict=True):
        if not published:
            row[...] = to_mwatershed(affinity[k], bias)
        elif _nearest(offsets[k]):
            np.maximum(to_mwatershed(affinity[k], bias - 0.5), 0, out=row)
        else:
            np.minimum(to_mwatershed(affinity[k], bias + 0.5), 0, out=row)
    steps = [offsets[k] for k in inside]
    found = agglom(signed, [list(offset) for offset in steps])
    # The library's 0 stands for voxels without an attractive edge and for the object around the first voxel.
    found[_attracted(signed, steps)] += np.uint64(1)
    joined = _without_single_voxels(compact(found))
    return joined if min_voxels < 2 else _flooded(joined, to_waterz(affinity, offsets), min_voxels)


def _attracted(signed: NDArray[np.float64], offsets: Sequence[Triple]) -> NDArray[np.bool_]:
    """Flag voxels at an end of an attractive edge."""
    found = np.zeros(signed.shape[1:], bool)
    for row, offset in zip(signed, offsets, strict=True):
        at, partner = edge_slices(offset, found.shape)
        pulls = row[at] > 0
        found[at] |= pulls
        found[partner] |= pulls
    return found


def _without_single_voxels(labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
    single = np.bincount(labels.ravel().astype(np.intp)) == 1
    labels[single[labels]] = 0
    return compact(labels)


def _flooded(labels: NDArray[np.uint64], edges: NDArray[np.float32], min_voxels: int) -> NDArray[np.uint64]:
    small = np.bincount(labels.ravel().astype(np.intp)) < min_voxels
    small[0] = True
    if small.all():
        return labels
    seeds = np.where(small[labels], 0, labels).astype(np.int64)
    return compact(spanning_forest(seeds, edges))


def _nearest(offset: Triple) -> bool:
    return sum(abs(step) for step in offset) == 1


def _has_edges(offset: Triple, shape: tuple[int, ...]) -> bool:
    return all(part.stop > part.start for part in edge_slices(offset, shape)[0])


def _check(affinity: NDArray[np.floating[Any]], offsets: Sequence[Triple], bias: float) -> None:
    if not 0 <= bias <= 1:
        raise DistillError(f"bias: found {bias}, expected a number from 0 to 1")
    if affinity.ndim != 4 or len(affinity) != len(offsets):
        raise ShapeError(f"affinity: found shape {affinity.shape}, expected ({len(offsets)}, z, y, x), one per offset")
    if affinity.dtype.kind != "f":
        raise ShapeError(f"affinity: found {affinity.dtype}, expected floating point in [0, 1]")
    if not np.isfinite(affinity).all():
        raise ShapeError("affinity: found values that are not finite, expected numbers in [0, 1]")
