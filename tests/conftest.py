"""Fixtures that every package's tests may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from distill.hardware import describe, has_bfloat16

settings.register_profile("steady", deadline=None, derandomize=True)  # no timed assertions; the same cases every run
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `bf16` on a processor without bfloat16."""
    marked, cpu = [item for item in items if item.get_closest_marker("bf16")], torch.device("cpu")
    if marked and not has_bfloat16(cpu):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a CPU with native bfloat16, found {describe(cpu)}"))


@pytest.fixture(autouse=True, scope="session")
def allocator_as_it_is() -> Iterator[None]:
    """Commands that run in the tests' own process leave its allocator and environment alone: other tests look there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.cli.keep_freed_memory", lambda: False)
        patch.setattr("distill.cli.let_idle_threads_sleep", lambda: False)
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real file or folder; skips where the data are absent.

    They are looked for in the folder that DISTILL_DATA names, else in `../shared/data` beside the repository.
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

    They are looked for in the folder that DISTILL_GOLDEN names, else in `../shared/golden` beside the repository.
    """
    return _finder("DISTILL_GOLDEN", "golden")


@pytest.fixture(scope="session")
def checkpoints() -> Callable[[str], Path]:
    """Path of a published checkpoint; skips where it is absent.

    They are looked for in the folder that DISTILL_CHECKPOINTS names, else in `../shared/checkpoints` beside the
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
    beside = Path(__file__).resolve().parents[2] / "shared" / default
    folder = Path(os.environ.get(variable, beside))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{name} not found in {folder}; set {variable} to the folder that holds it")
        return folder / name

    return find
