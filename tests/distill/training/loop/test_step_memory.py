"""Memory of a training step: which steps are reported, and what a real allocation gives."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config import TrainingConfig
from distill.training.loop import step_memory
from distill.training.loop.step_memory import StepMemory
from distill.training.schedule.phases import StepKind

ALONE = StepKind(labelled=True, teacher=False, distils=False, queries=False)
TAUGHT = StepKind(labelled=True, teacher=True, distils=True, queries=False)
ASKED = StepKind(labelled=True, teacher=True, distils=True, queries=True)
CPU = torch.device("cpu")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes held now and at most, as the system would report them."""
    found = {"held": 1_000_000_000, "peak": 1_000_000_000}
    monkeypatch.setattr(step_memory, "_held", lambda device: found["held"])
    monkeypatch.setattr(step_memory, "_peak", lambda device: found["peak"])
    return found


def test_the_first_step_of_a_kind_is_reported_if_it_needs_more(held: dict[str, int]) -> None:
    memory = StepMemory(TrainingConfig(steps=10, crop=(6, 96, 96), batch=2), CPU)
    held["peak"] = 3_000_000_000
    assert memory.after(1, ALONE) == (
        "memory per crop of 6 x 96 x 96: 1.00 GB on the CPU, measured up to step 1 (student); 3.00 GB in all"
    )
    assert memory.after(2, ALONE) == ""
    held["peak"] = 5_000_000_000
    assert "2.00 GB on the CPU, measured up to step 3 (student + teacher + dist" in memory.after(3, TAUGHT)
    assert memory.after(4, ASKED) == ""  # nothing more


def test_a_validation_is_not_taken_for_a_step(held: dict[str, int]) -> None:
    memory = StepMemory(TrainingConfig(steps=10, crop=(6, 96, 96), batch=1), CPU)
    held["peak"] = 2_000_000_000
    assert memory.after(1, ALONE)
    held["peak"] = 9_000_000_000
    memory.skip()
    assert memory.after(2, TAUGHT) == ""


def test_a_process_that_had_more_before_gives_a_bound(held: dict[str, int]) -> None:
    held["peak"] = 4_000_000_000
    memory = StepMemory(TrainingConfig(steps=10, crop=(6, 96, 96), batch=1), CPU)
    assert "at most 3.00 GB" in memory.after(1, ALONE)


def test_the_memory_of_an_allocation_is_found() -> None:
    gc.collect()
    memory = StepMemory(TrainingConfig(steps=10, crop=(6, 96, 96), batch=1), CPU)
    # As much as the process ever held, so that its peak rises whatever ran before.
    extra = step_memory._peak(CPU) - step_memory._held(CPU) + 200_000_000
    array = torch.ones(extra // 4, device=CPU)
    found = re.search(r"96: (\d+\.?\d*) GB", memory.after(1, ALONE))
    assert found is not None
    assert float(found[1]) == pytest.approx(4 * array.numel() / 1e9, rel=0.2)


def test_a_training_prints_it(train: Callable[..., Any], tmp_path: Path) -> None:
    said = train(tmp_path / "run")
    assert said.code == 0, said.err
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith("memory per crop of ")]
    assert lines
    assert re.search(r": (at most )?[\d.]+ GB on the CPU, measured up to step 1 \(student", lines[0])
