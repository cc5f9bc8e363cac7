"""Which seed reaches a voxel best: flooding of an affinity block from seeds.

A path is as strong as its weakest edge, and a voxel belongs to the seed with the strongest path to it. That is a
maximum spanning forest rooted in the seeds, the graph form of a seeded watershed; edges of all three directions take
part. In the decoder it is a prior for the masks (ours, see `distill.decoder.queries.mask_prior`).

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from torch import Tensor

_ROUNDS = 16  # propagation rounds between two looks at whether anything still changes


def flood(components: Tensor, affinity: Tensor) -> Tensor:
    """Seed of the strongest path of every voxel; where several are equally strong, any one of them.

    On the CPU a minimum spanning tree, on a GPU label propagation that does not leave the device.

    Args:
        components: (B, D, H, W) int64, 0 = no seed.
        affinity: (B, 3, D, H, W) in [0, 1], channel k at p = edge to p's predecessor along z, y, x.

    Returns:
        (B, D, H, W) int64: seeds keep their number; 0 everywhere in a block without a seed.
    """
    affinity = torch.nan_to_num(affinity.detach().float(), nan=-1.0)  # an edge that is not known joins nothing
    if components.device.type == "cpu":
        pairs = zip(components.numpy(), affinity.numpy(), strict=True)
        return torch.from_numpy(np.stack([spanning_forest(block, edges) for block, edges in pairs]))
    return propagate(components, affinity)[0]


def spanning_forest(components: NDArray[np.int64], affinity: NDArray[np.float32]) -> NDArray[np.int64]:
    """`flood` of one block, (D, H, W) and (3, D, H, W), by a spanning tree over voxels with every seed as one node.

    Seeds have small numbers, for they are counted.
    """
    present = np.bincount(components.ravel()) > 0
    ids = np.flatnonzero(present)
    if not ids.any():
        return np.zeros_like(components)
    voxels = components.size
    node = np.arange(voxels).reshape(components.shape)
    node = np.where(components > 0, (voxels - 1 + np.cumsum(present))[components], node)
    seeds = voxels + np.flatnonzero(ids > 0)
    root = voxels + len(ids)
    low, high, cost = [seeds], [np.full(len(seeds), root)], [np.full(len(seeds), 0.5)]
    for axis in range(3):
        here = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        first, second = node[here].ravel(), node[there].ravel()
        open_ = (first < voxels) | (second < voxels)
        low.append(np.minimum(first, second)[open_])
        high.append(np.maximum(first, second)[open_])
        cost.append(2.0 - affinity[axis][here].ravel()[open_].astype(np.float64))  # a cost of 0 would be no edge
    edges = _cheapest(np.concatenate(low), np.concatenate(high), np.concatenate(cost), voxels, root + 1)
    tree = minimum_spanning_tree(edges).tocoo()
    kept = (tree.row != root) & (tree.col != root)
    forest = coo_matrix((tree.data[kept], (tree.row[kept], tree.col[kept])), shape=tree.shape)
    _, part = connected_components(forest, directed=False)
    owner = np.zeros(int(part.max()) + 1, dtype=np.int64)
    owner[part[seeds]] = ids[ids > 0]
    found: NDArray[np.int64] = owner[part[node.ravel()]].reshape(components.shape)
    return found


def _cheapest(
    low: NDArray[np.int64], high: NDArray[np.int64], cost: NDArray[np.float64], voxels: int, nodes: int
) -> coo_matrix:
    """Edges as a sparse matrix; of several between two nodes the cheapest, for a sparse matrix would add them up.

    Only nodes beyond the voxels, the seeds, can have several to one neighbour.
    """
    several = np.flatnonzero(high >= voxels)
    order = several[np.lexsort((cost[several], high[several], low[several]))]
    again = (low[order[1:]] == low[order[:-1]]) & (high[order[1:]] == high[order[:-1]])
    kept = np.ones(len(low), dtype=bool)
    kept[order[1:][again]] = False
    return coo_matrix((cost[kept], (low[kept], high[kept])), shape=(nodes, nodes)).tocsr()


def propagate(components: Tensor, affinity: Tensor) -> tuple[Tensor, Tensor]:
    """`flood` by propagation, the whole batch at once, without leaving the device.

    First the strength of every voxel's best path; then seeds spread along edges that lie on such a path, so that a
    voxel takes the number of a neighbour only once that is final.

    Returns:
        Seeds, and strength: (B, D, H, W) float32, the weakest edge of the path; 1 inside seeds, -1 without a seed.
    """
    strength = torch.where(components > 0, 1.0, -1.0)
    steps = []
    for axis in range(1, 4):
        size = components.shape[axis] - 1
        edge = affinity[:, axis - 1].detach().float().narrow(axis, 1, size)
        steps += [(axis, size, source, 1 - source, edge) for source in (0, 1)]

    def spread() -> None:
        for axis, size, source, target, edge in steps:
            mine = strength.narrow(axis, target, size)
            torch.maximum(mine, torch.minimum(edge, strength.narrow(axis, source, size)), out=mine)

    _until_steady(spread, strength)
    owner = components.clone()

    def hand_on() -> None:
        for axis, size, source, target, edge in steps:
            mine, theirs = owner.narrow(axis, target, size), owner.narrow(axis, source, size)
            path = torch.minimum(edge, strength.narrow(axis, source, size)) == strength.narrow(axis, target, size)
            mine.copy_(torch.where((mine == 0) & path, theirs, mine))

    _until_steady(hand_on, owner)
    return owner, strength


def _until_steady(work: Callable[[], None], watched: Tensor) -> None:
    """Repeat until nothing changes; a round carries a path on by a voxel at least, and none is longer than a block."""
    for _ in range(watched[0].numel() // _ROUNDS + 2):
        before = watched.clone()
        for _ in range(_ROUNDS):
            work()
        if torch.equal(before, watched):
            return
