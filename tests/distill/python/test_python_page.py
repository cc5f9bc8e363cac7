"""The examples of the page run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "python.md"


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, cli: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("sample", "sample.h5")
    assert said.code == 0, said.err
    known: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), known)
    assert known["neurons"].labels.shape == (6, 160, 160)
    assert 0 < known["scores"].voi_sum < 2.5
    assert "by flood" in capsys.readouterr().out
