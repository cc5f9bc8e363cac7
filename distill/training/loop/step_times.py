"""Measure the parts of a training step while it runs.

On the CPU, the clock is read at every mark. A GPU runs asynchronously, so every mark records an event in its queue, and
the times between events are read one step later, when they have passed; the measurement never synchronises. There,
`data` is the idle time of the GPU itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from distill.core.timing import StageTimer

PARTS = ("data", "teacher", "student", "decoder", "losses", "backward", "optimiser")


class StepClock:
    """Marks within consecutive steps; the time between two marks belongs to the second one."""

    def __init__(self, device: torch.device) -> None:
        """Create the clock for a device.

        Args:
            device: on which the steps run.
        """
        self._on_gpu = device.type == "cuda"
        self._timer = StageTimer(PARTS)
        self._earlier: list[tuple[str, torch.cuda.Event]] = []
        self._events: list[tuple[str, torch.cuda.Event]] = []

    def start(self) -> None:
        """Start a step; time since the end of the previous one belongs to no part."""
        if self._on_gpu:
            self._earlier, self._events = self._events, [("", self._event())]
        else:
            self._timer.start()

    def mark(self, part: str) -> None:
        """Add the time since the last mark to `part`."""
        if self._on_gpu:
            self._events.append((part, self._event()))
        else:
            self._timer.mark(part)

    def parts(self) -> dict[str, float]:
        """Return seconds by part of the step that ends now.

        On a GPU, they are those of the step before it, and there are none after the first step.
        """
        if not self._on_gpu:
            return dict(self._timer.seconds)
        found = dict.fromkeys(PARTS, 0.0) if self._earlier else {}
        for (_, first), (part, last) in pairwise(self._earlier):
            last.synchronize()  # has passed, because the loss of this step has been read since
            found[part] += first.elapsed_time(last) / 1000
        return found

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class StepTimes:
    """Mean time of many steps and of their parts."""

    def __init__(self) -> None:
        self.steps = 0
        self._seconds = 0.0
        self._measured = 0
        self._parts = dict.fromkeys(PARTS, 0.0)

    def add(self, seconds: float, parts: Mapping[str, float]) -> None:
        """Add one step; without parts, only its total is counted."""
        self.steps += 1
        self._seconds += seconds
        self._measured += bool(parts)
        for part, value in parts.items():
            self._parts[part] += value

    @property
    def seconds(self) -> float:
        """Mean time of a step."""
        return self._seconds / max(1, self.steps)

    @property
    def parts(self) -> dict[str, float]:
        """Mean time of each part."""
        return {part: value / max(1, self._measured) for part, value in self._parts.items()}

    def line(self) -> str:
        """Format one line with the share of every part, after at least one step; the remainder is `other`."""
        parts = self.parts
        named = {**parts, "other": max(0.0, self.seconds - sum(parts.values()))}
        shares = ", ".join(f"{name} {100 * value / self.seconds:.1f} %" for name, value in named.items())
        return f"time per step {self.seconds:.3g} s: {shares}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values for run.json."""
        return {"steps": self.steps, "seconds": self.seconds, "parts": self.parts}
