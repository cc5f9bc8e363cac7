"""Losses of both papers as pure functions: tensors in, scalar out, explicit masks.

Liu et al., CVPR 2024 (student, distillation, 3D embedding teacher) and Chen et al., ICLR 2025 (queries); mask losses at
sampled points after Cheng et al., CVPR 2022 (Mask2Former).

Legend: B batch, K offsets, E embedding channels, Q queries, N instances, P sampled points, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.core.affinity import (
    MULTI,
    Targets,
    affinity_targets,
    class_balance,
    edge_slices,
    edge_targets,
    embedding_affinity,
    half_resolution,
    section_labels,
    unit,
)
from distill.core.devices import to_device
from distill.core.geometry import Triple
from distill.core.known import UNKNOWN
from distill.decoder.matching import Match

_NEAR_WEIGHT = 10.0
_DISCRIMINATION_TEMPERATURE = 0.3
_RARITY = 0.6


def weighted_mse(predicted: Tensor, target: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """Sum weight * (predicted - target)^2 over the valid entries and divide by their number; 0 if there are none."""
    error = weight * (predicted.float() - target.float()).square()
    return torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)


def affinity_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compute the class-balanced MSE, balanced per sample and channel.

    Args:
        predicted: (B, K, ...) affinities.
        target: (B, K, ...) in [0, 1].
        valid: (B, K, ...) bool.

    Returns:
        Mean over the losses of the channels.
    """
    losses = []
    for k in range(predicted.shape[1]):
        weight = class_balance(target[:, k], valid[:, k])
        losses.append(weighted_mse(predicted[:, k], target[:, k], weight, valid[:, k]))
    return torch.stack(losses).mean()


def half_resolution_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Compute the cross-entropy of affinity logits at half resolution against the mean of each window's edges.

    Args:
        logits: (B, 3, D, h, w).
        targets: at full resolution, (B, 3, D, H, W); edges that are not valid do not count in the mean.
    """
    there = half_resolution(targets.valid.float())  # fraction of the window's edges that exist
    half = half_resolution(targets.target) / there.clamp(min=1e-6)
    return affinity_cross_entropy(logits, half, there > 0)


def multi_offset_loss(
    embedding: Tensor, labels: Tensor, offsets: Sequence[Triple] = MULTI, *, other: Tensor | None = None
) -> Tensor:
    """Compute the loss of the 3D embedding teacher: class-balanced MSE of cosine affinities at many offsets.

    The three nearest-neighbour offsets have weight 10, the others 1 (Liu et al., CVPR 2024).

    Args:
        embedding: (B, E, D, H, W), any scale.
        labels: (B, D, H, W) int64.
        offsets: nearest neighbours first.
        other: embedding at the edges' second ends, e.g. of another view of the block; by default the same one.
    """
    targets = affinity_targets(labels, offsets)
    predicted = embedding_affinity(embedding, offsets, clamp=False, other=other)
    total = embedding.new_zeros((), dtype=torch.float32)
    for k in range(len(offsets)):
        loss = affinity_loss(predicted[:, k : k + 1], targets.target[:, k : k + 1], targets.valid[:, k : k + 1])
        total = total + (_NEAR_WEIGHT if k < 3 else 1.0) * loss
    return total


def student_offset_loss(
    previous: Tensor,
    current: Tensor,
    labels: Tensor,
    offsets: Sequence[Triple] = MULTI[3:],
    *,
    grid: int = 1,
    phase: tuple[int, int] = (0, 0),
) -> Tensor:
    """Compute the class-balanced MSE of the student's cosine affinities at offsets beyond the nearest neighbours.

    In-plane offsets compare the current branch's embedding with itself. An offset of k sections compares the current
    branch of section z with the previous branch of section z - k, as the pair affinity does for k = 1. The offsets are
    those of the teacher's loss (Liu et al., CVPR 2024); affinities at many offsets as an auxiliary task follow Lee et
    al., 2017, and Huang et al., 2022.

    Args:
        previous: (B, E, D - 1, H, W) previous-branch embeddings of sections 0 .. D - 2, any scale.
        current: (B, E, D - 1, H, W) current-branch embeddings of sections 1 .. D - 1.
        labels: (B, D, H, W) int64.
        offsets: (-k, 0, 0) with k > 0, or (0, y, x). Offsets that exceed the block are skipped.
        grid: edges begin at every `grid`-th row and column; with random phases the mean over steps is that of all
            edges, up to the class balance.
        phase: (y, x) of the first row and column, 0 to `grid` - 1.

    Returns:
        Mean over the offsets that fit; 0 if none does.
    """
    before, now, below = unit(previous), unit(current), labels[:, 1:]
    losses = []
    for z, y, x in offsets:
        if z:
            rows, columns = (slice(first, None, grid) for first in phase)
            ends = labels[:, -z:, rows, columns], labels[:, :z, rows, columns]
            one, other = now[:, :, -1 - z :, rows, columns], before[:, :, : z + 1 or None, rows, columns]
        else:
            inside, moved = edge_slices((0, y, x), now.shape[-3:])
            (rows, columns), (down, right) = (_every(grid, phase, found[1:]) for found in (inside, moved))
            ends = below[:, :, rows, columns], below[:, :, down, right]
            one, other = now[..., rows, columns], now[..., down, right]
        if 0 in one.shape:
            continue
        target, valid = edge_targets(*ends)
        losses.append(weighted_mse((one * other).sum(1), target, class_balance(target, valid), valid))
    return torch.stack(losses).mean() if losses else current.new_zeros((), dtype=torch.float32)


def _every(grid: int, phase: tuple[int, int], plane: Sequence[slice]) -> tuple[slice, slice]:
    """Return rows and columns of a plane, every `grid`-th from `phase`."""
    rows, columns = (slice(s.start + first, s.stop, grid) for s, first in zip(plane, phase, strict=True))
    return rows, columns


def cross_dimension_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Compute the cross-dimension affinity distillation loss between student and teacher (Liu et al., CVPR 2024).

    Args:
        student: (B, 3, ...) in [0, 1].
        teacher: (B, 3, ...) in [0, 1]; gradients flow into it unless the caller detaches it.
        valid: (B, 3, ...) bool, edges that lie inside the block.

    Returns:
        MSE, balanced by the teacher's classes (above 0.5 = connected).
    """
    losses = []
    for k in range(student.shape[1]):
        weight = class_balance(teacher[:, k].detach(), valid[:, k])
        losses.append(weighted_mse(student[:, k], teacher[:, k], weight, valid[:, k]))
    return torch.stack(losses).mean()


