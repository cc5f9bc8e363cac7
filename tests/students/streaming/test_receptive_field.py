"""Receptive fields: against networks whose field is known, and what a tile may rely on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.streaming.receptive_field import ReceptiveField, has_global_context, receptive_field
from students.student import PairOutput, SectionFeatures, Student, without_padding

Build = Callable[..., Student]
SIDES = ("previous", "current", "half", "full")


class Plain(Student):
    """One layer, for one output and one section; the other outputs see their own pixel."""

    half_channels = full_channels = embedding_channels = 1

    def __init__(self, layer: nn.Module, *, stride: int = 2, output: str = "current", before: bool = False) -> None:
        super().__init__()
        self.layer, self.stride, self.output, self.before = layer, stride, output, before
        self.unit = nn.Parameter(torch.ones(1))

    def encode(self, section: Tensor) -> SectionFeatures:
        height, width = section.shape[-2:]
        return SectionFeatures((section * self.unit,), (height, width))

    def decode(self, previous: SectionFeatures, current: SectionFeatures) -> PairOutput:
        both = [previous.maps[0], current.maps[0]]
        maps = {"previous": both[0], "current": both[1], "half": F.avg_pool2d(both[1], 2), "full": both[1]}
        given = both[0] if self.before else both[1]
        maps[self.output] = self.layer(F.avg_pool2d(given, 2) if self.output == "half" else given)
        return without_padding(current.size, **maps)


class Pooled(nn.Module):
    """Mean over an axis, or over both."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(self.axes, keepdim=True)


def conv(kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> nn.Conv2d:
    return nn.Conv2d(1, 1, kernel, padding="same", dilation=dilation)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("output", ["previous", "current", "full"])
@pytest.mark.parametrize(
    ("kernel", "dilation", "radius"), [((1, 1), (1, 1), (0, 0)), ((3, 5), (1, 1), (1, 2)), ((5, 3), (3, 2), (6, 2))]
)
def test_a_convolution_sees_half_its_kernel(
    output: str, before: bool, kernel: tuple[int, int], dilation: tuple[int, int], radius: tuple[int, int]
) -> None:
    found = receptive_field(Plain(conv(kernel, dilation), output=output, before=before))
    assert found == ReceptiveField((max(radius[0], 1), max(radius[1], 1)))  # 1: the half map's pixel covers two
    assert found.extent == (2 * max(radius[0], 1) + 1, 2 * max(radius[1], 1) + 1)


@pytest.mark.parametrize(("size", "radius"), [(1, 1), (3, 3), (5, 5), (7, 7)])
def test_a_half_resolution_pixel_counts_as_the_pixels_it_covers(size: int, radius: int) -> None:
    # pixel j sees (j - size // 2) * 2 to (j + size // 2) * 2 + 1 and covers 2 j and 2 j + 1
    assert receptive_field(Plain(conv((size, size)), output="half")).radius == (radius, radius)


@pytest.mark.parametrize("stride", [4, 16, 32])
@pytest.mark.parametrize("place", ["first", "last"])
def test_the_worst_position_of_a_stride_counts(stride: int, place: str) -> None:
    """Every pixel of a stride gets what one of them holds: the furthest is stride - 1 pixels away."""
    corner = 0 if place == "first" else stride - 1
    shift = nn.ConstantPad2d((-corner, corner, -corner, corner), 0.0)
    layer = nn.Sequential(shift, nn.MaxPool2d(1, stride), nn.Upsample(scale_factor=stride))
    assert receptive_field(Plain(layer, stride=stride)).radius == (stride - 1, stride - 1)


@pytest.mark.parametrize("padding", [(10, 0, 0, 0), (0, 10, 0, 0)])
def test_either_side_counts(padding: tuple[int, int, int, int]) -> None:
    assert receptive_field(Plain(nn.Sequential(nn.ZeroPad2d(padding), nn.Conv2d(1, 1, (1, 11))))).radius == (1, 10)


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.GELU(), nn.ELU(), nn.BatchNorm2d(1)],
    ids=lambda layer: type(layer).__name__,
)
def test_nothing_on_the_way_loses_nan(layer: nn.Module) -> None:
    assert receptive_field(Plain(nn.Sequential(conv((7, 7)), layer))).radius == (3, 3)


