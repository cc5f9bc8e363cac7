"""The learning curve: points that train and test on other sections, and are made once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import learning_curve
import numpy as np
import pytest
import rows

from distill.io.volume import LABELS_DATASET, RAW_DATASET, open_labels, open_volume
from distill.io.writers.cremi import write_cremi

SCORES = {"voi_split": 0.5, "voi_merge": 0.25, "arand": 0.1}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    files = {}
    for name, shape in (("medulla", (252, 8, 8)), ("cortex", (100, 520, 516))):
        raw = np.broadcast_to(np.arange(shape[0], dtype=np.uint8)[:, None, None], shape)
        files[name] = tmp_path / f"{name}.h5"
        write_cremi(files[name], raw=raw, labels=raw.astype(np.uint64), resolution=(10, 8, 8))
    return files


def test_sections_to_test_on_are_others_and_the_contrast_is_changed(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name, source in sources.items():
        made = learning_curve.prepare(name, source, tmp_path / "out")
        raw, labels = (
            open(f"{made.path}:{part}") for open, part in ((open_volume, RAW_DATASET), (open_labels, LABELS_DATASET))
        )
        sections = labels.read()[:, 0, 0].tolist()
        first, last = made.test
        assert first >= max(learning_curve.COUNTS)
        assert last <= len(sections)
        assert sections == (list(range(0, 252, 4)) if name == "medulla" else [*range(20), *range(80, 88)])
        assert raw.resolution == ((40, 8, 8) if name == "medulla" else (10, 8, 8))
        grey = raw.read()[:, 0, 0]
        wanted = sections if name == "medulla" else [round(0.7 * 255 * (z / 255) ** 1.6) for z in sections]
        assert grey.tolist() == wanted
    assert raw.size[1:] == (8, 4)


def test_points_are_trained_scored_and_kept(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, ...]] = []

    def distill(*words: str) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        if words[0] == "finetune":
            if "0:20" in words:
                return subprocess.CompletedProcess(words, 2, "", "too much")
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir()
            (folder / "metrics.jsonl").write_text('{"step": 5}\n{"step": 7}\n')
        return subprocess.CompletedProcess(words, 0, json.dumps(SCORES), "")

    monkeypatch.setattr(rows, "distill", distill)
    out, result = tmp_path / "out", tmp_path / "r.json"
    words = ["--medulla", str(sources["medulla"]), "--out", str(out), "--counts", "2", "20", "--json", str(result)]
    assert learning_curve.main(words) == 0
    points = json.loads(result.read_text())["points"]
    assert [(p["start"], p["sections"], p["steps"]) for p in points] == [
        *(("model", 0, None), ("model", 2, 7), ("model", 20, None)),
        *(("nothing", 2, 7), ("nothing", 20, None)),
    ]
    assert [p["refused"] for p in points] == [None, None, "too much", None, "too much"]
    assert points[1]["voi"] == 0.75
    trained = [call for call in calls if call[0] == "finetune"]
    assert ["student.weights=null" in call for call in trained] == [False, True, False, True]
    assert all("47:63" in call for call in calls if call[0] == "segment")
    done = len(calls)
    assert learning_curve.main(words) == 0
    assert len(calls) == done
    assert "too much" in capsys.readouterr().out
    assert learning_curve.main([*words, "--minutes", "1"]) == 2
    assert "minutes 2.5, found 1.0" in capsys.readouterr().err
    words[words.index(str(out))] = str(tmp_path / "steps")
    assert learning_curve.main([*words, "--steps", "30", "--starts", "model"]) == 0
    trained = [call for call in calls[done:] if call[0] == "finetune"]
    assert all("student.training.steps=30" in call and "--minutes" not in call for call in trained)
    assert json.loads(result.read_text())["minutes"] is None
