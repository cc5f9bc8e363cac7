"""Whether freed memory is kept: pages that a process had to be given again, counted by the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distill
from distill.core.allocator import let_idle_threads_sleep

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's allocator"
)

FAULTS = """
import resource, sys
import numpy as np
from distill.core.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory(whatever_is_set=sys.argv[1] == "force") if sys.argv[1] != "leave" else None
np.full(100_000_000, 1, np.uint8)
before = faults()
for _ in range(20):
    np.full(100_000_000, 1, np.uint8)
print(kept, faults() - before)
"""


def count(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        cwd=Path(distill.__file__).parents[1],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, number = done.stdout.split()
    return kept, int(number)


@glibc
def test_an_array_gets_the_pages_of_the_one_before() -> None:
    kept, few = count("keep")
    many = count("leave")[1]
    assert kept == "True"
    assert few * 10 < many, (few, many)


@glibc
def test_what_the_user_set_in_the_environment_stays() -> None:
    assert count("keep", MALLOC_TRIM_THRESHOLD_="65536")[0] == "False"


@glibc
def test_what_dask_sets_for_its_workers_does_not_count() -> None:
    assert count("force", MALLOC_TRIM_THRESHOLD_="65536")[0] == "True"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_threads_wait_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    assert not let_idle_threads_sleep()
    assert dict(os.environ) == before


def test_the_command_sets_it_before_torch_is_loaded() -> None:
    """OpenMP reads the variable once, as it is loaded."""
    program = (
        "import os, sys, distill.cli; assert 'torch' not in sys.modules; sys.argv = ['distill', '--help']\n"
        "try: distill.cli.main()\n"
        "except SystemExit: pass\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(distill.__file__).parents[1],
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "PASSIVE"
