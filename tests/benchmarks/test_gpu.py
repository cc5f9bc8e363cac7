"""The run of all measurements on a GPU, on a CPU at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import gpu_inputs
import gpu_limits
import gpu_stages
import gpu_training
import numpy as np
import pytest
import torch
from gpu import Setup
from second_device import second_device

from distill.core import hardware
from distill.core.errors import DistillError
from distill.data.phantom import make_phantom
from distill.io.volume import open_labels, open_volume
from distill.io.writers.cremi import write_cremi

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "crop.h5"
    made = make_phantom((12, 64, 64), (30.0, 6.0, 6.0), 0)
    write_cremi(path, raw=made.raw, labels=made.labels, resolution=made.resolution)
    return path


def test_one_call_measures_everything_and_trains(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    command = ["bash", "benchmarks/gpu.sh", str(data), str(out), "--small", "--together", "--device", "cpu"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "gpu.log").read_text() == done.stdout
    found = json.loads((out / "gpu.json").read_text())
    assert list(found["stages"]) == [*gpu.STAGES, gpu.LAST]
    assert found["small"]
    result: dict[str, Any] = {name: stage["result"] for name, stage in found["stages"].items()}
    assert result["machine"]["precisions"]["32-true"]["per_second"] > 0
    assert result["suite"]["tests"] == 1
    assert result["suite"]["bad"] == []
    (row,) = result["stream"]["rows"]
    assert row["mvoxel_per_second"] > 0
    assert 0 < row["share_of_copies"] < 1
    assert row["of_bound_by_operations"] == pytest.approx(row["mvoxel_per_second"] / row["bound_by_operations"])
    assert row["operations_per_voxel"] > 1000
    assert {"query", "flood", "waterz"} < set(result["decoder"])
    assert [one["window"] for one in result["teacher"]["rows"]] == [[4, 48, 48]] * 2
    for name in ("student_section", "decoder_block", "teacher_window"):
        assert result["largest"][name]["largest"] <= result["largest"][name]["predicted"]
    assert result["steps"]["ac4_gpu"][0]["parts"]["backward"] > 0
    assert result["train"]["steps"] == 1
    assert 0 <= result["train"]["waiting_share"] <= 1
    names = [one["name"] for one in result["train"]["files"]]
    assert {"best/student.safetensors", "best/teacher.safetensors", "metrics.jsonl"} < set(names)
    assert sorted(p.name for p in out.iterdir()) == ["gpu.json", "gpu.log", "run"]


def test_out_of_memory_is_answered_by_a_smaller_size(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[int] = []

    def square(side: int) -> None:
        ran.append(side)
        if side > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    found = gpu_limits.largest(square, (10, 20, 40, 60, 80), CPU, end=time.monotonic() + 60, free=2**60)
    assert ran == [10, 80, 60, 40]
    assert (found["predicted"], found["largest"]) == (80, 40)
    assert [one["side"] for one in found["tried"] if "error" in one] == [80, 60]
    assert capsys.readouterr().out.splitlines() == [
        "side 80: out of memory on cpu; 60 is tried",
        "side 60: out of memory on cpu; 40 is tried",
    ]


def test_a_size_is_predicted_from_the_memory_of_the_smallest() -> None:
    held: list[Any] = []

    def square(side: int) -> None:
        held[:] = [np.ones((side, side, 64))]

    found = gpu_limits.largest(square, (256, 512, 4096), CPU, end=time.monotonic() + 60, free=400 * 2**20)
    needed = found["tried"][0]["bytes"]
    if needed is None:
        pytest.skip("the peak of memory cannot be read on this system")
    assert needed == pytest.approx(256 * 256 * 64 * 8, rel=0.2)
    assert found["predicted"] == found["largest"] == 512


class KnownPeak:
    """In place of what a driver would report."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"

    def lap(self) -> float:
        return 1e6


