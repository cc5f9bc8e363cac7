"""Parts of the decoder's rounds: torch's own layers and loops as oracles, padding, order of queries, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.decoder.blocks import (
    ROUND_BUILDERS,
    CrossAttention,
    DotPredictor,
    MaskPredictor,
    Queries,
    Refine,
    SelfAttention,
    pool_by_masks,
    pool_by_threshold,
    position_code,
)

WIDTH = 16
every_refine = pytest.mark.parametrize("refine", list(ROUND_BUILDERS))


def queries() -> Queries:
    """Three blocks of five queries: all there, two there, none there."""
    valid = torch.arange(5) < torch.tensor([[5], [2], [0]])
    values = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    return Queries(values.masked_fill(~valid[..., None], 0.0), valid, 7)


def maps(valid: Tensor, shape: tuple[int, int, int] = (2, 6, 9)) -> tuple[Tensor, Tensor]:
    """Logits of the queries, instance features."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(*valid.shape, *shape, generator=generator)
    features = torch.randn(len(valid), WIDTH, *shape, generator=generator)
    return logits.masked_fill(~valid[..., None, None, None], -torch.inf), features


class Round(nn.Module):
    """One round: updater, interactor, predictor."""

    def __init__(self, refine: Refine) -> None:
        super().__init__()
        torch.manual_seed(0)
        parts = ROUND_BUILDERS[refine]
        self.updater, self.interactor = parts.updater(WIDTH), parts.interactor(WIDTH)
        self.predictor = parts.predictor(WIDTH)

    def forward(self, given: Queries, logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, logits, kernels."""
        updated = given.updated(self.updater(given.values, logits, features))
        values = self.interactor(updated)
        return (values, *self.predictor(given.updated(values), features, None))


@every_refine
def test_shapes(refine: Refine) -> None:
    given = queries()
    values, logits, kernels = Round(refine)(given, *maps(given.valid))
    assert values.shape == kernels.shape == (3, 5, WIDTH)
    assert logits.shape == (3, 5, 2, 6, 9)
    assert torch.equal(logits.isfinite(), given.valid[..., None, None, None].expand_as(logits))
    assert not kernels[~given.valid].any()
    assert bool(values.isfinite().all())


@every_refine
@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_matter(training: bool, refine: Refine) -> None:
    given = queries()
    logits, features = maps(given.valid)
    padded = given.updated(given.values.masked_fill(~given.valid[..., None], 1e3))
    before = Round(refine).train(training)(given, logits, features)
    after = Round(refine).train(training)(padded, logits, features)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old[given.valid], new[given.valid])


@every_refine
@pytest.mark.parametrize("training", [False, True])
def test_queries_may_come_in_any_order(training: bool, refine: Refine) -> None:
    given, order = queries(), torch.tensor([4, 1, 0, 3, 2])
    logits, features = maps(given.valid)
    before = Round(refine).train(training)(given, logits, features)
    turned = Queries(given.values[:, order], given.valid[:, order], given.count)
    after = Round(refine).train(training)(turned, logits[:, order], features)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old[:, order][turned.valid], new[turned.valid], rtol=1e-4, atol=1e-4)


@every_refine
def test_gradients_reach_every_parameter(refine: Refine) -> None:
    network, given = Round(refine).train(), queries()
    logits, features = maps(given.valid)
    found = network(given, logits, features)[1][given.valid]
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias that all keys share shifts all scores of a softmax alike.
        assert float(parameter.grad.abs().max()) > 1e-6 or name == "updater.key.bias", name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 2, 0), (0, 0, 0)])
def test_logits_are_normalised_as_by_a_batch_norm(lengths: tuple[int, ...], training: bool) -> None:
    """Output, gradients and running statistics, over the queries that there are."""
    torch.manual_seed(0)
    predictor, wanted = MaskPredictor(WIDTH).train(training), nn.BatchNorm2d(1, eps=1e-3, momentum=0.01).train(training)
    for norm in (predictor.norm_logits, wanted):
        with torch.no_grad():
            norm.weight.fill_(1.5), norm.bias.fill_(-0.25)
            norm.running_mean.fill_(0.3), norm.running_var.fill_(2.0)
    valid = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    given = Queries(torch.randn(3, 5, WIDTH) * valid[..., None], valid, sum(lengths))
    features = 3 * torch.randn(3, WIDTH, 2, 6, 9)
    values = given.values.clone().requires_grad_()
    logits, kernels = predictor(given.updated(values), features, None)
    assert torch.equal(logits.isfinite(), valid[..., None, None, None].expand_as(logits))
    if not sum(lengths):
        assert [float(norm.running_mean) for norm in (predictor.norm_logits, wanted)] == pytest.approx([0.3, 0.3])
        return
    plain = torch.einsum("bqc,bcdhw->bqdhw", kernels.detach(), features)[valid].requires_grad_()
    same = wanted(plain.reshape(1, 1, -1, 1)).flatten()
    torch.testing.assert_close(logits[valid].flatten(), same, rtol=1e-5, atol=1e-5)
    weights = torch.randn(same.shape)
    kept = torch.autograd.grad((logits[valid].flatten() * weights).sum(), [*predictor.norm_logits.parameters()])
    there = torch.autograd.grad((same * weights).sum(), [*wanted.parameters()])
    for a, b in zip((*kept, *predictor.norm_logits.buffers()), (*there, *wanted.buffers()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("refine", ["knet", "transformer"])
def test_only_agq_normalises_by_batches(refine: Refine) -> None:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    assert any(isinstance(module, norms) for module in Round("agq").modules())
    assert not any(isinstance(module, norms) for module in Round(refine).modules())


# Pooling


def test_pooling_by_masks_equals_a_loop() -> None:
    logits, features = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 4, 1, 2, 2)
    found = pool_by_masks(logits, features)
    for b, q in np.ndindex(2, 3):
        wanted = sum(
            logits[(b, slice(None), *p)].softmax(0)[q] * features[(b, slice(None), *p)] for p in np.ndindex(1, 2, 2)
        )
        torch.testing.assert_close(found[b, q], wanted)


def test_pooling_by_a_threshold_equals_a_loop_and_lets_no_gradient_through() -> None:
    logits, features = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 4, 1, 2, 2)
    logits[1, 2] = -torch.inf  # a query that the block lacks
    logits.requires_grad_()
    found = pool_by_threshold(logits, features)
    assert not found.requires_grad
    for b, q in np.ndindex(2, 3):
        wanted = torch.zeros(4)
        for p in np.ndindex(1, 2, 2):
            if float(logits[(b, q, *p)].detach().sigmoid()) > 0.5:
                wanted += features[(b, slice(None), *p)]
        torch.testing.assert_close(found[b, q], wanted)
    assert found.any()
    assert not found[1, 2].any()


# Attention


@pytest.mark.parametrize(("refine", "ratio", "activation"), [("agq", 4, "gelu"), ("knet", 8, "relu")])
def test_self_attention_is_torchs_own_layer(refine: Refine, ratio: int, activation: str) -> None:
    given, own = queries(), Round(refine).interactor
    assert isinstance(own, SelfAttention)
    wanted = nn.TransformerEncoderLayer(WIDTH, 8, ratio * WIDTH, 0.0, activation, batch_first=True)
    pairs = {
        "self_attn.in_proj_": own.c_attn,
        "self_attn.out_proj.": own.attn_proj,
        "linear1.": own.c_fc,
        "linear2.": own.mlp_proj,
        "norm1.": own.ln_1,
        "norm2.": own.ln_2,
    }
    wanted.load_state_dict({f"{name}{key}": v for name, part in pairs.items() for key, v in part.state_dict().items()})
    expected = wanted(given.values[:2], src_key_padding_mask=~given.valid[:2])
    found, there = own(given)[:2], given.valid[:2]
    torch.testing.assert_close(found[there], expected[there], rtol=1e-4, atol=1e-5)


def test_cross_attention_is_torchs_own_attention_to_averages_of_four_by_four() -> None:
    given, own = queries(), Round("transformer").updater
    assert isinstance(own, CrossAttention)
    logits, features = maps(given.valid)
    corners = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(0, 4), slice(8, 9))]
    corners += [(slice(4, 6), x) for _, x in corners]
    small = torch.stack([features[..., y, x].mean((-2, -1)) for y, x in corners], -1).unflatten(-1, (2, 3))
    wanted = nn.MultiheadAttention(WIDTH, 8, batch_first=True)
    with torch.no_grad():
        wanted.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        wanted.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
    wanted.out_proj.load_state_dict(own.proj.state_dict())
    keys = (small + position_code(small)).flatten(2).mT
    expected = own.norm(given.values + wanted(given.values, keys, small.flatten(2).mT)[0])
    torch.testing.assert_close(own(given.values, logits, features), expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_knows_where_features_are() -> None:
    given, own = queries(), Round("transformer").updater
    logits, features = maps(given.valid, (2, 8, 8))
    for axis in (-3, -2, -1):
        mirrored = own(given.values, logits, features.flip(axis))
        assert not torch.allclose(own(given.values, logits, features), mirrored, atol=1e-4)


@pytest.mark.parametrize("channels", [8, 16, 64])
def test_the_position_code_equals_a_loop(channels: int) -> None:
    shape, bands = (2, 3, 4), channels // 6
    found = position_code(torch.zeros(2, channels, *shape))
    assert found.shape == (channels, *shape)
    for place in np.ndindex(*shape):
        z, y, x = (-1 + 2 * i / (n - 1) for i, n in zip(place, shape, strict=True))
        rates = [32 ** (k / max(1, bands - 1)) for k in range(bands)]
        angles = [math.pi / 2 * rate * at for at in (z, x, y) for rate in rates]
        wanted = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        wanted += [0.0] * (channels - len(wanted))
        torch.testing.assert_close(found[(slice(None), *place)], torch.tensor(wanted), rtol=0, atol=1e-5)


def test_no_two_places_of_a_published_block_share_a_code() -> None:
    code = position_code(torch.zeros(1, 64, 17, 33, 33)).flatten(1).mT
    assert len(torch.unique((code * 100).round(), dim=0)) == 17 * 33 * 33


def test_the_position_code_of_one_section_is_finite() -> None:
    assert bool(position_code(torch.zeros(1, 8, 1, 1, 1)).isfinite().all())


# Kernels


@pytest.mark.parametrize("refine", ["knet", "transformer"])
def test_masks_are_plain_dot_products_and_the_prior_is_added(refine: Refine) -> None:
    given, own = queries(), Round(refine).predictor
    assert isinstance(own, DotPredictor)
    _, features = maps(given.valid)
    prior = torch.randn(3, 5, 2, 6, 9)
    logits, kernels = own(given, features, prior)
    for b, q in given.valid.nonzero().tolist():
        wanted = (kernels[b, q].view(-1, 1, 1, 1) * features[b]).sum(0) + prior[b, q]
        torch.testing.assert_close(logits[b, q], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kernels[b, q], own.kernel(given.values[b, q]))
