"""The residual 3D U-Net: its scales and its residual blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from teachers.backbones.unet3d import ResidualBlock, ResidualUNet3d, conv_block

FILTERS = (8, 16, 8, 24, 16)


def halves(n: int, times: int) -> int:
    for _ in range(times):
        n = -(-n // 2)
    return n


@pytest.mark.parametrize("shape", [(9, 33, 33), (5, 30, 41), (1, 17, 17), (2, 16, 9), (1, 1, 1)])
def test_the_scales_of_any_block(shape: tuple[int, int, int]) -> None:
    levels = ResidualUNet3d(FILTERS).eval()(torch.rand(2, 1, *shape))
    depth, height, width = shape
    wanted = [(2, f, halves(depth, max(0, j - 2)), halves(height, j), halves(width, j)) for j, f in enumerate(FILTERS)]
    assert [tuple(level.shape) for level in levels] == wanted
    assert all(bool(level.isfinite().all()) for level in levels)


def test_the_published_backbone_has_its_names() -> None:
    names = set(ResidualUNet3d(FILTERS).state_dict())
    assert {"conv_in.0.weight", "down_layers.4.0.0.weight", "down_layers.0.1.conv.1.0.weight"} <= names
    assert "up_layers.3.0.0.weight" in names
    assert not any(name.startswith("up_layers.4") for name in names)


def test_a_residual_block_adds_its_input() -> None:
    block = ResidualBlock(8)
    torch.nn.init.zeros_(block.conv[1][1].weight)
    x = torch.randn(1, 8, 2, 5, 6)
    assert torch.equal(block(x), F.elu(x))


def test_a_block_is_convolution_norm_and_elu() -> None:
    block, x = conv_block(3, 8, (3, 3, 3), (2, 2, 2)), torch.randn(1, 3, 5, 6, 7)
    wanted = F.conv3d(F.pad(x, (1,) * 6, mode="replicate"), block[0].weight, stride=2)
    torch.testing.assert_close(block(x), F.elu(F.group_norm(wanted, 8)), rtol=1e-4, atol=1e-5)


def test_the_fine_map_feels_the_whole_block() -> None:
    network = ResidualUNet3d(FILTERS).eval()
    x = torch.rand(1, 1, 5, 33, 33, requires_grad=True)
    network(x)[0][0, :, 0, 0, 0].square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad[0, 0, 4, 32].any())
