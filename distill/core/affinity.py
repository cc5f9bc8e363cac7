"""Definition of affinities: targets, validity, class balance, affinities from embeddings, converters.

Convention: channel k at voxel p is the edge (p, p + o_k). 1 means that both ends carry the same non-zero label. The
edge is invalid if p + o_k lies outside the array or if its ground truth is unknown (`distill.core.known`). The first
three offsets are the nearest neighbours in -z, -y, -x.

Legend: B batch, K offsets, E embedding channels, D H W = z y x; `...` any leading axes.

Sources: Liu et al., CVPR 2024 (cross-dimension affinity distillation); the offsets of `MULTI` are those of their
teacher's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distill.core.edge_products import edge_products
from distill.core.errors import ShapeError
from distill.core.geometry import Triple
from distill.core.known import OTHER, UNKNOWN

NEAREST: tuple[Triple, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
MULTI: tuple[Triple, ...] = (
    *NEAREST,
    *((-2, 0, 0), (0, -3, 0), (0, 0, -3)),
    *((-3, 0, 0), (0, -9, 0), (0, 0, -9)),
    *((-4, 0, 0), (0, -27, 0), (0, 0, -27)),
)

_Index = tuple[EllipsisType | int | slice, ...]
_SHARE_LOW, _SHARE_HIGH = 0.05, 0.99


@dataclass(frozen=True)
class Targets:
    """Affinity targets and their validity, both (..., K, D, H, W)."""

    target: Tensor  # float32, 0 or 1; 0 where invalid
    valid: Tensor  # bool

    def section(self, z: int) -> Targets:
        """Return the targets of section z, the slice pair (z - 1, z), (..., K, H, W)."""
        return Targets(self.target[..., z, :, :], self.valid[..., z, :, :])


def edge_slices(offset: Triple, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of an array between which all edges of an offset lie.

    Args:
        offset: (z, y, x) in voxels, any sign.
        shape: (D, H, W).

    Returns:
        Slices of the voxels p and of their partners p + offset; equal in shape, empty if the offset exceeds the array.
    """
    at, partner = [], []
    for step, size in zip(offset, shape, strict=True):
        low, high = min(max(0, -step), size), max(0, size - max(0, step))
        high = max(low, high)
        at.append(slice(low, high))
        partner.append(slice(max(0, low + step), max(0, high + step)))
    return tuple(at), tuple(partner)


def as_label_tensor(labels: NDArray[Any]) -> Tensor:
    """Convert labels of any integer type to an int64 tensor that preserves equality.

    uint64 ids are reinterpreted, not narrowed: only equality and zero keep their meaning.

    Raises:
        ShapeError: the array is not of an integer type.
    """
    if labels.dtype.kind not in "iu":
        raise ShapeError(f"labels: found {labels.dtype}, expected an integer type")
    if labels.dtype == np.uint64:
        return torch.from_numpy(np.array(labels).view(np.int64))
    return torch.from_numpy(np.array(labels, dtype=np.int64))


def known_voxels(labels: Tensor) -> Tensor:
    """Mark the voxels with known ground truth.

    Args:
        labels: integers, any shape.

    Returns:
        bool, the same shape: neither UNKNOWN nor OTHER, which int64 alone holds.
    """
    if labels.dtype != torch.int64:
        return torch.ones_like(labels, dtype=torch.bool)
    return (labels != UNKNOWN) & (labels != OTHER)


def _known_edges(one: Tensor, other: Tensor) -> Tensor:
    """Mark the edges whose ends are both known, or of which one is a neuron and the other is OTHER.

    Args:
        one: labels of the edges' first ends.
        other: of their second ends; the same shape and type.
    """
    if one.dtype != torch.int64:
        return torch.ones_like(one, dtype=torch.bool)
    return (one != UNKNOWN) & (other != UNKNOWN) & ~((one == OTHER) & (other == OTHER))


