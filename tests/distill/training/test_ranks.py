"""Two real processes under torchrun: the same gradients as one, the same stops, the same resumed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config import Pair, load_pair
from distill.core.errors import CheckpointError, DistillError
from distill.training.launch import launch
from distill.training.loop.state import State
from distill.training.objective.objective import Joint
from distill.training.ranks import Ranks, from_environment

SCRIPT = Path(__file__).with_name("training_process.py")
CONFIGS = SCRIPT.parents[3] / "configs" / "phantom_cpu"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# means over pairs of masks are each rank's own, so the terms of queries are not part of the comparison
WORDS = ("teacher.queries.teacher=0", "teacher.queries.student=0", "student.training.teacher_every=2")


@pytest.fixture(scope="module")
def pair(tiny: tuple[str, ...]) -> Pair:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHANTOM", "phantom.h5")
        return load_pair(
            CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", [*tiny, *WORDS, "student.training.warmup=0"]
        )


@pytest.fixture(scope="module")
def given(pair: Pair) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 5, (2, 1, 4, 4), generator=generator)
    labels = labels.repeat(1, 3, 1, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels[:, 1] = labels[:, 1].roll(3, -1)
    raw = torch.rand(2, 1, 3, 32, 32, generator=generator)
    return {"pair": pair.model_dump(mode="json"), "raw": raw, "labels": labels}


@pytest.fixture(scope="module")
def together(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of the two ranks found in the scenes of `training_process`."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(given, folder / "given.pt")
    said = subprocess.run([*TORCHRUN, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-4000:]
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_have_the_gradients_of_one_process_with_both_items(
    together: tuple[Path, list[dict[str, Any]]], given: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    joint = Joint(Pair.model_validate(given["pair"]), (30.0, 6.0, 6.0)).eval()
    _, ranks = together
    for step in (0, 1):
        joint.zero_grad(set_to_none=True)
        terms = joint((given["raw"], given["labels"]), step)
        assert ("cross" in terms) == (step == 0)
        torch.stack(list(terms.values())).sum().backward()
        compared = 0
        for name, parameter in joint.named_parameters():
            found = [rank["gradients"][str(step)][name] for rank in ranks]
            if parameter.grad is None:
                assert found == [None, None], name
                continue
            assert torch.equal(found[0], found[1]), name
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(found[0], parameter.grad, rtol=1e-4, atol=1e-5 * max(scale, 1e-3), msg=name)
            compared += scale > 0
        assert compared > 20
    assert all(ranks[0]["gradients"]["1"][name] is None for name, _ in joint.named_parameters() if "teacher" in name)


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_as_if_unbroken(
    together: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, ranks = together
    for rank in ranks:
        found = rank["resumed"]
        assert found["stopped"].startswith("stopped after step 4;")
        assert found["began"] == 4
        assert found["losses"][0] == found["losses"][1]
        assert len(found["losses"][0]) == 8
        assert all(torch.equal(a, b) for a, b in zip(*found["weights"], strict=True))
    assert [rank["resumed"]["validated"] for rank in ranks] == [1, 0]  # the first rank alone
    one, other = (rank["resumed"] for rank in ranks)
    assert one["losses"] == other["losses"]  # means over the ranks
    assert all(torch.equal(a, b) for a, b in zip(one["weights"][0], other["weights"][0], strict=True))
    saved = torch.load(folder / "broken.pt", weights_only=True)
    assert len(saved["rng"]) == 2
    assert not torch.equal(saved["rng"][0], saved["rng"][1])


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(together: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ranks = together
    for rank in ranks:
        assert rank["not_finite"]["steps"] == 5
        assert "the loss of step 5 is nan" in rank["not_finite"]["message"] or "is inf" in rank["not_finite"]["message"]
        assert "spoilt.pt" in rank["not_finite"]["message"]
    saved = torch.load(folder / "spoilt.pt", weights_only=True)
    assert saved["step"] == 3
    assert all(bool(value.isfinite().all()) for value in saved["module"].values())


def test_steps_are_timed_by_all_ranks_alike(together: tuple[Path, list[dict[str, Any]]]) -> None:
    """Each has its own clock and its own time left; one that stopped timing by itself would leave the other waiting."""
    _, ranks = together
    one, other = (rank["timed"] for rank in ranks)
    assert one == other
    assert len(one["seconds"]) == 2
    assert set(one["seconds"]) == {2.5}  # clocks of 1 and 4 s a look


def test_a_state_of_two_ranks_is_not_resumed_by_one(together: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = together
    from training_process import Toy

    toy = Toy()
    state = State(toy, torch.optim.Adam(toy.parameters()), None)
    with pytest.raises(CheckpointError, match=r"whole\.pt: cannot be resumed: saved by 2 processes, found 1; expected"):
        state.load(folder / "whole.pt")


def test_the_command_line_under_torchrun(tmp_path: Path, phantom: Path, tiny: tuple[str, ...]) -> None:
    words = (*tiny, "student.training.steps=2", "student.training.validate_every=2", "--device", "cpu")
    command = [*TORCHRUN, "-m", "distill", "train", str(CONFIGS / "teacher.yaml"), str(CONFIGS / "student.yaml")]
    said = subprocess.run(
        [*command, *words, "--out", str(tmp_path / "run")],
        env={**os.environ, "PHANTOM": str(phantom)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr[-4000:]
    assert said.stdout.count("run folder:") == 1
    assert said.stdout.count("time per step") == 1
    assert said.stderr.count("student + queries on validation") == 1
    assert (tmp_path / "run" / "best" / "student.safetensors").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_ranks_agree_on_the_steps_of_a_training_of_given_minutes(
    tmp_path: Path, phantom: Path, tiny: tuple[str, ...]
) -> None:
    """A rank that takes more steps than the other would wait for it."""
    words = [*(word for word in tiny if not word.startswith("student.training.steps")), "student.training.minutes=0.4"]
    pair = [str(CONFIGS / name) for name in ("teacher.yaml", "student.yaml")]
    command = [*TORCHRUN, "-m", "distill", "train", *pair, *words, "--device", "cpu", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PHANTOM": str(phantom)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if said.returncode:  # on a busy machine a step and its validation may take longer
        assert said.stderr.count("distill: student.training.minutes: found 0.4, of which") == 2, said.stderr[-4000:]
        return
    steps = json.loads((tmp_path / "run" / "steps.json").read_text())["steps"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == steps


# What the environment says


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    values = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_ranks_are_what_torchrun_says(torchrun: pytest.MonkeyPatch) -> None:
    assert from_environment() == Ranks(5, 8, 1, 4)
    assert not from_environment().first
    torchrun.setenv("WORLD_SIZE", "eight")
    with pytest.raises(DistillError, match="WORLD_SIZE: found 'eight' in the environment, expected the number"):
        from_environment()
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert from_environment() == Ranks()


def test_processes_that_do_not_fit() -> None:
    with pytest.raises(DistillError, match=r"--nproc-per-node: found 5 processes in all and 2 on this machine"):
        launch("cpu", "32-true", Ranks(0, 5, 0, 2))
