"""Measure time, operations and memory of each stage of a run."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_LARGE = 2**16  # bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one stage of a run takes.

    Attributes:
        seconds: one for each repetition.
        operations: counted by torch (convolutions, matrix products, attention; a multiply-add counts as two).
        peak_bytes: most memory held at a time beyond what was held when the stage began; None if not reported.
    """

    seconds: tuple[float, ...]
    operations: int
    peak_bytes: int | None

    @property
    def best(self) -> float:
        """Least seconds."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


class Probe(Protocol):
    """Something that can be read at the end of every stage."""

    def lap(self) -> float:
        """Amount since the last lap, or since the probe was made."""


class Stopwatch:
    """Seconds; waits for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._last = device, now(device)

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, now(self._device)
        return self._last - last


class Operations:
    """Operations that a counter has seen."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self._counter, self._last = counter, 0

    def lap(self) -> float:
        """Operations since the last lap."""
        last, self._last = self._last, self._counter.get_total_flops()
        return self._last - last


class HostPeak:
    """Peak growth of this process's resident memory, by the kernel's own high-water mark (Linux).

    The mark is exact, nothing is sampled. What the allocator keeps is given back before every stage, where it would
    hide the growth; what it keeps within a stage counts. Use it under `returned_at_once`, so that this is little.
    """

    def __init__(self) -> None:
        self._start = self._reset()

    def lap(self) -> float:
        """Bytes beyond what was resident at the last lap, at the worst moment since; nan where not reported."""
        grown = _status("VmHWM") - self._start
        self._start = self._reset()
        return grown

    @staticmethod
    def _reset() -> float:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return float("nan")
        return _status("VmRSS")


class DevicePeak:
    """Peak growth of what torch's allocator has handed out on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._reset()

    def lap(self) -> float:
        """Bytes beyond what was allocated at the last lap, at the worst moment since."""
        grown = torch.cuda.max_memory_allocated(self._device) - self._start
        self._start = self._reset()
        return grown

    def _reset(self) -> float:
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)


class Timeline:
    """One run cut into stages; everything between two marks belongs to the second."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.laps: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """`stage` ends here."""
        self.laps[stage] = self.laps.get(stage, 0) + self._probe.lap()

    @contextmanager
    def after(self, module: nn.Module, stage: str) -> Iterator[None]:
        """`stage` ends wherever this module has run."""
        hook = module.register_forward_hook(lambda _module, _args, _output: self.mark(stage))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def before(self, module: nn.Module, stage: str) -> Iterator[None]:
        """`stage` ends wherever this module begins to run."""
        hook = module.register_forward_pre_hook(lambda _module, _args: self.mark(stage))
        try:
            yield
        finally:
            hook.remove()


def costs(run: Callable[[Timeline], T], device: torch.device, repeat: int) -> tuple[dict[str, Cost], T]:
    """Run once to count operations (and to warm up), `repeat` times for the time, and once for the memory.

    Args:
        run: does the work and marks its stages, the same ones every time.
        device: whose time and memory count.
        repeat: at least 1.

    Returns:
        Costs by stage, in the order of the run, and what the last run gave.
    """
    with FlopCounterMode(display=False) as counter:
        counted = Timeline(Operations(counter))
        run(counted)
    timed = []
    for _ in range(repeat):
        line = Timeline(Stopwatch(device))
        run(line)
        timed.append(line)
    if device.type == "cuda":
        held = Timeline(DevicePeak(device))
        result = run(held)
    else:
        with returned_at_once():
            held = Timeline(HostPeak())
            result = run(held)
    found = {
        stage: Cost(
            tuple(line.laps[stage] for line in timed),
            int(operations),
            None if np.isnan(held.laps[stage]) else int(held.laps[stage]),
        )
        for stage, operations in counted.laps.items()
    }
    return found, result


@contextmanager
def returned_at_once() -> Iterator[None]:
    """Make allocations of 64 KiB or more come from the kernel and return to it when freed (glibc).

    Slower, so nothing is timed in it. Afterwards the threshold is 32 MiB, where glibc's own rule ends up once tensors
    of that size have been freed.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim, threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    libc.mallopt(threshold, _LARGE)
    try:
        yield
    finally:
        libc.mallopt(threshold, 2**25)
        libc.mallopt(trim, 2**26)


def nbytes(*tensors: Tensor) -> int:
    """Return the size of tensors in memory."""
    return sum(t.numel() * t.element_size() for t in tensors)


def now(device: torch.device) -> float:
    """Return a monotonic time in seconds, after waiting for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _status(key: str) -> float:
    return int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
