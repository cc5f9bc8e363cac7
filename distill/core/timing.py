"""Measure how long the stages of a computation take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class StageTimer:
    """Sum the time of named stages over all threads.

    A stage is a block of code (`timed`) or the time between two marks (`mark`). The time of a stage inside another one
    of the same thread counts for the inner stage alone, so that the stages of one thread add up to its elapsed time.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, stages: Iterable[str] = ()) -> None:
        """Create a timer.

        Args:
            stages: names that are 0 from the start; without them, every name is accepted.
        """
        self._names = tuple(stages)
        self.seconds: dict[str, float] = dict.fromkeys(self._names, 0.0)
        self._lock, self._thread = threading.Lock(), threading.local()
        self._last = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the duration of a block of code to a stage, without the stages inside it."""
        outer = getattr(self._thread, "inside", 0.0)
        self._thread.inside = 0.0
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._add(stage, took - self._thread.inside)
            self._thread.inside = outer + took

    def start(self) -> None:
        """Reset all stages and start measuring from now."""
        self.seconds = dict.fromkeys(self._names, 0.0)
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """Add the time since `start` or the last mark to a stage.

        Raises:
            KeyError: the timer was created for other stages.
        """
        now = time.perf_counter()
        self._add(stage, now - self._last)
        self._last = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the stages of another timer, such as that of another process."""
        for stage, value in seconds.items():
            self._add(stage, value)

    def _add(self, stage: str, seconds: float) -> None:
        if self._names and stage not in self._names:
            raise KeyError(stage)
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
