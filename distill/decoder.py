"""The query decoder that teacher and student share: features and affinities of a block in, instance masks out.

Chen et al., "Efficient Neuron Segmentation in Electron Microscopy by Affinity-Guided Queries", ICLR 2025.
The defaults are the published decoder; `SeedRule(kind="edges")` and `prior=True` are ours (see `distill.queries`).

Legend: B batch, Q queries (affinity-guided first, learned after), C channels, D h w = z y x at half y/x resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.affinity import unit
from distill.errors import ShapeError
from distill.layers import Conv, ConvStack, coordinates
from distill.queries import Order, SeedRule, Seeds, find_seeds, mask_prior, pool_seeds, surroundings

_HEADS = 8


@dataclass(frozen=True)
class DecoderInput:
    """What a network's adapter hands to the shared decoder, at half y/x resolution."""

    features: Tensor  # (B, 64, D, h, w)
    affinity_logits: Tensor  # (B, 3, D, h, w), channels z, y, x

    def __post_init__(self) -> None:
        feature, logit = tuple(self.features.shape), tuple(self.affinity_logits.shape)
        if len(feature) != 5 or len(logit) != 5 or logit[1] != 3 or feature[0] != logit[0] or feature[2:] != logit[2:]:
            raise ShapeError(
                f"decoder input: found features {feature} and affinity {logit}, "
                "expected (B, C, D, h, w) and (B, 3, D, h, w)"
            )


@dataclass(frozen=True)
class DecoderOutput:
    """Masks of every round, first to last; channel 0 is the background."""

    masks: list[Tensor]  # rounds + 1 of (B, 1 + Q, D, h, w): logits, -inf for queries that a block does not have
    valid: Tensor  # (B, Q) bool
    kernels: Tensor  # (B, Q, C) of the last round
    mask_features: Tensor  # (B, C, D, h, w), L2-normalised
    seeds: Seeds


@dataclass(frozen=True)
class _Queries:
    """Queries of a batch, padded to the longest block."""

    values: Tensor  # (B, Q, C)
    valid: Tensor  # (B, Q) bool


