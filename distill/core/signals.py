"""Ctrl-C and SIGTERM as a user means them: signals that arrive together are one.

A terminal sends Ctrl-C to every process of a command, `timeout` sends its signal to a command and then to the whole
group, torchrun passes on what its workers have received already. None of these is a user who cannot wait.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 0.5  # seconds after the first signal in which others count as the same


class Requests:
    """Count requests to stop.

    Args:
        clock: seconds, ever growing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._first, self._count = clock, 0.0, 0

    def note(self) -> int:
        """Count a signal.

        Returns:
            1 for the first and for those that arrive together with it, 2 or more for later ones.
        """
        now = self._clock()
        if not self._count:
            self._first, self._count = now, 1
        elif now - self._first >= TOGETHER:
            self._count += 1
        return self._count


@contextmanager
def signals_held() -> Iterator[None]:
    """Keep signals until the end of a block, and then pass the first one on to its handler.

    For calls into libraries that call Python in turn: the exception of a handler that runs there is lost, or becomes
    an error of the library. In other threads than the main one, which has no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    arrived: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            before[signal.Signals(arrived[0])](arrived[0], None)
