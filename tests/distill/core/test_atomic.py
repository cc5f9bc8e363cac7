"""Files that are replaced as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.core.atomic import append_line, replacing


def test_a_file_is_replaced_after_it_was_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "state", []
    path.write_text("old")
    force, replace = os.fsync, os.replace

    def forced(number: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        force(number)

    def renamed(source: Path, target: Path) -> None:
        done.append(f"rename {Path(source).name} {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(os, "replace", renamed)
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert done == ["fsync state.writing", "rename state.writing state", f"fsync {tmp_path.name}"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        write()
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["state"]


def test_lines_are_appended(tmp_path: Path) -> None:
    for text in ("one", "two"):
        append_line(tmp_path / "log", text)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
