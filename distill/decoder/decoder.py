"""Query decoder shared by teacher and student: from features and affinities of a block to instance masks.

Chen et al., "Efficient Neuron Segmentation in Electron Microscopy by Affinity-Guided Queries", ICLR 2025. The defaults
are the published decoder; `refine` and `cues` are the ablations of the paper (rounds: see `distill.decoder.blocks`).
`SeedRule(kind="edges")` and the priors are additions (see `distill.decoder.queries`).

Legend: B batch, Q queries (affinity-guided first, then learned), C channels, D h w = z y x at half y/x resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.affinity import affinity_targets, unit
from distill.core.devices import to_device
from distill.core.errors import ShapeError
from distill.decoder.blocks import ROUND_BUILDERS, KernelUpdater, MaskPredictor, Queries, Refine, SelfAttention
from distill.decoder.layers import Conv, ConvStack, coordinates
from distill.decoder.predict import by_voxel, last_masks
from distill.decoder.queries import (
    Order,
    Pull,
    SeedRule,
    Seeds,
    Surroundings,
    find_seeds,
    mask_prior,
    pool_seeds,
    seed_pull,
    surroundings,
)
from distill.segmentation.flooding import flood

Cues = Literal["queries", "affinity", "segmentation"]
Prior = Literal["none", "distance", "flood"]

_CUE_CHANNELS: dict[Cues | None, int] = {None: 0, "queries": 0, "affinity": 3, "segmentation": 4}


@dataclass(frozen=True)
class DecoderInput:
    """Input of the decoder from a network's adapter, at half y/x resolution."""

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
    seeds: Seeds  # None for a decoder without seeds; the first queries belong to the seeds if seeds are queries


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
        prior: Prior = "none",
        cues: Cues | None = "queries",
        refine: Refine = "agq",
        instance_depth: int | None = None,
        momentum: float = 0.01,
        sampling: tuple[float, float, float] = (2.5, 1.0, 1.0),
    ) -> None:
        """Build the decoder.

        Args:
            features: channels of the input features (64 in the interface).
            width: channels of instance features, mask features and queries; a multiple of 8.
            depth: layers of the mask branch.
            rounds: refinement rounds; 0 returns the first masks.
            learned: number of learned queries, 0 for affinity-guided queries only.
            seeds: rule for the affinity-guided queries; `max_count` 0 for learned queries only.
            prior: mask prior around the seeds, for guided queries: favours, for each voxel, the nearest seed
                (`distance`), or the seed that reaches it by the strongest path of affinities (`flood`).
            cues: use of affinities. `queries`: seeds become queries. Otherwise there are only learned queries, and
                channels are added to the input: `affinity` the three affinities, `segmentation` the seeds' foreground
                and the seeds' own three affinities, which fit any number of seeds and do not depend on their numbering.
                None: learned queries and no cue.
            refine: kind of the rounds and of the kernels.
            instance_depth: layers of the instance features; None = as in the mask branch.
            momentum: of the running statistics of the norms over kernels and logits; published 0.01, with which they
                are meaningful only after some hundred steps.
            sampling: voxel extent z, y, x in units of the half-resolution y/x voxel, for the prior's distances.
        """
        super().__init__()
        alone = cues != "queries"
        assert not alone or (learned and prior == "none"), "without guided queries: learned ones, no prior"
        self.rule, self.sampling, self.width, self.cues = seeds, sampling, width, cues
        inputs = 3 + features + _CUE_CHANNELS[cues]
        self.mask_branch = ConvStack(inputs, width, depth, width, kernel=(1, 3, 3))
        self._looks_at_seeds = cues in ("queries", "segmentation")
        looked_at = cues == "queries" or rounds > 0
        self.inst_convs = nn.ModuleList(
            nn.Sequential(Conv(inputs if i == 0 else width, width, (1, 3, 3), bias=False), nn.BatchNorm3d(width))
            for i in range((instance_depth or depth) if looked_at else 0)
        )
        self.learned = nn.Parameter(torch.randn(learned, width)) if learned else None
        parts = ROUND_BUILDERS[refine]
        self.predictors = nn.ModuleList(parts.predictor(width) for _ in range(rounds + 1))
        self.updaters = nn.ModuleList(parts.updater(width) for _ in range(rounds))
        self.interactors = nn.ModuleList(parts.interactor(width) for _ in range(rounds))
        self.backgrounds = nn.ModuleList(
            nn.Sequential(Conv(width, 1, (1, 3, 3), bias=False), nn.BatchNorm3d(1), nn.ReLU())
            for _ in range(rounds + 1)
        )
        for module in self.predictors.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = momentum
        self._prior_kind, self._refine = prior, refine
        # inside, near, and for distances the log of the fading distance in half-resolution voxels
        first = {"none": None, "distance": [4.0, 4.0, 2.0], "flood": [4.0, 4.0]}[prior]
        self.prior = nn.Parameter(torch.tensor(first)) if first is not None else None

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
            given: features and affinity logits; no gradient flows through the seeds.
            seeds: use these instead of the predicted ones; ignored by a decoder without seeds.
            rule: rule for the predicted seeds, instead of the decoder's own.
            order: order of the affinity-guided queries; `random` in training, the default is deterministic.
            rng: for the random order.
            background: False sets the background logit of the last round to 0 (the published inference).
        """
        seeds, mask_features, instance = self._features(given, seeds, rule, order, rng)
        mask_features = unit(mask_features.float())
        queries = self._first_queries(instance, seeds)
        prior = self._prior(given, seeds, queries)
        logits, kernels = self.predictors[0](queries, mask_features, prior)
        masks = [torch.cat([self.backgrounds[0](mask_features), logits], 1)]
        for i, (updater, interactor) in enumerate(zip(self.updaters, self.interactors, strict=True)):
            updated = queries.updated(updater(queries.values, logits, instance))
            queries = queries.updated(interactor(updated))
            logits, kernels = self.predictors[i + 1](queries, mask_features, prior)
            masks.append(torch.cat([self.backgrounds[i + 1](mask_features), logits], 1))
        if not background:
            masks[-1] = torch.cat([torch.zeros_like(masks[-1][:, :1]), masks[-1][:, 1:]], 1)
        return DecoderOutput(masks, queries.valid, kernels, mask_features, seeds)

    @torch.no_grad()
    def last(
        self,
        given: DecoderInput,
        *,
        seeds: Seeds | None = None,
        rule: SeedRule | None = None,
        background: bool = True,
    ) -> DecoderOutput:
        """Return the last round of `forward` for one block and a trained network, in half the time.

        Products of queries and features are computed in float32, regardless of the precision of the layers. Rounds of
        the kinds `knet` and `transformer` go through `forward`.

        Args:
            given: features and affinity logits of one block.
            seeds: as for `forward`.
            rule: as for `forward`.
            background: False leaves the background logit at 0.

        Returns:
            `masks` has one entry; the channels of a voxel are contiguous in memory.

        Raises:
            ShapeError: there are several blocks.
        """
        if self._refine != "agq":
            found = self(given, seeds=seeds, rule=rule, background=background)
            return DecoderOutput(found.masks[-1:], found.valid, found.kernels, found.mask_features, found.seeds)
        batch, _, *shape = given.features.shape
        if batch != 1:
            raise ShapeError(f"last masks: found {batch} blocks, expected 1")
        assert not self.training, "running statistics are for evaluation"
        seeds, mask_features, instance = self._features(given, seeds, rule, "size", None)
        features = unit(by_voxel(mask_features))
        queries = self._first_queries(instance, seeds)
        values = queries.values[queries.valid]
        if len(values):
            masks, kernels = last_masks(
                values,
                features,
                by_voxel(instance),
                self._pull(given, seeds),
                cast(Sequence[MaskPredictor], self.predictors),
                cast(Sequence[KernelUpdater], self.updaters),
                cast(Sequence[SelfAttention], self.interactors),
            )
        else:
            masks, kernels = features.new_full((len(features), 2), -torch.inf), queries.values[0] * 0
            masks[:, 0] = 0
        block: Tensor = features.T.unflatten(1, shape).unsqueeze(0)  # type: ignore[no-untyped-call]
        if background:
            masks[:, 0] = self.backgrounds[-1](block).flatten().float()
        found_masks: Tensor = masks.T.unflatten(1, shape).unsqueeze(0)  # type: ignore[no-untyped-call]
        return DecoderOutput([found_masks], queries.valid, kernels.unsqueeze(0), block, seeds)

    def mask_features(self, given: DecoderInput) -> Tensor:
        """Compute only the mask features, (B, C, D, h, w), as `forward` does for predicted seeds."""
        x = self._input(given, self._find_seeds(given, self.rule, "size", None))
        return unit(self.mask_branch(x).float())

    def _features(
        self,
        given: DecoderInput,
        seeds: Seeds | None,
        rule: SeedRule | None,
        order: Order,
        rng: np.random.Generator | None,
    ) -> tuple[Seeds, Tensor, Tensor]:
        """Compute the inputs of all rounds: seeds, mask features before normalisation, instance features."""
        if seeds is None or not self._looks_at_seeds:
            seeds = self._find_seeds(given, rule or self.rule, order, rng)
        instance = x = self._input(given, seeds)
        mask_features = self.mask_branch(x)
        for layer in self.inst_convs:
            instance = F.relu(layer(instance))
        return seeds, mask_features, instance

    def _find_seeds(self, given: DecoderInput, rule: SeedRule, order: Order, rng: np.random.Generator | None) -> Seeds:
        if self._looks_at_seeds:
            return find_seeds(given.affinity_logits.float().sigmoid(), rule, order, rng)
        batch, _, *shape = given.features.shape
        return Seeds(torch.zeros(batch, *shape, dtype=torch.int64, device=given.features.device), (0,) * batch)

    def _input(self, given: DecoderInput, seeds: Seeds) -> Tensor:
        """Concatenate coordinates, features, and the cue if it consists of channels."""
        parts = [coordinates(given.features), given.features]
        if self.cues == "affinity":
            parts.append(given.affinity_logits.detach().float().sigmoid())
        elif self.cues == "segmentation":
            parts += [(seeds.components > 0).unsqueeze(1), affinity_targets(seeds.components).target]
        return torch.cat([part.to(given.features.dtype) for part in parts], 1)

    def _first_queries(self, instance: Tensor, seeds: Seeds) -> Queries:
        if self.cues == "queries":
            rows = pool_seeds(instance, seeds)
        else:
            rows = [instance.new_zeros(0, self.width)] * len(instance)
        if self.learned is not None:
            rows = [torch.cat([row, self.learned.to(row.dtype)]) for row in rows]
        most = max(1, *(len(row) for row in rows)) if rows else 1
        values = torch.stack([F.pad(row, (0, 0, 0, most - len(row))) for row in rows])
        lengths = to_device([len(row) for row in rows], values.device)
        valid = torch.arange(most, device=values.device) < lengths.unsqueeze(1)
        return Queries(values, valid, sum(len(row) for row in rows))

    def _prior(self, given: DecoderInput, seeds: Seeds, queries: Queries) -> Tensor | None:
        if self.prior is None or max(seeds.counts, default=0) == 0:
            return None
        return mask_prior(seeds, self._around(given, seeds), queries.values.shape[1], *self._strengths())

    def _pull(self, given: DecoderInput, seeds: Seeds) -> Pull | None:
        """Compute the prior for one block in sparse form; see `_prior`."""
        if self.prior is None or seeds.counts[0] == 0:
            return None
        return seed_pull(seeds, self._around(given, seeds), *self._strengths())

    def _around(self, given: DecoderInput, seeds: Seeds) -> Surroundings:
        if self._prior_kind == "distance":
            return surroundings(seeds, self.sampling)
        owner = flood(seeds.components, given.affinity_logits.detach().float().sigmoid())
        return Surroundings(owner, torch.zeros_like(owner, dtype=torch.float32))

    def _strengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return inside, near and fade of the prior."""
        assert self.prior is not None
        fade = self.prior[2].exp() if self._prior_kind == "distance" else torch.ones_like(self.prior[0])
        return self.prior[0], self.prior[1], fade
