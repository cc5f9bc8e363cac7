"""The shared decoder: golden values of the published network, batches, degenerate blocks, gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.config import DecoderConfig
from distill.core.errors import ShapeError
from distill.decoder import predict as decoder_pieces
from distill.decoder.blocks import Refine
from distill.decoder.decoder import Cues, DecoderInput, DecoderOutput, Prior, QueryDecoder
from distill.decoder.layers import coordinates
from distill.decoder.queries import SeedRule, Seeds, find_seeds, given_seeds
from distill.models.build import build_decoder
from distill.models.checkpoint import load_module, read_published
from distill.segmentation.flooding import flood
from teachers.agq import AGQTeacher
from teachers.teacher import TeacherOutput

# Golden values


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


# Small decoders

EDGES = SeedRule("edges", (0.5, 0.5, 0.5), 3, 20)


every_refine = pytest.mark.parametrize("refine", ["agq", "knet", "transformer"])


def small(
    learned: int = 3, prior: Prior = "distance", rule: SeedRule = EDGES, rounds: int = 2, refine: Refine = "agq"
) -> QueryDecoder:
    torch.manual_seed(0)
    return QueryDecoder(
        features=8, width=8, depth=1, rounds=rounds, learned=learned, seeds=rule, prior=prior, refine=refine
    )


def blocks(depth: int = 3) -> DecoderInput:
    """Three blocks: four seeds, none, two seeds."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 8, depth, 8, 8, generator=generator)
    logits = torch.full((3, 3, depth, 8, 8), -6.0)
    for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
        logits[0, :, :, y + 1 : y + 3, x + 1 : x + 3] = 6.0
    logits[2, :, :, 2:4, 1:7] = logits[2, :, :, 5:7, 1:7] = 6.0
    return DecoderInput(features, logits)


def item(given: DecoderInput, b: int) -> DecoderInput:
    return DecoderInput(given.features[b : b + 1], given.affinity_logits[b : b + 1])


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


def finite_loss(found: DecoderOutput) -> Tensor:
    total = torch.zeros(())
    for n, masks in enumerate(found.masks):
        share = masks.softmax(1)
        weights = torch.randn(share.shape, generator=torch.Generator().manual_seed(n))
        total = total + (share * weights).sum()
    return total


def assert_finite_gradients(decoder: QueryDecoder) -> None:
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


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


# The last round alone