def grafting_loss(
    previous: Tensor,
    current: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    distances: Sequence[int] = (1, 2, 3, 4),
    *,
    known: Tensor | None = None,
) -> Tensor:
    """Compute the feature grafting loss, which inserts the student's embeddings into the teacher's volume (Liu et al.,
    CVPR 2024).

    For the pair (z - 1, z) and every distance k, the previous branch's embedding is compared with the teacher's of
    section z - 1 + k, and the current branch's with that of z + k. The target of the clamped cosine is the z-affinity
    of the labels at distance k. All embeddings are normalised, and every distance counts.

    Args:
        previous: (B, E, D - 1, H, W) previous-branch embeddings of sections 0 .. D - 2.
        current: (B, E, D - 1, H, W) current-branch embeddings of sections 1 .. D - 1.
        teacher: (B, E, D, H, W).
        labels: (B, D, H, W) int64; None: the targets are the teacher's own clamped cosines at each distance, without
            gradient.
        distances: in sections, each at least 1; those that exceed the block are skipped.
        known: (B, D, H, W) labels whose UNKNOWN voxels (`distill.core.known`) are ignored if `labels` is None; None:
            all count.

    Returns:
        Mean over the branches and distances that fit.
    """
    depth = teacher.shape[2]
    losses = []
    before, now, taught = unit(previous), unit(current), unit(teacher)
    for k in distances:
        # section z against z - k
        truth = _section_cosines(teacher.detach(), k, known) if labels is None else section_labels(labels, k)
        for student, first in ((before, 0), (now, 1)):
            count = min(student.shape[2], depth - k - first)
            if count < 1:
                continue
            there = slice(first + k, first + k + count)
            predicted = (student[:, :, :count] * taught[:, :, there]).sum(1).clamp(0, 1)
            target, valid = truth.target[:, there], truth.valid[:, there]
            losses.append(weighted_mse(predicted, target, class_balance(target, valid), valid))
    return torch.stack(losses).mean() if losses else teacher.new_zeros((), dtype=torch.float32)


