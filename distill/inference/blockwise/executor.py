"""Run the tasks of blocks in this process, on worker processes of this machine, or on an external dask scheduler.

Results do not depend on the order in which tasks finish. A failing task is retried a bounded number of times while the
others continue. The tasks of a worker that dies are run by another one.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from distill.core.errors import DistillError
from distill.core.notes import Note
from distill.inference.blockwise.worker import TaskReport
from distill.io.readers.array import reason

OnDone = Callable[[TaskReport], None]

MOST_FAILED = 10  # failed tasks after which the cause is not a single block
_LOOK = 1.0  # seconds between checks of the scheduler
_LOST = 10.0  # seconds without contact
_STARTED = 120.0  # seconds until workers have started, on a busy machine


@dataclass(frozen=True)
class Task:
    """A module-level function with its arguments, to be called in another process."""

    name: str  # for messages
    function: Callable[..., TaskReport]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Failed:
    """A task that failed after all retries."""

    task: Task
    error: BaseException

    def __str__(self) -> str:
        """Format the failure for messages."""
        text = reason(self.error)
        return f"{self.task.name}: {text if isinstance(self.error, DistillError) else _cause(self.error, text)}"


class Pool(Protocol):
    """Interface of all executors."""

    def run(self, tasks: Iterable[Task], on_done: OnDone) -> list[Failed]:
        """Run all tasks.

        Args:
            tasks: any number; they are consumed lazily.
            on_done: called with the result of each.

        Returns:
            The tasks that failed after all retries.
        """


def most_submitted(workers: int) -> int:
    """Return how many tasks are with a scheduler at a time, so that its load does not grow with the volume."""
    return max(8, 3 * workers)


class Here:
    """Executor that runs tasks one after another in this process."""

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def run(self, tasks: Iterable[Task], on_done: OnDone) -> list[Failed]:
        """Run all tasks; see `Pool.run`."""
        failed: list[Failed] = []
        for task in tasks:
            for left in reversed(range(self._retries + 1)):
                try:
                    done = task.function(*task.arguments)
                except Exception as error:  # noqa: BLE001 - reported to the user with the task's name
                    if not left:
                        failed.append(Failed(task, error))
                else:
                    on_done(done)
                    break
            if len(failed) >= MOST_FAILED:
                break
        return failed


class Workers:
    """Executor on the workers of a dask scheduler."""

    def __init__(self, client: Any, address: str, retries: int, note: Note) -> None:
        self._client, self._address, self._retries, self._note = client, address, retries, note

    def run(self, tasks: Iterable[Task], on_done: OnDone) -> list[Failed]:
        """Run all tasks; see `Pool.run`."""
        waiting, run, reported = iter(tasks), secrets.token_hex(4), False
        running: dict[Any, Task] = {}
        failed: list[Failed] = []
        try:
            while True:
                workers = self._count()
                if not workers and not reported:
                    self._note(f"{self._address}: no worker yet, waiting for one")
                    reported = True
                room = most_submitted(workers) - len(running) if len(failed) < MOST_FAILED else 0
                for task in islice(waiting, max(0, room)):
                    key = f"{task.function.__name__}-{'-'.join(map(str, task.arguments[1:]))}-{run}"
                    future = self._client.submit(
                        task.function, *task.arguments, key=key, retries=self._retries, pure=False
                    )
                    running[future] = task
                if not running:
                    return failed
                for future in self._ended(running):
                    task = running.pop(future)
                    if future.status == "finished":
                        on_done(self._result(future))
                    else:
                        failed.append(Failed(task, future.exception()))
        finally:
            if running and self._client.status == "running":
                with suppress(Exception):
                    self._client.cancel(list(running))

    def _ended(self, running: dict[Any, Task]) -> list[Any]:
        from distributed import wait

        while True:
            self._check()
            try:
                wait(list(running), timeout=_LOOK, return_when="FIRST_COMPLETED")
            except TimeoutError:
                continue
            except Exception:  # noqa: BLE001 - a lost scheduler shows as errors of many kinds
                self._check()
            ended = [future for future in running if future.status in ("finished", "error")]
            if ended:
                return ended
            time.sleep(_LOOK / 10)

    def _result(self, future: Any) -> TaskReport:
        try:
            found: TaskReport = future.result()
        except Exception:  # noqa: BLE001 - the task has ended well, so this is the way to its result
            self._check()
            raise self._gone() from None
        return found

    def _count(self) -> int:
        try:
            return len(self._client.nthreads())
        except Exception:  # noqa: BLE001 - see above
            self._check()
            return 0

    def _check(self) -> None:
        """Wait for a scheduler that is temporarily unreachable.

        Raises:
            DistillError: it remains unreachable.
        """
        began = time.monotonic()
        while self._client.status != "running":
            if self._client.status in ("closing", "closed") or time.monotonic() - began > _LOST:
                raise self._gone()
            time.sleep(_LOOK / 10)

    def _gone(self) -> DistillError:
        return DistillError(
            f"{self._address}: the scheduler has stopped; completed blocks are kept, continue with --resume"
        )


@contextmanager
def open_pool(workers: int, scheduler: str | None, retries: int, note: Note) -> Iterator[Pool]:
    """Open an executor, and close it on exit.

    Args:
        workers: processes on this machine; 0 and 1: this process.
        scheduler: host:port or scheduler file of an external dask scheduler.
        retries: of a failing task.
        note: called with the address of the dashboard.

    Raises:
        DistillError: the scheduler cannot be reached.
    """
    if scheduler is None and workers <= 1:
        yield Here(retries)
        return
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):  # errors are raised and reported in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)

    if scheduler is not None:
        with _reached(scheduler) as client:
            note(f"scheduler {scheduler}: {len(client.nthreads())} workers, dashboard {client.dashboard_link}")
            yield Workers(client, scheduler, retries, note)
        return
    with (
        LocalCluster(
            n_workers=0,  # so that an interruption finds the cluster made, and closes it
            threads_per_worker=1,
            memory_limit=None,  # bounded by the size of a block
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        try:
            cluster.scale(workers)
            _wait_for_workers(client, workers)
            note(f"{workers} workers, dashboard {client.dashboard_link}")
            yield Workers(client, "this machine", retries, note)
        except BaseException:
            _kill(cluster)
            raise


def _wait_for_workers(client: Any, count: int) -> None:
    """Wait until the workers have started.

    Raises:
        DistillError: none does.
    """
    try:
        client.wait_for_workers(count, timeout=_STARTED)
    except TimeoutError:
        if not client.nthreads():
            raise DistillError(
                f"--workers: no worker process started within {_STARTED:.0f} s; expected {count}, or omit --workers"
            ) from None


def _kill(cluster: Any) -> None:
    """End the workers of an aborted run at once: dask waits seconds for what they compute, which nobody needs."""
    for nanny in list(cluster.workers.values()):
        nanny.auto_restart = False
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def _reached(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    file = Path(scheduler)
    where = {"scheduler_file": scheduler} if file.is_file() else {"address": scheduler}
    if "address" in where and ":" not in scheduler:
        raise DistillError(f"--scheduler: found {scheduler!r}, expected host:port or a scheduler file")
    try:
        client = Client(**where, timeout=_LOST)
    except (OSError, ValueError, TypeError) as error:
        raise DistillError(
            f"--scheduler: {scheduler} cannot be reached ({reason(error)}); expected host:port or the file of a "
            "running dask scheduler"
        ) from None
    try:
        yield client
    finally:
        with suppress(Exception):  # already closed
            client.close(timeout=_LOST)


def _cause(error: BaseException, text: str) -> str:
    if type(error).__name__ == "KilledWorker":
        return "its worker died again and again, out of memory perhaps; expected a smaller --block, or fewer workers"
    return f"{type(error).__name__}: {text}"
