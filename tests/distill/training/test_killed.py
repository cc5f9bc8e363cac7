"""A real training, killed with SIGKILL again and again at moments of its own writing, ends as an unbroken one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_process import command_line

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "phantom_cpu"
KILLS = 5
WORDS = (
    *("student.training.steps=8", "student.training.save_every=2", "student.training.log_every=3"),
    *("teacher.decoder.seeds.kind=mean", "student.training.validate_every=5"),
    *("student.training.ema=0.9", "student.training.batch=2"),
)


class Training:
    """`distill train` in a process of its own, which shares what its server has imported."""

    def __init__(self, out: Path, words: tuple[str, ...], phantom: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["distill.training.train", "distill.cli", "students.smp"])
        pair = [str(CONFIGS / "teacher.yaml"), str(CONFIGS / "student.yaml")]
        resume = ["--resume"] if (out / "checkpoints" / "state.pt").exists() else []
        typed = ["distill", "train", *pair, *words, *WORDS, "--device", "cpu", "--out", str(out), *resume]
        self.said = out.with_suffix(".txt")
        self.process = context.Process(target=command_line, args=(typed, {"PHANTOM": str(phantom)}, self.said))
        self.process.start()

    def kill_after(self, folder: Path, changes: int, delay: float) -> None:
        """Kill when files of the folder have changed so often, a moment later."""
        seen, last = 0, snapshot(folder)
        while seen < changes and self.process.is_alive():
            now = snapshot(folder)
            seen, last = seen + (now != last), now
            time.sleep(0.001)  # leaves the core to the training
        time.sleep(delay)
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def finish(self) -> None:
        self.process.join()
        assert self.process.exitcode == 0, self.said.read_text()


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            about = path.stat()
        except FileNotFoundError:  # renamed since
            continue
        found.append((path.name, about.st_size, about.st_mtime_ns))
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    times = ("seconds", "waited", "validation_seconds", "parts")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in found]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(
    tmp_path: Path, phantom: Path, tiny: tuple[str, ...]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    Training(whole, tiny, phantom).finish()
    rng = np.random.default_rng()
    seed = [(int(rng.integers(1, 14)), float(rng.uniform(0, 0.05))) for _ in range(KILLS)]
    reached = []
    for changes, delay in seed:
        Training(broken, tiny, phantom).kill_after(broken, changes, delay)
        state = broken / "checkpoints" / "state.pt"
        if state.exists():  # whole, whatever was being written
            reached.append(torch.load(state, weights_only=True)["step"])
    assert reached == sorted(reached), seed
    Training(broken, tiny, phantom).finish()
    assert rows(broken) == rows(whole), seed
    assert [row["step"] for row in rows(whole)] == [3, 5, 6, 8, 8]
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(broken) for path in broken.rglob("*.safetensors"))
    for name in files:
        a, b = load_file(whole / name), load_file(broken / name)
        assert all(torch.equal(a[key], b[key]) for key in a), (name, seed)
    one, other = (torch.load(folder / "checkpoints" / "state.pt", weights_only=True) for folder in (whole, broken))
    for part in ("module", "average"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part]), (part, seed)
    for key, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(value, other["optimizer"]["state"][key][name]) for name, value in moments.items())
    assert (one["step"], one["best"]) == (other["step"], other["best"])
    assert json.loads((broken / "run.json").read_text())["ended"] == "done"
    assert not [path for path in broken.rglob("*.writing") if path.parent.name in (broken.name, "checkpoints", "best")]
