"""The benchmark of the seam scores: the strength that it plants, and what it makes of a few sections."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import seams
from scipy.special import stdtrit

from distill.evaluation.seams.bench import pool


@pytest.mark.parametrize("make", [seams.smooth, seams.cells])
@pytest.mark.parametrize("first", [0, 32])
def test_planted_step_has_the_contrast_that_it_says(make: object, first: int) -> None:
    """Steps over ordinary changes of 8-pixel runs, measured along y on many sections."""
    steps, changes = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        field, exclude = make(rng)  # type: ignore[operator]
        unit = field / np.linalg.norm(field, axis=0)
        added = seams.planted(field, exclude, 2, first, rng) - unit
        border = seams.BORDERS if first == 0 else seams.HALFWAY
        steps += [(added[:, b] - added[:, b - 1]) for b in border]
        assert np.abs(np.diff(added, axis=1)[:, [b for b in range(254) if b + 1 not in border]]).max() < 1e-6
        kept = (~exclude[1:] & ~exclude[:-1]).reshape(255, 32, 8).all(axis=2)
        runs = np.diff(unit, axis=1).reshape(5, 255, 32, 8).mean(axis=3)
        changes.append((runs**2).sum(axis=0)[kept].mean())
    step = np.sqrt(np.mean([(s**2).sum(axis=0).mean() for s in steps]))
    assert step / np.sqrt(np.mean(changes)) == pytest.approx(2, rel=0.1)


def test_synthetic_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "CONTRASTS", (0.0, 2.0))
    assert seams.main(["synthetic", "--trials", "3", "--json", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    for name in ("smooth field", "cells"):
        nothing, seam = found[name]
        for key in ("border", "stride", "shift"):
            assert seam[key]["mean"] > nothing[key]["mean"]
            assert seam[key]["detected"] == 1
        assert nothing["shift"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "border: mean, detected, covered" in capsys.readouterr().out


def test_pool_is_the_mean_with_the_interval_of_a_mean() -> None:
    @dataclass(frozen=True)
    class One:
        ratio: float
        low: float
        high: float
        n: int

    t = float(stdtrit(9, 0.975))
    scores = [One(np.exp(m), np.exp(m - 0.1 * t), np.exp(m + 0.1 * t), 10) for m in (0.2, 0.4)]
    found = pool([*scores, None], logarithmic=True)
    assert found is not None
    assert found.ratio == pytest.approx(np.exp(0.3))
    assert found.high / found.ratio == pytest.approx(np.exp(1.96 * 0.1 / np.sqrt(2)))
    assert found.ratio / found.low == pytest.approx(found.high / found.ratio)
    assert found.sections == 2
    assert pool([None], logarithmic=True) is None


def test_wrong_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seams.main(["real", str(tmp_path), "--run", str(tmp_path / "none")]) == 2
    assert "no such file or run folder" in capsys.readouterr().err