@every_refine
@pytest.mark.parametrize("prior", ["none", "distance", "flood"])
@pytest.mark.parametrize("learned", [0, 3])
@pytest.mark.parametrize("rounds", [0, 2])
def test_the_last_round_in_pieces_is_the_whole_decoders(
    refine: Refine, prior: Prior, learned: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pieces, "_PIECE", 50)  # 192 voxels
    decoder = small(learned, prior, rounds=rounds, refine=refine)
    generator = torch.Generator().manual_seed(3)
    for module in decoder.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # as after training
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    decoder.eval()
    for b in range(3):
        for background in (True, False):
            given = item(blocks(), b)
            with torch.no_grad():
                wanted = decoder(given, background=background)
            found = decoder.last(given, background=background)
            assert len(found.masks) == 1
            torch.testing.assert_close(found.masks[0], wanted.masks[-1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.kernels, wanted.kernels, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.mask_features, wanted.mask_features, rtol=1e-5, atol=1e-5)
            assert torch.equal(found.valid, wanted.valid)
            assert torch.equal(found.seeds.components, wanted.seeds.components)


def test_the_last_round_in_bf16_is_nearer_to_full_precision_than_the_whole_decoders() -> None:
    decoder, given = small().eval(), item(blocks(), 0)
    exact = decoder.last(given).masks[-1]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        near, far = decoder.last(given).masks[-1], decoder(given).masks[-1]
    assert float((near - exact).abs().mean()) < float((far.float() - exact).abs().mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("prior", ["none", "distance", "flood"])
def test_a_gpu_gives_the_same_last_round(prior: Prior) -> None:
    decoder, given = small(prior=prior).eval(), item(blocks(), 0)
    wanted = decoder.last(given).masks[0]
    found = decoder.cuda().last(DecoderInput(given.features.cuda(), given.affinity_logits.cuda())).masks[0]
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)


def test_the_last_round_takes_one_block() -> None:
    with pytest.raises(ShapeError, match="found 3 blocks, expected 1"):
        small().eval().last(blocks())


# Other rounds


@every_refine
@pytest.mark.parametrize("rounds", [0, 1])
def test_rounds(rounds: int, refine: Refine) -> None:
    many, few = small(refine=refine).eval(), small(rounds=rounds, refine=refine).eval()
    found, wanted = few.load_state_dict(many.state_dict(), strict=False), few(blocks())
    assert not found.missing_keys
    assert len(wanted.masks) == 1 + rounds
    for own, other in zip(wanted.masks, many(blocks()).masks, strict=False):
        assert torch.equal(own, other)


@every_refine
def test_queries_may_come_in_any_order(refine: Refine) -> None:
    decoder, given = small(learned=5, prior="none", refine=refine).eval(), item(blocks(), 0)
    before, order = decoder(given), torch.tensor([3, 0, 4, 1, 2])
    assert decoder.learned is not None
    with torch.no_grad():
        decoder.learned.copy_(decoder.learned[order].clone())
    after = decoder(given)
    rows = torch.cat([torch.arange(4), 4 + order])  # four seeds first
    assert not torch.allclose(before.kernels, after.kernels)
    torch.testing.assert_close(after.kernels, before.kernels[:, rows], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.masks[-1][:, 1:], before.masks[-1][:, 1 + rows], rtol=1e-4, atol=1e-4)


def crowd() -> DecoderInput:
    """Two blocks: no seed, a hundred seeds."""
    logits = torch.full((2, 3, 2, 30, 30), -6.0)
    pixels = torch.arange(30) % 3 > 0
    logits[1, :, :, pixels[:, None] & pixels] = 6.0
    logits[1, 1:, :, 1::3] = logits[1, 1:, :, :, 1::3] = -6.0  # edges to the pixel before
    logits[1, 1, :, 2::3, 1::3] = logits[1, 2, :, 1::3, 2::3] = 6.0
    return DecoderInput(torch.randn(2, 8, 2, 30, 30, generator=torch.Generator().manual_seed(3)), logits)


@every_refine
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learned", [0, 2])
def test_none_beside_a_hundred_components(learned: int, training: bool, refine: Refine) -> None:
    rule = SeedRule("edges", (0.5, 0.5, 0.5), 3, 100)
    decoder, given = small(learned, rule=rule, refine=refine).train(training), crowd()
    found = decoder(given)
    assert found.seeds.counts == (0, 100)
    assert found.valid.sum(1).tolist() == [learned, 100 + learned]
    for masks in found.masks:
        assert bool(masks[1].isfinite().all())
        assert bool(masks[0, : 1 + learned].isfinite().all())
        assert bool((masks[0, 1 + learned :] == -torch.inf).all())
    finite_loss(found).backward()
    assert_finite_gradients(decoder)


@every_refine
def test_more_components_than_queries(refine: Refine) -> None:
    rule = SeedRule("edges", (0.5, 0.5, 0.5), 3, 7)
    found = small(learned=2, rule=rule, refine=refine).eval()(crowd())
    assert found.seeds.counts == (0, 7)
    assert found.masks[-1].shape[1] == 1 + 7 + 2


@every_refine
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 6e4])
def test_numbers_as_far_as_float16_goes(scale: float, training: bool, refine: Refine) -> None:
    given = blocks()
    extreme = DecoderInput(given.features * scale, given.affinity_logits.sign() * 65504.0)
    decoder = small(refine=refine).train(training)
    found = decoder(extreme)
    assert found.seeds.counts == (4, 0, 2)
    assert not any(bool(masks.isnan().any() | (masks == torch.inf).any()) for masks in found.masks)
    finite_loss(found).backward()
    assert_finite_gradients(decoder)


@every_refine
@pytest.mark.parametrize("cues", ["queries", "affinity", "segmentation", None])
def test_the_smallest_block(cues: Cues | None, refine: Refine) -> None:
    decoder = cued(cues, refine)
    given = DecoderInput(torch.randn(1, 8, 2, 8, 8), torch.randn(1, 3, 2, 8, 8))
    found = decoder.train()(given)
    assert found.masks[-1].shape[-3:] == (2, 8, 8)
    assert bool(found.masks[-1].isfinite().all())


# Cues


