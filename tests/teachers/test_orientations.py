"""Orientations of a block, against affinities of labels computed in every orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import Pair
from distill.core.affinity import affinity_targets, half_resolution
from distill.core.normalisation import NONE
from distill.decoder.decoder import DecoderInput
from distill.models.checkpoint import save_weights
from distill.models.load import teacher_metadata
from distill.training.objective.objective import Joint
from teachers.orientations import draw_orientation, full_affinity, orientations, run_orientations, run_oriented
from teachers.sliding_window import run_teacher, sliding_windows
from teachers.teacher import Teacher, TeacherOutput, certain_logits

EVERY = orientations(16)


class OfLabels(Teacher):
    """Reads a block as labels and returns their affinities: the right answer in any orientation."""

    embedding_channels = 0

    def __init__(self, *, at_full_resolution: bool = True) -> None:
        super().__init__()
        self.full, self.blocks = at_full_resolution, 0

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Return the affinities of the labels."""
        self.blocks += 1
        affinity = affinity_targets(volume[:, 0].round().long()).target
        given = DecoderInput(half_resolution(volume), certain_logits(half_resolution(affinity)))
        return TeacherOutput(given, None, [volume], certain_logits(affinity) if self.full else None)


def labels() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randint(1, 5, (1, 1, 3, 4, 6), generator=generator).float()
    return coarse.repeat_interleave(2, 2).repeat_interleave(3, 3).repeat_interleave(2, 4)


def inside(affinity: Tensor) -> Tensor:
    """Affinities without the edges that leave the block."""
    kept = affinity.clone()
    kept[:, 0, 0], kept[:, 1, :, 0], kept[:, 2, :, :, 0] = 0, 0, 0
    return kept


def test_orientations_are_different_and_doubled() -> None:
    assert len(set(EVERY)) == 16
    assert EVERY[0].identity
    assert not any(one.identity for one in EVERY[1:])
    assert not any(one.flips[0] for one in EVERY[:8])  # sections keep their order up to 8


@pytest.mark.parametrize("one", EVERY)
def test_a_block_comes_back(one: object) -> None:
    volume = torch.rand(2, 3, 4, 5, 7)
    assert torch.equal(one.back(one.of(volume)), volume)  # type: ignore[attr-defined]


@pytest.mark.parametrize("one", EVERY)
def test_affinities_of_an_oriented_block_come_back_to_their_edges(one: object) -> None:
    volume, teacher = labels(), OfLabels()
    plain = full_affinity(teacher(volume))
    moved = full_affinity(run_oriented(teacher, volume, one))  # type: ignore[arg-type]
    assert plain is not None
    assert moved is not None
    torch.testing.assert_close(inside(moved), inside(plain), rtol=0, atol=2e-3)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_the_mean_over_orientations_of_a_right_answer_is_that_answer(count: int) -> None:
    volume, teacher = labels(), OfLabels()
    plain = full_affinity(teacher(volume))
    teacher.blocks = 0
    found = full_affinity(run_orientations(teacher, volume, count))
    assert teacher.blocks == count
    assert plain is not None
    assert found is not None
    torch.testing.assert_close(inside(found), inside(plain), rtol=0, atol=2e-3)


def test_a_teacher_without_full_resolution_runs_once() -> None:
    teacher = OfLabels(at_full_resolution=False)
    assert run_orientations(teacher, labels(), 8).affinity_logits is None
    assert teacher.blocks == 1


def test_one_of_them_is_drawn_for_every_step() -> None:
    drawn = {draw_orientation(4, torch.Generator().manual_seed(step)) for step in range(40)}
    assert drawn == set(orientations(4))
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert draw_orientation(1, generator).identity
    assert torch.equal(generator.get_state(), before)


def test_windows_average_orientations() -> None:
    volume = labels()[0, 0].numpy()
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    windows = sliding_windows(shape, (4, 8, 8), (2, 4, 4))
    teacher, cpu = OfLabels(), torch.device("cpu")
    once = run_teacher(teacher, volume, windows, device=cpu, precision="32-true").affinity
    teacher.blocks = 0
    found = run_teacher(teacher, volume, windows, device=cpu, precision="32-true", orientations=8).affinity
    assert teacher.blocks == 8 * len(windows)
    np.testing.assert_allclose(found, once, atol=2e-3)


def test_a_frozen_teacher_shows_another_orientation_in_every_step(tmp_path: Path) -> None:
    small: dict[str, Any] = {"kind": "superhuman", "filters": [4] * 5, "fused": 8, "embedding": 4}
    decoder = {"width": 8, "depth": 1, "rounds": 1, "learned": 4}
    student = {
        **{"kind": "cad", "width": 4, "embedding": 4, "training": {"warmup": 0}},
        "data": {"raw": "raw.h5", "labels": "labels.h5", "train": [0, 8], "validation": [8, 12]},
    }

    def joint_of(**teacher: Any) -> Joint:
        torch.manual_seed(0)
        values = {**small, "decoder": decoder, "queries": {"student": 0, "teacher": 0}, **teacher}
        return Joint(Pair.model_validate({"teacher": values, "student": student}), (30.0, 6.0, 6.0))

    first = joint_of()
    assert first.teacher is not None
    path = tmp_path / "teacher.safetensors"
    config = first.config.teacher
    save_weights(
        path,
        "teacher",
        {"teacher": first.teacher, "decoder": first.decoder},
        teacher_metadata(config, config.decoder, (30.0, 6.0, 6.0), NONE),
        {},
    )
    batch = torch.rand(1, 1, 4, 16, 16), torch.randint(1, 4, (1, 4, 16, 16))
    terms = {}
    for count in (1, 8):
        joint = joint_of(weights=str(path), frozen=True, orientations=count)
        terms[count] = [float(joint.eval()(batch, step)["cross"].detach()) for step in (0, 1, 2, 3, 0)]
    assert len(set(terms[1])) == 1
    assert len(set(terms[8])) > 1
    assert terms[8][0] == terms[8][-1]  # as a resumed run would see it
