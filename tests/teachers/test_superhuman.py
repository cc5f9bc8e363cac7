"""The residual symmetric 3D U-Net: its scales, its size, and that it does not care where a block lies."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from teachers.superhuman import ResidualModule, SuperHumanTeacher

FILTERS = (3, 4, 5, 6, 7)


def teacher(embedding: int = 4) -> SuperHumanTeacher:
    torch.manual_seed(0)
    network = SuperHumanTeacher(filters=FILTERS, fused=8, embedding=embedding)
    with torch.no_grad():  # statistics as after training, so that no norm is the identity
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.eval()


@pytest.mark.parametrize("shape", [(5, 33, 40), (1, 17, 23), (2, 16, 9), (1, 1, 1)])
def test_the_scales_of_any_block(shape: tuple[int, int, int]) -> None:
    levels = teacher()(torch.rand(2, 1, *shape)).levels
    depth, height, width = shape
    wanted = [(2, f, depth, -(-height // 2**j), -(-width // 2**j)) for j, f in enumerate(FILTERS)]
    assert [tuple(level.shape) for level in levels] == wanted


def module_size(inputs: int, outputs: int) -> int:
    """Three convolutions without bias, each with the two vectors of its norm."""
    return 9 * inputs * outputs + 2 * 27 * outputs**2 + 3 * 2 * outputs


def test_the_published_network_has_its_size() -> None:
    f, fused, embedding = (28, 36, 48, 64, 80), 64, 16
    ends = (25 * 1 * f[0] + 2 * f[0]) + (25 * f[0] * f[0] + 2 * f[0])
    down = module_size(f[0], f[0]) + sum(module_size(a, b) for a, b in pairwise(f))
    up = sum(module_size(a, a) + 4 * a * b + a for a, b in pairwise(f))
    head = (f[0] * embedding + embedding) + (f[0] * fused + 2 * fused)
    found = sum(p.numel() for p in SuperHumanTeacher().parameters())
    assert found == ends + down + up + head
    assert found / 1e6 == pytest.approx(1.512, abs=0.001)


def test_a_residual_module_carries_its_first_convolution() -> None:
    module = ResidualModule(3, 5).eval()
    torch.nn.init.zeros_(module.second[1].weight)
    x = torch.randn(1, 3, 2, 6, 7)
    wanted = F.conv3d(F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"), module.enter[0].weight) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(module(x), F.elu(F.elu(wanted)), rtol=1e-4, atol=1e-5)


def test_skip_connections_add() -> None:
    network, x = teacher(), torch.rand(1, 1, 3, 17, 20)
    levels = network(x).levels
    for rise in network.rise:
        torch.nn.init.zeros_(rise.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(rise.bias)  # type: ignore[arg-type]
    alone = network(x).levels
    entered = network.down[0](network.enter(x))
    torch.testing.assert_close(alone[0], network.leave(network.up[0](entered)))
    second = network.down[1](F.max_pool3d(F.pad(entered, (0, 0, 0, 1, 0, 0), mode="replicate"), (1, 2, 2)))
    torch.testing.assert_close(alone[1], network.up[1](second))
    assert not torch.allclose(levels[0], alone[0], atol=1e-2)
    torch.testing.assert_close(levels[4], alone[4])


@pytest.mark.parametrize(("start", "width"), [(0, 384), (0, 377), (32, 384), (64, 384)])
def test_the_embedding_inside_does_not_depend_on_where_the_block_lies(start: int, width: int) -> None:
    network, margin = teacher(), 150
    wide = torch.rand(1, 1, 2, 16, 448)
    with torch.no_grad():
        whole, part = network(wide), network(wide[..., start : start + width])
    assert whole.embedding is not None
    assert part.embedding is not None
    inner = part.embedding[..., margin : width - margin]
    same = whole.embedding[..., start + margin : start + width - margin]
    torch.testing.assert_close(inner, same, rtol=1e-4, atol=1e-5)
    assert float((part.embedding[..., :8] - whole.embedding[..., start : start + 8]).abs().max()) > 1e-4 or not start
    logits = part.decoder_input.affinity_logits[..., 75:110]
    wanted = whole.decoder_input.affinity_logits[..., start // 2 + 75 : start // 2 + 110]
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


def test_the_same_along_z() -> None:
    network, margin = teacher(), 18  # nine modules of two 3D convolutions each
    deep = torch.rand(1, 1, 46, 16, 16)
    with torch.no_grad():
        whole, part = network(deep).embedding, network(deep[:, :, 5:44]).embedding
    torch.testing.assert_close(part[:, :, margin:-margin], whole[:, :, 5 + margin : 44 - margin], rtol=1e-4, atol=1e-5)
