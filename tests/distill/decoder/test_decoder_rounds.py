"""Rounds of the decoder: in pieces, at half precision, gradients."""

from __future__ import annotations

import pytest
import torch
from small_decoders import EDGES, assert_finite_gradients, blocks, every_refine, finite_loss, item, small

from distill.config import DecoderConfig
from distill.core.errors import ShapeError
from distill.decoder import predict as decoder_pieces
from distill.decoder.blocks import Refine
from distill.decoder.decoder import Cues, DecoderInput, Prior, QueryDecoder
from distill.decoder.queries import SeedRule, given_seeds
from distill.models.build import build_decoder

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
