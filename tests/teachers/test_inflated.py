"""The teacher that starts as a student: equal to it at first, and then with context from the sections around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.config import DecoderConfig, Pair, StudentConfig, StudentNetwork, TeacherConfig
from distill.core.affinity import pair_affinity
from distill.core.errors import CheckpointError
from distill.models.build import build_decoder, build_slab, build_student, build_teacher
from distill.models.checkpoint import save_weights
from distill.models.load import student_metadata
from distill.training.objective.objective import Joint
from students.student import Student
from teachers.inflated import InflatedTeacher, map_channels

NETWORKS: dict[str, dict[str, Any]] = {
    "cad": {"kind": "cad", "width": 2, "embedding": 4},
    "smp": {"kind": "smp", "width": 4, "embedding": 4, "encoder": "resnet18", "depth": 3},
    "empty level": {"kind": "smp", "width": 4, "embedding": 4, "encoder": "tu-convnext_atto", "depth": 3},
}
SMALL: dict[str, Any] = {"kind": "inflated", "fused": 8, "embedding": 4, "branch_width": 4, "branch_depth": 1}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> StudentNetwork:
    """Students of both kinds, one of them with an encoder that has an empty map."""
    return StudentNetwork.model_validate(NETWORKS[request.param])


def teacher_of(network: StudentNetwork, **values: Any) -> InflatedTeacher:
    torch.manual_seed(3)
    config = TeacherConfig.model_validate(
        {**SMALL, "inflated": {"network": network.model_dump(), "widths": [2, 3]}, **values}
    )
    found = build_teacher(config)
    assert isinstance(found, InflatedTeacher)
    return found


@torch.no_grad()
def shaken(teacher: InflatedTeacher) -> InflatedTeacher:
    """Leave the start: the last layer of every mixing module gets weights."""
    for module in teacher.backbone.mixing:
        if hasattr(module, "expand"):
            nn.init.normal_(module.expand.weight, std=0.3)
    return teacher


def affinities_of(student: Student, volume: torch.Tensor) -> torch.Tensor:
    """Affinities (3, D - 1, H, W) of the student alone, pair by pair."""
    sections = volume[0].transpose(0, 1)
    rows = []
    for z in range(1, len(sections)):
        pair = student(sections[z - 1 : z], sections[z : z + 1])
        rows.append(pair_affinity(pair.previous, pair.current)[0])
    return torch.stack(rows, 1)


@torch.no_grad()
def test_it_begins_as_the_student(network: StudentNetwork) -> None:
    teacher = teacher_of(network).eval()
    volume = torch.rand(1, 1, 4, 36, 41)
    found = teacher(volume)
    wanted = affinities_of(teacher.backbone.student, volume)
    torch.testing.assert_close(found.extra[0][0, :, 1:], wanted, rtol=1e-4, atol=1e-5)
    half = found.decoder_input.affinity_logits
    torch.testing.assert_close(half[0, :, 1:].sigmoid(), halved(wanted), rtol=1e-3, atol=1e-3)


def halved(affinity: torch.Tensor) -> torch.Tensor:
    pooled = nn.functional.avg_pool2d(affinity, 2, ceil_mode=True, count_include_pad=False)
    return pooled.clamp(1e-3, 1 - 1e-3)


@torch.no_grad()
def test_sections_see_as_far_as_there_are_layers() -> None:
    network = StudentNetwork.model_validate(NETWORKS["cad"])
    volume = torch.rand(1, 1, 12, 32, 32)
    for layers in (1, 2):
        inflated = {"network": network.model_dump(), "widths": [2, 3], "layers": layers}
        teacher = shaken(teacher_of(network, inflated=inflated)).eval()
        changed = volume.clone()
        changed[:, :, 0] = 1 - changed[:, :, 0]
        difference = (teacher(volume).extra[0] - teacher(changed).extra[0]).abs().amax((0, 1, 3, 4))
        seen = (difference > 1e-7).nonzero().flatten().tolist()
        assert max(seen) == layers + 1  # as the previous section of the last one that sees it


def test_all_parameters_learn_once_it_has_left_the_start() -> None:
    network = StudentNetwork.model_validate(NETWORKS["cad"])
    teacher = shaken(teacher_of(network)).train()
    with torch.no_grad():
        nn.init.normal_(teacher.affinity_branch.projection.weight, std=0.3)
    found = teacher(torch.rand(1, 1, 4, 32, 32))
    (found.extra[0].square().mean() + found.decoder_input.affinity_logits.square().mean()).backward()
    idle = [name for name, one in teacher.named_parameters() if one.grad is None or not one.grad.abs().sum()]
    assert not idle


def test_the_maps_of_a_student_are_counted_without_changing_it() -> None:
    student = build_student(StudentNetwork.model_validate(NETWORKS["empty level"])).train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert map_channels(student)[1] == 0
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def weights_of_a_student(path: Path, network: StudentNetwork) -> Student:
    torch.manual_seed(11)
    student = build_student(network)
    config = StudentConfig.model_validate({**network.model_dump(), "data": DATA})
    decoding = DecoderConfig(width=8, depth=1, rounds=1, learned=4)
    slab, decoder = build_slab(student, 8), build_decoder(decoding, 8, (30.0, 6.0, 6.0))
    metadata = student_metadata(config, 8, decoding, (30.0, 6.0, 6.0))
    save_weights(path, "student", {"student": student, "slab": slab, "decoder": decoder}, metadata, {})
    return student


DATA = {"raw": "raw.h5", "labels": "labels.h5", "train": [0, 8], "validation": [8, 12]}


def joint_of(network: StudentNetwork, **teacher: Any) -> Joint:
    values = {**SMALL, "inflated": {"network": network.model_dump(), "widths": [2, 3]}, **teacher}
    alone = {"slice": 0, "cross": 0, "graft": 0}
    decoder = {"width": 8, "depth": 1, "rounds": 1, "learned": 4}
    pair = {
        "teacher": {**values, "decoder": decoder, "queries": {"student": 0, "teacher": 0}},
        "student": {**network.model_dump(), "loss": alone, "data": DATA},
    }
    return Joint(Pair.model_validate(pair), (30.0, 6.0, 6.0))


def test_training_starts_from_a_trained_student(tmp_path: Path, network: StudentNetwork) -> None:
    path = tmp_path / "student.safetensors"
    student = weights_of_a_student(path, network)
    joint = joint_of(network, student=str(path))
    assert isinstance(joint.teacher, InflatedTeacher)
    started = joint.teacher.backbone.student.state_dict()
    assert all(torch.equal(value, started[name]) for name, value in student.state_dict().items())


def test_another_student_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    weights_of_a_student(path, StudentNetwork.model_validate(NETWORKS["cad"]))
    with pytest.raises(CheckpointError, match=r"teacher\.student.*student\.safetensors"):
        joint_of(StudentNetwork.model_validate(NETWORKS["smp"]), student=str(path))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"embedding": 8}, "embedding: found 8, expected 4 as in inflated.network"),
        ({"student": "ac4", "weights": "run"}, "student: found together with weights"),
        ({"inflated": {"widths": []}}, "inflated.widths"),
        ({"inflated": {"widths": [0]}}, "widths: found .0., expected at least 1"),
    ],
)
def test_keys_that_contradict_each_other(values: dict[str, Any], text: str) -> None:
    network = {"inflated": {"network": NETWORKS["cad"]}}
    with pytest.raises(ValueError, match=text):
        TeacherConfig.model_validate({**SMALL, **network, **values})


def test_only_this_kind_starts_from_a_student() -> None:
    with pytest.raises(ValueError, match="student: set for kind 'agq', expected only with kind 'inflated'"):
        TeacherConfig.model_validate({"student": "ac4"})
