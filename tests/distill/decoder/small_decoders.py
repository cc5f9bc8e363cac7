"""Small decoders and blocks, and checks of their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.decoder.blocks import Refine
from distill.decoder.decoder import DecoderInput, DecoderOutput, Prior, QueryDecoder
from distill.decoder.queries import SeedRule

EDGES = SeedRule("edges", (0.5, 0.5, 0.5), 3, 20)


every_refine = pytest.mark.parametrize("refine", ["agq", "knet", "transformer"])


def small(
    learned: int = 3, prior: Prior = "distance", rule: SeedRule = EDGES, rounds: int = 2, refine: Refine = "agq"
) -> QueryDecoder:
    torch.manual_seed(0)
    return QueryDecoder(
        features=8, width=8, depth=1, rounds=rounds, learned=learned, seeds=rule, prior=prior, refine=refine
    )


def blocks(depth: int = 3) -> DecoderInput:
    """Three blocks: four seeds, none, two seeds."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 8, depth, 8, 8, generator=generator)
    logits = torch.full((3, 3, depth, 8, 8), -6.0)
    for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
        logits[0, :, :, y + 1 : y + 3, x + 1 : x + 3] = 6.0
    logits[2, :, :, 2:4, 1:7] = logits[2, :, :, 5:7, 1:7] = 6.0
    return DecoderInput(features, logits)


def item(given: DecoderInput, b: int) -> DecoderInput:
    return DecoderInput(given.features[b : b + 1], given.affinity_logits[b : b + 1])


def finite_loss(found: DecoderOutput) -> Tensor:
    total = torch.zeros(())
    for n, masks in enumerate(found.masks):
        share = masks.softmax(1)
        weights = torch.randn(share.shape, generator=torch.Generator().manual_seed(n))
        total = total + (share * weights).sum()
    return total


def assert_finite_gradients(decoder: QueryDecoder) -> None:
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
