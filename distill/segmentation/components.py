"""Connected components and nearest labels of blocks by tensor operations only, without leaving the tensor's device.

Components are computed by minimum labels: every voxel points to a voxel of its component, roots hook onto the lowest
neighbour, and pointers are shortened (algorithm S of Liu and Tarjan, "Simple Concurrent Connected Components
Algorithms", ACM Trans. Parallel Comput. 2022, with a fixed number of pointer jumps per round). On a CPU, a scan such as
that of cc3d is faster.

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.core.affinity import NEAREST, edge_slices
from distill.core.geometry import Triple
from distill.core.known import UNKNOWN

_HALF: tuple[Triple, ...] = tuple(
    (z, y, x) for z, y, x in itertools.product((-1, 0, 1), repeat=3) if (z, y, x) < (0, 0, 0)
)  # 13 of the 26 neighbours
_JUMPS = 3
_ROUNDS = 3  # rounds between two convergence checks; each check synchronises with the device
_ENTRIES = 2**24  # size of a distance table


@dataclass(frozen=True)
class Components:
    """Connected components of a batch of blocks."""

    numbers: Tensor  # (B, D, H, W) int64: 1..n in each block by the components' first voxels in C order, 0 = none
    rounds: int  # of hooking and jumping


def mask_components(mask: Tensor) -> Components:
    """Label 26-connected components of a mask.

    Args:
        mask: (B, D, H, W) bool.
    """
    own = _positions(mask)

    def lowest(parent: Tensor) -> Tensor:
        return torch.where(mask, _lowest_in_window(parent.masked_fill(~mask, mask.numel())), own)

    return _propagate(lowest, mask)


def edge_components(joined: Tensor) -> Components:
    """Label the components of the graph with the given edges; every voxel belongs to one.

    Args:
        joined: (B, 3, D, H, W) bool, whether a voxel is joined to its predecessor along z, y, x; ignored at the first
            voxels of an axis, which have no predecessor.
    """

    def lowest(parent: Tensor) -> Tensor:
        return _lowest_partner(parent, NEAREST, joined.unbind(1))

    return _propagate(lowest, torch.ones_like(joined[:, 0]))


def label_components(labels: Tensor) -> Components:
    """Label 26-connected components of equal labels.

    Args:
        labels: (B, D, H, W) integer, 0 = background.
    """
    same = []
    for offset in _HALF:
        at, partner = _ends(offset, labels)
        equal = torch.zeros_like(labels, dtype=torch.bool)
        equal[at] = (labels[at] == labels[partner]) & (labels[at] != 0)
        same.append(equal)

    def lowest(parent: Tensor) -> Tensor:
        return _lowest_partner(parent, _HALF, same)

    return _propagate(lowest, labels != 0)


def compact_blocks(labels: Tensor) -> Tensor:
    """Relabel each block to ids 1..n in ascending order of the old ids; 0 and UNKNOWN (`distill.core.known`) are kept.

    Args:
        labels: (B, D, H, W) int64 from 0, or UNKNOWN, small enough for `bincount`.
    """
    unknown = labels == UNKNOWN
    flat = labels.masked_fill(unknown, 0).flatten(1)
    there = flat.new_zeros(len(flat), int(flat.max()) + 1).scatter_(1, flat, 1)
    there[:, 0] = 0
    return (there.cumsum(1) * there).gather(1, flat).view_as(labels).masked_fill(unknown, UNKNOWN)


def nearest_labels(labels: Tensor, sampling: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Find the nearest labelled voxel of every voxel by exact Euclidean distance, one axis after the other.

    Args:
        labels: (B, D, H, W) int64, 0 = none.
        sampling: voxel extent along z, y, x.

    Returns:
        The label of that voxel (B, D, H, W), and its distance, float32, in the units of `sampling`; both are 0 where a
        block has no label. In a tie the first along x, then y, then z, as in scipy's `distance_transform_edt`, if the
        squares of all distances are exact in float32.
    """
    square = torch.zeros_like(labels, dtype=torch.float32).masked_fill(labels == 0, torch.inf)
    for axis in (1, 2, 3):
        square, labels = _nearest_in_line(square, labels, axis, sampling[axis - 1])
    return labels, torch.where(square.isfinite(), square, 0.0).sqrt()


def _nearest_in_line(square: Tensor, labels: Tensor, axis: int, extent: float) -> tuple[Tensor, Tensor]:
    """Minimise squared distance plus squared displacement along each line, and return the minimum with its label."""
    place = torch.arange(square.shape[axis], device=square.device, dtype=torch.float32) * extent
    way = (place - place.unsqueeze(1)).square()
    shape = square.movedim(axis, -1).shape
    rows = max(1, _ENTRIES // max(1, way.numel()))
    distances, owners = (torch.split(part.movedim(axis, -1).flatten(0, 2), rows) for part in (square, labels))
    least, owner = [], []
    for distance, label in zip(distances, owners, strict=True):
        found = (distance.unsqueeze(1) + way).min(2)
        least.append(found.values)
        owner.append(label.gather(1, found.indices))
    return torch.cat(least).view(shape).movedim(-1, axis), torch.cat(owner).view(shape).movedim(-1, axis)


def _propagate(lowest: Callable[[Tensor], Tensor], inside: Tensor) -> Components:
    """Compute components from a function that gives the lowest value among a voxel and its neighbours."""
    parent, rounds = _positions(inside).flatten(), 0
    while True:
        before = parent
        for _ in range(_ROUNDS):
            parent = parent.scatter_reduce(0, parent, lowest(parent.view_as(inside)).flatten(), "amin")
            for _ in range(_JUMPS):
                parent = parent[parent]
        rounds += _ROUNDS
        if torch.equal(before, parent):  # pointers only decrease, so nothing changed in between either
            break
    first = (parent.view_as(inside) == _positions(inside)) & inside
    numbers = first.flatten(1).cumsum(1).flatten()[parent].view_as(inside)
    return Components(numbers.masked_fill(~inside, 0), rounds)


def _positions(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), device=like.device).view_as(like)


def _lowest_in_window(values: Tensor) -> Tensor:
    """Return the minimum over the 3 x 3 x 3 window, axis by axis."""
    for axis in (1, 2, 3):
        low, rest = values.clone(), values.shape[axis] - 1
        for to, source in ((1, 0), (0, 1)):
            part = low.narrow(axis, to, rest)
            torch.minimum(part, values.narrow(axis, source, rest), out=part)
        values = low
    return values


def _lowest_partner(values: Tensor, offsets: Sequence[Triple], joined: Sequence[Tensor]) -> Tensor:
    """Return the minimum among a voxel and the partners it is joined to, along the offsets and their opposites."""
    low = values.clone()
    for offset, edges in zip(offsets, joined, strict=True):
        at, partner = _ends(offset, values)
        for here, there in ((at, partner), (partner, at)):
            low[here] = torch.where(edges[at], torch.minimum(low[here], values[there]), low[here])
    return low


def _ends(offset: Triple, block: Tensor) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    at, partner = edge_slices(offset, block.shape[1:])
    return (slice(None), *at), (slice(None), *partner)
