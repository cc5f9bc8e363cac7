"""Assign the GPUs of a machine to its workers."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from distill.core.claim import Taken, claim
from distill.core.errors import SourceError

_held = ExitStack()  # the GPU of this process, until it ends


def device_of(device: str, worker: str | None, count: int) -> str:
    """Return the device of a worker: GPUs are assigned in turn.

    Workers of a cluster are numbered by their names. A worker that was started by hand is named by its address, whose
    port says nothing; it takes a GPU that no other such worker of the machine holds.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; the last is used unchanged.
        worker: its name; None in a process that is no worker.
        count: number of visible GPUs.
    """
    if device not in ("auto", "cuda") or count == 0:
        return device
    if worker is None:
        return "cuda:0"
    number = _unheld(count) if "://" in worker else worker_number(worker)
    return f"cuda:{number % count}"


def worker_name() -> str | None:
    """Return the name of the dask worker that runs this process; None in any other process."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return None


def worker_number(name: str) -> int:
    """Return the number at the end of a worker's name, 0 without one."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else 0


def _unheld(count: int) -> int:
    """Hold the first GPU that no other process holds; where all are held, any one."""
    for number in range(count):
        name = f"distill-{os.getuid()}-gpu-{_identity(number)}"
        try:
            _held.enter_context(claim(Path(tempfile.gettempdir()) / name))
        except Taken:
            continue
        except SourceError:  # nothing can be written there
            break
        return number
    return os.getpid() % count


def _identity(number: int) -> str:
    """Return what identifies a GPU in all processes, whatever their CUDA_VISIBLE_DEVICES."""
    import torch

    return str(getattr(torch.cuda.get_device_properties(number), "uuid", number))
