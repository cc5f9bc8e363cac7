"""Refinement rounds of the query decoder: queries attend to the features, then to each other, then predict masks.

`agq`: Chen et al., ICLR 2025. K-Net's gated update by features that softmax masks pool; attention among queries, then
an MLP of ratio 4 with GELU; kernels by one linear layer; batch norms on kernels and logits.
`knet`: Zhang et al., "K-Net: Towards Unified Image Segmentation", NeurIPS 2021. The gated update by features summed
where the mask's sigmoid exceeds 0.5, as for its instances; attention, then an MLP of ratio 8 with ReLU; kernels by an
MLP; no batch norm.
`transformer`: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020. Attention to all features,
then as `knet`; order and predictor of Mask2Former (Cheng et al., CVPR 2022) without its masked attention. No dropout,
and no learned position of a query, since guided queries have none.

The mask features (L2-normalised) and the background channel are those of the decoder, the same for all three.

Legend: B batch, Q queries, C channels, M memory tokens, D h w = z y x at half y/x resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.decoder.layers import coordinates

Refine = Literal["agq", "knet", "transformer"]

_HEADS = 8
_MEMORY_STRIDE = 4  # y and x; a token is about as wide as it is thick: 48 x 48 nm by 30 nm at 6 nm pixels
_FINEST = 32  # half waves along an axis at the highest rate of the position code, to distinguish 33 tokens


@dataclass(frozen=True)
class Queries:
    """Queries of a batch, padded to the longest block."""

    values: Tensor  # (B, Q, C)
    valid: Tensor  # (B, Q) bool
    count: int  # number of valid ones, known without reading the device

    @property
    def whole(self) -> bool:
        """Return whether every block has every query."""
        return self.count == self.valid.numel()

    def updated(self, values: Tensor) -> Queries:
        """Return the same queries with other values."""
        return replace(self, values=values)


def pool_by_masks(logits: Tensor, features: Tensor) -> Tensor:
    """Sum the features weighted by each query's softmax probability at every voxel.

    Args:
        logits: (B, Q, D, h, w), without background.
        features: (B, C, D, h, w).

    Returns:
        (B, Q, C).
    """
    there = torch.isfinite(logits).any(1, keepdim=True)  # a block may have no query at all
    share = (torch.where(there, logits, 0.0).float().softmax(1) * there).to(features.dtype)
    return torch.einsum("bqdhw,bcdhw->bqc", share, features)


def pool_by_threshold(logits: Tensor, features: Tensor) -> Tensor:
    """Sum the features where each query's sigmoid exceeds 0.5 (K-Net); no gradient reaches the logits.

    Arguments and result as in `pool_by_masks`.
    """
    return torch.einsum("bqdhw,bcdhw->bqc", (logits > 0).to(features.dtype), features)


class KernelUpdater(nn.Module):
    """K-Net's gated update of queries by pooled features."""

    def __init__(self, width: int, pool: Callable[[Tensor, Tensor], Tensor] = pool_by_masks) -> None:
        super().__init__()
        self.pool = pool
        self.dynamic_layer, self.input_layer = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.input_gate, self.update_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.input_norm_in, self.input_norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc_layer, self.fc_norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, values: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        """Update queries (B, Q, C) from their logits (B, Q, D, h, w) and features (B, C, D, h, w); returns (B, Q,
        C).
        """
        return self.update(values, self.pool(logits, features))

    def update(self, values: Tensor, pooled: Tensor) -> Tensor:
        """Update queries from their pooled features, each (..., Q, C); returns (..., Q, C)."""
        pooled_in, pooled_out = self.dynamic_layer(pooled).chunk(2, dim=-1)
        query_in, query_out = self.input_layer(values).chunk(2, dim=-1)
        gate = query_in * pooled_in
        input_gate = self.input_norm_in(self.input_gate(gate)).sigmoid()
        update_gate = self.norm_in(self.update_gate(gate)).sigmoid()
        mixed = update_gate * self.norm_out(pooled_out) + input_gate * self.input_norm_out(query_out)
        return F.relu(self.fc_norm(self.fc_layer(mixed)))


