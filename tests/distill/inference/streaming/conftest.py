"""A folder of sections, and a stream over it in this process or another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from distill.inference.options import Callbacks, Options
from distill.inference.streaming.options import Streaming
from distill.inference.streaming.stream import Streamed, stream
from distill.io.volume import open_volume

REPO = Path(__file__).resolve().parents[4]
NM = (30.0, 6.0, 6.0)
Run = Callable[..., Streamed]
# tests started in the background of a shell ignore SIGINT, and so would their children
_COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from distill.cli import main; main()"
)


def quiet(*_: Any) -> None:
    """Neither progress nor notes."""


@pytest.fixture(scope="session")
def raw(phantom: Path) -> np.ndarray[Any, Any]:
    """(20, 96, 96) uint8."""
    return open_volume(phantom).read()


@pytest.fixture(scope="session")
def sections(tmp_path_factory: pytest.TempPathFactory, raw: np.ndarray[Any, Any]) -> Path:
    """Sections s_000.tif to s_012.tif of the phantom; not to be written to."""
    made = tmp_path_factory.mktemp("stream") / "sections"
    made.mkdir()
    for z in range(13):
        tifffile.imwrite(made / f"s_{z:03d}.tif", raw[z])
    return made


@pytest.fixture
def folder(sections: Path, tmp_path: Path) -> Path:
    """The same sections, the test's own."""
    return Path(shutil.copytree(sections, tmp_path / "sections"))


@pytest.fixture(scope="session")
def unbroken(go: Run, sections: Path) -> Path:
    """Store of an unbroken stream over `sections`: 4 layers of 3 and a last one of 1; not to be written to."""
    out = sections.parent / "whole.zarr"
    go(sections, out)
    return out


@pytest.fixture
def whole(unbroken: Path, tmp_path: Path) -> Path:
    """The same store, the test's own."""
    return Path(shutil.copytree(unbroken, tmp_path / "whole.zarr"))


@pytest.fixture(scope="session")
def go(run: Path) -> Run:
    """`distill stream` in this process, exact."""

    def streamed(source: object, out: Path, *, options: Options | None = None, **more: Any) -> Streamed:
        chosen = options or Options(resolution=NM, device="cpu", precision="32-true", backend="eager")
        callbacks = Callbacks(**{name: more.pop(name) for name in ("on_progress", "note") if name in more})
        return stream(str(source), str(run), out, chosen, Streaming(**({"method": "query"} | more)), callbacks)

    return streamed


@pytest.fixture
def words(run: Path) -> Callable[..., list[str]]:
    """Words of `distill stream` for a process of its own."""

    def of(source: object, out: Path, *more: object) -> list[str]:
        fixed = ("--model", run, "--resolution", "30,6,6", "--device", "cpu", "--precision", "32-true")
        given = ("stream", source, "--out", out, *fixed, "--backend", "eager", "--method", "query", *more)
        return [sys.executable, "-c", _COMMAND, *map(str, given)]

    return of


def tree(store: Path) -> dict[str, bytes]:
    """All files of a store by path, without the times of day in its notes."""
    found = {}
    for path in sorted(store.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            lines = [json.loads(line) | {"time": ""} for line in data.splitlines()]
            data = json.dumps(lines).encode()
        if path.name == "job.json":
            data = json.dumps(json.loads(data) | {"created": ""}).encode()
        found[path.relative_to(store).as_posix()] = data
    return found


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """See `tree`."""
    return tree


@pytest.fixture
def launch() -> Callable[[list[str]], subprocess.Popen[str]]:
    """Start a process whose output can be read later."""
    return launched


def launched(command: list[str]) -> subprocess.Popen[str]:
    """See `launch`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, cwd=REPO, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
