"""Measure the memory that training steps take."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

from distill.config import TrainingConfig
from distill.core.pace import number
from distill.training.schedule.phases import StepKind

_GROWTH = 1.02  # a later kind of step is reported if its peak is above the last reported one by this factor


class StepMemory:
    """Peak memory of steps in addition to what was held when this object was created.

    On a GPU, it is the allocator's peak. On a CPU, it is the peak of the resident memory of the process: memory that
    the libraries keep between steps is part of it, and so are gradients and the state of the optimiser.
    """

    def __init__(self, training: TrainingConfig, device: torch.device) -> None:
        """Take the memory that is held now as the baseline.

        Args:
            training: of the run; crops and batch are those of a process.
            device: on which the steps run.
        """
        self._training, self._device = training, device
        self._held, self._seen = _held(device), _peak(device)
        self._known: set[StepKind] = set()
        self._reported = 0

    def after(self, step: int, kind: StepKind) -> str:
        """Return the message of the first step of a kind; empty if it needed no more than what was reported.

        Args:
            step: number of steps done with it.
            kind: of the step.
        """
        before, peak = self._seen, _peak(self._device)
        self._seen = peak
        first = not self._known
        if kind in self._known:
            return ""
        self._known.add(kind)
        if not first and (peak == before or peak <= _GROWTH * self._reported):
            return ""
        self._reported = peak
        bound = "at most " if peak == before else ""  # the process had more before its first step
        per_crop = number((peak - self._held) / self._training.batch / 1e9)
        return (
            f"memory per crop of {' x '.join(map(str, self._training.crop))}: {bound}{per_crop} GB on the "
            f"{self._device.type.upper()}, measured up to step {step} ({kind}); {number(peak / 1e9)} GB in all"
        )

    def skip(self) -> None:
        """Leave out what was held since the last step, such as that of a validation."""
        self._seen = _peak(self._device)


def _held(device: torch.device) -> int:
    """Return the bytes that are held now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _of_process("VmRSS")


def _peak(device: torch.device) -> int:
    """Return the most bytes that were held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _of_process("VmHWM")


def _of_process(name: str) -> int:
    """Return a number of bytes of Linux's status of this process; elsewhere the peak, which is all that is known."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(rf"{name}:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
