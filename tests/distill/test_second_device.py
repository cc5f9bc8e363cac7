"""All networks on a second device: what runs there, gives what the CPU gives, and rarely waits for the device."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from second_device import second_device
from torch import Tensor

from distill.config import DecoderConfig, Pair, load_pair
from distill.config.teacher_kinds import OWN_LOSS, PUBLISHED
from distill.core.affinity import NEAREST
from distill.core.hardware import computing
from distill.inference.assembly import Slab
from distill.inference.decode import decode_slab
from distill.inference.options import Runtime
from distill.models.load import TrainedStudent, load_student
from distill.training.loop.loop import make_optimizer, take_step
from distill.training.loop.state import Average, State
from distill.training.loop.step_times import StepClock
from distill.training.objective.objective import Joint
from students.streaming.runner import SectionRunner
from teachers.sliding_window import run_teacher

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU = torch.device("cpu")
SIDE = 32


class OneRank:
    """What the training loop asks of fabric, for one process."""

    world_size, is_global_zero = 1, True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def to_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part.to(self.device, non_blocking=True) for part in batch)  # from pinned memory

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def all_reduce(self, values: Tensor, reduce_op: str) -> Tensor:
        return values


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(1, 6, (2, 1, 4, 4)).repeat(4, 1).repeat(8, 2).repeat(8, 3))
    return torch.from_numpy(rng.random((2, 1, 4, SIDE, SIDE), np.float32)), labels


def steps_on(
    device: torch.device, pair: Pair, batch: Any, steps: list[int], mode: Any = None
) -> tuple[list[dict[str, float]], Average]:
    """Terms of steps with these numbers, and the averaged weights after them."""
    torch.manual_seed(0)
    joint = Joint(pair, (30.0, 6.0, 6.0)).train().to(device)
    state = State(joint, make_optimizer(joint, pair.student.training), Average(joint, 0.9))
    clock, found = StepClock(CPU), []
    if mode is not None:
        mode.read = mode.sent = 0
    for step in steps:
        state.step = step
        given: Any = (state, joint, batch, pair.student.training, OneRank(device), 0.01, clock, Path("none"))
        found.append(take_step(*given))
    assert state.average is not None
    return found, state.average


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("teacher.queries.start=5",),
        ("teacher.frozen=true", "teacher.weights=RUN", "student.loss.masks=1", "student.training.teacher_every=1"),
        ("teacher.decoder.refine=transformer", "student.loss.multi_offset=1", "student.training.clip=0.5"),
        ("teacher.decoder.seeds.kind=mean", "teacher.decoder.prior=distance", "teacher.queries.points=200"),
        ("teacher.decoder.learned=3", "teacher.decoder.refine=knet", "teacher.decoder.prior=none"),
    ],
)
def test_training_steps(tiny: tuple[str, ...], batch: tuple[Tensor, Tensor], run: Path, words: tuple[str, ...]) -> None:
    """Steps with and without teacher, queries and distillation, and gradients of a part only."""
    files, named = CONFIGS / "phantom_cpu", [word.replace("RUN", str(run)) for word in words]
    with mock.patch.dict(os.environ, {"PHANTOM": "phantom.h5"}):
        pair = load_pair(files / "teacher.yaml", files / "student.yaml", [*tiny, *named])
    steps = [0, 1, 2]
    wanted, _ = steps_on(CPU, pair, batch, steps)
    with second_device() as (device, mode):
        found, there = steps_on(device, pair, batch, steps, mode)
        # Per step: two to four looks each at whether seeds, flooding and instances have settled, which depends on the
        # last digits of the arithmetic, and eight more.
        assert mode.read <= 18 * len(steps)
        assert mode.sent == 0
        assert {value.device for value in there.values.values()} == {device}
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["resunet", "seunet", *(k for k in OWN_LOSS if "filters" in PUBLISHED[k])])
def test_steps_of_every_kind_with_a_head_or_a_loss_of_its_own(
    tiny: tuple[str, ...], batch: tuple[Tensor, Tensor], kind: str
) -> None:
    filters = [4] * len(PUBLISHED[kind]["filters"])
    sizes = [word for word in tiny if "filters" not in word and "branch" not in word]
    words = [f"teacher.filters={filters}", "teacher.queries.teacher=0", "student.training.warmup=0"]
    teacher, student = CONFIGS / "teachers" / f"{kind}.yaml", CONFIGS / "phantom_cpu" / "student.yaml"
    with mock.patch.dict(os.environ, {"PHANTOM": "phantom.h5"}):
        pair = load_pair(teacher, student, [*sizes, *words])
    wanted, _ = steps_on(CPU, pair, batch, [0, 1])
    with second_device() as (device, mode):
        found, _ = steps_on(device, pair, batch, [0, 1], mode)
    assert any(name.startswith("teacher_") for name in wanted[0])
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedStudent:
    return load_student(str(run), CPU)


def moved(trained: TrainedStudent, device: torch.device) -> TrainedStudent:
    found = copy.deepcopy(trained)
    for part in (found.student, found.slab, found.decoder):
        if part is not None:
            part.to(device)
    return found


def slab_on(
    device: torch.device, trained: TrainedStudent, sections: Any, tile: int | None
) -> tuple[Any, SectionRunner]:
    offsets = (*NEAREST, (-2, 1, -1), (0, 3, 2))
    runner = SectionRunner(
        trained.student,
        trained.slab,
        device=device,
        precision="32-true",
        backend="eager",
        offsets=offsets,
        embedding="float32",
        tile=tile,
        normaliser=trained.normaliser,
    )
    return runner.push(sections), runner


@pytest.fixture(scope="module")
def sections() -> Any:
    return np.random.default_rng(0).integers(0, 256, (4, 70, 62), dtype=np.uint8)


@pytest.mark.parametrize("tile", [None, 48])
def test_sections_of_a_stream(trained: TrainedStudent, sections: Any, tile: int | None) -> None:
    wanted, _ = slab_on(CPU, trained, sections, tile)
    with second_device() as (device, mode):
        found, runner = slab_on(device, moved(trained, device), sections, tile)
        read = mode.read
        runner.push(sections[:2])
        assert mode.read == read  # results are copied without waiting for them
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a.affinity, b.affinity)
            np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
            torch.testing.assert_close(a.joined.cpu(), b.joined, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("refine", [None, "min_piece"])
def test_instances_of_a_slab(trained: TrainedStudent, sections: Any, refine: str | None) -> None:
    config: DecoderConfig = trained.decoding
    if refine:
        config = config.model_copy(update={"min_piece": 5})
    given, _ = slab_on(CPU, trained, sections, None)
    wanted = decode_slab(
        TrainedStudent(**{**vars(trained), "decoding": config}), Slab(0, given), Runtime(CPU, "32-true", "eager")
    )
    with second_device() as (device, mode):
        there = moved(trained, device)
        there = TrainedStudent(**{**vars(there), "decoding": config})
        outputs, _ = slab_on(device, there, sections, None)
        mode.read = 0
        found = decode_slab(there, Slab(0, outputs), Runtime(device, "32-true", "eager"))
        assert mode.read <= 16 * len(found)
    for a, b in zip(found, wanted, strict=True):
        assert a.box == b.box
        np.testing.assert_array_equal(a.labels, b.labels)


def test_teacher_in_windows(run: Path) -> None:
    from distill.core.geometry import Box
    from distill.models.load import load_teacher

    teacher = load_teacher(str(run), CPU).teacher
    volume = np.random.default_rng(0).random((4, 48, 60), np.float32)
    windows = [Box((0, 0, 0), (4, 48, 48)), Box((0, 0, 12), (4, 48, 60))]
    wanted = run_teacher(teacher, volume, windows, device=CPU, precision="32-true").affinity
    with second_device() as (device, _):
        there = copy.deepcopy(teacher).to(device)
        found = run_teacher(there, volume, windows, device=device, precision="32-true").affinity
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_float32_is_not_rounded_to_tf32() -> None:
    with second_device() as (device, _), computing(device, "32-true"):
        assert not torch.backends.cudnn.allow_tf32
