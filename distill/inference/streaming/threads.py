"""Read, compute and write concurrently, in three threads with short queues between them.

An exception in any thread stops the others and is raised once, in the computing thread; no thread waits forever.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

_LOOK = 0.1  # seconds between checks of a waiting thread for failures of the others


class ThreadStopped(Exception):
    """Another thread has failed, or the work was aborted."""


class Threads:
    """Threads that stop together when one fails."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []

    @property
    def stopped(self) -> bool:
        """Return whether a thread should end as soon as possible."""
        return self._stop.is_set()

    @property
    def failed(self) -> bool:
        """Return whether a thread has failed."""
        return bool(self._failed)

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run a function concurrently with the caller."""

        def run() -> None:
            try:
                work()
            except ThreadStopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that computes
                with self._lock:
                    self._failed.append(error)
                self._stop.set()

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._running.append(thread)
        thread.start()

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all threads, and raise the exception of a failed thread instead of `ThreadStopped`."""
        if error is not None:
            self._stop.set()
        for thread in self._running:
            while thread.is_alive():
                with suppress(TimeoutError):
                    thread.join(_LOOK)
        if self._failed and (error is None or isinstance(error, ThreadStopped)):
            raise self._failed[0] from None


class Pipe(Generic[Item]):
    """A short queue between two threads."""

    def __init__(self, threads: Threads, size: int) -> None:
        self._threads = threads
        self._queue: queue.Queue[Item] = queue.Queue(size)

    def put(self, item: Item) -> None:
        """Add an item, waiting while the queue is full.

        Raises:
            Stopped: another thread has failed.
        """
        while True:
            if self._threads.stopped:
                raise ThreadStopped
            try:
                return self._queue.put(item, timeout=_LOOK)
            except queue.Full:
                continue

    def close(self, item: Item) -> None:
        """Add a last item even while threads are ending; items before it are still processed."""
        while not self._threads.failed:
            try:
                return self._queue.put(item, timeout=_LOOK)
            except queue.Full:
                continue

    def get(self) -> Item:
        """Take the next item, waiting for it.

        Raises:
            Stopped: another thread has failed.
        """
        while True:
            try:
                return self._queue.get(timeout=_LOOK)
            except queue.Empty:
                if self._threads.stopped:
                    raise ThreadStopped from None
