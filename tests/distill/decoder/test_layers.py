"""The shared network parts against torch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.decoder.layers import Conv, ConvStack, coordinates, resize

Triple = tuple[int, int, int]
KERNELS = [(1, 3, 3), (3, 3, 3), (1, 5, 5), (1, 1, 1), (3, 1, 1)]
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_is_torchs_with_replicate_padding(kernel: Triple, stride: Triple, bias: bool) -> None:
    padding = tuple(k // 2 for k in kernel)
    theirs = nn.Conv3d(3, 4, kernel, stride, padding=padding, padding_mode="replicate", bias=bias)
    ours = Conv(3, 4, kernel, stride, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    for shape in ((5, 7, 8), (1, 5, 4), (2, 1, 1)):
        x = torch.randn(2, 3, *shape)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_conv_of_a_strided_input_and_its_gradient(kernel: Triple) -> None:
    padding = tuple(k // 2 for k in kernel)
    theirs = nn.Conv3d(2, 3, kernel, padding=padding, padding_mode="replicate").double()
    ours = Conv(2, 3, kernel, bias=True).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, 6, 5, 2, dtype=torch.float64).permute(0, 4, 2, 3, 1).requires_grad_()
    wanted = torch.autograd.grad(theirs(x).square().sum(), [x, theirs.weight])
    found = torch.autograd.grad(ours(x).square().sum(), [x, ours.weight])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(3, 7, 5), (3, 3, 2), (5, 7, 9), (2, 4, 5), (3, 4, 5)])
def test_resize_is_trilinear(size: Triple, align_corners: bool) -> None:
    x = torch.randn(2, 3, 3, 4, 5)
    wanted = F.interpolate(x, size, mode="trilinear", align_corners=align_corners)
    torch.testing.assert_close(resize(x, size, align_corners=align_corners), wanted, rtol=1e-5, atol=1e-5)


def test_coordinates_go_from_minus_one_to_one_in_the_order_z_x_y() -> None:
    found = coordinates(torch.zeros(2, 7, 3, 4, 5, dtype=torch.float64))
    assert found.shape == (2, 3, 3, 4, 5)
    assert found.dtype == torch.float64
    for b, z, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        wanted = torch.tensor([-1 + z, -1 + x / 2, -1 + 2 * y / 3], dtype=torch.float64)
        torch.testing.assert_close(found[b, :, z, y, x], wanted)


def test_coordinates_of_one_section() -> None:
    assert bool((coordinates(torch.zeros(1, 1, 1, 2, 2))[:, 0] == -1).all())


def test_conv_stack_is_convolutions_and_elus_then_a_projection() -> None:
    stack = ConvStack(3, 4, 2, 5, kernel=(1, 3, 3))
    x = torch.randn(1, 3, 2, 4, 5)
    wanted = x
    for conv in stack.convs:
        wanted = F.elu(F.conv3d(F.pad(wanted, (1, 1, 1, 1, 0, 0), mode="replicate"), conv.weight))
    wanted = F.conv3d(wanted, stack.projection.weight, stack.projection.bias)
    torch.testing.assert_close(stack(x), wanted)
    assert [name for name, _ in stack.named_parameters()] == [
        "convs.0.weight",
        "convs.1.weight",
        "projection.weight",
        "projection.bias",
    ]


def test_conv_stack_without_layers_is_the_projection() -> None:
    stack = ConvStack(3, 4, 0, 5, kernel=(1, 3, 3))
    assert stack.projection.weight.shape == (5, 3, 1, 1, 1)
    assert stack(torch.zeros(1, 3, 1, 2, 2)).shape == (1, 5, 1, 2, 2)


@pytest.mark.parametrize(("stride", "lines"), [((1, 1, 1), 40), ((1, 2, 2), 40), ((1, 2, 2), 41), ((1, 1, 1), 90)])
def test_lines_added_for_fast_kernels_change_nothing(stride: tuple[int, int, int], lines: int) -> None:
    torch.manual_seed(0)
    layer = Conv(32, 4, (3, 3, 3), stride, bias=True)
    x = torch.randn(1, 32, 6, lines, 9, requires_grad=True, device="cpu")
    found = layer(x)
    grown = torch.autograd.grad(found.square().sum(), [x, layer.weight])
    padded = torch.nn.functional.pad(x.double(), (1,) * 6, mode="replicate")
    weight, bias = layer.weight.double(), layer.bias.double()
    wanted = torch.nn.functional.conv3d(padded, weight, bias, stride)
    expected = torch.autograd.grad(wanted.square().sum(), [x, layer.weight])
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(grown, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
