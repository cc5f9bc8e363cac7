"""The adapter from sections to the shared decoder's input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.core.affinity import half_resolution
from students.slab_adapter import SlabAdapter


def adapter() -> SlabAdapter:
    torch.manual_seed(0)
    return SlabAdapter(half=4, full=6, features=16).eval()


def sections(count: int, height: int = 11, width: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(count, 4, (height + 1) // 2, (width + 1) // 2, generator=generator)
    full = torch.randn(count, 6, height, width, generator=generator)
    return half, full, torch.rand(count, 3, height, width, generator=generator)


@pytest.mark.parametrize("size", [(10, 14), (11, 14), (7, 5), (1, 1)])
def test_section_by_section_equals_the_batch(size: tuple[int, int]) -> None:
    network, given = adapter(), sections(6, *size)
    with torch.no_grad():
        whole = network(*given, 3)
        rows = [network.section(*(part[n : n + 1] for part in given)) for n in range(6)]
    assert whole.features.shape == (2, 16, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    for b in range(2):
        mixed, logits = (torch.stack([row[i][0] for row in rows[3 * b : 3 * b + 3]], 1)[None] for i in range(2))
        with torch.no_grad():
            alone = network.slab(mixed, logits)
        torch.testing.assert_close(alone.features, whole.features[b : b + 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.affinity_logits, whole.affinity_logits[b : b + 1])


def test_logits_are_those_of_the_halved_affinities() -> None:
    half, full, affinity = sections(2)
    affinity[0, 0] = 0
    affinity[0, 1] = 1
    _, logits = adapter().section(half, full, affinity)
    torch.testing.assert_close(logits.sigmoid(), half_resolution(affinity).clamp(1e-3, 1 - 1e-3))
    assert bool(logits.isfinite().all())


def test_features_see_the_three_inputs_and_the_neighbouring_sections() -> None:
    network, given = adapter(), sections(5)
    plain = network(*given, 5).features
    for part in range(3):
        changed = [tensor.clone() for tensor in given]
        changed[part][2] = 1 - changed[part][2]
        found = network(*changed, 5).features
        moved = [not torch.equal(found[:, :, z], plain[:, :, z]) for z in range(5)]
        assert moved[1:4] == [True, True, True]


def test_within_is_a_convolution_of_all_channels() -> None:
    network, (half, full, affinity) = adapter(), sections(2)
    pooled = F.avg_pool2d(full, 2, ceil_mode=True, count_include_pad=False)
    joined = torch.cat([half, pooled, half_resolution(affinity)], 1)
    weight = network.within[0].weight[:, :, 0]
    mixed = F.conv2d(F.pad(joined, (1, 1, 1, 1), mode="replicate"), weight)
    wanted = F.elu(F.group_norm(mixed, 8, network.within[1].weight, network.within[1].bias))
    torch.testing.assert_close(network.section(half, full, affinity)[0], wanted, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_student_through_features_and_affinities() -> None:
    given = [part.requires_grad_() for part in sections(4)]
    found = adapter()(*given, 2)
    (found.features.square().sum() + found.affinity_logits.square().sum()).backward()
    assert all(part.grad is not None and bool(part.grad.any()) for part in given)
