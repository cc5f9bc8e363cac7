"""One writer a name: the second one is refused at once, a dead one holds nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distill.core.claim import claim
from distill.core.errors import SourceError

_HOLD = """
import sys, time
from pathlib import Path
from distill.core.claim import claim
with claim(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds a name until it is asked to end."""

    def __init__(self, path: Path, how: str = "alone") -> None:
        command = [sys.executable, "-c", _HOLD, str(path), how]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> None:
        self.process.communicate(timeout=60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    out, link = tmp_path / "out.zarr", tmp_path / "other.zarr"
    link.symlink_to(out)
    other = Holder(out)
    day = time.strftime("%Y-%m-%d")
    for name in (out, link, tmp_path / "." / "x" / ".." / "out.zarr"):
        with pytest.raises(SourceError) as refused, claim(name):
            pass
        reported = str(refused.value)
        assert reported.startswith(f"{name}: another process is writing to it: process {other.process.pid} on ")
        assert f"on {socket.gethostname()} since {day}" in reported
    with claim(tmp_path / "out"), claim(tmp_path / "out.zarr.replaced"):
        pass
    other.end()
    with claim(out):
        assert (tmp_path / ".out.zarr.lock").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.zarr"]


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    other = Holder(tmp_path / "out.zarr")
    other.kill()
    assert (tmp_path / ".out.zarr.lock").exists()
    with claim(tmp_path / "out.zarr"):
        assert json.loads((tmp_path / ".out.zarr.lock").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children_hold_nothing(tmp_path: Path) -> None:
    """A loader's worker that outlives its killed parent for a moment does not keep the next run out."""
    with claim(tmp_path / "run"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    with claim(tmp_path / "run"):
        pass
    child.kill()
    child.join()


def test_shared_claims_admit_each_other_only(tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    first, second = Holder(out, "shared"), Holder(out, "shared")
    with claim(out, shared=True), claim(out, shared=True):
        pass
    first.end()
    with pytest.raises(SourceError, match="another process is writing"), claim(out):
        pass
    second.kill()
    with claim(out):
        with pytest.raises(SourceError, match="this one"), claim(out):
            pass
        with pytest.raises(SourceError, match="this one"), claim(out, shared=True):
            pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_takes_turns(tmp_path: Path) -> None:
    inside, most, done = 0, 0, 0

    def turn() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with claim(tmp_path / "table", wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 20)


def test_folders_that_were_not_there_go_again(tmp_path: Path) -> None:
    with claim(tmp_path / "a" / "b" / "out.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path / "a" / "b" / "out.zarr"):
        (tmp_path / "a" / "b" / "out.zarr").mkdir()
    assert (tmp_path / "a" / "b" / "out.zarr").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match=r"cannot be written: "), claim(tmp_path / "file" / "out.zarr"):
        pass


def test_a_disk_without_locks_is_told_of(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with claim(tmp_path / "out.zarr"):
        assert "this disk knows no locks" in caplog.text
