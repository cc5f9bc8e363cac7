"""The simulation of the scheduler: every task once, within the bounds of any schedule, and faults only add work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scheduler_simulation as simulation
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_simulation import Chances, simulate

from distill.inference.blockwise.executor import MOST_FAILED, most_submitted
from distill.inference.blockwise.plan import make_plan


@settings(max_examples=60)
@given(
    seconds=st.lists(st.floats(0.01, 50), min_size=1, max_size=120),
    workers=st.integers(1, 12),
    client=st.sampled_from([0.0, 0.5]),
)
def test_without_faults_every_task_runs_once_within_the_bounds_of_list_scheduling(
    seconds: list[float], workers: int, client: float
) -> None:
    times = np.array(seconds)
    found = simulate(times, workers, np.random.default_rng(0), Chances(), client)
    assert sorted(found.order) == list(range(len(times)))
    assert (found.finished, found.failed, found.wasted) == (len(times), 0, 0.0)
    assert found.useful == pytest.approx(times.sum())
    assert found.longest == times.max()
    least = max(times.sum() / workers, times.max(), client * len(times))
    assert found.makespan >= least * (1 - 1e-9)
    assert found.waiting == min(len(times), most_submitted(workers))
    if not client:  # Graham 1966: a worker is idle only while the last tasks run
        most = times.sum() / workers + (1 - 1 / workers) * times.max()
        assert found.makespan <= most * (1 + 1e-9)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    workers=st.integers(2, 9),
    failure=st.sampled_from([0.0, 0.1, 0.3]),
    killed=st.integers(0, 1),
)
def test_faults_lose_no_task_and_only_add_work(seed: int, workers: int, failure: float, killed: int) -> None:
    times = np.random.default_rng(seed).uniform(1, 5, 80)
    chances = Chances(failure=failure, retries=50, killed=killed)
    found = simulate(times, workers, np.random.default_rng(seed), chances, 0.0)
    assert sorted(found.order) == list(range(80))
    assert found.failed == 0
    assert found.useful == pytest.approx(times.sum())
    assert (found.wasted > 0) == (failure > 0 or killed > 0)
    assert found.makespan >= (found.useful + found.wasted) / workers * (1 - 1e-9)


def test_stragglers_take_their_factor() -> None:
    times = np.full(40, 2.0)
    found = simulate(times, 4, np.random.default_rng(0), Chances(straggler=1.0, factor=3.0), 0.0)
    assert (found.useful, found.longest, found.makespan) == (240.0, 6.0, 60.0)


def test_a_task_that_always_fails_is_tried_as_often_as_the_command_does_and_the_rest_is_not_submitted() -> None:
    found = simulate(np.full(100, 1.0), 3, np.random.default_rng(0), Chances(failure=1.0, retries=2), 0.0)
    assert found.finished == 0
    assert MOST_FAILED <= found.failed < MOST_FAILED + most_submitted(3)
    assert found.wasted < 3 * found.failed


def test_some_worker_must_be_left() -> None:
    with pytest.raises(ValueError, match="found 2 of 2 workers"):
        simulate(np.ones(3), 2, np.random.default_rng(0), Chances(killed=2), 0.0)


def test_the_client_is_the_limit_where_tasks_are_shorter_than_its_share() -> None:
    found = simulate(np.full(500, 0.5), 100, np.random.default_rng(0), Chances(), 0.01)
    assert found.makespan == pytest.approx(0.5 + 500 * 0.01)


def test_voxels_and_faces_are_those_of_the_plan() -> None:
    plan = make_plan((50, 1700, 2300), simulation.DECODER, (17, 520, 600))
    assert simulation.block_voxels(plan).tolist() == [block.box.voxels for block in plan.blocks()]
    before = ((axis, plan.block(first).owned) for axis, first, _ in plan.pairs())
    wanted = [own.voxels // own.shape[axis] for axis, own in before]
    assert sorted(simulation.face_voxels(plan).tolist()) == sorted(wanted)


def test_the_script_simulates_all_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates, out = tmp_path / "rates.json", tmp_path / "result.json"
    row = {
        "method": "flood",
        "pairs": 4,
        "face_voxels": 4000,
        "voxels": 10**6,
        "seconds_per_million": [2.0, 3.0],
        "task_seconds": {"solve_pair": [0.1, 0.2, 0.1, 0.2], "lay_part": [0.4, 0.6]},
    }
    rates.write_text(json.dumps({"rows": [row]}))
    assert simulation.read_rates(rates, "flood").block.tolist() == [2e-6, 3e-6]
    assert simulation.read_rates(rates, "flood").shard.mean() == pytest.approx(1e-6)
    words = ["--rates", str(rates), "--shape", "100,4000,4000", "--workers", "5", "--client", "0.002"]
    assert simulation.main([*words, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [row["phase"] for row in result["rows"]] == ["blocks", "pairs", "shards"] * 4
    for row in result["rows"]:
        assert row["finished"] + row["failed"] == row["tasks"]
        assert row["makespan"] >= row["least"]
    assert result["rows"][0]["tasks"] == result["blocks"]
    assert "one worker killed, shards" in capsys.readouterr().out
