"""What a segmentation costs, estimated from one of its blocks."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.cli.arguments import BlockArguments, RunArguments
from distill.cli.plan import commands
from distill.core.geometry import Box
from distill.inference.blockwise.estimate import Estimate, Trial, estimate
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.segment import segment
from distill.inference.options import Options

OPTIONS = Options(device="cpu", precision="32-true", backend="eager")
Cli = Callable[..., Any]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which trials are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_blocks_and_sizes_are_those_of_the_segmentation(
    network: Any, run: Path, phantom: Path, temporary: Path, tmp_path: Path
) -> None:
    source, blocking = f"{phantom}:volumes/raw", Blocking(network=network, block=(4, 60, 60))
    threads = torch.get_num_threads()
    found = estimate(source, str(run), OPTIONS, blocking)
    store = tmp_path / "out.zarr"
    done = segment(source, str(run), store, OPTIONS, blocking)
    assert found.blocks == math.prod(done.about["blocks"])
    assert found.shape == (20, 96, 96)
    assert set(found.alone.seconds) <= set(done.timer.seconds)
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert 0.2 < found.disk / stored < 5
    assert not list(temporary.iterdir())
    assert torch.get_num_threads() == threads


def test_a_worker_is_tried_with_its_own_threads(
    run: Path, phantom: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.inference.blockwise.estimate.usable_cores", lambda: 4)
    seen: list[int] = []

    def spied(*words: Any) -> Any:
        seen.append(torch.get_num_threads())
        return segment(*words)

    monkeypatch.setattr("distill.inference.blockwise.estimate.segment", spied)
    found = estimate(f"{phantom}:volumes/raw", str(run), OPTIONS, Blocking(workers=2, block=(4, 60, 60)))
    assert seen == [4, 2]
    assert (found.alone.threads, found.shared.threads if found.shared else None) == (4, 2)


def test_the_trial_lies_in_the_sections_that_are_asked_for(
    run: Path, phantom: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[str] = []

    def spied(source: str, *words: Any) -> Any:
        sources.append(source)
        return segment(source, *words)

    monkeypatch.setattr("distill.inference.blockwise.estimate.segment", spied)
    options = Options(device="cpu", precision="32-true", backend="eager", sections=(2, 6))
    inside = f"{phantom}:volumes/raw#box=10,4,8:20,68,80"
    estimate(inside, str(run), options, Blocking(block=(4, 64, 72)))
    assert sources == [f"{inside}#box=12,4,8:16,68,80"]


def trial(threads: int, seconds: float) -> Trial:
    return Trial(Box((0, 0, 0), (10, 100, 100)), threads, {"network": seconds}, 3.0, 2**30, 1000)


def test_times_follow_from_computed_voxels() -> None:
    found = Estimate((100, 100, 100), 10, 1_100_000, trial(4, 6.0), trial(2, 8.0), 2)
    assert found.one_process == pytest.approx(3 + 6 * 11)
    assert found.with_workers == pytest.approx(3 + 8 * 11 / 2)
    assert found.disk == 10_000
    few = Estimate((10, 100, 100), 1, 100_000, trial(4, 6.0), trial(2, 8.0), 8)
    assert few.with_workers == pytest.approx(3 + 8)  # seven have nothing to do


def test_commands_for_one_process_workers_and_a_slurm_array() -> None:
    """The memory of a job is a quarter more than what a trial held."""
    peak = 3 * 2**30
    shared = replace(trial(2, 8.0), threads=2, peak=peak)
    blocks, run = BlockArguments(workers=4, method="waterz"), RunArguments(device="cpu")
    lines = commands("raw.h5:raw", "my model", blocks, run, Estimate((10, 100, 100), 6, 10**6, shared, shared, 4))
    segment = "distill segment raw.h5:raw --model 'my model' --out OUT.zarr --method waterz --device cpu"
    assert lines[:2] == [f"next: {segment}", f"4 workers: {segment} --workers 4"]
    assert "sbatch --array=1-4 --cpus-per-task=2 --mem=4G" in lines[4]
    assert lines[5].strip() == f"{segment} --scheduler scheduler.json"
    assert commands("a", "b", BlockArguments(), run, Estimate((1, 9, 9), 1, 81, shared, None, 0)) == [
        "next: distill segment a --model b --out OUT.zarr --device cpu"
    ]


@pytest.mark.commands("plan")
def test_the_command_says_what_to_type(
    run: Path, phantom: Path, cli: Cli, cpu: tuple[str, ...], temporary: Path
) -> None:
    source = f"{phantom}:volumes/raw"
    words = ("--model", run, "--sections", "0:8", "--method", "waterz", "--block", "4,60,60", *cpu)
    said = cli("plan", source, *words)
    assert said.code == 0, said.err
    assert "volume: 8 x 96 x 96 voxels, 12 blocks" in said.out
    wanted = (
        f"next: distill segment {source} --model {run} --out OUT.zarr --method waterz --block 4,60,60 --sections 0:8"
    )
    assert wanted in said.out
    found = cli("plan", source, *words, "--json")
    assert json.loads(found.out)["blocks"] == 12
    refused = cli("plan", source, *words, "--resume")
    assert refused.code == 2
    assert "a plan writes nothing" in refused.err
