"""`distill review` on a store of the command line: files for proofreading, and one line for what it cannot do."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def store(run: Path, phantom: Path, cli: Cli, cpu: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sections of the phantom in blocks."""
    out = tmp_path_factory.mktemp("review") / "out.zarr"
    said = cli("segment", f"{phantom}:volumes/raw", "--model", run, "--out", out, "--sections", "0:6", *cpu)
    assert said.code == 0, said.err
    return out


@pytest.mark.commands("review")
def test_a_store_is_exported_for_proofreading(store: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "review"
    said = cli("review", store, "--out", out, "--within", "1", "--at", "0.2,0.5")
    assert said.code == 0, said.err
    assert str(out) in said.out
    with (out / "edges.csv").open(newline="") as file:
        edges = list(csv.DictReader(file))
    with (out / "queue.csv").open(newline="") as file:
        queue = list(csv.DictReader(file))
    assert len(queue) <= len(edges)
    assert json.loads((out / "queue.json").read_text())["layers"]
    assert list((out / "webknossos").rglob("merge_*.hdf5"))
    again = cli("review", store, "--out", out)
    assert again.code == 2
    assert "exists" in again.err


def test_another_kind_of_folder_is_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    said = cli("review", run, "--out", tmp_path / "review")
    assert said.code == 2
    assert str(run) in said.err
    assert not (tmp_path / "review").exists()