def affinity_targets(
    labels_DHW: Tensor, offsets: Sequence[Triple] = NEAREST, *, background_connects: bool = False
) -> Targets:
    """Compute the affinities of a labelling.

    Args:
        labels_DHW: (..., D, H, W), any integer type; 0 = background, see `distill.core.known`.
        offsets: K edges (z, y, x) in voxels.
        background_connects: whether edges between two background voxels are 1, as in the published student code for its
            short offsets, instead of 0.

    Returns:
        Targets of shape (..., K, D, H, W); also invalid where an end is UNKNOWN or both are OTHER.

    Raises:
        ShapeError: the labels are not integers or have fewer than three axes.
    """
    if labels_DHW.is_floating_point() or labels_DHW.dtype == torch.bool:
        raise ShapeError(f"labels: found {labels_DHW.dtype}, expected an integer type")
    if labels_DHW.ndim < 3:
        raise ShapeError(f"labels: found shape {tuple(labels_DHW.shape)}, expected (..., D, H, W)")
    *lead, depth, height, width = labels_DHW.shape
    shape = (*lead, len(offsets), depth, height, width)
    target = torch.zeros(shape, dtype=torch.float32, device=labels_DHW.device)
    valid = torch.zeros(shape, dtype=torch.bool, device=labels_DHW.device)
    for k, offset in enumerate(offsets):
        at, partner = edge_slices(offset, (depth, height, width))
        first: _Index = (..., *at)
        second: _Index = (..., *partner)
        edges: _Index = (..., k, *at)
        target[edges], valid[edges] = edge_targets(
            labels_DHW[first], labels_DHW[second], background_connects=background_connects
        )
    return Targets(target, valid)


def edge_targets(here: Tensor, there: Tensor, *, background_connects: bool = False) -> tuple[Tensor, Tensor]:
    """Compute affinities from the labels at both ends of edges.

    Args:
        here: labels of the edges' first ends, any integer type and shape; see `distill.core.known`.
        there: of their second ends; the same shape and type.
        background_connects: as for `affinity_targets`.

    Returns:
        Target (float32, 0 or 1; 0 where invalid) and validity (bool) of the same shape.
    """
    same = here == there
    if not background_connects:
        same &= here != 0
    known = _known_edges(here, there)
    return (same & known).float(), known


def unknown_edges(labels_DHW: Tensor, offsets: Sequence[Triple] = NEAREST) -> Tensor:
    """Mark the edges inside the array whose ground truth is unknown.

    Args:
        labels_DHW: (..., D, H, W), as for `affinity_targets`.
        offsets: K edges.

    Returns:
        (..., K, D, H, W) bool; False where an edge leaves the array.
    """
    inside = affinity_targets(torch.zeros_like(labels_DHW), offsets).valid
    return inside & ~affinity_targets(labels_DHW, offsets).valid


def section_labels(labels_DHW: Tensor, distance: int) -> Targets:
    """Compute targets of the z-edges at one distance, (..., D, H, W): section z against section z - `distance`."""
    found = affinity_targets(labels_DHW, [(-distance, 0, 0)])
    return Targets(found.target[..., 0, :, :, :], found.valid[..., 0, :, :, :])


def class_balance(target: Tensor, valid: Tensor) -> Tensor:
    """Compute weights per edge that balance both classes, per sample (first axis).

    f = fraction of positive edges among the valid ones, clipped to [0.05, 0.99]. If f > 0.5, positives have weight 1
    and negatives f / (1 - f); otherwise positives have weight (1 - f) / f and negatives 1 (Liu et al., CVPR 2024).

    Args:
        target: (B, ...) in [0, 1]; positive where above 0.5.
        valid: same shape, bool.

    Returns:
        Weights of the same shape, float32, 0 where invalid.
    """
    axes = tuple(range(1, target.ndim))
    positive = (target > 0.5) & valid
    share = positive.sum(axes, keepdim=True).float() / valid.sum(axes, keepdim=True).clamp(min=1).float()
    share = share.clamp(_SHARE_LOW, _SHARE_HIGH)
    many = share > 0.5
    weight_positive = torch.where(many, torch.ones_like(share), (1 - share) / share)
    weight_negative = torch.where(many, share / (1 - share), torch.ones_like(share))
    return torch.where(positive, weight_positive, weight_negative) * valid