@pytest.mark.parametrize(
    ("layer", "radius"),
    [
        (nn.MaxPool2d(3, 1, 1), 1),
        (nn.AvgPool2d(5, 1, 2), 2),
        (nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")), 2),
        (nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)), 2),
    ],
)
def test_pooling_and_upsampling(layer: nn.Module, radius: int) -> None:
    # bilinear doubling: 2 j sees j - 1 and j of the smaller map, 2 j + 1 sees j and j + 1; 2 j - 2 to 2 j + 3 in all
    assert receptive_field(Plain(layer)).radius == (radius, radius)


@pytest.mark.parametrize("axes", [(2, 3), (2,), (3,)])
def test_pooling_over_the_section_is_the_whole_section(axes: tuple[int, ...]) -> None:
    network = Plain(Pooled(*axes))
    assert has_global_context(network)
    assert receptive_field(network) == ReceptiveField(None)
    assert receptive_field(network).extent is None


def test_far_is_what_counts_as_the_whole_section() -> None:
    network = Plain(conv((1, 61)))
    assert receptive_field(network, far=128).radius == (1, 30)
    assert receptive_field(network, far=64).radius is None
    assert not has_global_context(network, far=128)
    assert has_global_context(network, far=64)


@pytest.mark.parametrize("name", ["tu-mobilenetv3_large_100", "efficientnet-b0", "mit_b0"])
def test_encoders_with_pooling_or_attention(student: Build, name: str) -> None:
    assert has_global_context(student(name), far=1024)
    assert receptive_field(student(name), far=1024).radius is None


def test_the_network_is_left_as_it_was(student: Build) -> None:
    network = copy.deepcopy(student("cad")).train().to(torch.bfloat16)
    network.up3_t.eval()
    before = {name: (value, value.clone()) for name, value in network.state_dict(keep_vars=True).items()}
    modes = [module.training for module in network.modules()]
    assert receptive_field(network) == receptive_field(student("cad"))
    assert not has_global_context(network)
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    for name, value in network.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert value.dtype == before[name][1].dtype
        assert torch.equal(value, before[name][1])


