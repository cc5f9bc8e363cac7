"""The time of a training step, cut into parts, measured while it runs.

On the CPU the parts are read from the clock. On a GPU the work runs behind the program, so every mark puts an event
into the GPU's queue, and the times between the events are read one step later, when they have passed: nothing ever
waits for a measurement. There `data` is what the GPU itself waited.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "teacher", "student", "decoder", "losses", "backward", "optimiser")


class StepClock:
    """Marks of one step after the other; everything between two marks belongs to the second."""

    def __init__(self, device: torch.device) -> None:
        """Measure on a device.

        Args:
            device: where the step runs.
        """
        self._on_gpu = device.type == "cuda"
        self._last = 0.0
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._earlier: list[tuple[str, torch.cuda.Event]] = []
        self._events: list[tuple[str, torch.cuda.Event]] = []

    def start(self) -> None:
        """A step begins here; what ran since the end of the last one belongs to no part."""
        self._parts = dict.fromkeys(PARTS, 0.0)
        if self._on_gpu:
            self._earlier, self._events = self._events, [("", self._event())]
        else:
            self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        """What ran since the last mark belongs to `part`, beside what was marked so before."""
        if self._on_gpu:
            self._events.append((part, self._event()))
            return
        now = time.perf_counter()
        self._parts[part] += now - self._last
        self._last = now

    def parts(self) -> dict[str, float]:
        """Seconds by part: of the step that ends here; on a GPU of the one before it, nothing after the first step."""
        if not self._on_gpu:
            return dict(self._parts)
        found = dict.fromkeys(PARTS, 0.0) if self._earlier else {}
        for (_, first), (part, last) in pairwise(self._earlier):
            last.synchronize()  # has passed: the loss of this step has been read since
            found[part] += first.elapsed_time(last) / 1000
        return found

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class Split:
    """Time of many steps: means of the whole and of its parts."""

    def __init__(self) -> None:
        self.steps = 0
        self._seconds = 0.0
        self._measured = 0
        self._parts = dict.fromkeys(PARTS, 0.0)

    def add(self, seconds: float, parts: Mapping[str, float]) -> None:
        """One step more; without parts it counts for the whole alone."""
        self.steps += 1
        self._seconds += seconds
        self._measured += bool(parts)
        for part, value in parts.items():
            self._parts[part] += value

    @property
    def seconds(self) -> float:
        """Of a step, mean."""
        return self._seconds / max(1, self.steps)

    @property
    def parts(self) -> dict[str, float]:
        """Of a step by part, means."""
        return {part: value / max(1, self._measured) for part, value in self._parts.items()}

    def line(self) -> str:
        """One line with the share of every part, after one step at least; what they leave of the whole is `other`."""
        parts = self.parts
        named = {**parts, "other": max(0.0, self.seconds - sum(parts.values()))}
        shares = ", ".join(f"{name} {100 * value / self.seconds:.1f} %" for name, value in named.items())
        return f"time per step {self.seconds:.3g} s: {shares}"

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {"steps": self.steps, "seconds": self.seconds, "parts": self.parts}
