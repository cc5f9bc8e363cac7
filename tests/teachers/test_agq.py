"""The AGQ teacher: shapes, embedding head, what goes to the shared decoder."""

from __future__ import annotations

import pytest
import torch

from distill.decoder.decoder import QueryDecoder
from distill.decoder.queries import SeedRule
from teachers.agq import AGQTeacher

FILTERS = (8, 8, 16, 8, 8)


def teacher(embedding: int = 0, depth: int = 1) -> AGQTeacher:
    torch.manual_seed(0)
    network = AGQTeacher(filters=FILTERS, fused=16, branch_width=8, branch_depth=depth, embedding=embedding)
    return network.eval()


@pytest.mark.parametrize("shape", [(5, 33, 33), (4, 30, 41), (1, 17, 18), (2, 19, 20)])
@pytest.mark.parametrize("embedding", [0, 6])
def test_shapes(shape: tuple[int, int, int], embedding: int) -> None:
    network = teacher(embedding)
    found = network(torch.rand(2, 1, *shape))
    depth, height, width = shape
    half = (depth, (height + 1) // 2, (width + 1) // 2)
    assert found.decoder_input.features.shape == (2, 16, *half)
    assert found.decoder_input.affinity_logits.shape == (2, 3, *half)
    assert len(found.levels) == 5
    assert network.embedding_channels == embedding
    if embedding:
        assert found.embedding is not None
        assert found.embedding.shape == (2, embedding, *shape)
    else:
        assert found.embedding is None


def test_the_published_network_has_its_size() -> None:
    own = sum(p.numel() for p in AGQTeacher().parameters())
    shared = sum(p.numel() for p in QueryDecoder().parameters())
    assert (own + shared) / 1e6 == pytest.approx(4.74, abs=0.005)


def test_the_embedding_head_reads_the_finest_map_and_leaves_the_rest_alone() -> None:
    plain, headed = teacher(), teacher(6)
    headed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(1, 1, 3, 17, 17)
    a, b = plain(x), headed(x)
    assert torch.equal(a.decoder_input.features, b.decoder_input.features)
    assert torch.equal(a.decoder_input.affinity_logits, b.decoder_input.affinity_logits)
    assert headed.embedding_head is not None
    assert b.embedding is not None
    weight, bias = headed.embedding_head.weight[:, :, 0, 0, 0], headed.embedding_head.bias
    wanted = torch.einsum("ec,bcdhw->bedhw", weight, b.levels[0]) + bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(b.embedding, wanted, rtol=1e-5, atol=1e-5)


def test_grey_is_mapped_to_minus_one_to_one() -> None:
    network, x = teacher(), torch.rand(1, 1, 3, 33, 33)
    found = network(x).levels
    wanted = network.backbone(2 * x - 1)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_blocks_of_a_batch_do_not_mix() -> None:
    network, x = teacher(4), torch.rand(3, 1, 2, 17, 17)
    together, alone = network(x), network(x[1:2])
    torch.testing.assert_close(together.decoder_input.features[1:2], alone.decoder_input.features, rtol=1e-4, atol=1e-5)
    assert together.embedding is not None
    torch.testing.assert_close(together.embedding[1:2], alone.embedding, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    network = teacher(4).train()
    found = network(torch.rand(1, 1, 5, 33, 33))
    assert found.embedding is not None
    (found.embedding.square().mean() + found.decoder_input.affinity_logits.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_the_shared_decoder_takes_what_the_teacher_gives() -> None:
    decoder = QueryDecoder(features=16, width=8, depth=1, learned=2, seeds=SeedRule(min_voxels=3)).eval()
    found = decoder(teacher()(torch.rand(1, 1, 3, 17, 18)).decoder_input)
    assert found.masks[-1].shape[-3:] == (3, 9, 9)