def support(network: Student, axis: int, length: int) -> list[int]:
    """Furthest distance that a pulse in one line spreads, for every position of a stride in the middle of a strip.

    With positive weights and no biases whatever depends on the pulse is positive and all else is zero.
    """
    positive = copy.deepcopy(network).double()
    with torch.no_grad():
        for name, value in [*positive.named_parameters(), *positive.named_buffers()]:
            if value.is_floating_point():
                value.zero_() if name.endswith(("bias", "running_mean")) else value.abs_().add_(0.1)
    blank = 0.0 if type(network).__name__ == "YShape" else 0.5  # the grey value that becomes 0
    furthest = []
    for place in range(length // 2, length // 2 + network.stride):
        shape = [1, 1, network.stride, network.stride]
        shape[axis] = length
        section = torch.full(shape, blank, dtype=torch.float64)
        section.select(axis, place).fill_(1.0)
        with torch.no_grad():
            pair = positive(section, section)
        for side in SIDES:
            lines = getattr(pair, side).movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
            scale = length // len(getattr(pair, side).movedim(axis, 0))
            assert int(lines[0]) > 0
            assert (int(lines[-1]) + 1) * scale < length
            furthest += [place - int(lines[0]) * scale, (int(lines[-1]) + 1) * scale - 1 - place]
    return furthest


@pytest.mark.parametrize(
    ("name", "depth", "lengths"), [("cad", 4, (256, 272)), ("tu-resnet10t", 3, (128,)), ("tu-regnetx_002", 3, (128,))]
)
def test_the_measured_field_is_the_support_of_a_positive_network(
    student: Build, name: str, depth: int, lengths: tuple[int, ...]
) -> None:
    """Also where upsampling has other weights in a map of another size."""
    network = student(name, depth)
    found = receptive_field(network).radius
    for length in lengths:
        assert found == (max(support(network, -2, length)), max(support(network, -1, length)))


def strip(network: Student, length: int, axis: int, seed: int) -> Tensor:
    noise = torch.rand(1, 1, network.stride, length, generator=torch.Generator().manual_seed(seed))
    return noise if axis == -1 else noise.transpose(2, 3)


@cache
def radius_of(network: Student) -> tuple[int, int]:
    found = receptive_field(network).radius
    assert found is not None
    return found


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("name", ["cad", "tu-resnet10t"])
def test_pixels_beyond_the_radius_change_nothing(student: Build, name: str, axis: int) -> None:
    network, radius = copy.deepcopy(student(name)).double(), radius_of(student(name))[axis]
    first, last, length = 144, 160, 304
    sections = [strip(network, length, axis, seed).double() for seed in range(2)]
    others = [part.clone() for part in sections]
    for part in others:
        part.narrow(axis, first, last - first).mul_(100)
    with torch.no_grad():
        plain, found = network(*sections), network(*others)
    for side in SIDES:
        scale = 2 if side == "half" else 1
        before, after = (first - radius) // scale, -(-(last + radius) // scale)
        for start, stop in ((0, before), (after, length // scale)):
            a, b = (getattr(pair, side).narrow(axis, start, stop - start) for pair in (plain, found))
            assert stop > start
            assert torch.equal(a, b)
        a, b = (getattr(pair, side).narrow(axis, first // scale, 1) for pair in (plain, found))
        assert not torch.equal(a, b)


def tile_and_section(
    network: Student, axis: int, first: int, last: int, radius: int
) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs where a tile's borders are further away than the radius, from the tile and from the section."""
    sections = [strip(network, 448, axis, seed).to(next(network.parameters())) for seed in range(2)]
    with torch.no_grad():
        whole = network(*sections)
        tile = network(*(part.narrow(axis, first, last - first) for part in sections))
    ours, theirs = [], []
    for side in SIDES:
        scale = 2 if side == "half" else 1
        start, stop = -(-(first + radius) // scale), (last - radius) // scale
        ours.append(getattr(tile, side).narrow(axis, start - first // scale, stop - start))
        theirs.append(getattr(whole, side).narrow(axis, start, stop - start))
    return ours, theirs


TILED = [("tu-resnet10t", 4, 1), ("tu-resnet10t", 3, 0), ("tu-regnetx_002", 3, 2)]


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize(("name", "depth", "fuse"), TILED)
def test_a_tile_agrees_with_the_section_further_inside_than_the_radius(
    student: Build, name: str, depth: int, fuse: int, axis: int
) -> None:
    single, radius = student(name, depth, fuse), radius_of(student(name, depth, fuse))[axis]
    network = copy.deepcopy(single).double()
    for given, tolerance in ((single, 1e-5), (network, 1e-12)):
        for ours, theirs in zip(*tile_and_section(given, axis, 96, 352, radius), strict=True):
            assert ours.numel() > 0
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    at_the_border = tile_and_section(network, axis, 96, 352, 0)
    off_the_stride = tile_and_section(network, axis, 95, 351, radius)
    for found in (at_the_border, off_the_stride):
        assert not any(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize(("name", "radius"), [("cad", 122), ("efficientnet-b0", 64)])
def test_where_a_tile_does_not_agree(student: Build, name: str, radius: int) -> None:
    """Aligned corners weigh by the map's size, squeeze-excitation by its mean."""
    network = copy.deepcopy(student(name)).double()
    for ours, theirs in zip(*tile_and_section(network, -1, 160, 416, radius), strict=True):
        assert ours.numel() > 0
        assert not torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