def cued(cues: Cues | None, refine: Refine = "agq", rounds: int = 2) -> QueryDecoder:
    torch.manual_seed(0)
    return QueryDecoder(features=8, width=8, depth=1, learned=3, seeds=EDGES, cues=cues, refine=refine, rounds=rounds)


@pytest.mark.parametrize("cues", ["affinity", "segmentation", None])
def test_other_cues_leave_learned_queries_alone(cues: Cues | None) -> None:
    found = cued(cues).eval()(blocks())
    assert found.masks[-1].shape[1] == 1 + 3
    assert bool(found.valid.all())
    assert found.seeds.counts == ((4, 0, 2) if cues == "segmentation" else (0, 0, 0))


@pytest.mark.parametrize("cues", ["queries", "affinity", "segmentation", None])
def test_what_reads_the_affinities(cues: Cues | None) -> None:
    decoder, given = cued(cues).eval(), blocks()
    other = DecoderInput(given.features, given.affinity_logits.roll(2, -1))
    first, second = decoder(given), decoder(other)
    as_channels = cues in ("affinity", "segmentation")
    assert torch.equal(first.mask_features, second.mask_features) != as_channels
    assert torch.equal(first.masks[-1], second.masks[-1]) == (cues is None)
    assert torch.equal(decoder.mask_features(given), first.mask_features)


def test_the_affinity_cue_is_affinities_not_logits() -> None:
    decoder, given = cued("affinity").eval(), blocks()
    far = DecoderInput(given.features, given.affinity_logits * 10)  # 0.002 and 0.998 become 0 and 1
    torch.testing.assert_close(decoder(far).mask_features, decoder(given).mask_features, rtol=0, atol=1e-2)


@every_refine
@pytest.mark.parametrize("cues", ["affinity", "segmentation", None])
@pytest.mark.parametrize("rounds", [0, 2])
def test_gradients_with_other_cues(cues: Cues | None, rounds: int, refine: Refine) -> None:
    decoder, given = cued(cues, refine, rounds).train(), blocks()
    given.affinity_logits.requires_grad_()
    finite_loss(decoder(given)).backward()
    assert_finite_gradients(decoder)
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert given.affinity_logits.grad is None


def test_numbering_does_not_matter_to_the_segmentation_cue() -> None:
    decoder, given = cued("segmentation").eval(), crowd()
    found = decoder(given)
    count = found.seeds.counts[1]
    assert count == 20
    number = torch.cat([torch.zeros(1), 1 + torch.randperm(count, generator=torch.Generator().manual_seed(4))]).long()
    again = decoder(given, seeds=given_seeds(number[found.seeds.components]))
    assert not torch.equal(again.seeds.components, found.seeds.components)
    assert torch.equal(again.masks[-1], found.masks[-1])


def test_the_segmentation_cue_tells_touching_seeds_apart_and_seeds_from_background() -> None:
    decoder, given = cued("segmentation").eval(), item(blocks(), 1)
    parts = torch.zeros(1, 3, 8, 8, dtype=torch.int64)
    parts[..., :4] = 1
    features = {}
    for name, right in (("two", 2), ("one", 1), ("left", 0)):
        parts[..., 4:] = right
        features[name] = decoder(given, seeds=given_seeds(parts)).mask_features
    changed = (features["two"] - features["one"]).abs().amax((0, 1, 2, 3)) > 1e-6
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 2  # the edge's voxel and one layer's reach
    assert bool(((features["two"] - features["left"]).abs().amax((0, 1, 2, 3)) > 1e-6)[4:].all())


def test_the_segmentation_cue_takes_any_number_of_seeds() -> None:
    decoder, given = cued("segmentation").eval(), item(blocks(), 1)
    every = torch.arange(1, 3 * 8 * 8 + 1).view(1, 3, 8, 8)
    found = decoder(given, seeds=given_seeds(every))
    assert found.seeds.counts == (192,)
    assert bool(found.masks[-1].isfinite().all())


# From a configuration


def built(values: dict[str, object]) -> QueryDecoder:
    return build_decoder(DecoderConfig.model_validate({"width": 8, "depth": 2, **values}), 8, (30.0, 6.0, 6.0))


def learned_rows(decoder: QueryDecoder) -> int:
    return 0 if decoder.learned is None else len(decoder.learned)


