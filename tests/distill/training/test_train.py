"""What training reads, and what it does to the folder it is given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from distill.config import Pair, load_pair
from distill.core.errors import CheckpointError, ConfigError, ShapeError, SourceError
from distill.core.geometry import Box
from distill.core.hardware import Chosen
from distill.inference.in_memory import student_volume
from distill.inference.options import Runtime
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi
from distill.models.load import load_student, load_teacher
from distill.training.data import open_parts
from distill.training.loop.step_times import StepTimes
from distill.training.run_folder import RunRecord, prepare_folder, restore_best
from distill.training.validation import validate, views
from students.smp import SmpYShape

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "phantom_cpu"
Load = Callable[..., Pair]


@pytest.fixture
def load(tiny: tuple[str, ...], phantom: Path) -> Load:
    """The tiny pair on the phantom, with further words."""

    def pair(*words: str) -> Pair:
        with mock.patch.dict(os.environ, {"PHANTOM": str(phantom)}):
            return load_pair(CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", [*tiny, *words])

    return pair


def test_parts_are_the_named_sections(load: Load, phantom: Path) -> None:
    config = load("student.data.train=[2,11]", "student.data.validation=[13,17]")
    parts = open_parts(config)
    raw, labels = open_volume(phantom).read(), open_labels(phantom).read()
    (source,), (part,) = parts.training, parts.validation
    whole = Box.of_shape(source.shape)
    np.testing.assert_array_equal(source.raw(whole), raw[2:11])
    np.testing.assert_array_equal(source.labels(whole), labels[2:11].astype(np.int64))
    np.testing.assert_array_equal(part.raw, config.student.data.normaliser.sections(raw[13:17]))
    np.testing.assert_array_equal(part.labels, labels[13:17])
    assert parts.resolution == (30.0, 6.0, 6.0)


def test_parts_that_do_not_fit(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.data\.validation: ends at section 21, .* has 20 sections"):
        open_parts(load("student.data.validation=[12,21]"))
    with pytest.raises(ConfigError, match=r"student\.training\.crop: \[13, 32, 32\] is larger .* \[12, 96, 96\]"):
        open_parts(load("student.training.crop=[13,32,32]"))
    path = tmp_path / "labels.h5"
    write_cremi(path, labels=np.ones((20, 96, 96), np.uint64), resolution=(30, 6, 8), offset=(0, 0, 96 * 6))
    with pytest.raises(ShapeError, match=r"labels\.h5.*covers nothing of .*expected resolution and offset"):
        open_parts(load(f"student.data.labels={path}"))


def test_labels_of_other_voxels_are_taken_at_voxel_centres(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "labels.h5"
    labels = np.random.default_rng(0).integers(1, 9, (20, 48, 32), np.uint64)
    write_cremi(path, labels=labels, resolution=(30, 12, 18))
    with caplog.at_level("INFO", "distill.input"):
        (part,) = open_parts(load(f"student.data.labels={path}", "student.data.validation=[13,17]")).validation
    np.testing.assert_array_equal(part.labels, labels[13:17].repeat(2, axis=1).repeat(3, axis=2))
    assert "labels of 30 x 12 x 18 nm are taken at the centres of voxels of" in caplog.text
    assert "30 x 6 x 6 nm" in caplog.text


def test_folder_is_prepared_once(load: Load, tmp_path: Path) -> None:
    config = load()
    state = prepare_folder(tmp_path / "run", config, resume=False)
    assert state == tmp_path / "run" / "checkpoints" / "state.pt"
    again = load_pair(tmp_path / "run" / "teacher.yaml", tmp_path / "run" / "student.yaml")
    assert again == config
    prepare_folder(tmp_path / "run", load("student.training.lr=0.5"), resume=False)  # nothing saved yet
    state.touch()
    with pytest.raises(SourceError, match="holds a run already; expected a new folder, or --resume"):
        prepare_folder(tmp_path / "run", config, resume=False)
    with pytest.raises(CheckpointError, match=r"student\.yaml: differs from the configuration given"):
        prepare_folder(tmp_path / "run", config, resume=True)
    assert prepare_folder(tmp_path / "run", load("student.training.lr=0.5"), resume=True) == state
    elsewhere = load("student.training.lr=0.5", "student.data.memory=0", "student.training.workers=0")
    assert prepare_folder(tmp_path / "run", elsewhere, resume=True) == state  # the same crops
    assert load_pair(tmp_path / "run" / "teacher.yaml", tmp_path / "run" / "student.yaml") == elsewhere
    older = tmp_path / "run" / "student.yaml"  # written before there was a key
    lines = older.read_text().splitlines()
    older.write_text("\n".join(line for line in lines if "detach_teacher" not in line))
    assert older.read_text() != "\n".join(lines)
    assert prepare_folder(tmp_path / "run", load("student.training.lr=0.5"), resume=True) == state
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"run: cannot be written"):
        prepare_folder(tmp_path / "file" / "run", config, resume=False)


def test_record_says_how_it_ended_and_what_came_before(load: Load, tmp_path: Path) -> None:
    path, config = tmp_path / "run.json", load("student.training.seed=5")
    split = StepTimes()
    split.add(2.0, {"data": 0.5, "teacher": 1.0})
    chosen = Chosen("32-true", "auto", "cpu (AVX2, no bfloat16)")
    with RunRecord(path, ["distill", "one"], config, 0, 1, split, chosen):
        assert json.loads(path.read_text())["ended"] == "running"
    with pytest.raises(RuntimeError), RunRecord(path, ["distill", "two"], config, 3, 1, split, chosen):
        raise RuntimeError("no")
    with RunRecord(path, ["distill", "three"], config, 4, 2, split, chosen):
        pass
    found = json.loads(path.read_text())
    assert (found["command"], found["ended"], found["seed"], found["first_step"]) == (
        ["distill", "three"],
        "done",
        5,
        4,
    )
    assert (found["processes"], found["time_per_step"]["steps"], found["time_per_step"]["seconds"]) == (2, 1, 2.0)
    assert found["time_per_step"]["parts"]["teacher"] == 1.0
    assert [(one["command"][1], one["ended"]) for one in found["earlier"]] == [
        ("one", "done"),
        ("two", "RuntimeError: no"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_weights_carry_what_validation_said(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    cpu = torch.device("cpu")
    for kind, model in (("student", load_student(str(run), cpu)), ("teacher", load_teacher(str(run), cpu))):
        row = next(r for r in rows if r["step"] == model.notes["step"] and f"validation_{kind}" in r)
        said = {key: value for key, value in row[f"validation_{kind}"].items() if key != "sweep"}
        assert model.notes["validation"] == said
        assert model.notes["merge_threshold"] == row[f"validation_{kind}"]["merge_threshold"]
        assert model.notes["resolution"] == [30.0, 6.0, 6.0]
        assert model.notes["data"]["validation"] == [12, 16]


def of_queries(scores: dict[str, Any]) -> dict[str, Any]:
    """Leave out the scores of the method `flood`, which validation adds for students."""
    assert "flood_voi" in scores
    return {name: value for name, value in scores.items() if not name.startswith("flood_")}


def test_loaded_weights_score_as_validated(run: Path, load: Load, phantom: Path) -> None:
    """The file on disk is the network that was judged, averaged weights and all."""
    from distill.training.objective.objective import Joint
    from distill.training.validation import score_validation

    config = load()
    parts, runtime = open_parts(config), Runtime(torch.device("cpu"), "32-true")
    student = load_student(str(run), runtime.device)
    (part,) = parts.validation
    recorded = open_volume(phantom).read()[12:16]
    found = score_validation(
        student_volume(student, iter(recorded), (4, 96, 96), runtime), part.labels, student.decoding
    )
    assert found.to_dict() == of_queries(student.notes["validation"])
    teacher = load_teacher(str(run), runtime.device)
    joint = Joint(config, parts.resolution).eval()
    joint.teacher.load_state_dict(teacher.teacher.state_dict())
    joint.decoder.load_state_dict(teacher.decoder.state_dict())
    judged = validate(joint, config, [part], runtime)
    assert set(judged) == {"student", "teacher"}
    assert judged["teacher"].to_dict() == teacher.notes["validation"]
    one, other = views(joint, config)
    assert one.decoder is other.decoder is joint.decoder


def test_a_student_on_a_librarys_encoder_trains(train: Callable[..., Any], phantom: Path, tmp_path: Path) -> None:
    from distill.training.validation import score_validation

    words = ("kind=smp", "encoder=tu-regnetx_002", "depth=3", "fuse=2", "training.steps=2")
    said = train(tmp_path / "run", *(f"student.{word}" for word in words))
    assert said.code == 0, said.err
    cpu = torch.device("cpu")
    found = load_student(str(tmp_path / "run"), cpu)
    assert isinstance(found.student, SmpYShape)
    assert (found.student.stride, found.student.fuse) == (8, 2)
    raw = open_volume(phantom).read()[12:16]
    judged = score_validation(
        student_volume(found, iter(raw), (4, 96, 96), Runtime(cpu, "32-true")),
        open_labels(phantom).read()[12:16],
        found.decoding,
    )
    assert judged.to_dict() == of_queries(found.notes["validation"])


TEACHER_ALONE = (
    *("student.loss.slice=0", "student.loss.cross=0", "student.loss.graft=0", "teacher.queries.student=0"),
    "student.training.teacher_every=1",
)


def test_a_teacher_alone_then_a_student_of_the_frozen_teacher(train: Callable[..., Any], tmp_path: Path) -> None:
    first, second = tmp_path / "teacher", tmp_path / "student"
    said = train(first, *TEACHER_ALONE, pictures=True)
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert {name for row in rows for name in row if name.startswith("validation_")} == {
        "validation_seconds",
        "validation_teacher",
    }
    assert [path.name for path in (first / "best").iterdir()] == ["teacher.safetensors"]
    assert not list((first / "checkpoints").glob("student*"))
    assert (first / "report.html").exists()
    best = min((row["validation_teacher"]["voi"], row["step"]) for row in rows if "validation_teacher" in row)
    cpu = torch.device("cpu")
    teacher = load_teacher(str(first), cpu)
    assert (teacher.notes["validation"]["voi"], teacher.notes["step"]) == best

    frozen = (f"teacher.weights={first}", "teacher.frozen=true", "student.training.warmup=0")
    said = train(second, *frozen, "teacher.queries.teacher=0")
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert {"slice", "cross", "graft"} <= set(rows[0])
    assert not any(name.startswith(("teacher_", "validation_teacher")) for row in rows for name in row)
    given, kept = (folder / "best" / "teacher.safetensors" for folder in (first, second))
    assert kept.read_bytes() == given.read_bytes()
    assert load_student(str(second), cpu).decoder is not None

    said = train(tmp_path / "shared", *frozen)  # the decoder learns on the teacher's features too
    assert said.code == 0, said.err
    found = load_teacher(str(tmp_path / "shared"), cpu)
    state = teacher.teacher.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.teacher.state_dict().items())
    decoder = teacher.decoder.state_dict()
    assert any(not torch.equal(value, decoder[name]) for name, value in found.decoder.state_dict().items())


def test_a_frozen_teacher_that_is_not_there(train: Callable[..., Any], tmp_path: Path) -> None:
    said = train(tmp_path / "run", "teacher.weights=nowhere", "teacher.frozen=true")
    assert said.code == 2
    assert "nowhere: no such file or run folder" in said.err
    assert "Traceback" not in said.err


def test_steps_on_volumes_without_labels(train: Callable[..., Any], phantom: Path, tmp_path: Path) -> None:
    coarse = tmp_path / "coarse.h5"
    raw = open_volume(phantom).read()
    write_cremi(coarse, raw=raw[:, :48, :48], resolution=(30, 12, 12))
    entries = f"[{{raw: {phantom}:volumes/raw, sections: [16, 20]}}, {{raw: {coarse}}}]"
    words = (
        f"student.data.unlabelled={entries}",
        "student.loss.graft_from=teacher",
        "student.training.teacher_every=1",
    )
    with mock.patch("distill.training.train.logger.warning") as warned:
        said = train(tmp_path / "run", *words)
    assert said.code == 0, said.err
    assert [call.args[0] for call in warned.call_args_list] == [
        f"student.data.unlabelled.1: {coarse} has voxels of 30 x 12 x 12 nm, the labelled volume of 30 x 6 x 6 nm "
        "(z, y, x); used without resampling"
    ]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: {name for name in row if name.startswith("unlabelled_")} for row in rows if "loss" in row}
    assert steps == {
        1: set(),
        2: {"unlabelled_cross", "unlabelled_graft"},
        3: set(),
        4: {"unlabelled_cross", "unlabelled_graft"},
    }
    for entry, wanted in (
        (f"{{raw: {coarse}, sections: [0, 21]}}", "student.data.unlabelled.0.sections: ends at section 21"),
        (f"{{raw: {coarse}, sections: [0, 2]}}", "student.data.unlabelled.0: "),
    ):
        found = train(tmp_path / "other", f"student.data.unlabelled=[{entry}]")
        assert found.code == 2
        assert wanted in found.err


def test_the_best_weights_are_those_of_the_saved_state(tmp_path: Path) -> None:
    """Killed between a validation and the state after it, a folder holds better weights than its state knows."""
    for folder in ("checkpoints", "best"):
        (tmp_path / folder).mkdir()
    for step in (4, 8):
        (tmp_path / "checkpoints" / f"student-{step:07d}.safetensors").write_bytes(b"%d" % step)
    best = tmp_path / "best" / "student.safetensors"
    for known, wanted in (({"student_step": 4, "student_voi": 1.0}, b"4"), ({}, b"8"), ({"student_step": 2}, b"8")):
        best.write_bytes(b"8")
        restore_best(tmp_path, known)
        assert best.read_bytes() == wanted
    best.unlink()
    restore_best(tmp_path, {"student_step": 8})
    assert best.read_bytes() == b"8"
    assert not (tmp_path / "best" / "teacher.safetensors").exists()
