"""GPUs are dealt out to the workers of a machine."""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import distill.inference.blockwise.gpus as gpus
from distill.core.claim import claim
from distill.core.errors import DistillError
from distill.inference.blockwise.gpus import device_of, worker_number
from distill.models.load import pick_device


def test_numbered_workers_take_turns() -> None:
    found = [device_of("auto", f"SLURMCluster-{worker}", 3) for worker in range(5)]
    assert found == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert device_of("cuda", "4", 2) == device_of("cuda", None, 2) == "cuda:0"
    assert [device_of(name, "3", 2) for name in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]
    assert [device_of(name, "tcp://a:3", 0) for name in ("auto", "cuda")] == ["auto", "cuda"]
    assert [worker_number(name) for name in ("3", "SLURMCluster-12", "alone", "")] == [3, 12, 0, 0]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two GPUs, held by nobody."""
    monkeypatch.setattr(gpus, "_held", ExitStack())
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{number}"))


def _hold(folder: str, name: str, held: object, done: object) -> None:
    with claim(Path(folder) / name):
        held.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("two")
def test_workers_named_by_an_address_take_a_gpu_that_no_other_holds(tmp_path: Path) -> None:
    """Their ports would give two of them the same one."""
    import os

    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    name = f"distill-{os.getuid()}-gpu-GPU-0"
    other = context.Process(target=_hold, args=(str(tmp_path), name, held, done))
    other.start()
    try:
        assert held.wait(60)
        assert device_of("auto", "tcp://10.0.0.1:40002", 2) == "cuda:1"
    finally:
        done.set()
        other.join()
        gpus._held.close()
    assert device_of("auto", "tcp://10.0.0.1:40003", 2) == "cuda:0"
    gpus._held.close()


@pytest.mark.usefixtures("two")
def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory and streams belong to the current device."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [str(pick_device(name)) for name in ("cuda:1", "cuda", "auto", "cpu")] == ["cuda:1", "cuda", "cuda", "cpu"]
    assert current == [1]
    with pytest.raises(DistillError, match=r"--device: found 'cuda:2', expected cuda:0 to cuda:1: torch sees 2 GPUs"):
        pick_device("cuda:2")
    for name in ("cuda:", "cuda:x", "cudann", "cpu:0"):
        with pytest.raises(DistillError, match="expected auto, cpu, cuda or cuda:N"):
            pick_device(name)
