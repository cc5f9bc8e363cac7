"""What every kind of teacher gives; the head of the embedding networks; blocks brought to whole patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.core.affinity import NEAREST
from teachers.teacher import EmbeddingHead, Teacher, extended

Build = Callable[..., Teacher]
SHAPES = [(1, 17, 23), (5, 33, 40), (17, 65, 65)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(tiny_teacher: Build, kind: str, shape: tuple[int, int, int]) -> None:
    network = tiny_teacher(kind)
    with torch.no_grad():
        found = network(torch.rand(2, 1, *shape))
    depth, height, width = shape
    half = (depth, (height + 1) // 2, (width + 1) // 2)
    assert found.decoder_input.features.shape == (2, 8, *half)
    assert found.decoder_input.affinity_logits.shape == (2, 3, *half)
    assert network.embedding_channels == 4
    assert found.embedding.shape == (2, 4, *shape)
    assert found.levels[0].shape[-3:] == shape
    for given_out in (found.decoder_input.features, found.decoder_input.affinity_logits, found.embedding):
        assert bool(given_out.isfinite().all())


def test_gradients_reach_every_parameter(tiny_teacher: Build, kind: str) -> None:
    network = tiny_teacher(kind).train()
    found = network(torch.rand(2, 1, 5, 33, 40))
    parts = (found.embedding, found.decoder_input.affinity_logits, found.decoder_input.features, *found.extra)
    torch.stack([(part * torch.rand_like(part)).sum() for part in parts]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_blocks_of_a_batch_do_not_mix(tiny_teacher: Build, kind: str) -> None:
    network, x = tiny_teacher(kind), torch.rand(3, 1, 3, 33, 40)
    with torch.no_grad():
        together, alone = network(x), network(x[1:2])
    torch.testing.assert_close(together.embedding[1:2], alone.embedding, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.decoder_input.features[1:2], alone.decoder_input.features, rtol=1e-4, atol=1e-4)


def test_sections_see_each_other(tiny_teacher: Build, kind: str) -> None:
    network = tiny_teacher(kind)
    x = torch.rand(1, 1, 5, 32, 32, requires_grad=True)
    (network(x).embedding[:, :, 2] * torch.rand(4, 32, 32)).sum().backward()
    assert x.grad is not None
    assert bool((x.grad[0, 0, [1, 3]].abs().amax((1, 2)) > 0).all())


def test_half_precision_stays_close(tiny_teacher: Build, kind: str) -> None:
    network, x = tiny_teacher(kind), torch.rand(1, 1, 3, 33, 40)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(x)
    scale = float(full.embedding.abs().mean())
    assert float((half.embedding.float() - full.embedding).abs().mean()) < 0.03 * scale


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (2, 7, 6)])
def test_the_heads_affinities_are_the_embeddings_cosines(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(6, embedding=3, fused=8)
    finest = torch.randn(2, 6, *shape)
    found = head([finest])
    embedding = found.embedding.double().detach().numpy()
    depth, height, width = shape
    full = np.zeros((2, 3, *shape))
    for (b, k, z, y, x), _ in np.ndenumerate(full):
        to = np.array([z, y, x]) + NEAREST[k]
        if (to >= 0).all():
            one, two = embedding[b, :, z, y, x], embedding[b, :, to[0], to[1], to[2]]
            full[b, k, z, y, x] = max(0.0, one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    logits = found.decoder_input.affinity_logits
    for (b, k, z, y, x), logit in np.ndenumerate(logits.detach().numpy()):
        mean = full[b, k, z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean().clip(1e-3, 1 - 1e-3)
        assert logit == pytest.approx(math.log(mean / (1 - mean)), abs=2e-3)
    assert logits.shape == (2, 3, depth, (height + 1) // 2, (width + 1) // 2)


def test_the_heads_features_come_from_two_by_two_means() -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(5, embedding=2, fused=16)
    coarse = torch.randn(2, 5, 3, 4, 6)
    fine = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    noise = torch.randn_like(fine)
    noise -= torch.nn.functional.avg_pool3d(noise, (1, 2, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2)
    found = head([fine + noise]).decoder_input.features
    torch.testing.assert_close(found, head.project(coarse), rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 16, 3, 4, 6)


sizes = st.tuples(*[st.integers(1, 9)] * 3)
steps: Any = st.tuples(*[st.sampled_from([1, 2, 4])] * 3)


@given(sizes, steps, st.tuples(*[st.integers(0, 3)] * 3))
def test_extended_repeats_the_last_and_keeps_the_rest(shape: Any, step: Any, more: Any) -> None:
    volume = torch.from_numpy(np.random.default_rng(0).random((1, 2, *shape)))
    least = tuple(max(1, s * m) for s, m in zip(step, more, strict=True))
    found = extended(volume, step, least).numpy()
    grown = found.shape[-3:]
    for size, n, s, low in zip(grown, shape, step, least, strict=True):
        assert size % s == 0 or low == 1 == s
        assert size >= low
        assert size < n + s or size == low
    index = np.ix_(*(np.minimum(np.arange(g), n - 1) for g, n in zip(grown, shape, strict=True)))
    np.testing.assert_array_equal(found[0, 1], volume.numpy()[0, 1][index])
