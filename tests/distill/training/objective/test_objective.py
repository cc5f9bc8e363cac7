"""Which loss terms a step has, and where their gradients go."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from skimage.measure import label
from torch import Tensor

from distill.config import Pair, load_pair
from distill.core.affinity import unit
from distill.core.affinity_conventions import from_uint8
from distill.core.errors import CheckpointError
from distill.core.known import UNKNOWN
from distill.core.normalisation import NONE
from distill.models.build import build_teacher
from distill.models.checkpoint import read_weights, save_weights
from distill.models.load import teacher_metadata
from distill.training.loop.loop import make_optimizer
from distill.training.loop.state import Average
from distill.training.objective.objective import Joint
from distill.training.objective.query_terms import split_instances
from students.streaming.runner import SectionRunner

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "phantom_cpu"
SLICE, CROSS, GRAFT = "slice", "cross", "graft"
MASKS = "student.loss.masks=1"
ONLY_MASKS = (MASKS, "student.loss.cross=0", "student.loss.graft=0", "teacher.queries.teacher=0")
TEACHER = {"teacher_offsets", "teacher_affinity"}
QUERIES = {
    f"{n}_{t}" for n, t in itertools.product(("teacher", "student"), ("cross_entropy", "dice", "discrimination"))
}
OF_TEACHER = {name for name in QUERIES if name.startswith("teacher")}
Build = Callable[..., Joint]


@pytest.fixture
def build(tiny: tuple[str, ...]) -> Build:
    """The tiny pair with further words."""

    def joint(*words: str) -> Joint:
        with mock.patch.dict(os.environ, {"PHANTOM": "phantom.h5"}):
            pair: Pair = load_pair(CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", [*tiny, *words])
        torch.manual_seed(0)
        return Joint(pair, (30.0, 6.0, 6.0))

    return joint


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(1, 6, (2, 1, 4, 4)).repeat(4, 1).repeat(8, 2).repeat(8, 3))
    return torch.from_numpy(rng.random((2, 1, 4, 32, 32), np.float32)), labels


@pytest.mark.parametrize(
    ("words", "step", "names"),
    [
        ((), 0, {SLICE} | TEACHER | QUERIES),
        ((), 1, {SLICE} | QUERIES - OF_TEACHER),  # the teacher runs every second step
        ((), 2, {SLICE, CROSS, GRAFT} | TEACHER | QUERIES),
        (("student.training.teacher_every=1",), 1, {SLICE, CROSS, GRAFT} | TEACHER | QUERIES),
        (("student.training.warmup=9",), 2, {SLICE} | TEACHER | QUERIES),
        (("teacher.queries.start=3",), 2, {SLICE, CROSS, GRAFT} | TEACHER),
        (("teacher.queries.start=3", "teacher.queries.every=2"), 3, {SLICE} | QUERIES - OF_TEACHER),
        (("teacher.queries.start=3", "teacher.queries.every=2"), 4, {SLICE, CROSS, GRAFT} | TEACHER),
        (("teacher.queries.student=0",), 2, {SLICE, CROSS, GRAFT} | TEACHER | OF_TEACHER),
        (("teacher.queries.student=0",), 1, {SLICE}),
        (("teacher.queries.teacher=0",), 2, {SLICE, CROSS, GRAFT} | TEACHER | QUERIES - OF_TEACHER),
        (("teacher.queries.dice=0", "teacher.queries.student=0"), 0, {SLICE} | TEACHER | OF_TEACHER - {"teacher_dice"}),
        (("student.loss.cross=0",), 2, {SLICE, GRAFT} | TEACHER | QUERIES),
        (("student.loss.graft=0",), 2, {SLICE, CROSS} | TEACHER | QUERIES),
        (("student.loss.cross_from=logits",), 2, {SLICE, CROSS, GRAFT} | TEACHER | QUERIES),
        (("teacher.loss.affinity=0",), 0, {SLICE, "teacher_offsets"} | QUERIES),
        ((MASKS,), 2, {SLICE, CROSS, GRAFT, "masks"} | TEACHER | QUERIES),
        ((MASKS,), 0, {SLICE} | TEACHER | QUERIES),  # warm-up
        ((MASKS,), 3, {SLICE} | QUERIES - OF_TEACHER),  # no teacher
        ((MASKS, "teacher.queries.start=3"), 2, {SLICE, CROSS, GRAFT} | TEACHER),
        ((MASKS, "teacher.queries.teacher=0"), 2, {SLICE, CROSS, GRAFT, "masks"} | TEACHER | QUERIES - OF_TEACHER),
        ((MASKS, "teacher.queries.student=0"), 2, {SLICE, CROSS, GRAFT, "masks"} | TEACHER | OF_TEACHER),
        ((MASKS, "teacher.queries.points=50"), 2, {SLICE, CROSS, GRAFT, "masks"} | TEACHER | QUERIES),
    ],
)
def test_terms_of_a_step(
    build: Build, batch: tuple[Tensor, Tensor], words: tuple[str, ...], step: int, names: set[str]
) -> None:
    terms = build(*words)(batch, step)
    assert set(terms) == names
    for name, term in terms.items():
        assert term.ndim == 0, name
        assert math.isfinite(float(term.detach())), name
        assert float(term.detach()) > 0, name


EVERY_TERM = (MASKS, "student.training.teacher_every=1", "student.training.warmup=0")


@pytest.mark.parametrize(
    "words",
    [
        EVERY_TERM,
        (*EVERY_TERM, "student.loss.cross_from=logits", "student.loss.graft_from=teacher"),
        (*EVERY_TERM, "teacher.queries.points=50"),
    ],
)
def test_where_nothing_is_known_no_term_looks(
    build: Build, batch: tuple[Tensor, Tensor], words: tuple[str, ...]
) -> None:
    joint, (raw, labels) = build(*words), batch
    terms = joint((raw, torch.full_like(labels, UNKNOWN)), 2)
    assert set(terms) == {SLICE, CROSS, GRAFT, "masks"} | TEACHER | QUERIES
    assert {float(term.detach()) for term in terms.values()} == {0.0}
    torch.stack(list(terms.values())).sum().backward()
    assert not any(p.grad.any() for p in joint.parameters() if p.grad is not None)
    half = labels.clone()
    half[:, :, :, 16:] = UNKNOWN
    assert all(float(term.detach()) > 0 for term in joint((raw, half), 2).values())


STUDENT_ALONE = (
    *("teacher.loss.multi_offset=0", "teacher.loss.affinity=0", "teacher.queries.teacher=0"),
    *("student.loss.cross=0", "student.loss.graft=0", "student.training.teacher_every=1"),
)
TEACHER_ALONE = (
    *("student.loss.slice=0", "student.loss.cross=0", "student.loss.graft=0", "teacher.queries.student=0"),
    "student.training.teacher_every=1",
)


def test_a_network_without_a_loss_is_not_there(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    joint = build(*STUDENT_ALONE)
    assert joint.teacher is None
    assert not any(name.startswith("teacher") for name in joint.state_dict())
    terms = joint(batch, 5)
    assert set(terms) == {SLICE} | QUERIES - OF_TEACHER
    assert reached(joint, list(terms.values())) == {"student", "slab", "decoder"}
    joint = build(*TEACHER_ALONE)
    assert joint.student is None
    assert joint.slab is None
    terms = joint(batch, 5)
    assert set(terms) == TEACHER | OF_TEACHER
    assert reached(joint, list(terms.values())) == {"teacher", "decoder"}


def test_the_student_begins_alike_with_and_without_a_teacher(build: Build) -> None:
    alone, taught = build(*STUDENT_ALONE).state_dict(), build().state_dict()
    assert alone
    assert all(torch.equal(value, taught[name]) for name, value in alone.items())


@pytest.fixture
def trained(build: Build, tmp_path: Path) -> Path:
    """Weights of a teacher other than the one that `build` makes."""
    joint = build()
    torch.manual_seed(1)
    modules = {"teacher": build_teacher(joint.config.teacher), "decoder": joint.decoder}
    for parameter in joint.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    config = joint.config.teacher
    metadata = teacher_metadata(config, config.decoder, (30.0, 6.0, 6.0), NONE)
    save_weights(tmp_path / "teacher.safetensors", "teacher", modules, metadata, {})
    return tmp_path / "teacher.safetensors"


def frozen_words(trained: Path, *words: str) -> tuple[str, ...]:
    return (f"teacher.weights={trained}", "teacher.frozen=true", "student.training.warmup=0", *words)


def test_training_leaves_a_frozen_teacher_alone(build: Build, batch: tuple[Tensor, Tensor], trained: Path) -> None:
    joint = build(*frozen_words(trained), "student.training.teacher_every=1").train()
    assert not joint.not_started
    assert joint.teacher is not None
    given = read_weights(trained)
    optimizer = make_optimizer(joint, joint.config.student.training)
    assert {id(p) for p in joint.teacher.parameters()}.isdisjoint(
        id(p) for group in optimizer.param_groups for p in group["params"]
    )
    average = Average(joint, 0.5)
    before = {name: value.clone() for name, value in joint.state_dict().items()}
    for step in range(3):
        terms = joint(batch, step)
        assert set(terms) == {SLICE, CROSS, GRAFT} | QUERIES
        optimizer.zero_grad()
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        optimizer.step()
        average.update(joint, step)
    assert all(p.grad is None for p in joint.teacher.parameters())
    after = joint.state_dict()
    for name, value in given.part("teacher").items():
        assert torch.equal(after[f"teacher.{name}"], value), name
        assert torch.equal(average.values[f"teacher.{name}"], value), name
    for part in ("student", "slab", "decoder"):
        assert any(not torch.equal(after[n], before[n]) for n in after if n.startswith(f"{part}.")), part
    assert not joint.teacher.training
    assert joint.decoder.training


@pytest.mark.parametrize(
    ("words", "step", "ran"),
    [
        ((), 0, True),
        ((), 1, False),  # every second step
        (("student.training.warmup=4",), 2, True),  # the decoder learns on its features
        (("student.training.warmup=4", "teacher.queries.teacher=0"), 2, False),
        (("student.training.warmup=4", "teacher.queries.teacher=0"), 4, True),
        (("student.training.warmup=4", "teacher.queries.every=4"), 2, False),
        (("student.loss.cross=0", "student.loss.graft=0"), 0, True),
        ((*ONLY_MASKS, "teacher.queries.every=4"), 4, True),
        ((*ONLY_MASKS, "teacher.queries.every=4"), 2, False),
        ((*ONLY_MASKS, "student.training.warmup=4"), 2, False),
    ],
)
def test_a_frozen_teacher_runs_where_a_loss_asks_for_it(
    build: Build, batch: tuple[Tensor, Tensor], trained: Path, words: tuple[str, ...], step: int, ran: bool
) -> None:
    joint = build(*frozen_words(trained, *words))
    assert joint.teacher is not None
    with mock.patch.object(joint.teacher, "forward", wraps=joint.teacher.forward) as forward:
        joint(batch, step)
    assert bool(forward.called) == ran


def test_a_teacher_may_start_from_weights_and_learn_on(
    build: Build, batch: tuple[Tensor, Tensor], trained: Path
) -> None:
    joint = build(f"teacher.weights={trained}").train()
    assert joint.teacher is not None
    given = read_weights(trained).part("teacher")
    assert all(torch.equal(value, given[name]) for name, value in joint.teacher.state_dict().items())
    terms = joint(batch, 2)
    assert set(terms) == {SLICE, CROSS, GRAFT} | TEACHER | QUERIES
    assert "teacher" in reached(joint, list(terms.values()))


def test_weights_that_do_not_fit(build: Build, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"teacher\.weights: .*of another architecture: .*expected"):
        build(f"teacher.weights={trained}", "teacher.branch_width=8")
    with pytest.raises(CheckpointError, match="nowhere: no such file or run folder"):
        build("teacher.weights=nowhere")
    other = build(f"teacher.weights={trained}", "teacher.decoder.rounds=2")
    assert other.not_started == [f"teacher.weights: {trained} has no decoder"]
    alone = build(*STUDENT_ALONE, f"teacher.weights={trained}")
    assert alone.teacher is None
    assert not alone.not_started
    given = read_weights(trained).part("decoder")
    assert all(torch.equal(value, given[name]) for name, value in alone.decoder.state_dict().items())
    student = tmp_path / "student.safetensors"
    save_weights(student, "student", {}, {}, {})
    with pytest.raises(CheckpointError, match="holds a student, expected a teacher"):
        build(f"teacher.weights={student}")


UNLABELLED = ("student.data.unlabelled=[{raw: other.h5}]", "student.training.teacher_every=1")


@pytest.mark.parametrize(
    ("words", "step", "names"),
    [
        ((), 1, {CROSS}),
        ((), 2, None),
        ((), 3, {CROSS}),
        (("student.training.warmup=2",), 1, None),
        (("student.training.unlabelled_every=3",), 1, None),
        (("student.training.unlabelled_every=3",), 2, {CROSS}),
        (("student.loss.graft_from=teacher",), 1, {CROSS, GRAFT}),
        (("student.loss.cross=0", "student.loss.graft_from=teacher"), 1, {GRAFT}),
        (("student.loss.cross_from=logits",), 1, {CROSS}),
        ((MASKS,), 1, {CROSS, "masks"}),
        ((*ONLY_MASKS,), 3, {"masks"}),
        ((MASKS, "teacher.queries.points=50"), 1, {CROSS, "masks"}),
        ((MASKS, "teacher.queries.every=2"), 1, {CROSS, "masks"}),
        ((MASKS, "teacher.queries.every=2"), 3, {CROSS}),
        ((MASKS, "teacher.queries.start=2"), 1, {CROSS}),
    ],
)
def test_terms_of_a_step_without_labels(
    build: Build, batch: tuple[Tensor, Tensor], words: tuple[str, ...], step: int, names: set[str] | None
) -> None:
    joint = build(*UNLABELLED, *words)
    terms = joint((batch[0], torch.zeros_like(batch[1])) if names else batch, step)
    if names is None:
        assert SLICE in terms
        return
    assert set(terms) == {f"unlabelled_{name}" for name in names}
    assert all(math.isfinite(float(term.detach())) and float(term.detach()) > 0 for term in terms.values())
    with_masks = "masks" in names
    assert reached(joint, list(terms.values())) - {"student"} == ({"slab", "decoder"} if with_masks else set())
    labelled = joint(batch, step)  # whatever labels there are, they are not looked at
    assert all(torch.equal(value, labelled[name]) for name, value in terms.items())


def test_steps_without_labels_do_not_count_for_the_others(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    joint = build(
        UNLABELLED[0], "student.training.teacher_every=2", "teacher.queries.every=2", "teacher.queries.start=1"
    )
    ran = []
    for step in range(1, 13):  # unlabelled: 1, 3, 5, ...
        terms = joint(batch, step)
        if SLICE in terms:
            ran.append((set(terms) >= TEACHER, "student_dice" in terms))
    # labelled steps 2, 4, 6, 8, 10, 12 are numbers 1 to 6; queries count from the one at or after their start
    assert ran == [(False, True), (True, False)] * 3


def test_weights_scale_their_terms(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    one = build(MASKS)(batch, 2)
    words = (
        "student.loss.masks=2",
        *("student.loss.slice=2", "student.loss.cross=2", "student.loss.graft=2", "teacher.loss.multi_offset=2"),
        *("teacher.loss.affinity=2", "teacher.queries.teacher=2", "teacher.queries.student=2"),
    )
    two = build(*words)(batch, 2)
    for name, term in one.items():
        assert float(two[name].detach()) == pytest.approx(2 * float(term.detach()), rel=1e-5), name


def test_terms_depend_on_the_step_alone(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    first = build()(batch, 2)
    torch.manual_seed(77)  # what went before must not matter
    joint = build()
    torch.rand(1000)
    again = joint(batch, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)


def reached(joint: Joint, terms: list[Tensor]) -> set[str]:
    """Parts of the module that some terms have a gradient for."""
    joint.zero_grad(set_to_none=True)
    torch.stack([term.float() for term in terms]).sum().backward()
    return {
        name
        for name, part in joint.named_children()
        if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    }


def test_gradients_go_where_the_configuration_says(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    def of(name: set[str], *words: str) -> set[str]:
        joint = build(*words)
        terms = joint(batch, 2)
        return reached(joint, [terms[n] for n in name])

    student_queries, every = QUERIES - OF_TEACHER, ("teacher.queries.detach_student=false",)
    assert of({SLICE}) == {"student"}
    assert of(TEACHER) == {"teacher"}
    assert of({CROSS}) == of({GRAFT}) == {"student", "teacher"}
    assert of({CROSS}, "student.loss.detach_teacher=true") == {"student"}
    assert of({GRAFT}, "student.loss.detach_teacher=true") == {"student"}
    assert of({CROSS}, "student.loss.cross_from=logits", "student.loss.detach_teacher=true") == {"student"}
    assert of({"masks"}, MASKS, "teacher.queries.detach_teacher=true") == {"slab", "decoder"}
    assert of({"masks"}, MASKS, "teacher.queries.teacher=0", every[0]) == {"student", "slab", "decoder"}
    assert {"slab", "decoder"} <= of(student_queries)
    assert "student" not in of(student_queries)
    assert "student" in of(student_queries, *every)


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 33, 47)])
def test_training_sees_what_the_stream_sees(build: Build, shape: tuple[int, int, int]) -> None:
    joint = build().eval()
    raw = torch.from_numpy(np.random.default_rng(1).random((1, 1, *shape), np.float32))
    with torch.no_grad():
        seen = joint.view(raw, True)
    cpu = torch.device("cpu")
    stream = SectionRunner(
        joint.student, joint.slab, device=cpu, precision="32-true", backend="eager", embedding="float32"
    )
    results = stream.push(raw[0, 0].numpy())[1:]
    affinity = np.stack([result.affinity for result in results], 1)
    np.testing.assert_allclose(seen.affinity[0].numpy(), from_uint8(affinity), atol=0.5 / 255 + 1e-5, rtol=0)
    embedding = np.stack([result.embedding for result in results], 1)
    np.testing.assert_allclose(unit(seen.current[0], dim=0).numpy(), embedding, atol=1e-5, rtol=1e-4)
    joined, logits = (torch.stack([getattr(r, name) for r in results]) for name in ("joined", "logits"))
    with torch.no_grad():
        slab = joint.slab.slab(joint.slab.mix(joined).transpose(0, 1)[None], logits.transpose(0, 1)[None])
    assert seen.decoder_input is not None
    # logits end at 1e-3 from certainty, where they are a thousand times as steep as affinities
    torch.testing.assert_close(seen.decoder_input.features, slab.features, atol=5e-3, rtol=0)
    torch.testing.assert_close(seen.decoder_input.affinity_logits, slab.affinity_logits, atol=5e-3, rtol=0)


def test_split_instances_against_skimage() -> None:
    labels = np.random.default_rng(3).integers(0, 4, (2, 4, 9, 10))
    labels[1] *= 2**40  # ids beyond 32 bits
    found = split_instances(torch.from_numpy(labels)).numpy()
    for block, expected in zip(found, labels, strict=True):
        pieces = label(expected, connectivity=3, background=0)
        pairs = set(zip(block.ravel().tolist(), pieces.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        np.testing.assert_array_equal(block == 0, expected == 0)
        assert block.max() == len(np.unique(block)) - 1


def test_a_student_starts_from_weights(build: Build, trained: Path, tmp_path: Path) -> None:
    """Adapter and decoder come along where they fit, before those of a teacher; the rest is refused or said."""
    other = build(*STUDENT_ALONE)
    assert other.student is not None
    assert other.slab is not None
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    file = tmp_path / "student.safetensors"
    modules = {"student": other.student, "slab": other.slab, "decoder": other.decoder}
    save_weights(file, "student", modules, {}, {})
    expected = other.state_dict()
    for words in (STUDENT_ALONE, (f"teacher.weights={trained}",)):
        joint = build(*words, f"student.weights={file}")
        assert not joint.not_started
        found = {name: value for name, value in joint.state_dict().items() if not name.startswith("teacher.")}
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    joint = build(*STUDENT_ALONE, f"student.weights={file}", "teacher.decoder.rounds=2")
    assert joint.not_started == [f"student.weights: {file} has no adapter and decoder"]
    assert joint.student is not None
    assert all(torch.equal(value, expected[f"student.{name}"]) for name, value in joint.student.state_dict().items())
    with pytest.raises(CheckpointError, match=r"student\.weights: .*of another architecture: .*expected"):
        build(*STUDENT_ALONE, f"student.weights={file}", "student.width=8")
    with pytest.raises(CheckpointError, match="holds a teacher, expected a student"):
        build(*STUDENT_ALONE, f"student.weights={trained}")