@pytest.mark.parametrize("name", ["machine", "stream", "decoder", "teacher", "largest"])
def test_stages_on_a_second_device_mix_none(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on a GPU, nothing is made on one device and used on another."""
    for module in (gpu_inputs, hardware):
        monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(gpu_inputs, "DevicePeak", KnownPeak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**33, 2**34))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a second one")
    with second_device():
        found = gpu_stages.STAGES[name](Setup(data, tmp_path, "cuda:0", small=True), 100)
    json.dumps(found, allow_nan=False)
    if name == "largest":
        assert found["student_section"]["largest"] == 128
        assert (found["decoder_block"]["depth"], found["decoder_block"]["largest"]) == (3, 64)
    if name == "machine":
        assert (found["gpu"], found["free_bytes"]) == ("a second one", 2**33)
        assert found["link_bytes_per_second"].keys() == {"to_device", "from_device"}


def test_files_of_a_training_that_are_too_large_are_halved_or_cut(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, state = run / "best" / "student.safetensors", run / "checkpoints" / "state.pt"
    monkeypatch.setattr(gpu_training, "KEPT", int(0.6 * weights.stat().st_size))
    kept = gpu_training.keep(run, tmp_path / "kept")
    assert max(one["bytes"] for one in kept) <= gpu_training.KEPT
    parts = sorted((tmp_path / "kept" / "checkpoints").glob("state.pt.part-*"))
    assert len(parts) > 1
    assert b"".join(part.read_bytes() for part in parts) == state.read_bytes()
    from distill.models.checkpoint import read_weights

    whole, half = (read_weights(folder / "best" / "student.safetensors") for folder in (run, tmp_path / "kept"))
    assert half.notes == whole.notes
    for key, tensor in whole.tensors.items():
        torch.testing.assert_close(half.tensors[key].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-3)


def test_a_stage_that_fails_costs_no_other(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(setup: Setup, seconds: float) -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    stages = dict.fromkeys(gpu_stages.STAGES, lambda setup, seconds: {"x": float("nan")})
    monkeypatch.setattr(gpu_stages, "STAGES", stages)
    monkeypatch.setitem(stages, "stream", bad)
    found = gpu.run(Setup(data, tmp_path, "cpu", small=True), 100, [], apart=False)
    assert found["stages"]["stream"]["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert [name for name, stage in found["stages"].items() if "error" in stage] == ["stream"]
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"]["train"]["result"] == {"x": None}


def test_a_process_that_dies_or_takes_too_long_is_an_error(data: Path, tmp_path: Path) -> None:
    setup = Setup(data, tmp_path, "cpu", small=True)
    assert gpu.in_process("no such stage", setup, 60)["error"] == "ended with 2"
    assert gpu.in_process("machine", setup, -4.99)["error"] == "not done after -5 s"


def test_without_time_there_is_no_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(gpu, "measured", lambda name, setup, limit: called.append(name) or {"result": {}})
    found = gpu.run(Setup(data, tmp_path, "cpu", small=False), 30, [], apart=False)
    assert called == list(gpu.STAGES)
    assert found["stages"]["train"]["error"] == "30 s were left"


def test_the_crop_and_the_code_stay_below_the_limit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "CROP", ((0, 5), (0, 40), (20, 60)))
    target = tmp_path / "crop.h5"
    assert gpu.main(["prepare", str(data), str(target)]) == 0
    for name, opened in (("volumes/raw", open_volume), ("volumes/labels/neuron_ids", open_labels)):
        wanted = opened(f"{data}:{name}").read()[:5, :40, 20:60]  # type: ignore[operator]
        np.testing.assert_array_equal(opened(f"{target}:{name}").read(), wanted)  # type: ignore[operator]
    assert "together at most 55" in capsys.readouterr().out
    assert gpu.main(["prepare", str(data), str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "LARGEST", 1000)
    with pytest.raises(DistillError, match="expected at most 1,000"):
        gpu.prepare(data, tmp_path / "other.h5")
    assert not (tmp_path / "other.h5").exists()
    assert gpu.main(["run", str(tmp_path / "none.h5"), "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "python benchmarks/gpu.py prepare ac4.h5" in capsys.readouterr().err
