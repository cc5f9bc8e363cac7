"""Affinity-guided queries: seed components of an affinity block, their pooled features, and the mask prior.

Chen et al., ICLR 2025, for the published rule (`mean`). The rule `edges` and the prior are additions.

Legend: B batch, Q queries, C channels, D H W = z y x (the decoder's half resolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.devices import to_device
from distill.segmentation.components import edge_components, mask_components, nearest_labels

Order = Literal["size", "id", "random"]

# cc3d's bits for "connected in this direction", at the two ends of an edge along z, y, x.
_STEP_BACK = (1 << 5, 1 << 3, 1 << 1)
_STEP_FORTH = (1 << 4, 1 << 2, 1 << 0)


@dataclass(frozen=True)
class SeedRule:
    """Rule by which seed components are derived from an affinity block.

    `mean`: foreground where the mean of the three affinities exceeds its global mean, 26-connected (published).
    `edges`: voxels joined by single edges whose affinity exceeds the threshold of their direction.
    """

    kind: Literal["mean", "edges"] = "mean"
    thresholds: tuple[float, float, float] = (0.5, 0.9, 0.9)  # z, y, x; for `edges`
    min_voxels: int = 100  # size that components must exceed
    max_count: int = 100


@dataclass(frozen=True)
class Seeds:
    """Seed components of a batch, numbered 1..counts[b] in each block; 0 = no seed."""

    components: Tensor  # (B, D, H, W) int64
    counts: tuple[int, ...]


def find_seeds(affinity: Tensor, rule: SeedRule, order: Order, rng: np.random.Generator | None = None) -> Seeds:
    """Find the seed components of every block of a batch.

    On a GPU, only a few counts are transferred to the host.

    Args:
        affinity: (B, 3, D, H, W) in [0, 1], channels z, y, x.
        rule: which voxels are joined, and which components are kept.
        order: numbering, and which components are kept if there are too many: largest first, by first voxel, or random.
        rng: required for the random order.

    Returns:
        At most `rule.max_count` components per block, each of more than `rule.min_voxels` voxels.
    """
    components = propagated_components if affinity.device.type == "cuda" else scanned_components
    return _keep(components(affinity.detach().float(), rule), rule, order, rng)


def given_seeds(components: Tensor) -> Seeds:
    """Build seeds from components numbered 1..n in each block, (B, D, H, W)."""
    return Seeds(components.long(), tuple(int(block.max()) for block in components))


def scanned_components(affinity: Tensor, rule: SeedRule) -> Tensor:
    """Label the components of a batch with cc3d, (B, D, H, W) numbered by their first voxels; faster on a CPU."""
    if rule.kind == "mean":
        masks = _foreground(affinity).cpu().numpy()
        found = [cc3d.connected_components(mask, connectivity=26, out_dtype=np.uint32) for mask in masks]
    else:
        found = [_scan_edges(joined) for joined in _joined(affinity, rule).cpu().numpy()]
    return to_device(np.stack(found).astype(np.int64), affinity.device)


def propagated_components(affinity: Tensor, rule: SeedRule) -> Tensor:
    """Label components as `scanned_components` does, without leaving the device; faster on a GPU."""
    if rule.kind == "mean":
        return mask_components(_foreground(affinity)).numbers
    return edge_components(_joined(affinity, rule)).numbers


def _foreground(affinity: Tensor) -> Tensor:
    """Mark voxels whose mean affinity exceeds the block mean. Sums are compared, which is exact if all are equal."""
    total = (affinity[:, 0] + affinity[:, 1] + affinity[:, 2]).double()
    return total * total[0].numel() > total.sum((1, 2, 3), keepdim=True)


def _joined(affinity: Tensor, rule: SeedRule) -> Tensor:
    return torch.stack([affinity[:, axis] > rule.thresholds[axis] for axis in range(3)], 1)


def _scan_edges(joined: NDArray[np.bool_]) -> NDArray[np.uint32]:
    allowed = np.zeros(joined.shape[1:], dtype=np.uint8)
    for axis in range(3):
        here = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        allowed[here] |= joined[axis][here] * np.uint8(_STEP_BACK[axis])
        allowed[there] |= joined[axis][here] * np.uint8(_STEP_FORTH[axis])
    graph = np.asfortranarray(allowed.T)  # cc3d expects x, y, z
    coloured: NDArray[np.uint32] = cc3d.color_connectivity_graph(graph, connectivity=6).T
    return np.ascontiguousarray(coloured, dtype=np.uint32)


def _keep(labels: Tensor, rule: SeedRule, order: Order, rng: np.random.Generator | None) -> Seeds:
    """Select seeds from components (B, D, H, W) numbered 1..n in each block."""
    flat = labels.flatten(1)
    count = int(flat.max()) + 1
    sizes = flat.new_zeros(len(flat), count).scatter_add_(1, flat, torch.ones_like(flat))
    large = sizes > rule.min_voxels
    large[:, 0] = False
    places = torch.arange(count, device=flat.device)
    merit = (sizes if order == "size" else torch.ones_like(sizes)) * count - places  # distinct, so no ties
    lengths = large.sum(1)
    found: list[int] = lengths.tolist()
    best = merit.masked_fill(~large, 0).topk(max(found)).indices
    if order == "random":
        assert rng is not None, "the random order needs a generator"
        mixed = [np.append(rng.permutation(n), np.arange(n, max(found))) for n in found]
        best = best.gather(1, to_device(np.stack(mixed), flat.device))
    best = best[:, : rule.max_count]
    number = places[1 : best.shape[1] + 1].expand_as(best)
    new = torch.zeros_like(sizes).scatter_(1, best, number.masked_fill(number > lengths.unsqueeze(1), 0))
    return Seeds(new.gather(1, flat).view_as(labels), tuple(min(n, rule.max_count) for n in found))


def pool_seeds(features: Tensor, seeds: Seeds) -> list[Tensor]:
    """Average the features of every seed, for the whole batch at once.

    Args:
        features: (B, C, D, H, W).
        seeds: components of the same blocks.

    Returns:
        (counts[b], C) per block.
    """
    batch, channels = features.shape[:2]
    most = max(seeds.counts, default=0) + 1
    flat = features.flatten(2).transpose(1, 2).float()
    if features.device.type == "cpu":
        first = torch.arange(batch, device="cpu").view(-1, 1) * most
        index = (seeds.components.flatten(1) + first).flatten()
        sums = flat.new_zeros(batch * most, channels).index_add(0, index, flat.reshape(-1, channels))
        sizes = torch.bincount(index, minlength=batch * most)
    else:  # a product: scattered sums into so few rows wait for each other on a GPU, and add up in any order
        number = torch.arange(most, device=features.device).unsqueeze(1)
        own = (seeds.components.flatten(1).unsqueeze(1) == number).float()
        with torch.autocast(features.device.type, enabled=False):
            sums = own @ flat
        sizes = own.sum(2)
    means = sums.view(batch, most, channels) / sizes.view(batch, most, 1).clamp(min=1)
    means = means.to(features.dtype)
    return [means[b, 1 : count + 1] for b, count in enumerate(seeds.counts)]


@dataclass(frozen=True)
class Surroundings:
    """Nearest seed, and its distance, of every voxel outside the seeds."""

    nearest: Tensor  # (B, D, H, W) int64, seed number; 0 where the block has no seed
    distance: Tensor  # (B, D, H, W) float32, in units of the y/x voxel; 0 inside seeds


def surroundings(seeds: Seeds, sampling: Sequence[float]) -> Surroundings:
    """Find the nearest seed of every voxel by Euclidean distance; on a GPU, without leaving the device.

    Args:
        seeds: components of a batch.
        sampling: voxel extent along z, y, x in units of the y/x voxel, e.g. (2.5, 1, 1) for 30 x 12 x 12 nm.
    """
    if seeds.components.device.type == "cuda":
        return Surroundings(*nearest_labels(seeds.components, sampling))
    from scipy import ndimage

    nearest, distance = [], []
    for block, count in zip(seeds.components.cpu().numpy(), seeds.counts, strict=True):
        if count == 0:
            nearest.append(np.zeros_like(block))
            distance.append(np.zeros(block.shape, dtype=np.float32))
            continue
        far, index = ndimage.distance_transform_edt(block == 0, sampling=tuple(sampling), return_indices=True)
        nearest.append(block[tuple(index)])
        distance.append(far.astype(np.float32))
    device = seeds.components.device
    return Surroundings(to_device(np.stack(nearest), device), to_device(np.stack(distance), device))


@dataclass(frozen=True)
class Pull:
    """Mask prior in sparse form, one value per voxel; see `mask_prior`."""

    owner: Tensor  # (B, D, H, W) int64: seed that contains or attracts the voxel; 0 where the block has none
    own: Tensor  # (B, D, H, W) float32: added to the logit of that seed's query
    every: Tensor  # (B, D, H, W) float32: added to the logits of all seeds' queries
    counts: tuple[int, ...]  # seeds of each block


def seed_pull(seeds: Seeds, around: Surroundings, inside: Tensor, near: Tensor, fade: Tensor) -> Pull:
    """Compute the prior of `mask_prior`, with the same arguments, without one map per query."""
    seeded = seeds.components > 0
    return Pull(
        torch.where(seeded, seeds.components, around.nearest),
        torch.where(seeded, 2 * inside, near * torch.exp(-around.distance / fade)),
        -inside * seeded,
        seeds.counts,
    )


def mask_prior(seeds: Seeds, around: Surroundings, queries: int, inside: Tensor, near: Tensor, fade: Tensor) -> Tensor:
    """Compute the mask prior, a term added to the mask logits that depends on the seeds only.

    The prior is +inside within a query's own seed, -inside within other seeds, and near * exp(-distance / fade)
    elsewhere for the query of the nearest seed. It is 0 for learned queries, which have no seed.

    Args:
        seeds: components of a batch.
        around: their surroundings.
        queries: Q, seeds first, padded to the longest block.
        inside: scalar; differentiable, as are `near` and `fade` (in y/x voxels, positive).
        near: scalar.
        fade: scalar.

    Returns:
        (B, Q, D, H, W).
    """
    pull = seed_pull(seeds, around, inside, near, fade)
    batch, *shape = pull.owner.shape
    if queries == 0:
        return pull.own.new_zeros(batch, 0, *shape)
    number = torch.arange(queries, device=pull.owner.device).view(1, -1, 1)
    guided = number < seeds.components.flatten(1).amax(1).view(-1, 1, 1)  # seeds are numbered 1..n
    found = guided * pull.every.flatten(1).unsqueeze(1)
    owner = pull.owner.flatten(1).unsqueeze(1)
    own = torch.where(owner > 0, pull.own.flatten(1).unsqueeze(1), 0.0)
    return found.scatter_add(1, (owner - 1).clamp(min=0), own).view(batch, queries, *shape)
