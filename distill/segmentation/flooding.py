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
from torch import Tensor

from distill.segmentation.supervoxels import spanning_forest

_ROUNDS = 16  # propagation rounds between two looks at whether anything still changes


def flood(components: Tensor, affinity: Tensor) -> Tensor:
    """Seed of the strongest path of every voxel; where several are equally strong, any one of them.

    On the CPU a spanning forest, on a GPU label propagation that does not leave the device.

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


def propagate(components: Tensor, affinity: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `flood` by propagation for the whole batch at once, on the device.

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
