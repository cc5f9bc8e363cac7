"""UNETR against MONAI's own network, and its position embedding on other grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from teachers.unetr import UNETRTeacher

pytestmark = pytest.mark.usefixtures("monai")


def teacher(layers: int = 4, patch_depth: int = 4, block: tuple[int, int, int] = (8, 32, 48)) -> UNETRTeacher:
    torch.manual_seed(0)
    network = UNETRTeacher(
        features=4, hidden=8, mlp=12, heads=2, layers=layers, patch_depth=patch_depth, block=block, fused=8, embedding=4
    )
    return network.eval()


def test_with_cubic_patches_it_is_monais_unetr() -> None:
    from monai.networks.nets import UNETR

    own = teacher(layers=12, patch_depth=16, block=(32, 32, 48))
    theirs = UNETR(1, 1, (32, 32, 48), feature_size=4, hidden_size=8, mlp_dim=12, num_heads=2)
    theirs.out = nn.Identity()
    state = theirs.state_dict()
    names = [name for name in state if "norm_cross_attn" not in name]  # parameters that are never used
    values = [value for name, value in own.state_dict().items() if not name.startswith("head.")]
    theirs.load_state_dict({**state, **dict(zip(names, values, strict=True))})
    x = torch.rand(2, 1, 32, 32, 48)
    with torch.no_grad():
        found, wanted = own(x).levels[0], theirs.eval()(2 * x - 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_depth", [1, 2, 4, 8, 16])
def test_any_depth_of_patches(patch_depth: int) -> None:
    network, x = teacher(patch_depth=patch_depth), torch.rand(1, 1, 5, 20, 33)
    assert network.grid == (-(-8 // patch_depth), 2, 3)
    with torch.no_grad():
        found = network(x)
    assert found.levels[0].shape == (1, 4, 5, 20, 33)


def test_the_published_network_has_its_size() -> None:
    network = UNETRTeacher()
    body = sum(p.numel() for p in network.vit.blocks.parameters())
    layer = 4 * 768**2 + 768 + 2 * 768 * 3072 + 768 + 3072 + 4 * 768  # ViT-B without biases of queries, keys, values
    assert body == 12 * layer
    assert network.grid == (5, 10, 10)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(90.63, abs=0.01)


def test_positions_of_another_grid_keep_their_axes() -> None:
    network = teacher(block=(16, 48, 32))
    embedding = network.vit.patch_embedding.position_embeddings
    assert network.grid == (4, 3, 2)
    with torch.no_grad():
        embedding.copy_(embedding.new_tensor([7.0] * 8))
        for channel, ramp in enumerate(torch.meshgrid(*map(torch.arange, network.grid), indexing="ij")):
            embedding[0, :, channel] = ramp.flatten().float()
        assert network._positions(torch.Size((4, 3, 2))) is embedding
        found = network._positions(torch.Size((6, 5, 3))).view(6, 5, 3, 8)
    for axis in range(3):
        ramp = found[..., axis].movedim(axis, 0).flatten(1)
        torch.testing.assert_close(ramp, ramp[:, :1].expand_as(ramp))
        assert bool((ramp[:, 0].diff() >= 0).all())
        assert float(ramp[0, 0]) == 0
        assert float(ramp[-1, 0]) == pytest.approx(network.grid[axis] - 1)
    torch.testing.assert_close(found[..., 3:], torch.full((6, 5, 3, 5), 7.0))


def test_what_is_added_beyond_the_block_repeats_its_end() -> None:
    network, x = teacher(), torch.rand(1, 1, 3, 20, 33)
    with torch.no_grad():
        found = network(x).embedding
        whole = network(F.pad(x, (0, 15, 0, 12, 0, 1), mode="replicate")).embedding
    torch.testing.assert_close(found, whole[:, :, :3, :20, :33], rtol=1e-4, atol=1e-5)
