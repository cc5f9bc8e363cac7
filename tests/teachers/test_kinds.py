"""Every kind of teacher from its configuration on: refusals, weights files, a joint training step, sliding windows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from distill.config import Pair, TeacherConfig, UnlabelledVolume
from distill.config.teacher_kinds import (
    EMBEDDINGS_ONLY,
    ONLY_WITH,
    OWN_HEAD,
    OWN_LOSS,
    PUBLISHED,
    WITH_FILTERS,
    TeacherKind,
)
from distill.core.affinity import NEAREST, affinity_targets, embedding_affinity, fill_frame, half_resolution
from distill.core.errors import CheckpointError, DistillError
from distill.core.geometry import Box
from distill.core.normalisation import NONE
from distill.inference.embeddings import Sliding, Windows, teacher_slab
from distill.inference.options import Runtime
from distill.models.build import build_decoder, build_teacher
from distill.models.checkpoint import save_weights
from distill.models.load import TrainedTeacher, load_teacher, teacher_metadata
from distill.training.objective.losses import affinity_cross_entropy, affinity_loss, cross_dimension_loss
from distill.training.objective.objective import Joint
from distill.training.objective.own_terms import OWN_TERMS
from teachers.sliding_window import head_embedding, run_teacher, slide_embedding, sliding_windows
from teachers.teacher import Teacher, TeacherOutput

CPU = torch.device("cpu")
RESOLUTION = (30.0, 6.0, 6.0)
DECODER = {"width": 8, "depth": 1, "rounds": 1, "learned": 4}
AGQ_KEYS = {
    *("kind", "filters", "fused", "branch_width", "branch_depth", "embedding", "decoder", "loss", "queries"),
    *("weights", "frozen", "orientations"),
}
OWN = {
    "inflated": {"teacher_nearest", "teacher_branch"},
    "pea": {"teacher_pyramid", "teacher_views"},
    "mala": {"teacher_malis"},
    "lsd": {"teacher_descriptors"},
    "ml-de": {"teacher_discriminative"},
}
EVERY_LOSS = {"multi_offset": 1.0, "affinity": 1.0}
Build = Callable[..., Teacher]
Values = Callable[[str], dict[str, Any]]


def pair_of(values: dict[str, Any], **loss: float) -> Pair:
    student = {
        "kind": "cad",
        **{"width": 4, "embedding": 4, "training": {"warmup": 0}},
        "data": {"raw": "raw.h5", "labels": "labels.h5", "train": [0, 8], "validation": [8, 12]},
    }
    return Pair.model_validate({"teacher": {**values, "decoder": DECODER, "loss": loss}, "student": student})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(1, 6, (2, 1, 4, 4)).repeat(4, 1).repeat(8, 2).repeat(8, 3))
    grey = labels[:, None].float() / 6 + torch.from_numpy(rng.random((2, 1, 4, 32, 32), np.float32)) / 10
    return grey, labels


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("superhuman", {"branch_width": 64}, ("branch_width", "'superhuman'", "'agq'")),
        ("superhuman", {"unetr": {}}, ("unetr", "'superhuman'", "'unetr'")),
        ("unetr", {"filters": [8] * 5}, ("filters", "'unetr'", "'agq' or 'superhuman'")),
        ("unetr", {"swinunetr": {"features": 24}}, ("swinunetr", "'unetr'")),
        ("swinunetr", {"branch_depth": 4}, ("branch_depth", "'swinunetr'", "'agq'")),
        ("agq", {"unetr": {"heads": 4}}, ("unetr", "'agq'")),
        ("agq", {"filters": [28, 36, 48, 64, 80]}, ("filters", "multiples of 8")),
        ("superhuman", {"filters": [28, 36, 0, 64, 80]}, ("filters", "at least 1")),
        ("superhuman", {"embedding": 0}, ("embedding", "found 0", "'superhuman'")),
        ("unetr", {"unetr": {"hidden": 100}}, ("hidden", "100", "heads 12")),
        ("unetr", {"unetr": {"layers": 6}}, ("layers", "multiple of 4")),
        ("unetr", {"unetr": {"block": [0, 16, 16]}}, ("block", "[0, 16, 16]")),
        ("swinunetr", {"swinunetr": {"heads": [3, 6, 12, 36]}}, ("heads", "[48, 96, 192, 384]")),
        ("swinunetr", {"swinunetr": {"window": [7, 7, 0]}}, ("window", "at least 1")),
        ("swinunet", {}, ("kind", "swinunetr")),
        ("mala", {"filters": [28, 36, 48, 64, 80]}, ("filters", "expected 4 numbers", "'mala'")),
        ("resunet", {"filters": [12, 60, 300, 1500]}, ("filters", "expected 5 numbers", "'resunet'")),
        ("resunet", {"loss": {"own": 1.0}}, ("loss.own", "'resunet'", "'mala' or 'lsd' or 'pea' or 'ml-de'")),
        ("mala", {"mala": {"pointwise": 2}}, ("pointwise", "less than or equal to 1")),
        ("mala", {"lsd": {"sigma": 40}}, ("lsd", "'mala'", "'lsd'")),
        ("lsd", {"lsd": {"sigma": 0}}, ("sigma", "greater than 0")),
        ("pea", {"mlde": {}}, ("mlde", "'pea'", "'ml-de'")),
        ("pea", {"pea": {"scales": 5}}, ("scales", "less than or equal to 4")),
        ("pea", {"pea": {"pyramid": 0}}, ("scales", "found 2", "pyramid 0")),
        ("ml-de", {"mlde": {"pull": 2}}, ("push", "found 1.5", "pull 2")),
        ("ml-de", {"embedding": 0}, ("embedding", "found 0", "'ml-de'")),
    ],
)
def test_what_does_not_go_with_a_kind_is_refused(kind: str, values: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        TeacherConfig.model_validate({"kind": kind, **values})
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_defaults_are_the_published_ones() -> None:
    assert TeacherConfig(embedding=16).filters == (32, 64, 96, 128, 160)
    superhuman = TeacherConfig(kind="superhuman")
    assert (superhuman.filters, superhuman.embedding) == ((28, 36, 48, 64, 80), 16)
    unetr, swin = TeacherConfig(kind="unetr"), TeacherConfig(kind="swinunetr")
    assert unetr.embedding == swin.embedding == 16
    assert (unetr.unetr.hidden, unetr.unetr.layers, swin.swinunetr.features) == (768, 12, 48)
    for kind in ("resunet", "seunet", "pea", "ml-de"):
        assert TeacherConfig.model_validate({"kind": kind}).filters == (28, 36, 48, 64, 80)
    mala, lsd = TeacherConfig(kind="mala"), TeacherConfig(kind="lsd")
    assert mala.filters == lsd.filters == (12, 60, 300, 1500)
    assert (mala.loss.affinity, mala.loss.own, lsd.loss.affinity) == (0, 1, 1)
    given = TeacherConfig.model_validate({"kind": "mala", "loss": {"own": 2.0}})
    assert (given.loss.affinity, given.loss.own) == (0, 2)  # a key of the group leaves the others as published


@pytest.mark.usefixtures("monai")
def test_every_option_reaches_the_network() -> None:
    unetr = {"features": 3, "hidden": 12, "mlp": 20, "heads": 6, "layers": 8, "patch_depth": 2, "block": [5, 32, 40]}
    vit: Any = build_teacher(
        TeacherConfig.model_validate({"kind": "unetr", "unetr": unetr, "embedding": 5, "fused": 24})
    )
    assert (vit.patch, vit.grid, len(vit.vit.blocks)) == ((2, 16, 16), (3, 2, 3), 8)
    assert vit.vit.blocks[0].mlp.linear1.weight.shape == (20, 12)
    assert vit.vit.blocks[0].attn.num_heads == 6
    swin = {"features": 6, "depths": [1, 2, 1, 3], "heads": [1, 2, 3, 6], "window": [2, 3, 4]}
    shifted: Any = build_teacher(
        TeacherConfig.model_validate({"kind": "swinunetr", "swinunetr": swin, "embedding": 5, "fused": 24})
    )
    stages = [getattr(shifted.swin, f"layers{k}")[0].blocks for k in (1, 2, 3, 4)]
    assert [len(blocks) for blocks in stages] == [1, 2, 1, 3]
    assert [blocks[0].attn.num_heads for blocks in stages] == [1, 2, 3, 6]
    assert stages[0][0].window_size == (2, 3, 4)
    small: Any = build_teacher(
        TeacherConfig.model_validate({"kind": "superhuman", "filters": [6, 2, 3, 4, 5], "embedding": 5, "fused": 24})
    )
    assert [down.first[0].weight.shape[0] for down in small.down] == [6, 2, 3, 4, 5]
    for network, channels in ((vit, 3), (shifted, 6), (small, 6)):
        assert network.head.embed.weight.shape[:2] == (5, channels)
        assert network.head.project[0].weight.shape[:2] == (24, channels)


def test_a_configuration_is_written_with_its_own_keys(kind: str, tiny_values: Values) -> None:
    config = TeacherConfig.model_validate(tiny_values(kind))
    written = config.model_dump(mode="json")
    keys = AGQ_KEYS if kind in ("agq", "inflated") else AGQ_KEYS - {"branch_width", "branch_depth"}
    keys = keys if kind in WITH_FILTERS else keys - {"filters"}
    assert set(written) == keys | {key for key, kinds in ONLY_WITH.items() if kinds == (kind,)}
    assert ("own" in written["loss"]) == (kind in OWN)
    assert TeacherConfig.model_validate(written) == config
    assert pair_of(tiny_values(kind)).model_dump()["teacher"].keys() == written.keys()


def test_weights_come_back(kind: str, tiny_values: Values, tmp_path: Path) -> None:
    torch.manual_seed(0)
    joint = Joint(pair_of(tiny_values(kind)), RESOLUTION).eval()
    config, path = joint.config.teacher, tmp_path / "teacher.safetensors"
    decoding = config.decoder.model_copy(update={"min_instance": 7})
    modules = {"teacher": joint.teacher, "decoder": joint.decoder}
    save_weights(path, "teacher", modules, teacher_metadata(config, decoding, RESOLUTION, NONE), {"step": 3})
    found = load_teacher(str(path), CPU)
    assert found.config == config.model_copy(update={"decoder": decoding})
    assert type(found.teacher) is type(joint.teacher)
    x = torch.rand(1, 1, 3, 20, 33)
    with torch.no_grad():
        one, two = joint.teacher(x), found.teacher(x)
    assert torch.equal(one.embedding, two.embedding)
    assert torch.equal(one.decoder_input.features, two.decoder_input.features)
    assert torch.equal(one.decoder_input.affinity_logits, two.decoder_input.affinity_logits)


def test_an_agq_file_of_before_the_other_kinds_loads(tmp_path: Path, tiny_values: Values) -> None:
    metadata = {
        **{"kind": "agq", "filters": [8] * 5, "fused": 8, "branch_width": 4, "branch_depth": 1, "embedding": 4},
        **{"decoder": DECODER, "loss": {"multi_offset": 1.0, "affinity": 1.0}, "queries": {"samples": 64}},
        "resolution": [30.0, 6.0, 6.0],
    }
    config = TeacherConfig.model_validate({**tiny_values("agq"), "decoder": DECODER})
    modules = {"teacher": build_teacher(config), "decoder": build_decoder(config.decoder, 8, RESOLUTION)}
    save_weights(tmp_path / "old.safetensors", "teacher", modules, metadata, {})
    found = load_teacher(str(tmp_path / "old.safetensors"), CPU).config
    assert found.model_dump(exclude={"queries"}) == config.model_dump(exclude={"queries"})
    save_weights(tmp_path / "odd.safetensors", "teacher", modules, {**metadata, "kind": "superhuman"}, {})
    with pytest.raises(CheckpointError, match="branch_width"):
        load_teacher(str(tmp_path / "odd.safetensors"), CPU)


@pytest.mark.parametrize("missing", ["monai", "einops"])
@pytest.mark.parametrize("kind_of_monai", ["unetr", "swinunetr"])
def test_without_monai_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str, kind_of_monai: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("monai", "einops")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "monai":
        monkeypatch.setitem(sys.modules, "einops", ModuleType("einops"))
    with pytest.raises(DistillError) as caught:
        build_teacher(TeacherConfig.model_validate({"kind": kind_of_monai}))
    message = str(caught.value)
    assert f"teacher.kind: {kind_of_monai!r}" in message
    assert missing in message
    assert "pip install 'affinity-distill[teachers]'" in message
    assert "\n" not in message


def test_a_joint_step(
    kind: str, tiny_values: Values, batch: tuple[Tensor, Tensor], left_zero: Callable[[Teacher], Teacher]
) -> None:
    torch.manual_seed(0)
    joint = Joint(pair_of(tiny_values(kind), **EVERY_LOSS), RESOLUTION)
    assert joint.teacher is not None
    left_zero(joint.teacher)
    terms = joint(batch, 0)
    queries = {f"{n}_{t}" for n in ("teacher", "student") for t in ("cross_entropy", "dice", "discrimination")}
    assert set(terms) == {"slice", "cross", "graft", "teacher_offsets", "teacher_affinity"} | queries | OWN.get(
        kind, set()
    )
    for name, term in terms.items():
        assert math.isfinite(float(term.detach())), name
        assert float(term.detach()) > 0, name
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in joint.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
        if name.startswith(("teacher.", "student.")):
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()), name


def norms_of(joint: Joint) -> dict[str, Tensor]:
    assert joint.teacher is not None
    return {name: value.clone() for name, value in joint.teacher.state_dict().items()}


def test_training_changes_no_bit_of_a_frozen_teacher(
    kind: str, tiny_values: Values, batch: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given, path = Joint(pair_of(tiny_values(kind)), RESOLUTION).train(), tmp_path / "teacher.safetensors"
    given(batch, 0)  # statistics of norms that are not those of a new network
    modules = {"teacher": given.teacher, "decoder": given.decoder}
    metadata = teacher_metadata(given.config.teacher, given.config.teacher.decoder, RESOLUTION, NONE)
    save_weights(path, "teacher", modules, metadata, {})
    joint = Joint(pair_of({**tiny_values(kind), "weights": str(path), "frozen": True}), RESOLUTION).train()
    before = norms_of(joint)
    assert all(torch.equal(value, norms_of(given)[name]) for name, value in before.items())
    optimizer = torch.optim.SGD([p for p in joint.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        terms = joint(batch, step)
        assert {"cross", "graft", "teacher_dice"} <= set(terms)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in norms_of(joint).items())
    assert all(p.grad is None for p in joint.teacher.parameters())


def test_a_step_without_labels_leaves_a_learning_teacher_as_it_is(
    kind: str, tiny_values: Values, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    pair = pair_of(tiny_values(kind))
    data = pair.student.data.model_copy(update={"unlabelled": (UnlabelledVolume(raw="other.h5"),)})
    pair = pair.model_copy(update={"student": pair.student.model_copy(update={"data": data})})
    joint = Joint(pair, RESOLUTION).train()
    before = norms_of(joint)
    terms = joint(batch, 1)
    assert set(terms) == {"unlabelled_cross"}
    terms["unlabelled_cross"].backward()
    assert all(torch.equal(value, before[name]) for name, value in norms_of(joint).items())
    assert all(p.grad is None for p in joint.teacher.parameters())
    assert joint.teacher.training
    joint(batch, 2)
    moving = [name for name in before if name.endswith("running_mean")]
    assert all(not torch.equal(norms_of(joint)[name], before[name]) for name in moving)
    assert moving or kind != "superhuman"


@pytest.mark.parametrize("term", ["teacher_offsets", "teacher_affinity", "cross", "graft", "teacher_dice"])
def test_every_term_reaches_the_teacher(
    kind: str, term: str, tiny_values: Values, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    joint = Joint(pair_of(tiny_values(kind), **EVERY_LOSS), RESOLUTION)
    joint(batch, 0)[term].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in joint.teacher.parameters())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in joint.parameters())


def own_pair(values: dict[str, Any], own: float = 1.0) -> Pair:
    """Train the teacher alone, by its own loss only."""
    pair = pair_of(values, multi_offset=0.0, affinity=0.0, own=own).model_dump()
    pair["teacher"]["queries"] |= {"teacher": 0.0, "student": 0.0}
    pair["student"]["loss"] |= {"slice": 0.0, "cross": 0.0, "graft": 0.0}
    return Pair.model_validate(pair)


def test_kinds_with_an_own_loss_have_their_terms() -> None:
    assert set(OWN_LOSS) == set(OWN_TERMS) == set(OWN)
    assert set(get_args(TeacherKind)) == set(PUBLISHED)


@pytest.mark.parametrize("own_kind", sorted(OWN))
def test_the_own_loss_alone_trains_the_teacher_and_is_weighted(
    own_kind: str, tiny_values: Values, batch: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    joint = Joint(own_pair(tiny_values(own_kind)), RESOLUTION)
    assert joint.student is None
    terms = joint(batch, 0)
    assert set(terms) == OWN[own_kind]
    torch.manual_seed(0)
    heavier = Joint(own_pair(tiny_values(own_kind), own=2.5), RESOLUTION)(batch, 0)
    for name, term in terms.items():
        torch.testing.assert_close(heavier[name], 2.5 * term, rtol=1e-4, atol=1e-6)
    optimizer = torch.optim.Adam([p for p in joint.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss = torch.stack(list(joint(batch, 0).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.9 * losses[0]


def test_mala_begins_with_errors_of_single_edges(tiny_values: Values, batch: tuple[Tensor, Tensor]) -> None:
    values = own_pair({**tiny_values("mala"), "mala": {"pointwise": 0.25}}).model_dump()
    values["student"]["training"]["steps"] = 8
    torch.manual_seed(0)
    joint = Joint(Pair.model_validate(values), RESOLUTION)
    assert [set(joint(batch, step)) for step in (0, 1, 2, 7)] == [{"teacher_pointwise"}] * 2 + [{"teacher_malis"}] * 2
    raw, labels = batch
    affinity = joint.teacher(raw).affinity_logits.sigmoid()  # type: ignore[misc]
    targets = affinity_targets(labels)
    wanted = affinity_loss(affinity, targets.target, targets.valid)
    torch.testing.assert_close(joint(batch, 0)["teacher_pointwise"], wanted)


def test_an_own_loss_of_weight_0_leaves_nothing_to_train(tiny_values: Values) -> None:
    with pytest.raises(ValidationError, match="every loss is 0"):
        own_pair(tiny_values("mala"), own=0.0)


@pytest.mark.parametrize("cross_from", ["embedding", "logits"])
@pytest.mark.parametrize("head_kind", OWN_HEAD)
def test_a_head_of_affinities_teaches_at_full_resolution(
    head_kind: str, cross_from: str, tiny_values: Values, batch: tuple[Tensor, Tensor]
) -> None:
    raw, labels = batch
    pair = pair_of(tiny_values(head_kind)).model_dump()
    pair["student"]["loss"]["cross_from"] = cross_from
    torch.manual_seed(0)
    joint = Joint(Pair.model_validate(pair), RESOLUTION).eval()
    found = joint(batch, 0)["cross"]
    logits = joint.teacher(raw).affinity_logits  # type: ignore[misc]
    wanted = cross_dimension_loss(
        joint.view(raw, with_slab=False).affinity,
        logits[:, :, 1:].sigmoid(),
        affinity_targets(labels).valid[:, :, 1:],
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head_kind", ["resunet", "seunet", "mala", "lsd"])
def test_a_published_network_without_embedding_teaches_affinities(
    head_kind: str, tiny_values: Values, batch: tuple[Tensor, Tensor]
) -> None:
    values = pair_of(tiny_values(head_kind)).model_dump()
    values["teacher"] |= {"embedding": 0, "loss": {**values["teacher"]["loss"], "multi_offset": 0.0}}
    values["student"]["loss"]["graft"] = 0.0
    terms = Joint(Pair.model_validate(values), RESOLUTION)(batch, 0)
    assert "cross" in terms
    assert "graft" not in terms


def test_the_affinity_loss_alone_teaches(
    embedding_kind: str, tiny_teacher: Build, batch: tuple[Tensor, Tensor]
) -> None:
    raw, labels = batch
    targets = affinity_targets(labels)
    half, valid = half_resolution(targets.target), half_resolution(targets.valid.float()) > 0
    network = tiny_teacher(embedding_kind).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = affinity_cross_entropy(network(raw).decoder_input.affinity_logits, half, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.8 * losses[0]


def raw(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_one_window_is_the_direct_run(embedding_kind: str, tiny_teacher: Build) -> None:
    network, volume = tiny_teacher(embedding_kind), raw((3, 20, 33))
    windows = sliding_windows((3, 20, 33), (17, 64, 64), (1, 8, 8))
    found = run_teacher(network, volume, windows, device=CPU, precision="32-true")
    slid = slide_embedding(network, volume, windows, head_embedding, device=CPU, precision="32-true")
    with torch.no_grad():
        embedding = network(torch.from_numpy(volume)[None, None]).embedding
    assert found.windows == [Box.of_shape((3, 20, 33))]
    wanted = embedding_affinity(embedding, NEAREST)[0].numpy()
    fill_frame(wanted)
    np.testing.assert_allclose(found.affinity, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slid, F.normalize(embedding[0], dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "block", "overlap"),
    [
        ((4, 30, 33), (3, 24, 20), (1, 6, 4)),
        ((1, 33, 21), (4, 20, 18), (1, 4, 4)),
        ((2, 19, 9), (1, 18, 16), (0, 1, 1)),
    ],
)
def test_windows_that_do_not_divide_the_volume(
    kind: str,
    tiny_teacher: Build,
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    overlap: tuple[int, int, int],
) -> None:
    network, volume = tiny_teacher(kind), raw(shape)
    windows = sliding_windows(shape, block, overlap)
    assert len(windows) > 1
    last: NDArray[np.float32] = np.full((4, *shape), np.nan, np.float32)
    sizes = set()

    def keep(window: Box, output: TeacherOutput, own: NDArray[np.float32]) -> None:
        assert output.embedding is not None
        assert tuple(output.embedding.shape[-3:]) == window.shape == own.shape[1:]
        sizes.add(window.shape)
        last[(slice(None), *window.slices)] = F.normalize(output.embedding[0].float(), dim=0).numpy()

    found = run_teacher(
        network,
        volume,
        windows,
        device=CPU,
        precision="32-true",
        blend=False,
        on_block=keep,
    )
    slid = slide_embedding(network, volume, windows, head_embedding, device=CPU, precision="32-true", blend=False)
    np.testing.assert_allclose(slid, last, rtol=1e-4, atol=1e-5)
    assert sizes == {tuple(min(b, s) for b, s in zip(block, shape, strict=True))}
    blended = run_teacher(network, volume, windows, device=CPU, precision="bf16-mixed")
    slid = slide_embedding(network, volume, windows, head_embedding, device=CPU, precision="bf16-mixed")
    for given in (found.affinity, blended.affinity):
        assert given.shape == (3, *shape)
        assert float(given.min()) >= 0
        assert float(given.max()) <= 1 + 1e-5
    assert float(np.linalg.norm(slid, axis=0).max()) <= 1 + 1e-2


@pytest.mark.parametrize("embedding", [0, 4])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_kind_has_an_embedding_to_show(kind: str, embedding: int, precision: str, tiny_values: Values) -> None:
    if kind in EMBEDDINGS_ONLY and not embedding:
        pytest.skip("no network without an embedding")
    values = {**tiny_values(kind), "embedding": embedding, "decoder": DECODER, "loss": {"multi_offset": 0.0}}
    config = TeacherConfig.model_validate(values)
    torch.manual_seed(0)
    model = TrainedTeacher(
        build_teacher(config).eval(), build_decoder(config.decoder, 8, RESOLUTION).eval(), config, {}, Path("none")
    )
    volume = (255 * raw((3, 20, 34))).astype(np.uint8)
    sliding = Sliding.over(Windows((3, 16, 20), (0, 4, 4)), config.decoder.block, volume.shape)
    found = teacher_slab(model, volume, sliding, Runtime(CPU, precision))
    assert found.shape == (embedding or DECODER["width"], *volume.shape)
    assert np.isfinite(found).all()
    assert float(np.linalg.norm(found, axis=0).max()) <= 1 + 1e-2
