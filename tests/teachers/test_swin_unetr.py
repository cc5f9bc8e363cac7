"""Swin UNETR with strides in the section: a single section runs as MONAI's 2D network does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from teachers.swin_unetr import SectionMerging, SwinUNETRTeacher

pytestmark = pytest.mark.usefixtures("monai")
WINDOW = 3


def teacher() -> SwinUNETRTeacher:
    torch.manual_seed(0)
    network = SwinUNETRTeacher(
        features=12, depths=(1, 2, 1, 1), heads=(1, 2, 4, 4), window=(WINDOW,) * 3, fused=8, embedding=4
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 1)
    return network.eval()


def in_section(value: Tensor, like: Tensor) -> Tensor:
    """A parameter's part that acts in a section alone: a kernel's middle, the relative positions without z."""
    if value.ndim == 5:
        return value[:, :, value.shape[2] // 2]
    if value.shape != like.shape:
        planes = 2 * WINDOW - 1
        return value.view(planes, planes**2, -1)[WINDOW - 1]
    return value


@pytest.mark.parametrize("shape", [(64, 64), (96, 128)])
def test_one_section_is_monais_2d_network(shape: tuple[int, int]) -> None:
    from monai.networks.nets import SwinUNETR

    own = teacher()
    theirs = SwinUNETR(
        1, 1, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 4), window_size=WINDOW, feature_size=12, spatial_dims=2
    )
    theirs.out = nn.Identity()
    state = theirs.state_dict()
    values = [value for name, value in own.state_dict().items() if not name.startswith("head.")]
    named = [(n, v) for n, v in zip(state, values, strict=True) if not n.endswith("relative_position_index")]
    theirs.load_state_dict({**state, **{name: in_section(value, state[name]) for name, value in named}})
    x = torch.rand(2, 1, 1, *shape)
    with torch.no_grad():
        found, wanted = own(x).levels[0], theirs.eval()(2 * x[:, :, 0] - 1)
    torch.testing.assert_close(found[:, :, 0], wanted, rtol=1e-4, atol=1e-4)


def test_merging_joins_the_four_voxels_of_a_section() -> None:
    torch.manual_seed(0)
    merging = SectionMerging(3, nn.LayerNorm, 3)
    x = torch.randn(2, 4, 6, 8, 3)
    found = merging(x)
    assert found.shape == (2, 4, 3, 4, 6)
    changed = x.clone()
    changed[1, 2, 5, 1] += 1
    moved = (merging(changed) != found).any(-1)
    assert moved.nonzero().tolist() == [[1, 2, 2, 0]]


def test_sections_are_not_padded() -> None:
    network, seen = teacher(), []
    network.swin.register_forward_hook(lambda _, given, out: seen.extend([given[0].shape, *(o.shape for o in out)]))
    with torch.no_grad():
        network(torch.rand(1, 1, 5, 33, 70))
    assert [tuple(shape[2:]) for shape in seen] == [(5, 64 >> k, 96 >> k) for k in range(6)]


def test_the_published_network_has_its_size() -> None:
    found = sum(p.numel() for p in SwinUNETRTeacher().parameters())
    assert found / 1e6 == pytest.approx(59.04, abs=0.01)
