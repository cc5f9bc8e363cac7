"""Networks kept on disk: what is read is what was written, and what is broken is made once more."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from students.backends import cache
from students.backends.cache import cache_folder, cached, read_entry, write_entry

KEY = {"kind": "test", "weights": "0" * 64}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    return tmp_path / "networks"


def test_an_entry_is_made_once(folder: Path) -> None:
    made = []

    def make() -> dict[str, bytes]:
        made.append(1)
        return {"a.bin": b"\0\1", "b.xml": b"<x/>"}

    assert cached(KEY, make) == cached(KEY, make) == {"a.bin": b"\0\1", "b.xml": b"<x/>"}
    assert len(made) == 1
    assert cached({**KEY, "weights": "1" * 64}, make)
    assert cached(None, make)
    assert len(made) == 3
    assert len(list(folder.iterdir())) == 2


def test_a_broken_entry_is_made_again(folder: Path) -> None:
    for damage in ("cut", "record", "absent"):
        write_entry(KEY, {"a.bin": b"1234"})
        (entry,) = folder.iterdir()
        if damage == "cut":
            (entry / "a.bin").write_bytes(b"12")
        elif damage == "record":
            (entry / "record.json").write_text("{")
        else:
            (entry / "a.bin").unlink()
        assert read_entry(KEY) is None
        assert cached(KEY, lambda: {"a.bin": b"1234"}) == {"a.bin": b"1234"}
        assert read_entry(KEY) == {"a.bin": b"1234"}


def test_an_entry_belongs_to_its_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_entry(KEY, {"a.bin": b"1"})
    versions = cache._versions()
    assert {"distill", "torch", "source"} <= versions.keys()
    monkeypatch.setattr(cache, "_versions", lambda: {**versions, "torch": "0"})
    assert read_entry(KEY) is None


def test_the_oldest_entries_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_KEPT", 3)
    for number in range(4):
        write_entry({"number": str(number)}, {"a": b"1"})
        for entry in folder.iterdir():
            about = json.loads((entry / "record.json").read_text())["key"]
            os.utime(entry, (int(about["number"]), int(about["number"])))
    assert read_entry({"number": "0"}) is None
    assert all(read_entry({"number": str(number)}) for number in (1, 2, 3))


@pytest.mark.parametrize("how", ["off", "a file", "read-only"])
def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place = tmp_path / "place"
    if how == "a file":
        place.write_text("")
    monkeypatch.setenv("DISTILL_CACHE", "off" if how == "off" else str(place / "cache"))
    if how == "read-only":

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "mkdir", refuse)
    assert cached(KEY, lambda: {"a": b"1"}) == {"a": b"1"}
    assert read_entry(KEY) is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/distill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "distill"
    monkeypatch.setenv("DISTILL_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
