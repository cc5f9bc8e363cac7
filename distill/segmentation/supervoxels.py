"""Cut a block's affinities into supervoxels: strict seeds, grown along the strongest edges to the last voxel.

Seeds are voxels joined by single edges that are all but certain, so that hardly any seed holds two neurons: a leak in a
membrane is one edge among many, and what such an edge has merged no later step can cut. Seeds grow over edges of all
three directions as a maximum spanning forest (a seeded watershed on the affinity graph). On their way trees without a
seed, parts of thin neurites whose affinities are never that high, become seeds of their own once they are large enough.
What is over-segmented is merged afterwards by the mean affinity of whole contacts
(`distill.segmentation.agglomeration`).

Legend: D H W = z y x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError

_EDGES = 2**32  # numbers of edges are 32 bits wide


@dataclass(frozen=True)
class GrowingRule:
    """How supervoxels grow.

    Attributes:
        thresholds: (z, y, x) affinities in [0, 1]; single edges above them join voxels to seeds.
        late: affinity down to which a tree without a seed becomes one as it reaches `min_voxels`.
        min_voxels: least size of a seed.
        large: size at which a tree without a seed becomes one at any affinity, for networks that are never sure.
    """

    thresholds: tuple[float, float, float] = (0.995, 0.998, 0.998)
    late: float = 0.95
    min_voxels: int = 100
    large: int = 1000


def supervoxels(affinity: NDArray[Any], rule: GrowingRule = GrowingRule()) -> NDArray[np.uint32]:
    """Partition a block; every voxel belongs to a supervoxel, membranes too.

    Equal affinities go by direction and place. Affinities are taken as multiples of 1/255, as they are stored.

    Args:
        affinity: (3 or more, D, H, W), uint8 0..255 or floating point in [0, 1]; channel k at p = edge to p's
            predecessor along z, y, x.
        rule: see `GrowingRule`.

    Returns:
        (D, H, W) ids 1..n in the order of first voxels; 0 everywhere if the block has no seed. Every id is connected.

    Raises:
        ShapeError: not four axes with three channels, neither uint8 nor finite floating point, or a block of more than
            2**32 / 3 voxels.
    """
    from distill.segmentation.growing import grow, join_strong, large_trees, numbered, open_edges, strongest_first

    levels = _levels(affinity)
    shape = levels.shape[1:]
    above = np.floor(np.asarray(rule.thresholds) * 255 + 1e-9).astype(np.int64)
    parent = join_strong(levels, above)
    seeded = large_trees(parent, rule.min_voxels)
    flat = levels.reshape(-1)
    count, found = open_edges(parent, seeded, shape)
    edges = strongest_first(found[:count], flat)
    del found
    late = float(np.ceil(rule.late * 255 - 1e-9))
    grow(parent, seeded, edges, flat, _steps(shape), late, rule.min_voxels, max(rule.large, rule.min_voxels))
    return numbered(parent, seeded)[0].reshape(shape)


def spanning_forest(components: NDArray[np.int64], affinity: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Give every voxel to the seed with the strongest path to it; a path is as strong as its weakest edge.

    Args:
        components: (D, H, W) seeds, 0 = none; connected or not. Small numbers, for they are counted.
        affinity: (3, D, H, W) floating point; channel k at p = edge to p's predecessor along z, y, x.

    Returns:
        (D, H, W): seeds keep their number; 0 everywhere without a seed. Of equal paths one is taken by direction and
        place.

    Raises:
        ShapeError: a block of more than 2**32 / 3 voxels, or affinities that are not finite.
    """
    from distill.segmentation.growing import given_trees, grow, numbered, open_edges

    shape = components.shape
    _check_size(components.size)
    if not np.isfinite(affinity).all():
        raise ShapeError("affinity: found values that are not finite, expected numbers in [0, 1]")
    flat = np.ascontiguousarray(components).reshape(-1)
    parent, seeded = given_trees(flat, int(flat.max(initial=0)))
    if not seeded.any():
        return np.zeros_like(components)
    strength = np.ascontiguousarray(affinity).reshape(-1)
    count, found = open_edges(parent, seeded, shape)
    edges = found[:count]
    edges = edges[np.argsort(-strength[edges], kind="stable")]
    grow(parent, seeded, edges, strength, _steps(shape), np.inf, 1, _EDGES)
    ids, last = numbered(parent, seeded)
    seeds = np.zeros(last + 1, np.int64)
    seeds[ids[flat > 0]] = flat[flat > 0]
    return seeds[ids].reshape(shape)


def _levels(affinity: NDArray[Any]) -> NDArray[np.uint8]:
    """Return affinities (3, D, H, W) in memory order."""
    if affinity.ndim != 4 or len(affinity) < 3:
        raise ShapeError(f"affinity: found shape {affinity.shape}, expected 3 or more channels, z, y, x")
    _check_size(affinity[0].size)
    if affinity.dtype == np.uint8:
        return np.ascontiguousarray(affinity[:3])
    if affinity.dtype.kind != "f":
        raise ShapeError(f"affinity: found {affinity.dtype}, expected uint8 or floating point in [0, 1]")
    levels = np.empty((3, *affinity.shape[1:]), np.uint8)
    for channel, values in zip(levels, affinity, strict=False):
        for section, floats in zip(channel, values, strict=True):
            if not np.isfinite(floats).all():
                raise ShapeError("affinity: found values that are not finite, expected numbers in [0, 1]")
            section[...] = np.rint(np.clip(floats, 0, 1) * 255)
    return levels


def _check_size(voxels: int) -> None:
    if 3 * voxels >= _EDGES:
        raise ShapeError(f"affinity: found {voxels} voxels in one block, expected at most {(_EDGES - 1) // 3}")


def _steps(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array([shape[1] * shape[2], shape[2], 1], np.int64)