class CrossAttention(nn.Module):
    """Attention of queries to all features, averaged over 4 x 4 pixels; residual first, LayerNorm after (DETR).

    Keys carry the position code. A block of 17 x 129 x 129 has 18,513 tokens; with torch's fused attention, no Q x M
    matrix is stored.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        """Update queries; same signature as `KernelUpdater`, with the logits ignored."""
        small = F.avg_pool2d(features.flatten(1, 2), _MEMORY_STRIDE, ceil_mode=True)
        memory: Tensor = small.unflatten(1, features.shape[1:3])  # type: ignore[no-untyped-call]
        placed = memory + position_code(memory).to(memory.dtype)
        tokens, placed = (part.flatten(2).transpose(1, 2) for part in (memory, placed))
        q, k, v = (_split(part) for part in (self.query(values), self.key(placed), self.value(tokens)))
        found: Tensor = self.norm(values + self.proj(_join(F.scaled_dot_product_attention(q, k, v))))
        return found


def position_code(like: Tensor) -> Tensor:
    """Compute sines and cosines of the three coordinates (-1..1 over the block) at geometric rates of 1 to 32 half
    waves.

    Args:
        like: (B, C, D, h, w), C at least 6; channels beyond a multiple of 6 are 0.

    Returns:
        (C, D, h, w) float32.
    """
    channels = like.shape[1]
    rates = math.pi / 2 * _FINEST ** torch.linspace(0, 1, channels // 6, device=like.device)
    angles = (coordinates(like[:1].float())[0].unsqueeze(1) * rates.view(-1, 1, 1, 1)).flatten(0, 1)
    code = torch.cat([angles.sin(), angles.cos()])
    return F.pad(code, (0, 0, 0, 0, 0, 0, 0, channels - len(code)))


class SelfAttention(nn.Module):
    """Attention among queries, then an MLP; residual first, LayerNorm after."""

    def __init__(self, width: int, ratio: int = 4, activate: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.activate = activate
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Queries) -> Tensor:
        """Attend among queries (B, Q, C); queries that a block lacks are masked."""
        values, valid = queries.values, queries.valid
        q, k, v = (_split(part) for part in self.c_attn(values).chunk(3, dim=-1))
        seen = None if queries.whole else valid[:, None, None, :] | ~valid.any(1)[:, None, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        values = self.ln_1(values + self.attn_proj(_join(mixed)))
        found: Tensor = self.ln_2(values + self.mlp_proj(self.activate(self.c_fc(values))))
        return found


def _split(x: Tensor) -> Tensor:
    """Split heads: (B, N, C) to (B, heads, N, C / heads)."""
    heads: Tensor = x.unflatten(-1, (_HEADS, -1))  # type: ignore[no-untyped-call]
    return heads.transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """Join heads: (B, heads, N, C / heads) to (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


class MaskPredictor(nn.Module):
    """Kernels from queries, mask logits from kernels (dynamic convolution), batch norms on both (AGQ)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_kernel = nn.Linear(width, width)
        self.norm_kernel = nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)
        self.norm_logits = nn.BatchNorm2d(1, eps=1e-3, momentum=0.01)

    def forward(self, queries: Queries, mask_features: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predict logits (B, Q, D, h, w), -inf where a block lacks the query, and kernels (B, Q, C), 0 there."""
        valid = queries.valid
        if queries.whole:
            kernels = self.rows(queries.values.flatten(0, 1)).view_as(queries.values)
        else:
            there = (~valid).flatten().byte().argsort(stable=True)[: queries.count]  # does not wait for the device
            rows = self.rows(queries.values.flatten(0, 1)[there])
            kernels = rows.new_zeros(valid.numel(), rows.shape[1]).index_copy(0, there, rows).view_as(queries.values)
        logits = torch.einsum("bqc,bcdhw->bqdhw", kernels.to(mask_features.dtype), mask_features)
        normed = self._normed(logits, valid, queries.count)
        if prior is not None:
            normed = normed + prior
        if queries.whole:
            return normed, kernels
        return normed.masked_fill(~valid[..., None, None, None], -torch.inf), kernels

    def _normed(self, logits: Tensor, valid: Tensor, count: int) -> Tensor:
        """Normalise the logits of existing queries (B, Q, D, h, w) by their common mean and variance.

        This is a batch norm of one channel, which runs on a single multiprocessor of a GPU.
        """
        norm = self.norm_logits
        if not norm.training:
            factor, summand = self.scale()
            return logits * factor + summand
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values, number = logits.float(), max(1, count * logits[0, 0].numel())  # logits of missing queries are 0
        mean = values.sum() / number
        centred = values - mean
        if count < valid.numel():
            centred = centred * valid[..., None, None, None]
        variance = centred.square().sum() / number
        with torch.no_grad():
            momentum = (norm.momentum or 0.0) if count else 0.0
            norm.running_mean.lerp_(mean.view(1), momentum)
            norm.running_var.lerp_((variance * (number / max(1, number - 1))).view(1), momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
        return (centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias).to(logits.dtype)

    def rows(self, values: Tensor) -> Tensor:
        """Compute kernels (Q, C) of existing queries (Q, C)."""
        rows: Tensor = self.fc_kernel(values)
        statistics = self.norm_kernel.training and len(rows) > 1  # one query has no variance
        return F.batch_norm(
            rows,
            self.norm_kernel.running_mean,
            self.norm_kernel.running_var,
            self.norm_kernel.weight,
            self.norm_kernel.bias,
            statistics,
            self.norm_kernel.momentum or 0.0,
            self.norm_kernel.eps,
        )

    def scale(self) -> tuple[Tensor, Tensor]:
        """Return the affine map of the logits by the norm's running statistics: factor and summand, scalars."""
        norm = self.norm_logits
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight[0] * (norm.running_var[0] + norm.eps).rsqrt()
        return factor, norm.bias[0] - norm.running_mean[0] * factor


class DotPredictor(nn.Module):
    """Kernels from queries by an MLP; mask logits are their dot product with the mask features."""

    def __init__(self, kernel: nn.Sequential) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, queries: Queries, mask_features: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predict logits and kernels; see `MaskPredictor`."""
        missing = ~queries.valid[..., None]
        kernels = self.kernel(queries.values).masked_fill(missing, 0.0)
        logits = torch.einsum("bqc,bcdhw->bqdhw", kernels.to(mask_features.dtype), mask_features)
        if prior is not None:
            logits = logits + prior
        return logits.masked_fill(missing[..., None, None], -torch.inf), kernels


def knet_predictor(width: int) -> DotPredictor:
    """Build a predictor with one hidden layer, LayerNorm and ReLU."""
    hidden = nn.Linear(width, width, bias=False)
    return DotPredictor(nn.Sequential(hidden, nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)))


def transformer_predictor(width: int) -> DotPredictor:
    """Build a predictor with LayerNorm, then two hidden layers with ReLU (Mask2Former)."""
    first, second, last = (nn.Linear(width, width) for _ in range(3))
    return DotPredictor(nn.Sequential(nn.LayerNorm(width), first, nn.ReLU(), second, nn.ReLU(), last))


@dataclass(frozen=True)
class RoundBuilders:
    """Functions that build the modules of a round for a given width."""

    predictor: Callable[[int], nn.Module]
    updater: Callable[[int], nn.Module]
    interactor: Callable[[int], nn.Module]


_WIDE = partial(SelfAttention, ratio=8, activate=F.relu)
ROUND_BUILDERS: dict[Refine, RoundBuilders] = {
    "agq": RoundBuilders(MaskPredictor, KernelUpdater, SelfAttention),
    "knet": RoundBuilders(knet_predictor, partial(KernelUpdater, pool=pool_by_threshold), _WIDE),
    "transformer": RoundBuilders(transformer_predictor, CrossAttention, _WIDE),
}
