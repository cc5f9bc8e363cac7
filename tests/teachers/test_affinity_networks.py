"""Networks of the poster's other rows: sizes, odd blocks, what makes each the network that it is named after."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from distill.config import TeacherConfig
from distill.config.teacher_kinds import OWN_HEAD
from distill.core.affinity import distance_affinity, embedding_affinity, half_resolution
from distill.models.build import build_teacher
from teachers.backbones.mala_unet import MalaUNet
from teachers.backbones.residual_unet import AnisotropicUNet, SqueezeExcitation
from teachers.lsd import LSDTeacher
from teachers.ml_de import MLDETeacher
from teachers.pea import PEATeacher
from teachers.teacher import Teacher

NEW = ("inflated", "resunet", "seunet", "pea", "mala", "lsd", "ml-de")
SHAPES = [(5, 33, 40), (1, 17, 23), (2, 16, 9), (1, 1, 1)]
SYMMETRIC, FUNKE = (28, 36, 48, 64, 80), (12, 60, 300, 1500)
Build = Callable[..., Teacher]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("new", NEW)
def test_outputs_have_the_size_of_any_block(new: str, shape: tuple[int, int, int], tiny_teacher: Build) -> None:
    depth, height, width = shape
    found = tiny_teacher(new)(torch.rand(2, 1, *shape))
    half = (depth, -(-height // 2), -(-width // 2))
    assert found.embedding.shape == (2, 4, *shape)
    assert found.decoder_input.features.shape == (2, 8, *half)
    assert found.decoder_input.affinity_logits.shape == (2, 3, *half)
    assert (found.affinity_logits is not None) == (new in OWN_HEAD)
    if found.affinity_logits is not None:
        assert found.affinity_logits.shape == (2, 3, *shape)


@pytest.mark.parametrize("new", NEW)
def test_a_network_is_deterministic(new: str, tiny_teacher: Build) -> None:
    x = torch.rand(1, 1, 3, 20, 21)
    first, second = tiny_teacher(new)(x), tiny_teacher(new)(x)
    assert torch.equal(first.embedding, second.embedding)
    assert torch.equal(first.decoder_input.affinity_logits, second.decoder_input.affinity_logits)


@pytest.mark.parametrize("head_kind", ["resunet", "seunet", "mala", "lsd"])
def test_the_decoder_gets_the_head_at_half_resolution(head_kind: str, tiny_teacher: Build) -> None:
    found = tiny_teacher(head_kind)(torch.rand(1, 1, 3, 12, 10))
    share = found.affinity_logits.sigmoid()
    share[:, 0, 0], share[:, 1, :, 0], share[:, 2, :, :, 0] = 0, 0, 0  # edges that leave the block
    wanted = half_resolution(share).clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(found.decoder_input.affinity_logits.sigmoid(), wanted, rtol=1e-4, atol=1e-5)


def conv(inputs: int, outputs: int, voxels: int, *, bias: bool = False) -> int:
    return voxels * inputs * outputs + (outputs if bias else 2 * outputs)  # with the two vectors of a norm


def residual_unet(f: tuple[int, ...] = SYMMETRIC, *, squeeze: bool = False) -> int:
    voxels = (9, 9, 9, 27, 27)
    gates = [2 * c * (c // 4) if squeeze else 0 for c in f]
    blocks = [2 * conv(c, c, v) + gate for c, v, gate in zip(f, voxels, gates, strict=True)]
    down = sum(conv(i, o, v) for i, o, v in zip([f[0], *f[:-1]], f, voxels, strict=True)) + sum(blocks)
    up = sum(conv(f[j + 1], f[j], voxels[j + 1]) + blocks[j] for j in range(4))
    return conv(1, f[0], 25) + conv(f[0], f[0], 25) + down + up


def mala_unet(f: tuple[int, ...] = FUNKE, inputs: int = 1) -> int:
    widths = [inputs, *f]
    down = sum(conv(i, o, 27, bias=True) + conv(o, o, 27, bias=True) for i, o in pairwise(widths))
    up = sum(conv(2 * c, c, 27, bias=True) + conv(c, c, 27, bias=True) for c in f[:-1])
    return down + up + sum(conv(deep, fine, 1, bias=True) for fine, deep in pairwise(f))


def head(channels: int, embedding: int = 16, affinity: int = 3) -> int:
    return (
        conv(channels, affinity, 1, bias=True) * bool(affinity)
        + conv(channels, embedding, 1, bias=True)
        + conv(channels, 64, 1)
    )


@pytest.mark.parametrize(
    ("values", "wanted", "millions"),
    [
        ({"kind": "resunet"}, residual_unet() + head(28), 1.470),
        ({"kind": "seunet"}, residual_unet(squeeze=True) + head(28), 1.482),
        ({"kind": "ml-de"}, residual_unet() + head(28, affinity=0), 1.470),
        ({"kind": "pea"}, 1_512_444 + sum(conv(c, 16, 1, bias=True) for c in (36, 48)), 1.514),
        ({"kind": "mala"}, mala_unet() + head(12), 84.04),
        ({"kind": "lsd"}, mala_unet() + conv(12, 10, 1, bias=True) + head(12), 84.04),
        (
            {"kind": "lsd", "lsd": {"auto_context": "descriptors+grey"}},
            mala_unet() + mala_unet(inputs=11) + conv(12, 10, 1, bias=True) + head(12),
            168.1,
        ),
    ],
)
def test_the_published_width_builds(values: dict[str, Any], wanted: int, millions: float) -> None:
    with torch.device("meta"):
        found = sum(p.numel() for p in build_teacher(TeacherConfig.model_validate(values)).parameters())
    assert found == wanted
    assert found / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_scales_of_the_residual_network(shape: tuple[int, int, int]) -> None:
    depth, height, width = shape
    filters = (3, 4, 5, 6, 7)
    levels = AnisotropicUNet(filters).eval()(torch.rand(1, 1, *shape))
    sizes = [(-(-depth // z), -(-height // yx), -(-width // yx)) for z, yx in ((1, 1), (1, 2), (1, 4), (2, 8), (4, 16))]
    assert [tuple(level.shape[1:]) for level in levels] == [(f, *s) for f, s in zip(filters, sizes, strict=True)]


@torch.no_grad()
def test_a_gate_depends_on_the_means_of_the_block_only() -> None:
    torch.manual_seed(0)
    gate, x = SqueezeExcitation(8), torch.rand(2, 8, 3, 5, 6) + 0.5 * torch.arange(1, 3).view(2, 1, 1, 1, 1)
    shuffled = x.flatten(2)[..., torch.randperm(90)].view_as(x)
    torch.testing.assert_close(
        gate(x) / x, (gate(shuffled) / shuffled).flatten(2)[..., :1].view(2, 8, 1, 1, 1).expand_as(x)
    )
    share = gate(x) / x
    assert float(share.min()) > 0
    assert float(share.max()) < 1
    assert not torch.allclose(share[0], share[1])


def test_the_scales_of_mala_are_thirds() -> None:
    levels = MalaUNet((3, 4, 5, 6))(torch.rand(1, 1, 2, 28, 27))
    assert [tuple(level.shape[1:]) for level in levels] == [(3, 2, 28, 27), (4, 2, 10, 9), (5, 2, 4, 3), (6, 2, 2, 1)]


def test_mala_joins_skip_and_upsampled_channels() -> None:
    torch.manual_seed(0)
    network, x = MalaUNet((3, 4, 5, 6)), torch.rand(1, 1, 2, 9, 9)
    levels = network(x)
    skip = network.down[0](x)
    coarse = network.reduce[0](levels[1])
    risen = torch.nn.functional.interpolate(coarse, scale_factor=(1, 3, 3), mode="nearest")
    torch.testing.assert_close(levels[0], network.up[0](torch.cat([skip, risen], 1)))


@pytest.mark.parametrize(("auto_context", "inputs"), [("descriptors", 10), ("descriptors+grey", 11)])
def test_auto_context_passes_descriptors_without_gradient(auto_context: Any, inputs: int) -> None:
    torch.manual_seed(0)
    network = LSDTeacher(filters=(3, 4, 4, 4), auto_context=auto_context, fused=8, embedding=4)
    assert network.second is not None
    assert network.second.down[0][0].weight.shape[1] == inputs
    found = network(torch.rand(1, 1, 2, 9, 9))
    found.affinity_logits.sum().backward()
    assert all(p.grad is None for p in network.network.parameters())
    assert any(bool(p.grad.any()) for p in network.second.parameters() if p.grad is not None)
    found = network(torch.rand(1, 1, 2, 9, 9))
    assert found.extra[0].shape == (1, 10, 2, 9, 9)
    found.extra[0].sum().backward()
    assert any(bool(p.grad.any()) for p in network.network.parameters() if p.grad is not None)


def test_pea_embeds_its_coarser_maps() -> None:
    network = PEATeacher(filters=(4, 5, 6, 7, 8), scales=3, fused=8, embedding=4).eval()
    found = network(torch.rand(2, 1, 3, 17, 20))
    assert [tuple(one.shape) for one in found.extra] == [(2, 4, 3, 9, 10), (2, 4, 3, 5, 5), (2, 4, 3, 3, 3)]
    torch.testing.assert_close(found.extra[1], network.pyramid[1](found.levels[2]))
    assert PEATeacher(filters=(4,) * 5, scales=0, fused=8, embedding=4)(torch.rand(1, 1, 2, 32, 32)).extra == ()


def test_ml_de_takes_affinities_from_distances() -> None:
    torch.manual_seed(0)
    network = MLDETeacher(filters=(4,) * 5, push=0.7, fused=8, embedding=4).eval()
    found = network(torch.rand(1, 1, 3, 12, 12))
    wanted = distance_affinity(found.embedding, 1.4)
    torch.testing.assert_close(found.affinity_logits.sigmoid(), wanted.clamp(1e-3, 1 - 1e-3), rtol=1e-4, atol=1e-5)


def test_distance_affinity_by_hand() -> None:
    embedding = torch.tensor([0.0, 1.0, 1.0, 9.0]).view(1, 1, 1, 1, 4).double().requires_grad_()
    found = distance_affinity(embedding, 4.0)
    torch.testing.assert_close(
        found[0, 2, 0, 0], torch.tensor([0.0, 0.75**2, 1.0, 0.0], dtype=torch.double), rtol=0, atol=1e-6
    )
    assert not found[0, :2].any()
    found.sum().backward()
    assert bool(embedding.grad.isfinite().all())  # type: ignore[union-attr]


def test_cosines_between_two_embeddings() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2, 4, 4)
    offsets = ((-1, 0, 0), (0, 0, 2))
    found = embedding_affinity(one, offsets, clamp=False, other=two)
    wanted = torch.nn.functional.cosine_similarity(one[:, :, 1], two[:, :, 0])
    torch.testing.assert_close(found[:, 0, 1], wanted)
    wanted = torch.nn.functional.cosine_similarity(one[..., :2], two[..., 2:])
    torch.testing.assert_close(found[:, 1, ..., :2], wanted)
    assert not found[:, 1, ..., 2:].any()
    torch.testing.assert_close(embedding_affinity(one, offsets, other=one), embedding_affinity(one, offsets))
