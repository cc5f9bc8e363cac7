"""Real networks in blocks, in this process and on workers: the same bytes, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from blocks_of_labels import quiet, tree

import distill.inference.blockwise.executor as pool_module
from distill.core.errors import DistillError
from distill.inference.blockwise.executor import Task, Workers, open_pool
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.phases import Segmented
from distill.inference.blockwise.segment import segment
from distill.inference.options import Callbacks, Options
from distill.io.volume import open_labels, open_volume

OPTIONS = Options(sections=(0, 8), device="cpu", precision="32-true", backend="eager", merge=0.5)
Go = Callable[..., Segmented]


@pytest.fixture
def go(run: Path, phantom: Path) -> Go:
    """`distill segment` in blocks of the phantom's first sections."""

    def segmented(out: Path, **more: Any) -> Segmented:
        callbacks = Callbacks(**{name: more.pop(name) for name in ("on_progress", "note") if name in more})
        out.parent.mkdir(parents=True, exist_ok=True)
        options = more.pop("options", OPTIONS)
        return segment(str(phantom), str(run), out, options, Blocking(**({"method": "query"} | more)), callbacks)

    return segmented


def read(out: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return open_volume(f"{out}:affinity").read().astype(int), open_labels(f"{out}:segmentation").read()


def test_the_student_in_blocks_is_the_student_on_whole_sections(go: Go, tmp_path: Path) -> None:
    go(tmp_path / "one.zarr", block=(4, 96, 96))
    about = go(tmp_path / "many.zarr", block=(4, 48, 84)).about
    assert about["blocks"] == [3, 3, 2]
    (affinity, labels), (others, parts) = read(tmp_path / "one.zarr"), read(tmp_path / "many.zarr")
    np.testing.assert_allclose(affinity, others, atol=1)
    np.testing.assert_array_equal(labels, parts)


def test_a_killed_worker_leaves_the_bytes_of_one_process(go: Go, tmp_path: Path) -> None:
    go(tmp_path / "one" / "out.zarr", block=(4, 60, 60))
    killed: list[int] = []

    def kill(done: int, total: int, rate: str) -> None:
        if done == 2 and not killed:
            workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    reported: list[str] = []
    found = go(tmp_path / "two" / "out.zarr", block=(4, 60, 60), workers=2, on_progress=kill, note=reported.append)
    assert len(killed) == 1
    assert any(line.startswith("2 workers, dashboard http://127.0.0.1:") for line in reported)
    assert tree(tmp_path / "two" / "out.zarr") == tree(tmp_path / "one" / "out.zarr")
    assert len(found.peak) >= 2


@pytest.mark.parametrize(("method", "merge", "least"), [("waterz", 0.0, 2), ("mws", 0.5, 1), ("flood", 1.0, 1)])
def test_other_methods_in_blocks(go: Go, tmp_path: Path, method: str, merge: float, least: int) -> None:
    pytest.importorskip({"waterz": "waterz", "mws": "mwatershed", "flood": "numba"}[method])
    options = replace(OPTIONS, merge=merge)
    about = go(tmp_path / "out.zarr", method=method, block=(5, 60, 60), options=options).about
    assert about["method"] == method
    labels = read(tmp_path / "out.zarr")[1]
    assert set(np.unique(labels)) - {0} == set(range(1, about["objects"] + 1))
    assert about["objects"] >= least


def test_the_teacher_in_blocks_owns_affinities_of_the_first_block(go: Go, tmp_path: Path) -> None:
    go(tmp_path / "one.zarr", network="teacher")
    about = go(tmp_path / "many.zarr", network="teacher", block=(4, 84, 96)).about
    assert about["blocks"] == [3, 2, 1]
    (affinity, _), (others, labels) = read(tmp_path / "one.zarr"), read(tmp_path / "many.zarr")
    # rows that no tile of the second block sees are blended of the same windows
    np.testing.assert_array_equal(affinity[:, :, :48], others[:, :, :48])
    assert (others[1] > 0).any(axis=(0, 2)).all()
    assert labels.min() > 0


def test_the_teacher_averages_orientations(go: Go, tmp_path: Path) -> None:
    go(tmp_path / "one.zarr", network="teacher", method="waterz")
    go(tmp_path / "four.zarr", network="teacher", method="waterz", orientations=4)
    one, four = read(tmp_path / "one.zarr")[0], read(tmp_path / "four.zarr")[0]
    assert 0 < np.abs(one - four).mean() < 128
    with pytest.raises(DistillError, match="orientations"):
        go(tmp_path / "four.zarr", network="teacher", method="waterz", orientations=8, resume=True)
    go(tmp_path / "four.zarr", network="teacher", method="waterz", orientations=4, resume=True)


def test_what_does_not_go_together_is_refused(go: Go, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(DistillError, match=r"--orientations: found 3, expected 1, 2, 4, 8, 16"):
        go(out, network="teacher", orientations=3)
    with pytest.raises(DistillError, match="--orientations: found 8 with --network student"):
        go(out, orientations=8)
    with pytest.raises(DistillError, match=r"--block: found 5 sections, expected 4 as this model's decoder"):
        go(out, block=(5, 60, 60))
    with pytest.raises(DistillError, match=r"--block: found 4,40,60, expected at least 2,48,48, a tile of the decoder"):
        go(out, block=(4, 40, 60))
    assert not out.exists()


def test_a_scheduler_that_is_not_there(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_LOST", 0.5)
    with pytest.raises(DistillError, match=r"--scheduler: 127\.0\.0\.1:1 cannot be reached .* expected host:port or"):
        go(tmp_path / "out.zarr", scheduler="127.0.0.1:1")
    with pytest.raises(DistillError, match="--scheduler: found 'nowhere', expected host:port or a scheduler file"):
        go(tmp_path / "out.zarr", scheduler="nowhere")
    assert not (tmp_path / "out.zarr").exists()


def test_a_scheduler_that_goes_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        status = "connecting"

        def nthreads(self) -> dict[str, int]:
            raise OSError("closed")

    monkeypatch.setattr(pool_module, "_LOST", 0.2)
    with pytest.raises(DistillError, match=r"host:1: the scheduler has stopped; completed blocks are kept"):
        Workers(Gone(), "host:1", 2, quiet).run([], quiet)


def test_a_scheduler_that_goes_with_a_result_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Future:
        status = "finished"

        def result(self) -> Any:
            raise OSError("stream is closed")

    class Client:
        status = "running"

        def nthreads(self) -> dict[str, int]:
            return {"a": 1}

        def submit(self, *given: Any, **named: Any) -> Future:
            return Future()

    monkeypatch.setattr(Workers, "_ended", lambda self, running: list(running))
    with pytest.raises(DistillError, match=r"host:1: the scheduler has stopped"):
        Workers(Client(), "host:1", 2, quiet).run([Task("block 0", quiet, ())], quiet)


def test_one_worker_is_this_process() -> None:
    for workers in (0, 1):
        with open_pool(workers, None, 2, quiet) as pool:
            assert type(pool).__name__ == "Here"


def sleeper(folder: str, number: int) -> Any:
    """A block that would take an hour."""
    (Path(folder) / f"{os.getpid()}").touch()
    time.sleep(3600)


def test_an_interruption_ends_workers_and_what_they_compute(tmp_path: Path) -> None:
    """dask would wait for it first; nothing is left over."""
    children = set(psutil.Process().children(recursive=True))

    class Stopping:
        """Tasks, the last of which comes when both workers compute: Ctrl-C."""

        def __iter__(self) -> Iterator[Task]:
            yield from (Task(f"{n}", sleeper, (str(tmp_path), n)) for n in range(2))
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_pool(2, None, 0, quiet) as pool:
        pool.run(Stopping(), quiet)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
    left = {child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())}
    assert left <= children


def test_an_interruption_while_workers_start_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(client: Any, count: int) -> None:
        raise KeyboardInterrupt

    children = set(psutil.Process().children(recursive=True))
    monkeypatch.setattr(pool_module, "_wait_for_workers", stop)
    with pytest.raises(KeyboardInterrupt), open_pool(2, None, 0, quiet):
        pass
    left = {child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())}
    assert left <= children


def test_workers_that_never_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def wait_for_workers(self, count: int, timeout: float) -> None:
            raise TimeoutError

        def nthreads(self) -> dict[str, int]:
            return {}

    with pytest.raises(DistillError, match="--workers: no worker process started within 120 s; expected 2, or omit"):
        pool_module._wait_for_workers(Client(), 2)
