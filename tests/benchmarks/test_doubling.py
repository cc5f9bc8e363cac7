"""The benchmark of work that must grow in proportion: every kind runs, rows and ratios are as printed."""

from __future__ import annotations

import json
from pathlib import Path

import doubling
import pytest


def test_every_kind_runs_at_a_hundredth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert doubling.main(["--divide", "100", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row[0] for row in rows] == [name for name in doubling.KINDS for _ in range(3)]
    assert [bool(row[3]) for row in rows] == [False, True, True] * len(doubling.KINDS)
    assert "boxes of final arrays" in capsys.readouterr().out


def test_a_ratio_is_that_of_the_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doubling, "measure", lambda make, amount: amount**2 / 1e6)
    assert doubling.main(["--only", "plan look-ups"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["4.00", "4.00"]