def _section_cosines(embedding: Tensor, distance: int, known: Tensor | None) -> Targets:
    """Compute soft z-targets from an embedding volume (B, E, D, H, W), as `section_labels` does from labels."""
    if known is None:
        known = embedding.new_zeros((len(embedding), *embedding.shape[2:]), dtype=torch.int64)
    cosine = embedding_affinity(embedding, [(-distance, 0, 0)])[:, 0]
    return Targets(cosine, section_labels(known, distance).valid)


def instance_targets(labels_HW: Tensor) -> Tensor:
    """Reduce labels to half resolution: the most frequent id of every 2x2 window, in a tie the larger (so never
    background).

    This is the hard form of halving each instance's mask and thresholding at one half. Odd sizes repeat their last row
    and column. UNKNOWN voxels (`distill.core.known`) have no vote: a window is UNKNOWN if all four are.

    Args:
        labels_HW: (..., H, W) int64.

    Returns:
        (..., ceil(H/2), ceil(W/2)) int64.
    """
    height, width = labels_HW.shape[-2:]
    rows = torch.arange(0, height + height % 2, device=labels_HW.device).clamp(max=height - 1)
    columns = torch.arange(0, width + width % 2, device=labels_HW.device).clamp(max=width - 1)
    even = labels_HW.index_select(-2, rows).index_select(-1, columns)
    four = torch.stack([even[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])
    votes = torch.stack([(four == candidate).sum(0) for candidate in four]).masked_fill(four == UNKNOWN, 0)
    best = votes.amax(0)
    lowest = torch.iinfo(four.dtype).min
    winner = four.masked_fill(four == 0, lowest + 1).masked_fill(votes < best, lowest).amax(0)
    winner = winner.masked_fill(winner == lowest + 1, 0)  # background wins only if alone, for ids of either sign
    return winner.masked_fill(best == 0, UNKNOWN)


def draw_points(instances: Tensor, points: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the voxels at which the mask losses of a step are computed: uniform, without replacement.

    Cheng et al., CVPR 2022, redraw points for every loss and favour uncertain voxels. These are uniform, so that the
    gradient of the cross-entropy is unbiased.

    Args:
        instances: (B, D, h, w), for its shape and device.
        points: maximum number P; all voxels if there are no more.
        generator: randomness, on the CPU.

    Returns:
        (B, P) int64 positions in each block's C order.
    """
    voxels = instances[0].numel()
    drawn = [torch.randperm(voxels, generator=generator, device="cpu")[:points] for _ in instances]
    return to_device(torch.stack(drawn), instances.device)


def at_points(values: Tensor, points: Tensor) -> Tensor:
    """Select values at drawn voxels: (B, D, h, w) to (B, P), or (B, C, D, h, w) to (B, C, P)."""
    flat = values.flatten(-3)
    index = points if flat.ndim == 2 else points.unsqueeze(1).expand(-1, flat.shape[1], -1)
    return flat.gather(-1, index)


def mask_cross_entropy(masks: Tensor, instances: Tensor, matches: Sequence[Match]) -> Tensor:
    """Compute the softmax cross-entropy over queries; background voxels belong to channel 0.

    At voxels of `draw_points`, its expectation and that of its gradient equal the values over all voxels, if every
    instance has a query.

    Args:
        masks: (B, 1 + Q, D, h, w) logits, or (B, 1 + Q, P) at drawn voxels.
        instances: (B, D, h, w) or (B, P) int64; instances without a query and UNKNOWN voxels are ignored.
        matches: one per block.

    Returns:
        Mean over the voxels that count.
    """
    losses = [masks.new_zeros((), dtype=torch.float32)]
    counted = [masks.new_zeros((), dtype=torch.int64)]
    for logits, labels, pairs in zip(masks, instances, matches, strict=True):
        channel = _channels(labels, pairs)
        losses.append(
            F.cross_entropy(logits.float().unsqueeze(0), channel.unsqueeze(0), ignore_index=-1, reduction="sum")
        )
        counted.append((channel >= 0).sum())
    return torch.stack(losses).sum() / torch.stack(counted).sum().clamp(min=1)


def mask_dice(masks: Tensor, instances: Tensor, matches: Sequence[Match]) -> Tensor:
    """Compute 1 - Dice of the matched queries over non-background voxels, averaged over all pairs of the batch.

    The published code has sums of squares in the denominator and divides by all 1 + Q channels instead of the M pairs,
    so its weight of 3 is effectively (1 + Q) / M times smaller than in this definition.

    Dice is a ratio: at voxels of `draw_points` it converges to the full value as P grows, but it is biased, most
    strongly for instances with few drawn voxels; pairs without any are skipped.

    Args:
        masks: (B, 1 + Q, D, h, w) logits, or (B, 1 + Q, P) at drawn voxels.
        instances: (B, D, h, w) or (B, P) int64.
        matches: one per block.
    """
    losses, counted = [], []
    for logits, labels, pairs in zip(masks, instances, matches, strict=True):
        flat = labels.flatten()
        share = logits.float().softmax(0).flatten(1)[1 + pairs.query] * (flat > 0)
        truth = flat.unsqueeze(0) == pairs.instance.unsqueeze(1)
        size = truth.sum(1)
        dice = 2 * (share * truth).sum(1) / (share.sum(1) + size).clamp(min=1e-6)
        losses.append(torch.where(size > 0, 1 - dice, 0.0))
        counted.append((size > 0).sum())
    return torch.cat(losses).sum() / torch.stack(counted).sum().clamp(min=1)


def instance_discrimination(
    mask_features: Tensor, instances: Tensor, *, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Compute the pixel instance discrimination loss: voxels of one instance should resemble each other more than
    others.

    Sampled voxels favour small instances (Gumbel top-k on 0.6 * log inverse instance size). The similarities of each
    voxel to the others, at temperature 0.3, pass through a softmax, and the log of the fraction assigned to its own
    instance is averaged. The published code includes the voxel itself among the others and uses the features before
    normalisation.

    Args:
        mask_features: (B, C, D, h, w), L2-normalised.
        instances: (B, D, h, w) int64, compact.
        samples: voxels per block (4096 as published).
        generator: randomness of the sampling.
    """
    flat = instances.flatten(1)
    noise = to_device(torch.rand(flat.shape, generator=generator, device="cpu"), flat.device).clamp(1e-9, 1 - 1e-9)
    gumbel = -torch.log(-torch.log(noise))
    losses, counted = [mask_features.new_zeros((), dtype=torch.float32)], [flat.new_zeros(())]
    for features, labels, chance in zip(mask_features, flat, gumbel, strict=True):
        inside, own = labels > 0, labels.clamp(min=0)
        sizes = labels.new_zeros(len(labels) + 1).scatter_add(0, own, torch.ones_like(own))[own]
        order = (chance - _RARITY * sizes.float().log()).masked_fill(~inside, -torch.inf)
        picked = order.topk(min(samples, len(labels))).indices
        there = inside[picked]  # all, if there are so many
        chosen = features.flatten(1)[:, picked].float().T
        with torch.autocast(chosen.device.type, enabled=False):
            similarity = chosen @ chosen.T / _DISCRIMINATION_TEMPERATURE
        ignored = torch.eye(len(picked), dtype=torch.bool, device=flat.device) | ~(there & there.unsqueeze(1))
        log_share = similarity.masked_fill(ignored, -torch.inf).log_softmax(1).masked_fill(ignored, 0.0)
        same = (labels[picked].unsqueeze(0) == labels[picked].unsqueeze(1)).masked_fill(ignored, value=False)
        partners = same.sum(1)
        losses.append((-(same * log_share).sum(1) / partners.clamp(min=1)).sum())
        counted.append((partners > 0).sum())
    return torch.stack(losses).sum() / torch.stack(counted).sum().clamp(min=1)


def affinity_cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compute the binary cross-entropy of affinity logits, averaged over valid edges; targets may be soft (halved
    resolution).
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp(min=1)


def _channels(labels: Tensor, pairs: Match) -> Tensor:
    """Return the mask channel of every voxel: 0 background, 1 + query of its instance, -1 without a query or
    UNKNOWN.
    """
    if len(pairs.query) == 0:
        return torch.where(labels == 0, 0, -1)
    instance, order = pairs.instance.sort()
    at = torch.searchsorted(instance, labels.contiguous()).clamp(max=len(instance) - 1)
    return torch.where(instance[at] == labels, 1 + pairs.query[order][at], torch.where(labels == 0, 0, -1))
