"""A watched folder: files are taken when they are complete, in order, each once."""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.inference.streaming.output.manifest import read_lines
from distill.inference.streaming.sections.watch import Following, FollowSource
from distill.inference.streaming.stream import Streamed
from distill.io.volume import open_volume

Go = Callable[..., Streamed]
NM = (30.0, 6.0, 6.0)


class Clock:
    """Time that passes only while somebody waits, and what happens meanwhile."""

    def __init__(self, events: dict[float, Callable[[], object]]) -> None:
        self.now, self.events = 0.0, dict(sorted(events.items()))

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)()


def tiff(section: NDArray[Any]) -> bytes:
    made = io.BytesIO()
    tifffile.imwrite(made, section)
    return made.getvalue()


def watched(
    folder: Path, clock: Clock, *, known: list[str | None] | None = None, **more: Any
) -> tuple[FollowSource, list[str]]:
    notes: list[str] = []
    following = Following(**{"settle": 2.0, "patience": 30.0, **more})
    source = FollowSource(folder, following, NM, known=known or [], note=notes.append, clock=clock, sleep=clock.sleep)
    return source, notes


def read_all(source: FollowSource, clock: Clock) -> list[tuple[str, str | None, float]]:
    """Name, flaw and time of every section."""
    found = []
    while (section := source.read(len(found))) is not None:
        found.append((Path(section.name).name, section.flaw.kind if section.flaw else None, clock.now))
    return found


