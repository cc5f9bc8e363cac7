"""Time of a step by part: on the clock of the CPU, behind the program on a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from distill.training.loop.step_times import PARTS, StepClock, StepTimes


def test_everything_between_two_marks_belongs_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 11.0, 13.0, 16.0, 20.0, 100.0, 101.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = StepClock(torch.device("cpu"))
    clock.start()
    for part in ("data", "losses", "teacher", "losses"):
        clock.mark(part)
    assert clock.parts() == dict.fromkeys(PARTS, 0.0) | {"data": 1.0, "losses": 6.0, "teacher": 3.0}
    clock.start()  # the time since the last mark belongs to no part
    clock.mark("student")
    assert clock.parts() == dict.fromkeys(PARTS, 0.0) | {"student": 1.0}


def test_an_unknown_part_is_refused() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.start()
    with pytest.raises(KeyError):
        clock.mark("optimizer")


def test_the_split_is_the_mean_and_its_shares_are_of_the_whole() -> None:
    times = StepTimes()
    times.add(2.0, {"data": 0.5, "teacher": 1.5})
    times.add(4.0, {"data": 0.5})
    times.add(3.0, {})  # a GPU's first step has no parts
    assert (times.steps, times.seconds) == (3, 3.0)
    assert times.parts == dict.fromkeys(PARTS, 0.0) | {"data": 0.5, "teacher": 0.75}
    assert times.line().startswith("time per step 3 s: data 16.7 %, teacher 25.0 %, student 0.0 %")
    assert times.line().endswith("other 58.3 %")
    assert times.to_dict() == {"steps": 3, "seconds": 3.0, "parts": times.parts}
    assert StepTimes().to_dict()["seconds"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_tells_the_parts_of_the_step_before() -> None:
    device = torch.device("cuda")
    clock, image = StepClock(device), torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    clock.start()
    clock.mark("data")
    for _ in range(20):
        image = image @ image / 64
    clock.mark("teacher")
    assert clock.parts() == {}
    float(image.sum())
    clock.start()
    clock.mark("data")
    found = clock.parts()
    assert found["teacher"] > found["data"] >= 0
    assert set(found) == set(PARTS)