@pytest.mark.parametrize(
    ("values", "learned", "cues"),
    [
        ({}, 100, "queries"),
        ({"learned": 0}, 0, "queries"),
        ({"seeds": {"max_count": 0}}, 100, "queries"),
        ({"queries": "guided+learned", "learned": 7}, 7, "queries"),
        ({"queries": "guided"}, 0, "queries"),
        ({"queries": "guided", "learned": 0}, 0, "queries"),
        ({"queries": "learned", "learned": 7}, 7, None),
        ({"queries": "double-learned", "learned": 7}, 14, None),
        ({"cues": "affinity", "learned": 7}, 7, "affinity"),
        ({"cues": "segmentation"}, 100, "segmentation"),
        ({"cues": "segmentation", "queries": "double-learned", "learned": 7}, 14, "segmentation"),
    ],
)
def test_which_queries_a_configuration_means(values: dict[str, object], learned: int, cues: Cues | None) -> None:
    decoder = built(values)
    assert (learned_rows(decoder), decoder.cues) == (learned, cues)
    dumped = DecoderConfig.model_validate(values).model_dump(mode="json")
    again = DecoderConfig.model_validate(dumped)
    assert again == DecoderConfig.model_validate(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"queries": "guided", "learned": 7}, "learned: found 7, expected 0 with queries 'guided'"),
        ({"queries": "learned", "learned": 0}, "learned: found 0, expected at least 1 with queries 'learned'"),
        ({"cues": "affinity", "learned": 0}, "learned: found 0, expected at least 1 with queries 'learned'"),
        ({"queries": "guided", "seeds": {"max_count": 0}}, "seeds.max_count: found 0, expected at least 1"),
        ({"learned": 0, "seeds": {"max_count": 0}}, "seeds.max_count: found 0, expected at least 1"),
        ({"cues": "segmentation", "seeds": {"max_count": 0}}, "seeds.max_count: found 0, expected at least 1"),
        ({"cues": "affinity", "queries": "guided"}, "queries: found 'guided', expected 'learned' or 'double-learned'"),
        ({"queries": "learned", "prior": "flood"}, "prior: found 'flood', expected 'none' with queries 'learned'"),
        ({"cues": "segmentation", "prior": True}, "prior: found 'distance', expected 'none' with queries 'learned'"),
    ],
)
def test_contradictions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        DecoderConfig.model_validate(values)
    assert message in str(caught.value)


def test_a_configuration_without_the_newer_keys_is_the_same_decoder() -> None:
    seeds = {"kind": "edges", "thresholds": (0.5, 0.9, 0.9), "min_voxels": 100, "max_count": 100}
    old = {"width": 16, "depth": 2, "rounds": 1, "learned": 5, "prior": True, "seeds": seeds}
    torch.manual_seed(5)
    wanted = QueryDecoder(features=8, width=16, depth=2, rounds=1, learned=5, seeds=SeedRule("edges"), prior="distance")
    torch.manual_seed(5)
    found = built(old)
    assert list(found.state_dict()) == list(wanted.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), wanted.parameters(), strict=True))
    assert (found.rule, found.sampling) == (wanted.rule, wanted.sampling)


@every_refine
def test_a_configuration_chooses_the_rounds(refine: Refine) -> None:
    wanted = QueryDecoder(features=8, width=8, depth=2, refine=refine).state_dict()
    found = built({"refine": refine, "prior": "none"}).state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in wanted.items()}


def test_branches_of_different_depth() -> None:
    decoder = built({"depth": 3, "instance_depth": 1})
    assert (len(decoder.mask_branch.convs), len(decoder.inst_convs)) == (3, 1)
    assert len(built({"depth": 3}).inst_convs) == 3
    assert decoder.eval()(blocks()).masks[-1].shape[-3:] == (3, 8, 8)


def test_the_light_decoder_has_the_size_that_the_configuration_tells() -> None:
    def size(values: dict[str, object]) -> int:
        decoder = build_decoder(DecoderConfig.model_validate(values), 64, (30.0, 6.0, 6.0))
        return sum(parameter.numel() for parameter in decoder.parameters())

    light = size({"width": 32, "depth": 2, "instance_depth": 1, "rounds": 1, "learned": 20})
    assert (round(light, -3), round(size({}), -3)) == (73_000, 484_000)
