"""README's two minutes run as they are printed, and give the numbers next to them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.partition("## Two minutes to a result")[2], flags=re.DOTALL)


@pytest.mark.slow
def test_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cli: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shell, python = (text for kind, text in _BLOCKS if kind in ("sh", "python"))
    for line in shell.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "distill"
        said = cli(*words[1:])
        assert said.code == 0, said.err
        if words[1] == "stream":
            assert _number(r"(\d+) objects", said.out) == pytest.approx(
                _number(r"finds (\d+) objects", README), rel=0.1
            )
        if words[1] == "evaluate":
            voi, arand = _number(r"prints VOI ([\d.]+)", README), _number(r"prints VOI .* ARAND ([\d.]+\d)", README)
            assert _number(r"sum ([\d.]+)", said.out) == pytest.approx(voi, rel=0.05)
            assert _number(r"ARAND\s+([\d.]+)", said.out) == pytest.approx(arand, rel=0.1)
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    capsys.readouterr()
    exec(compile(python, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert _number(r"(\d+) objects", shown) == pytest.approx(_number(r"# (\d+) objects", python), rel=0.1)


def test_its_commands_are_those_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, (pattern, text)
    return float(found[1])
