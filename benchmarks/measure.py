"""Measure time and peak memory of what runs between two points."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

import torch


class HostPeak:
    """Peak growth of this process's resident memory, by the kernel's own high-water mark (Linux).

    The mark is exact, nothing is sampled. Memory that the allocator keeps is returned before every lap, where it would
    hide the growth; memory that it keeps within a lap counts.
    """

    def __init__(self) -> None:
        self._start = self._reset()

    def lap(self) -> float:
        """Return the most bytes since the last lap beyond those resident then; nan where the system reports none."""
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
        """Return the most bytes since the last lap beyond those allocated then."""
        grown = torch.cuda.max_memory_allocated(self._device) - self._start
        self._start = self._reset()
        return grown

    def _reset(self) -> float:
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)


def now(device: torch.device) -> float:
    """Return a monotonic time in seconds, after waiting for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _status(key: str) -> float:
    return int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
