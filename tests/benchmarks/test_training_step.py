"""The benchmark of a training step: which steps it takes, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path

import convolution_floor
import pytest
import torch
import training_step

from distill.config import Pair, load_pair
from distill.data.phantom import make_phantom
from distill.io.writers.cremi import write_cremi
from distill.training.loop.step_times import PARTS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "phantom_cpu"
SMALL = (
    *("teacher.filters=[8,8,8,8,8]", "teacher.fused=8", "teacher.branch_width=4", "teacher.branch_depth=1"),
    *("teacher.embedding=4", "teacher.decoder.width=8", "teacher.decoder.depth=1", "teacher.decoder.learned=4"),
    *("student.width=4", "student.embedding=4", "student.data.train=[0,4]", "student.data.validation=[4,6]"),
    *("student.training.crop=[3,32,32]", "student.training.workers=0", "student.training.teacher_every=2"),
)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "phantom.h5"
    made = make_phantom((6, 64, 64), (30.0, 6.0, 6.0), 0)
    write_cremi(path, raw=made.raw, labels=made.labels, resolution=made.resolution)
    monkeypatch.setenv("PHANTOM", str(path))
    return path


@pytest.mark.parametrize(
    ("warmup", "start", "teacher_every", "every", "first"),
    [(0, 0, 1, 1, 0), (10, 5, 3, 1, 12), (5, 10, 3, 2, 12), (12, 0, 3, 2, 12)],
)
def test_steps_begin_with_a_whole_cycle_behind_the_warm_up(
    volume: Path, warmup: int, start: int, teacher_every: int, every: int, first: int
) -> None:
    words = (f"student.training.warmup={warmup}", f"student.training.teacher_every={teacher_every}")
    queries = (f"teacher.queries.start={start}", f"teacher.queries.every={every}")
    pair: Pair = load_pair(CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", [*words, *queries])
    assert training_step.first_step(pair) == first


def test_variants_take_turns_and_say_where_the_time_goes(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    words = [str(CONFIGS / "teacher.yaml"), str(CONFIGS / "student.yaml"), *SMALL, "--device", "cpu", "--steps", "2"]
    found = training_step.main([*words, "--rounds", "1", "--variants", "none+float32", "student", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert [one["variant"] for one in found["results"]] == ["none+float32", "student"]
    for one in found["results"]:
        assert one["steps"] == 2
        assert set(one["parts"]) == set(PARTS)
        assert one["parts"]["backward"] > 0
        assert sum(one["parts"].values()) <= one["seconds"]
        assert one["with_teacher_least"] == one["with_teacher_median"]
        assert one["samples_a_second"] == pytest.approx(1 / one["seconds"])
        assert one["floor_forward"] > 0
        assert one["floor_backward"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["networks", "variant"]
    assert printed[2].split()[:2] == ["joint", "none+float32"]


def test_networks_are_trained_alone(volume: Path) -> None:
    words = [str(CONFIGS / "teacher.yaml"), str(CONFIGS / "student.yaml"), *SMALL, "teacher.queries.student=0"]
    options = ["--device", "cpu", "--steps", "1", "--rounds", "1", "--processor-time"]
    found = training_step.main([*words, *options, "--networks", "student", "teacher"])
    student, teacher = found["results"]
    assert found["time"] == "processor"
    assert (student["networks"], teacher["networks"]) == ("student", "teacher")
    assert student["parts"]["teacher"] < student["parts"]["student"]
    assert teacher["parts"]["student"] < teacher["parts"]["teacher"]


def test_the_floor_holds_the_convolutions_of_both_directions() -> None:
    layer = torch.nn.Conv2d(2, 3, 3, device="cpu")
    image = torch.rand(1, 2, 8, 8, requires_grad=True, device="cpu")
    with convolution_floor.Convolutions() as seen:
        torch.relu(layer(image)).sum().backward()
    assert [call.function.name() for call in seen.calls] == ["aten::convolution", "aten::convolution_backward"]
    forward, backward = convolution_floor.floor(seen.calls)
    assert min(forward, backward) > 0


def test_an_unknown_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training_step.main([str(CONFIGS / "teacher.yaml"), str(CONFIGS / "student.yaml"), "--variants", "student+fast"])
    assert "--variants: found 'fast', expected words of none, teacher" in capsys.readouterr().err
