"""The shared decoder: golden values of the published network, batches, degenerate blocks, gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_decoders import EDGES, assert_finite_gradients, blocks, every_refine, finite_loss, item, small
from torch import Tensor

from distill.config import DecoderConfig
from distill.core.errors import ShapeError
from distill.decoder.blocks import Refine
from distill.decoder.decoder import DecoderInput, Prior, QueryDecoder
from distill.decoder.layers import coordinates
from distill.decoder.queries import SeedRule, Seeds, find_seeds, given_seeds
from distill.models.build import build_decoder
from distill.models.checkpoint import load_module, read_published
from distill.segmentation.flooding import flood
from teachers.agq import AGQTeacher
from teachers.teacher import TeacherOutput


@pytest.fixture(scope="module")
def wanted(golden: Callable[[str], Path]) -> dict[str, Tensor]:
    return load_file(golden("agq_random_outputs.safetensors"))


@pytest.fixture(scope="module")
def networks(golden: Callable[[str], Path]) -> tuple[AGQTeacher, QueryDecoder]:
    published = read_published(golden("agq_random_weights.safetensors"))
    assert published.method == "agq"
    assert published.unplaced == []
    teacher, decoder = AGQTeacher().eval(), QueryDecoder().eval()
    for name, module in (("teacher", teacher), ("decoder", decoder)):
        own = {k.removeprefix(f"{name}."): v for k, v in published.tensors.items() if k.startswith(f"{name}.")}
        load_module(module, own, "golden")
    return teacher, decoder


@pytest.fixture(scope="module")
def taught(networks: tuple[AGQTeacher, QueryDecoder], wanted: dict[str, Tensor]) -> TeacherOutput:
    with torch.no_grad():
        found: TeacherOutput = networks[0](wanted["input"] * 0.5 + 0.5)
    return found


def assert_golden(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_the_published_teacher_gives_the_golden_maps(taught: TeacherOutput, wanted: dict[str, Tensor]) -> None:
    assert_golden(taught.levels[0], wanted["level0"])
    assert_golden(taught.levels[4], wanted["level4"])
    assert_golden(taught.decoder_input.features, wanted["fusion"])
    assert_golden(taught.decoder_input.affinity_logits, wanted["affinity_logits"])
    assert taught.embedding is None


def test_the_published_decoder_gives_the_golden_masks(
    networks: tuple[AGQTeacher, QueryDecoder], taught: TeacherOutput, wanted: dict[str, Tensor]
) -> None:
    decoder, given = networks[1], taught.decoder_input
    with torch.no_grad():
        raw = decoder.mask_branch(torch.cat([coordinates(given.features), given.features], 1))
        found = decoder(given, order="id", background=False)
        alone = decoder.last(given, background=False)
    assert_golden(alone.masks[0], wanted["masks"])
    assert_golden(raw, wanted["mask_features"])
    components = wanted["components"].long()  # of any size
    every = find_seeds(given.affinity_logits.sigmoid(), SeedRule("mean", min_voxels=0), "id")
    assert torch.equal(every.components, components)
    assert int(components.max()) > 1
    assert torch.equal(found.seeds.components, torch.where(components == 1, 1, 0))  # the only one over 100 voxels
    assert_golden(found.masks[0], wanted["masks_iter0"])
    assert_golden(found.masks[-1], wanted["masks"])
    assert_golden(found.kernels, wanted["kernels"])


def test_the_published_decoder_on_given_components(
    networks: tuple[AGQTeacher, QueryDecoder], taught: TeacherOutput, wanted: dict[str, Tensor]
) -> None:
    components = wanted["given_components"].long()
    sizes = components.flatten().bincount()
    sizes[0] = 0
    kept = (sizes > 100).nonzero().flatten()
    assert len(kept) == 7
    number = torch.zeros(len(sizes), dtype=torch.int64)
    number[kept] = torch.arange(1, 8)
    with torch.no_grad():
        found = networks[1](taught.decoder_input, seeds=given_seeds(number[components]))
    alone = networks[1].last(taught.decoder_input, seeds=given_seeds(number[components]))
    assert_golden(alone.masks[0], wanted["given_masks"])
    assert_golden(found.masks[0], wanted["given_masks_iter0"])
    assert_golden(found.masks[-1], wanted["given_masks"])
    assert_golden(found.kernels, wanted["given_kernels"])


@every_refine
@pytest.mark.parametrize("learned", [0, 3])
@pytest.mark.parametrize("prior", ["none", "distance", "flood"])
def test_a_block_does_not_depend_on_its_batch(learned: int, prior: Prior, refine: Refine) -> None:
    decoder, given = small(learned, prior, refine=refine).eval(), blocks()
    with torch.no_grad():
        together = decoder(given)
        alone = [decoder(item(given, b)) for b in range(3)]
    assert together.seeds.counts == (4, 0, 2)
    for b in range(3):
        own = int(alone[b].valid.sum())
        assert own == together.seeds.counts[b] + learned == int(together.valid[b].sum())
        for many, one in zip(together.masks, alone[b].masks, strict=True):
            torch.testing.assert_close(many[b, : 1 + own], one[0, : 1 + own], rtol=1e-5, atol=1e-5)
            assert bool((many[b, 1 + own :] == -torch.inf).all())
        torch.testing.assert_close(together.kernels[b, :own], alone[b].kernels[0, :own], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.mask_features[b], alone[b].mask_features[0])


def test_what_the_decoder_gives() -> None:
    decoder, given = small().eval(), blocks()
    found = decoder(given, background=False)
    assert len(found.masks) == 3
    assert found.masks[0].shape == (3, 1 + 7, 3, 8, 8)
    torch.testing.assert_close(found.mask_features.norm(dim=1), torch.ones(3, 3, 8, 8))
    assert not found.masks[-1][:, 0].any()
    assert bool(found.masks[0][:, 0].any())
    kept = decoder(given, background=True)
    assert torch.equal(kept.masks[-1][:, 1:], found.masks[-1][:, 1:])
    assert bool((kept.masks[-1][:, 0] >= 0).all())


def test_decoding_is_deterministic_and_given_seeds_take_the_place_of_predicted_ones() -> None:
    decoder, given = small().eval(), blocks()
    first, again = decoder(given), decoder(given)
    taken = decoder(given, seeds=first.seeds)
    for found in (again, taken):
        assert all(torch.equal(a, b) for a, b in zip(first.masks, found.masks, strict=True))


def test_learned_queries_come_after_the_guided_ones() -> None:
    decoder, given = small(prior="none", rounds=0).eval(), blocks()
    assert decoder.learned is not None
    before = decoder(given)
    with torch.no_grad():
        decoder.learned.add_(1)
    after = decoder(given)
    for b, count in enumerate(before.seeds.counts):
        own = slice(1, 1 + count)
        torch.testing.assert_close(before.masks[0][b, own], after.masks[0][b, own])
        learned = slice(1 + count, 1 + count + 3)
        assert not torch.allclose(before.masks[0][b, learned], after.masks[0][b, learned])


def test_a_random_order_permutes_the_masks() -> None:
    decoder, given = small(learned=0).eval(), item(blocks(), 0)
    plain = decoder(given)
    mixed = decoder(given, order="random", rng=np.random.default_rng(2))
    order = [int(plain.seeds.components[mixed.seeds.components == n][0]) for n in range(1, 5)]
    assert order != [1, 2, 3, 4]
    torch.testing.assert_close(mixed.masks[-1][:, 1:], plain.masks[-1][:, order], rtol=1e-4, atol=1e-4)


def test_more_components_than_allowed_leave_the_largest() -> None:
    given = item(blocks(), 0)
    given.affinity_logits[:, :, :, 4:7, 4:7] = 6.0  # one component grows
    decoder = small(learned=2, rule=SeedRule("edges", (0.5, 0.5, 0.5), 3, 2)).eval()
    found = decoder(given)
    assert found.seeds.counts == (2,)
    assert found.masks[-1].shape[1] == 1 + 2 + 2
    assert bool((found.seeds.components[0, :, 5, 5] == 1).all())


@every_refine
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("prior", ["none", "distance", "flood"])
def test_no_seed_and_no_learned_query(training: bool, prior: Prior, refine: Refine) -> None:
    decoder, given = small(learned=0, prior=prior, refine=refine).train(training), item(blocks(), 1)
    found = decoder(given)
    assert found.masks[-1].shape[1] == 1 + 1
    assert not found.valid.any()
    assert bool(found.masks[-1][:, 0].isfinite().all())
    assert bool((found.masks[-1][:, 1:] == -torch.inf).all())
    assert all(bool(value.isfinite().all()) for value in decoder.state_dict().values())


@every_refine
def test_a_strong_flood_prior_gives_every_voxel_to_the_seed_of_its_strongest_path(refine: Refine) -> None:
    decoder, given = small(learned=2, prior="flood", refine=refine).eval(), blocks()
    assert decoder.prior is not None
    with torch.no_grad():
        decoder.prior.fill_(1e4)
        found = decoder(given)
    owner = flood(found.seeds.components, given.affinity_logits.sigmoid())
    winners = found.masks[-1][:, 1:].argmax(1) + 1
    for b, count in enumerate(found.seeds.counts):
        if count:
            assert torch.equal(winners[b], owner[b])


def test_the_norms_over_kernels_and_logits_take_the_momentum() -> None:
    config = DecoderConfig(width=8, depth=1, rounds=1, learned=2, norm_momentum=0.25)
    decoder = build_decoder(config, 8, (30.0, 6.0, 6.0))
    norms = [m for n, m in decoder.named_modules() if n.endswith(("norm_kernel", "norm_logits"))]
    assert [m.momentum for m in norms] == [0.25] * 4
    assert decoder.inst_convs[0][1].momentum == 0.1


@every_refine
@pytest.mark.parametrize("training", [False, True])
def test_one_query_alone(training: bool, refine: Refine) -> None:
    decoder, given = small(learned=1, refine=refine).train(training), item(blocks(), 1)
    assert bool(decoder(given).masks[-1].isfinite().all())


@every_refine
@pytest.mark.parametrize("learned", [0, 3])
def test_one_section(learned: int, refine: Refine) -> None:
    given = blocks(depth=1)
    found = small(learned, refine=refine).eval()(given)
    assert found.masks[-1].shape[-3:] == (1, 8, 8)
    assert found.seeds.counts == (4, 0, 2)
    assert not bool(found.masks[-1].isnan().any())


@every_refine
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learned", [0, 3])
def test_bf16_autocast(training: bool, learned: int, refine: Refine) -> None:
    decoder, given = small(learned, refine=refine).train(training), blocks()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(given)
    plain = small(learned, refine=refine).train(training)(given)
    for half, full in zip(found.masks, plain.masks, strict=True):
        assert not bool(half.isnan().any())
        assert torch.equal(half.isinf(), full.isinf())
    real = plain.masks[0].isfinite()
    wanted = plain.masks[0].detach()[real]
    error = (found.masks[0].detach()[real].float() - wanted).abs().mean() / wanted.abs().mean()
    assert float(error) < 5e-2
    finite_loss(found).backward()
    assert_finite_gradients(decoder)


@every_refine
@pytest.mark.parametrize("kind", ["mean", "edges"])
def test_gradients_reach_every_parameter_and_the_features_but_not_the_affinities(kind: str, refine: Refine) -> None:
    rule = SeedRule("mean", min_voxels=3) if kind == "mean" else EDGES
    decoder, given = small(rule=rule, refine=refine).train(), blocks()
    given.features.requires_grad_()
    given.affinity_logits.requires_grad_()
    finite_loss(decoder(given)).backward()
    assert_finite_gradients(decoder)
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    for name in ("learned", "prior", "mask_branch.convs.0.weight", "inst_convs.0.0.weight"):
        assert bool(decoder.get_parameter(name).grad.any()), name
    for name, parameter in decoder.updaters.named_parameters():
        assert bool(parameter.grad.any()) or name.endswith("key.bias"), name  # the same for all keys, so without effect
    assert bool(decoder.prior.grad.all())  # each of the three numbers
    assert given.features.grad is not None
    assert bool(given.features.grad.isfinite().all())
    assert given.affinity_logits.grad is None


@every_refine
def test_gradients_stay_finite_where_a_block_has_no_query_at_all(refine: Refine) -> None:
    decoder, given = small(learned=0, refine=refine).train(), blocks()
    finite_loss(decoder(given)).backward()
    assert_finite_gradients(decoder)


@every_refine
def test_the_seeds_own_masks_win_with_a_strong_prior(refine: Refine) -> None:
    decoder, given = small(learned=2, refine=refine).eval(), blocks()
    assert decoder.prior is not None
    with torch.no_grad():
        decoder.prior[0] = 1e4
    found = decoder(given)
    seeds: Seeds = found.seeds
    inside = seeds.components > 0
    assert torch.equal(found.masks[-1].argmax(1)[inside], seeds.components[inside])


@pytest.mark.parametrize(
    ("features", "logits"),
    [
        ((1, 8, 2, 4, 4), (1, 3, 2, 4, 5)),
        ((1, 8, 2, 4, 4), (1, 2, 2, 4, 4)),
        ((2, 8, 2, 4, 4), (1, 3, 2, 4, 4)),
        ((8, 2, 4, 4), (3, 2, 4, 4)),
    ],
)
def test_features_and_affinities_must_go_together(features: tuple[int, ...], logits: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="decoder input: found features"):
        DecoderInput(torch.zeros(features), torch.zeros(logits))
