"""Records of runs next to their outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from distill.cli.console import Recorded
from distill.core.errors import DistillError


def test_two_commands_that_end_together_both_write_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one writes and renames its file while the first one is about to rename its own."""
    out, replace, depth = tmp_path / "out.zarr", os.replace, 0
    second = Recorded(out)

    def renamed(*given: Any) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            with second as values:
                values["which"] = 2
        replace(*given)

    monkeypatch.setattr(os, "replace", renamed)
    with Recorded(out) as values:
        values["which"] = 1
    assert depth == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr.run.json"]
    assert json.loads((tmp_path / "out.zarr.run.json").read_text())["which"] == 1


def test_ranges_of_a_stream_have_a_record_each(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    for part in ("0/2", "1/2"):
        with Recorded(out, part) as values:
            values["part"] = part
    found = {path.name: json.loads(path.read_text())["part"] for path in tmp_path.iterdir()}
    assert found == {"out.zarr.range-0-of-2.run.json": "0/2", "out.zarr.range-1-of-2.run.json": "1/2"}


def test_a_record_is_on_disk_before_the_command_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (flushed.append(os.fstat(number).st_ino), sync(number))[1])
    with Recorded(tmp_path / "a"):
        pass
    assert flushed == [(tmp_path / "a.run.json").stat().st_ino, tmp_path.stat().st_ino]


def test_a_run_that_fails_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="broken"), Recorded(tmp_path / "a"):
        raise DistillError("broken")
    assert list(tmp_path.iterdir()) == []
