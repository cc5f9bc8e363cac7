"""The script that compares precisions and instruction sets: a process for every cell, a table, a file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import precision
import pytest


def test_every_cell_has_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, str, str | None]] = []

    def run(command: list[str], env: dict[str, str], **words: Any) -> SimpleNamespace:
        assert env["OMP_NUM_THREADS"] == "1"
        asked, row = command[command.index("--precision") + 1], command[-1]
        called.append((asked, row, env.get("ONEDNN_MAX_CPU_ISA")))
        name = {"section": "section eager", "block": "block network"}[row]
        return SimpleNamespace(stdout=f"noise\n{json.dumps({'auto': 'auto of it', name: len(called)})}\n")

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "subprocess", SimpleNamespace(run=run, PIPE=-1))
    assert precision.main(["--rows", "section", "block", "--json", str(tmp_path / "out.json")]) == 0
    ways = [(kind, limit) for limit in (None, "AVX2") for kind in ("32-true", "bf16-mixed")]
    assert called == [(kind, row, limit) for kind, limit in ways for row in ("section", "block")]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "section eager 1 3 5 7" in lines
    assert "block network 2 4 6 8" in lines
    assert lines[-1].count("auto of it") == 4
    assert json.loads((tmp_path / "out.json").read_text())["found"]["AVX2 only, bf16-mixed"]["block network"] == 8


def test_stamps_have_the_time_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 4.0, 9.0))
    monkeypatch.setattr(precision.time, "process_time", lambda: next(times))
    stamps = precision.Stamps()
    stamps.append("a")
    stamps.append("b")
    assert (list(stamps), stamps.at) == (["a", "b"], [1.0, 4.0, 9.0])