def widen_borders(labels_HW: Tensor) -> Tensor:
    """Set voxels to background where the 3x3 in-section window contains more than one non-zero id.

    UNKNOWN and OTHER (`distill.core.known`) do not count as ids, and are kept.

    Args:
        labels_HW: (..., H, W), integer; windows are clipped at the array's border.

    Returns:
        Labels of the same shape and type.
    """
    info = torch.iinfo(labels_HW.dtype)
    known = known_voxels(labels_HW)
    background = (labels_HW == 0) | ~known
    highest = _window(labels_HW.masked_fill(background, info.min), torch.maximum, info.min)
    lowest = _window(labels_HW.masked_fill(background, info.max), torch.minimum, info.max)
    mixed = (highest != lowest) & (highest != info.min) & known
    return labels_HW.masked_fill(mixed, 0)


def _window(values: Tensor, pick: Any, fill: int) -> Tensor:
    """Compute the extreme over the 3x3 window, separably; the array is padded with `fill`."""
    for axis in (-2, -1):
        edge = torch.full_like(values.narrow(axis, 0, 1), fill)
        longer = torch.cat([edge, values, edge], dim=axis)
        size = values.shape[axis]
        before, after = longer.narrow(axis, 0, size), longer.narrow(axis, 2, size)
        values = pick(pick(before, values), after)
    return values


def unit(embedding: Tensor, dim: int = 1) -> Tensor:
    """Scale an embedding to unit length along an axis; zero vectors stay zero.

    Written out because the library's vector norm is slow along a strided axis on CPUs.
    """
    return embedding * torch.rsqrt(embedding.square().sum(dim, keepdim=True).clamp(min=1e-24))


def embedding_affinity(
    embedding: Tensor, offsets: Sequence[Triple] = NEAREST, *, clamp: bool = True, other: Tensor | None = None
) -> Tensor:
    """Compute the cosine similarity of an embedding volume with itself, or with another one, at each offset.

    Args:
        embedding: (B, E, D, H, W), any scale; normalised internally.
        offsets: K edges.
        clamp: clamp to [0, 1]; otherwise the cosine in [-1, 1] is returned, as required by the teacher's loss.
        other: embedding at the edges' second ends, of the same shape; by default the same one.

    Returns:
        (B, K, D, H, W), 0 where the edge leaves the volume.
    """
    normed = unit(embedding)
    there = normed if other is None else unit(other)
    found = edge_products(normed, there, [edge_slices(offset, normed.shape[-3:]) for offset in offsets])
    return found.clamp(0, 1) if clamp else found


def distance_affinity(embedding: Tensor, far: float, offsets: Sequence[Triple] = NEAREST) -> Tensor:
    """Compute affinities from the distance d of embeddings at each offset: max(0, 1 - d / far)^2.

    Lee et al., "Learning and Segmenting Dense Voxel Embeddings for 3D Neuron Reconstruction", IEEE TMI 2021, where
    `far` is twice the margin between the means of two instances.

    Args:
        embedding: (B, E, D, H, W), not normalised.
        far: distance from which on the affinity is 0.
        offsets: K edges.

    Returns:
        (B, K, D, H, W) in [0, 1], 0 where the edge leaves the volume.
    """

    def near(one: Tensor, two: Tensor) -> Tensor:
        distance = (one - two).square().sum(1).clamp(min=1e-12).sqrt()  # no infinite gradient at 0
        return (1 - distance / far).clamp(min=0).square()

    return _at_offsets(embedding, embedding, offsets, near)


