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
from distill.recipes.joint import Joint, split_instances
from students.stream import SectionStream

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "phantom_cpu"
SLICE, CROSS, GRAFT = "slice", "cross", "graft"
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


def test_student_alone_runs_no_teacher(
    build: Build, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    off = (
        *("teacher.loss.multi_offset=0", "teacher.loss.affinity=0", "teacher.queries.teacher=0"),
        *("student.loss.cross=0", "student.loss.graft=0", "student.training.teacher_every=1"),
    )
    joint = build(*off)
    monkeypatch.setattr(joint.teacher, "forward", lambda *_: pytest.fail("the teacher ran"))
    assert set(joint(batch, 5)) == {SLICE} | QUERIES - OF_TEACHER


def test_weights_scale_their_terms(build: Build, batch: tuple[Tensor, Tensor]) -> None:
    one = build()(batch, 2)
    words = (
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
    assert {"slab", "decoder"} <= of(student_queries)
    assert "student" not in of(student_queries)
    assert "student" in of(student_queries, *every)


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 33, 47)])
def test_training_sees_what_the_stream_sees(build: Build, shape: tuple[int, int, int]) -> None:
    joint = build().eval()
    raw = torch.from_numpy(np.random.default_rng(1).random((1, 1, *shape), np.float32))
    with torch.no_grad():
        seen = joint.view(raw, True)
    stream = SectionStream(joint.student, joint.slab, device=torch.device("cpu"), precision="32-true")
    results = [stream.push(section) for section in raw[0, 0]][1:]
    affinity = torch.stack([result.affinity for result in results], 1)
    torch.testing.assert_close(seen.affinity[0], affinity, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        seen.current[0], torch.stack([result.embedding for result in results], 1), atol=1e-5, rtol=1e-4
    )
    mixed, logits = (torch.stack([getattr(r, name) for r in results], 1)[None] for name in ("mixed", "logits"))
    with torch.no_grad():
        slab = joint.slab.slab(mixed, logits)
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
