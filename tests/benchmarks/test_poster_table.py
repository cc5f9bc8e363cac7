"""The poster's table: rows trained alike, scored by their own methods, kept between calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.config import load_pair
from distill.config.teacher_kinds import PUBLISHED as KINDS
from distill.core.errors import DistillError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import poster_table  # noqa: E402


def asked(*words: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["poster_table.py", *words])
        return poster_table._asked()


@pytest.mark.parametrize("kind", [*poster_table.KINDS, poster_table.STARTED])
def test_every_row_is_a_teacher_trained_alone_and_alike(kind: str) -> None:
    found = asked("some.h5", "--out", "out", "--steps", "40", "--crop", "4,64,64")
    folder = EXAMPLES.parent / "configs" / "teachers"
    words = poster_table.overrides(found, kind, 3, found.steps)
    pair = load_pair(folder / f"{kind}.yaml", folder / "student.yaml", words)
    assert not pair.student_runs
    assert pair.teacher_learns
    training = pair.student.training
    assert (training.steps, training.crop, training.seed, training.teacher_every) == (40, (4, 64, 64), 3, 1)
    (volume,) = pair.student.data.volumes
    assert volume.train == ((0, 60), (512, 1024), (512, 1024))
    assert volume.test == ((80, 100), (512, 1024), (512, 1024))
    assert (pair.teacher.embedding == 0) == (kind in poster_table.HEADS)
    assert bool(pair.teacher.queries.teacher) == (kind == "agq")


def test_there_is_a_row_for_every_published_kind() -> None:
    assert set(poster_table.KINDS) == set(KINDS) - {"inflated"}  # ours, and it starts as a trained student
    assert poster_table.STARTED not in asked("some.h5", "--out", "out").methods
    assert asked("some.h5", "--out", "out", "--methods", "inflated").methods == ["inflated"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["poster_table.py", *words])
    poster_table.main()


def test_rows_are_trained_scored_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = poster_table.distill("phantom", str(tmp_path / "p.h5"), "--shape", "12,64,64", "--seed", "1")
    assert done.returncode == 0, done.stderr
    words = [str(tmp_path / "p.h5"), "--out", str(tmp_path / "out"), "--steps", "2", "--crop", "2,32,32"]
    words += ["--train", "0,6", "--validation", "6,9", "--test", "9,12", "--box", "0,64,0,64"]
    words += ["--methods", "resunet", "ml-de", "--set", "teacher.filters=[8,8,8,8,8]"]
    run(monkeypatch, *words)
    found = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["kind"], row["method"]) for row in found] == [("resunet", "waterz"), ("ml-de", "clusters")]
    for row in found:
        assert set(row["methods"]) == {"waterz", "flood", row["method"]}
        assert all(one["voi"] == pytest.approx(one["voi_split"] + one["voi_merge"]) for one in row["methods"].values())
        assert row["step"] == 2
        assert row["voxels"] == 3 * 64 * 64
        assert 1e3 < row["operations_per_voxel"] < row["operations_per_voxel_published"]
        assert row["parameters"] < row["parameters_published"]
        assert row["peak_memory_gib"] > 0.1
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "1.295" in table
    assert (tmp_path / "out" / "table.png").stat().st_size > 1000
    capsys.readouterr()
    monkeypatch.setattr(poster_table, "_train", lambda *a: pytest.fail("a row that is there is trained again"))
    run(monkeypatch, *words)
    assert "resunet" in capsys.readouterr().out
    monkeypatch.setattr(poster_table, "_row", lambda asked, kind, seed: {**found[1], "kind": kind, "seed": seed})
    best = min(found, key=lambda row: row["methods"][row["method"]]["voi"])["kind"]
    run(monkeypatch, *words, "--seeds", "0", "5", "--best", "1")
    again = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["kind"], row["seed"]) for row in again] == [("resunet", 0), ("ml-de", 0), (best, 5)]
    run(monkeypatch, *words, "--methods", "inflated")
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "its row may not be compared with the others" in " ".join(table.split())
    with pytest.raises(DistillError, match="steps"):
        run(monkeypatch, *words, "--steps", "3")
