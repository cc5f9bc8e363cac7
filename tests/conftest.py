"""Fixtures of all packages: data, a small phantom, a run trained on it in seconds, the command line in this process."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

# Before anything loads OpenMP: results of other numbers of threads differ in their last bits, and two workers of
# pytest on two cores would slow each other down.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest
import torch
from hypothesis import settings

from distill.core.hardware import describe_device, has_bfloat16

settings.register_profile("steady", deadline=None, derandomize=True)  # no timed assertions; the same cases every run
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `bf16` on a processor without bfloat16."""
    marked, cpu = [item for item in items if item.get_closest_marker("bf16")], torch.device("cpu")
    if marked and not has_bfloat16(cpu):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a CPU with native bfloat16, found {describe_device(cpu)}"))


@pytest.fixture(autouse=True, scope="session")
def allocator_as_it_is() -> Iterator[None]:
    """Commands that run in the tests' own process leave its allocator and environment alone: other tests look there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.cli.keep_freed_memory", lambda: False)
        patch.setattr("distill.cli.let_idle_threads_sleep", lambda: False)
        for module in ("train", "launch"):
            patch.setattr(f"distill.training.{module}.avoid_amx", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def cache_of_networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted networks are kept in a folder of this run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real file or folder; skips where the data are absent.

    They are looked for in the folder that DISTILL_DATA names, else in `../shared/data` next to the repository.
    """
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("DISTILL_DATA", root.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"real data {name} not found in {folder}; set DISTILL_DATA to the folder that holds it")
        return folder / name

    return find


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Path of a file of golden values; skips where it is absent.

    They are looked for in the folder that DISTILL_GOLDEN names, else in `../shared/golden` next to the repository.
    """
    return _finder("DISTILL_GOLDEN", "golden")


@pytest.fixture(scope="session")
def checkpoints() -> Callable[[str], Path]:
    """Path of a published checkpoint; skips where it is absent.

    They are looked for in the folder that DISTILL_CHECKPOINTS names, else in `../shared/checkpoints` next to the
    repository.
    """
    return _finder("DISTILL_CHECKPOINTS", "checkpoints")


@pytest.fixture
def every_warning() -> Iterator[None]:
    """Lets torch give warnings that it gives only once a process each time."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def _finder(variable: str, default: str) -> Callable[[str], Path]:
    adjacent = Path(__file__).resolve().parents[2] / "shared" / default
    folder = Path(os.environ.get(variable, adjacent))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{name} not found in {folder}; set {variable} to the folder that holds it")
        return folder / name

    return find


CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "phantom_cpu"
CPU = ("--device", "cpu", "--precision", "32-true")
TINY = (
    *("teacher.filters=[8,8,8,8,8]", "teacher.fused=8", "teacher.branch_width=4", "teacher.branch_depth=1"),
    *("teacher.embedding=4", "teacher.decoder.width=8", "teacher.decoder.depth=1", "teacher.decoder.rounds=1"),
    *("teacher.decoder.learned=4", "teacher.decoder.block=[4,48,48]", "teacher.decoder.overlap=[1,12,12]"),
    *("teacher.queries.start=0", "teacher.queries.every=1", "student.width=4", "student.embedding=4"),
    *("student.data.train=[0,12]", "student.data.validation=[12,16]", "student.training.steps=4"),
    *("student.training.warmup=1", "student.training.crop=[3,32,32]", "student.training.precision=32-true"),
    *("student.training.workers=0", "student.training.log_every=1", "student.training.validate_every=2"),
    *("student.training.save_every=2", "student.training.lr=0.02", "student.training.lr_warmup=0"),
    "student.training.seed=1",  # one whose four steps leave affinities along z that are neither 0 nor 1
)


@dataclass(frozen=True)
class Said:
    """What a call of the command line left."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]
Train = Callable[..., Said]


def call(*words: object) -> Said:
    """`distill WORDS` in this process; an exception that is not an exit is a defect and passes through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["distill", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        from distill.cli import command

        try:
            command()
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 1
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Call the command line inside this process."""
    return call


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CREMI file of 20 x 96 x 96 voxels, 30 x 6 x 6 nm."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.h5"
    said = call("phantom", path, "--shape", "20,96,96", "--seed", "3")
    assert said.code == 0, said.err
    return path


@contextmanager
def without_pictures() -> Iterator[None]:
    """Trainings leave out figures and report, which take longer than four steps."""
    with mock.patch("viz.report.report.report_after_training"):
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """See `without_pictures`."""
    with without_pictures():
        yield


@pytest.fixture(scope="session")
def train(phantom: Path) -> Train:
    """`distill train` of the demo's pair made tiny, 4 steps, with further words; no figures unless asked for."""

    def run(out: Path, *words: object, pictures: bool = False) -> Said:
        pair = CONFIGS / "teacher.yaml", CONFIGS / "student.yaml"
        drawn = nullcontext() if pictures else without_pictures()
        with mock.patch.dict(os.environ, {"PHANTOM": str(phantom)}), drawn:
            return call("train", *pair, *TINY, "--device", "cpu", "--out", out, *words)

    return run


@pytest.fixture(scope="session")
def run(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    said = train(folder, pictures=True)
    assert said.code == 0, said.err
    assert f"run folder: {folder}" in said.out
    return folder


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """The words that make the demo's pair tiny."""
    return TINY


@pytest.fixture(scope="session")
def cpu() -> tuple[str, ...]:
    """Options for exact results on the CPU."""
    return CPU