class QueryDecoder(nn.Module):
    """Mask branch, instance features, affinity-guided and learned queries, refinement rounds."""

    def __init__(
        self,
        *,
        features: int = 64,
        width: int = 64,
        depth: int = 4,
        rounds: int = 2,
        learned: int = 100,
        seeds: SeedRule = SeedRule(),  # noqa: B008 - frozen
        prior: bool = False,
        sampling: tuple[float, float, float] = (2.5, 1.0, 1.0),
    ) -> None:
        """Build the decoder.

        Args:
            features: channels of the input features (the contract's 64).
            width: channels of instance features, mask features and queries; a multiple of 8.
            depth: layers of the mask branch and of the instance features.
            rounds: refinement rounds.
            learned: learned queries, 0 for affinity-guided ones alone.
            seeds: rule for the affinity-guided queries; `max_count` 0 for learned ones alone.
            prior: add the mask prior around the seeds.
            sampling: voxel extent z, y, x in units of the half-resolution y/x voxel, for the prior's distances.
        """
        super().__init__()
        self.rule, self.sampling, self.width = seeds, sampling, width
        self.mask_branch = ConvStack(3 + features, width, depth, width, kernel=(1, 3, 3))
        self.inst_convs = nn.ModuleList(
            nn.Sequential(Conv(3 + features if i == 0 else width, width, (1, 3, 3), bias=False), nn.BatchNorm3d(width))
            for i in range(depth)
        )
        self.learned = nn.Parameter(torch.randn(learned, width)) if learned else None
        self.predictors = nn.ModuleList(MaskPredictor(width) for _ in range(rounds + 1))
        self.updaters = nn.ModuleList(KernelUpdater(width) for _ in range(rounds))
        self.interactors = nn.ModuleList(SelfAttention(width) for _ in range(rounds))
        self.backgrounds = nn.ModuleList(
            nn.Sequential(Conv(width, 1, (1, 3, 3), bias=False), nn.BatchNorm3d(1), nn.ReLU())
            for _ in range(rounds + 1)
        )
        # inside, near, log of the fading distance in half-resolution voxels
        self.prior = nn.Parameter(torch.tensor([4.0, 4.0, 2.0])) if prior else None

    def forward(
        self,
        given: DecoderInput,
        *,
        seeds: Seeds | None = None,
        rule: SeedRule | None = None,
        order: Order = "size",
        rng: np.random.Generator | None = None,
        background: bool = True,
    ) -> DecoderOutput:
        """Decode a batch of blocks.

        Args:
            given: features and affinity logits; the affinities guide, no gradient flows through the seeds.
            seeds: take these instead of the predicted ones.
            rule: cut the predicted ones by this rule instead of the decoder's own.
            order: order of the affinity-guided queries; `random` in training, the default is deterministic.
            rng: for the random order.
            background: False sets the background logit of the last round to 0 (the published inference).
        """
        x = torch.cat([coordinates(given.features), given.features], 1)
        mask_features = unit(self.mask_branch(x).float())
        instance = x
        for layer in self.inst_convs:
            instance = F.relu(layer(instance))
        if seeds is None:
            seeds = find_seeds(given.affinity_logits.float().sigmoid(), rule or self.rule, order, rng)
        queries = self._first_queries(instance, seeds)
        prior = self._prior(seeds, queries)
        logits, kernels = self.predictors[0](queries, mask_features, prior)
        masks = [torch.cat([self.backgrounds[0](mask_features), logits], 1)]
        for i, (updater, interactor) in enumerate(zip(self.updaters, self.interactors, strict=True)):
            pooled = pool_by_masks(logits, instance)
            queries = _Queries(interactor(updater(pooled, queries.values), queries.valid), queries.valid)
            logits, kernels = self.predictors[i + 1](queries, mask_features, prior)
            masks.append(torch.cat([self.backgrounds[i + 1](mask_features), logits], 1))
        if not background:
            masks[-1] = torch.cat([torch.zeros_like(masks[-1][:, :1]), masks[-1][:, 1:]], 1)
        return DecoderOutput(masks, queries.valid, kernels, mask_features, seeds)

    def _first_queries(self, instance: Tensor, seeds: Seeds) -> _Queries:
        rows = pool_seeds(instance, seeds)
        if self.learned is not None:
            rows = [torch.cat([row, self.learned.to(row.dtype)]) for row in rows]
        most = max(1, *(len(row) for row in rows)) if rows else 1
        values = torch.stack([F.pad(row, (0, 0, 0, most - len(row))) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=values.device)
        return _Queries(values, torch.arange(most, device=values.device) < lengths.unsqueeze(1))

    def _prior(self, seeds: Seeds, queries: _Queries) -> Tensor | None:
        if self.prior is None or max(seeds.counts, default=0) == 0:
            return None
        inside, near, log_fade = self.prior
        around = surroundings(seeds, self.sampling)
        return mask_prior(seeds, around, queries.values.shape[1], inside, near, log_fade.exp())


def pool_by_masks(logits: Tensor, features: Tensor) -> Tensor:
    """Sum of the features under each query's share of every voxel.

    Args:
        logits: (B, Q, D, h, w), without background.
        features: (B, C, D, h, w).

    Returns:
        (B, Q, C).
    """
    there = torch.isfinite(logits).any(1, keepdim=True)  # a block may have no query at all
    share = (torch.where(there, logits, 0.0).float().softmax(1) * there).to(features.dtype)
    return torch.einsum("bqdhw,bcdhw->bqc", share, features)


class MaskPredictor(nn.Module):
    """Kernels from queries, mask logits from kernels (dynamic convolution)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_kernel = nn.Linear(width, width)
        self.norm_kernel = nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)
        self.norm_logits = nn.BatchNorm2d(1, eps=1e-3, momentum=0.01)

    def forward(self, queries: _Queries, mask_features: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, D, h, w), -inf where a block lacks the query, and kernels (B, Q, C)."""
        valid = queries.valid
        rows = self.fc_kernel(queries.values)[valid]
        statistics = self.norm_kernel.training and len(rows) > 1  # one query has no variance
        rows = F.batch_norm(
            rows,
            self.norm_kernel.running_mean,
            self.norm_kernel.running_var,
            self.norm_kernel.weight,
            self.norm_kernel.bias,
            statistics,
            self.norm_kernel.momentum or 0.0,
            self.norm_kernel.eps,
        )
        kernels = rows.new_zeros(queries.values.shape).masked_scatter(valid.unsqueeze(-1), rows)
        logits = torch.einsum("bqc,bcdhw->bqdhw", kernels.to(mask_features.dtype), mask_features)
        if bool(valid.all()):
            normed = self.norm_logits(logits.reshape(1, 1, -1, 1)).view_as(logits)
        else:
            normed = logits.masked_scatter(
                valid[..., None, None, None], self.norm_logits(logits[valid].reshape(1, 1, -1, 1)).flatten()
            )
        if prior is not None:
            normed = normed + prior
        return normed.masked_fill(~valid[..., None, None, None], -torch.inf), kernels


class KernelUpdater(nn.Module):
    """K-Net's gated update of queries by pooled features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dynamic_layer, self.input_layer = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.input_gate, self.update_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.input_norm_in, self.input_norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc_layer, self.fc_norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, pooled: Tensor, queries: Tensor) -> Tensor:
        """(B, Q, C) twice -> (B, Q, C)."""
        pooled_in, pooled_out = self.dynamic_layer(pooled).chunk(2, dim=-1)
        query_in, query_out = self.input_layer(queries).chunk(2, dim=-1)
        gate = query_in * pooled_in
        input_gate = self.input_norm_in(self.input_gate(gate)).sigmoid()
        update_gate = self.norm_in(self.update_gate(gate)).sigmoid()
        mixed = update_gate * self.norm_out(pooled_out) + input_gate * self.input_norm_out(query_out)
        return F.relu(self.fc_norm(self.fc_layer(mixed)))


class SelfAttention(nn.Module):
    """Attention among queries, then an MLP of ratio 4 with GELU; residual first, LayerNorm after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Tensor, valid: Tensor) -> Tensor:
        """(B, Q, C) and (B, Q) bool -> (B, Q, C); queries that a block lacks are not attended to."""
        batch, count, width = queries.shape
        q, k, v = (
            part.view(batch, count, _HEADS, width // _HEADS).transpose(1, 2)
            for part in self.c_attn(queries).chunk(3, dim=-1)
        )
        seen = None if bool(valid.all()) else valid[:, None, None, :] | ~valid.any(1)[:, None, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        queries = self.ln_1(queries + self.attn_proj(mixed.transpose(1, 2).reshape(batch, count, width)))
        found: Tensor = self.ln_2(queries + self.mlp_proj(F.gelu(self.c_fc(queries))))
        return found