def _at_offsets(
    here: Tensor, there: Tensor, offsets: Sequence[Triple], compare: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Compare (B, E, D, H, W) at both ends of edges: (B, K, D, H, W), 0 where the edge leaves the volume."""
    batch, _, *shape = here.shape
    rows = []
    for offset in offsets:
        at, partner = edge_slices(offset, shape)
        first: _Index = (..., *at)
        second: _Index = (..., *partner)
        value = compare(here[first], there[second])
        pad = [n for s, size in zip(reversed(at), reversed(shape), strict=True) for n in (s.start, size - s.stop)]
        rows.append(F.pad(value, pad))
    return torch.stack(rows, 1) if rows else here.new_zeros(batch, 0, *shape)


def channel_sum(values: Tensor) -> Tensor:
    """Sum over the channels, (B, E, H, W) to (B, 1, H, W)."""
    return values.sum(1, keepdim=True)


def pair_affinity(previous: Tensor, current: Tensor, *, total: Callable[[Tensor], Tensor] = channel_sum) -> Tensor:
    """Compute affinities of the current section from the embeddings of a slice pair (Liu et al., CVPR 2024).

    Args:
        previous: (B, E, H, W) embedding of section z - 1, any scale.
        current: (B, E, H, W) embedding of section z.
        total: sum over channels; a faster equivalent of `channel_sum` may be given.

    Returns:
        (B, 3, H, W) in [0, 1], channels z, y, x. The first row of y and the first column of x have no partner and
        are filled by reflection (row 0 = row 2, as the published code does), so that boundary maps have no dark frame.
    """
    before, now = (torch.rsqrt(total(part.square()).clamp(min=1e-24)) for part in (previous, current))
    along_z = total(previous * current) * (before * now)
    return torch.cat([along_z, *(_in_plane(current, now, total, axis) for axis in (2, 3))], 1).clamp(0, 1)


def _in_plane(embedding: Tensor, inverse: Tensor, total: Callable[[Tensor], Tensor], axis: int) -> Tensor:
    size = embedding.shape[axis]
    if size == 1:
        return torch.ones_like(inverse)
    upper, lower = ([part.narrow(axis, n, size - 1) for part in (embedding, inverse)] for n in (1, 0))
    cosine = total(upper[0] * lower[0]) * (upper[1] * lower[1])
    mirror = cosine.narrow(axis, min(1, size - 2), 1)
    return torch.cat([mirror, cosine], dim=axis)


def section_affinity(now: Tensor, other: Tensor, step: tuple[int, int]) -> Tensor:
    """Compute affinities between a section and another one (or itself) at an in-plane step, beyond nearest neighbours.

    Args:
        now: (B, E, H, W) embedding of the section that the edges belong to, any scale.
        other: (B, E, H, W) embedding of the section at their other end.
        step: (y, x) in pixels from a pixel to its partner, any sign.

    Returns:
        (B, H, W) in [0, 1], 0 where the partner lies outside.
    """
    found = now.new_zeros((now.shape[0], *now.shape[-2:]))
    (_, *at), (_, *partner) = edge_slices((0, *step), (1, *now.shape[-2:]))
    here: _Index = (..., *at)
    there: _Index = (..., *partner)
    found[here] = (unit(now)[here] * unit(other)[there]).sum(1).clamp(0, 1)
    return found


def fill_frame(affinity: NDArray[np.float32]) -> None:
    """Fill the first row of y and the first column of x by reflection, in place, as `pair_affinity` does.

    Args:
        affinity: (3, D, H, W), channels z, y, x.
    """
    _, _, height, width = affinity.shape
    affinity[1, :, 0] = affinity[1, :, min(2, height - 1)] if height > 1 else 1
    affinity[2, :, :, 0] = affinity[2, :, :, min(2, width - 1)] if width > 1 else 1


def half_resolution(affinity: Tensor) -> Tensor:
    """Average 2x2 in-plane windows: (..., H, W) to (..., ceil(H/2), ceil(W/2)).

    For even sizes, this is the trilinear resize by one half that the AGQ paper applies to its targets.
    """
    lead = affinity.shape[:-2]
    flat = affinity.reshape(-1, 1, *affinity.shape[-2:])
    small = F.avg_pool2d(flat, 2, ceil_mode=True, count_include_pad=False)
    return small.reshape(*lead, *small.shape[-2:])


# Converters. Each pair is an exact round trip on edges that are valid in both conventions.