def test_half_written_files_are_waited_for(tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    data = tiff(raw[1])
    clock = Clock(
        {
            0.5: lambda: (tmp_path / "s0.tif").write_bytes(tiff(raw[0])),
            1.0: lambda: (tmp_path / "s1.tif").write_bytes(data[:3000]),
            9.0: lambda: (tmp_path / "s1.tif").write_bytes(data),  # stable for long, but not to be decoded
            9.5: lambda: (tmp_path / "s2.tif.part").write_bytes(tiff(raw[2])),
            20.0: lambda: (tmp_path / "s2.tif.part").rename(tmp_path / "s2.tif"),
            25.0: lambda: (tmp_path / "END").touch(),
        }
    )
    source, notes = watched(tmp_path, clock)
    found = read_all(source, clock)
    assert [(name, flaw) for name, flaw, _ in found] == [("s0.tif", None), ("s1.tif", None), ("s2.tif", None)]
    assert [at >= wanted for (_, _, at), wanted in zip(found, (2.5, 11.0, 22.0), strict=True)] == [True] * 3
    for z in range(3):
        np.testing.assert_array_equal(source.read(z).image, raw[z])  # type: ignore[union-attr, arg-type]
    assert notes == []


def test_a_growing_file_is_not_read(tmp_path: Path, raw: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    import distill.inference.streaming.sections.watch as follow

    data, read = tiff(raw[0]), []
    original = follow.read_section
    monkeypatch.setattr(follow, "read_section", lambda path: (read.append(clock.now), original(path))[1])
    events = {
        0.9 * step + 0.1: (lambda step=step: (tmp_path / "s0.tif").write_bytes(data[: 500 * step]))
        for step in range(1, len(data) // 500 + 2)
    }
    last = max(events)
    clock = Clock(events)
    source, _ = watched(tmp_path, clock, until=1)
    assert len(read_all(source, clock)) == 1
    assert min(read) >= last + 2


def test_what_never_becomes_whole_and_what_never_comes(tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    for number in (1, 2, 4):
        (tmp_path / f"s{number}.tif").write_bytes(tiff(raw[number])[: 3000 if number == 2 else None])
    clock = Clock({50.0: lambda: (tmp_path / "s3.tif").write_bytes(tiff(raw[3]))})
    source, notes = watched(tmp_path, clock, idle=60.0)
    found = read_all(source, clock)
    assert [(name, flaw) for name, flaw, _ in found] == [
        ("s1.tif", None),
        ("s2.tif", "corrupt"),
        (f"{tmp_path.name} place 2", "missing"),
        ("s4.tif", None),
    ]
    assert found[1][2] >= 30
    assert len(notes) == 1
    assert "s3.tif came after s4.tif was taken" in notes[0]


def test_a_number_that_is_late_is_waited_for(tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    for number in (1, 2, 4):
        (tmp_path / f"s{number}.tif").write_bytes(tiff(raw[number]))
    clock = Clock({12.0: lambda: (tmp_path / "s3.tif").write_bytes(tiff(raw[3]))})
    source, notes = watched(tmp_path, clock, idle=5.0)
    assert [name for name, _, _ in read_all(source, clock)] == ["s1.tif", "s2.tif", "s3.tif", "s4.tif"]
    assert not notes


@pytest.mark.parametrize("number", [30_000_000, 20261130201500])
def test_a_number_far_from_all_others_is_refused(tmp_path: Path, raw: NDArray[np.uint8], number: int) -> None:
    """It is waited for like any other gap, and would then make a place for every number between."""
    for name in (*range(1, 8), number):
        (tmp_path / f"s{name}.tif").write_bytes(tiff(raw[name % 4]))
    clock = Clock({10.0: lambda: (tmp_path / "s8.tif").write_bytes(tiff(raw[0]))})
    source, _ = watched(tmp_path, clock)
    assert [Path(source.read(z).name).name for z in range(8)] == [f"s{n}.tif" for n in range(1, 9)]  # type: ignore[union-attr]
    with pytest.raises(SourceError, match=rf"s{number}\.tif: is numbered {number - 8:,} sections after .* at most 256"):
        source.read(8)
    assert clock.now >= 30


def test_a_gap_as_long_as_the_stream_is_filled(tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    data = tiff(raw[0])
    for number in (*range(8), 200):
        (tmp_path / f"s{number}.tif").write_bytes(data)
    clock = Clock({})
    source, _ = watched(tmp_path, clock, idle=60.0)
    found = read_all(source, clock)
    assert [flaw for _, flaw, _ in found] == [None] * 8 + ["missing"] * 192 + [None]


def test_going_on_takes_nothing_twice(tmp_path: Path, raw: NDArray[np.uint8]) -> None:
    for number in range(5):
        (tmp_path / f"s{number}.tif").write_bytes(tiff(raw[number]))
    clock = Clock({})
    source, _ = watched(tmp_path, clock, idle=9.0, known=[str(tmp_path / f"s{number}.tif") for number in range(3)])
    assert [name for name, _, _ in read_all(source, clock)] == [f"s{number}.tif" for number in range(5)]


def test_nothing_to_follow(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found no such folder, expected one to follow"):
        watched(tmp_path / "none", Clock({}))
    with pytest.raises(SourceError, match="found no section before the stream ended"):
        watched(tmp_path, Clock({}), idle=3.0)


def deliver(source: Path, folder: Path, names: list[str], pause: float) -> None:
    """Put files into a folder in two halves each, as a slow writer would."""
    for name in names:
        data = (source / name).read_bytes()
        with (folder / name).open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            time.sleep(pause)
            file.write(data[len(data) // 2 :])


def test_followed_is_as_streamed(go: Go, folder: Path, whole: Path, tmp_path: Path) -> None:
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    names = sorted(path.name for path in folder.iterdir())
    writer = threading.Thread(target=deliver, args=(folder, arriving, names, 0.01))
    writer.start()
    following = Following(settle=0.05, patience=20.0, until=13)
    said = go(arriving, tmp_path / "followed.zarr", following=following)
    writer.join()
    assert said.sections == 13
    for name in ("affinity", "segmentation", "supervoxels"):
        mine, theirs = (open_volume(f"{tmp_path / store}.zarr:{name}") for store in ("followed", "whole"))
        assert mine.shape == theirs.shape
        np.testing.assert_array_equal(mine.read(), theirs.read())


@pytest.mark.parametrize("count", [6, 7])
def test_a_stream_that_had_ended_goes_on(go: Go, folder: Path, whole: Path, tmp_path: Path, count: int) -> None:
    arriving, out = tmp_path / "arriving", tmp_path / "followed.zarr"
    arriving.mkdir()
    names = sorted(path.name for path in folder.iterdir())
    deliver(folder, arriving, names[:count], 0)
    following = Following(settle=0.01, patience=20.0, idle=0.2)
    assert go(arriving, out, following=following).sections == count
    assert open_volume(f"{out}:segmentation").size == (count, 96, 96)
    deliver(folder, arriving, names[count:], 0)
    assert go(arriving, out, following=following, resume=True).sections == 13
    for name in ("affinity", "segmentation"):
        mine, theirs = (open_volume(f"{store}:{name}").read() for store in (out, whole))
        np.testing.assert_array_equal(mine, theirs)


def test_interrupted_while_it_waits(
    go: Go, folder: Path, whole: Path, tmp_path: Path, words: Callable[..., list[str]], launch: Callable[..., Any]
) -> None:
    arriving, out = tmp_path / "arriving", tmp_path / "followed.zarr"
    arriving.mkdir()
    names = sorted(path.name for path in folder.iterdir())
    deliver(folder, arriving, names[:8], 0)
    more = ("--follow", "--settle", "0.02")
    running = launch(words(arriving, out, *more))
    manifest = out / "stream" / "manifest-00000000.jsonl"
    while running.poll() is None and len(read_lines(manifest)) < 6:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == f"distill: {out}: 6 sections are done; continue with --resume"
    deliver(folder, arriving, names[8:], 0)
    go(arriving, out, following=Following(settle=0.02, until=13), resume=True)
    for name in ("affinity", "segmentation"):
        mine, theirs = (open_volume(f"{store}:{name}").read() for store in (out, whole))
        np.testing.assert_array_equal(mine, theirs)
