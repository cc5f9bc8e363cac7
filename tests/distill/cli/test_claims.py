"""Every command that writes an output holds its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.cli import app
from distill.core.claim import Taken, claim


@pytest.mark.parametrize(
    "words",
    [
        "phantom OUT --shape 2,32,32",
        "copy SOURCE OUT --format hdf5",
        "gallery SOURCE --out OUT",
        "train T.yaml S.yaml --out OUT",
        "stream SOURCE --model none --out OUT",
        "segment SOURCE --model none --out OUT --resume",
        "sample OUT",
        "convert none --out OUT",
        "export none --out OUT",
    ],
)
def test_an_output_that_another_process_writes_is_refused(tmp_path: Path, words: str) -> None:
    """Whatever the command, before anything is read or written."""
    configs = Path(__file__).resolve().parents[3] / "configs" / "phantom_cpu"
    out = tmp_path / ("out" if words.startswith("train") else "out.h5")
    named = {"OUT": out, "SOURCE": tmp_path / "none.h5"}
    named |= {"T.yaml": configs / "teacher.yaml", "S.yaml": configs / "student.yaml"}
    typed = [str(named.get(word, word)) for word in words.split()]
    with claim(out), pytest.raises(Taken, match=rf"{out.name}: another process is writing to it"):
        app(typed, standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
