"""Files that are replaced as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.core.atomic import append_line, new_folder, put_in_place, replacing, sweep_leftovers, write_text
from distill.core.errors import SourceError


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


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "list.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "list.txt", "\ud800")
    assert (tmp_path / "list.txt").read_text() == "old"
    write_text(tmp_path / "list.txt", "\ud800", errors="replace")
    assert (tmp_path / "list.txt").read_text() == "?"
    with pytest.raises(SourceError, match="cannot be written: No such file or directory"):
        write_text(tmp_path / "missing" / "list.txt", "new")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_absent_until_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    with new_folder(out) as made:
        (made / "file").write_text("one")
        assert not out.exists()
    assert names(tmp_path) == ["above", "above/out", "above/out/file"]
    with new_folder(out) as made:
        (made / "other").write_text("two")
        assert (out / "file").exists()
    assert names(out) == ["other"]


@pytest.mark.parametrize("fails", ["block", "make_room"])
def test_a_folder_that_failed_leaves_the_old_one_and_nothing_else(tmp_path: Path, fails: str) -> None:
    (tmp_path / "out").mkdir()

    def make_room() -> None:
        raise RuntimeError("make_room")

    def write() -> None:
        with new_folder(tmp_path / "out", make_room) as made:
            (made / "file").write_text("half")
            if fails == "block":
                raise RuntimeError("block")

    with pytest.raises(RuntimeError, match=fails):
        write()
    assert names(tmp_path) == ["out"]


def test_what_was_in_place_comes_back_when_the_new_one_cannot_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "missing", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "old"
    (tmp_path / "new").mkdir()
    put_in_place(tmp_path / "new", tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").is_dir()


def test_sweeping_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    for path in (".out.01234567.new", ".out.01234567.old", ".out.01234567.partial", ".other.01234567.new", "out"):
        (tmp_path / path).write_text("")
    sweep_leftovers(tmp_path / "out")
    assert names(tmp_path) == [".other.01234567.new", "out"]
