"""Signals are kept while a library works, and passed on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from distill.core.signals import SIGNALS, signals_held


class Arrived(BaseException):
    """What the handler of this test raises."""


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Both signals raise `Arrived`, and are listed."""
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        seen.append(number)
        raise Arrived

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("fails", [False, True])
def test_a_signal_waits_for_the_end_of_the_block(handled: list[int], fails: bool) -> None:
    """A library would swallow the exception, or fail by it."""
    steps = []

    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("done")
        except Arrived:
            steps.append("lost")
        if fails:
            raise RuntimeError("an error of the library's own")

    with pytest.raises(Arrived), signals_held():
        library()
    assert steps == ["done"]
    assert handled == [signal.SIGTERM]


def test_without_a_signal_nothing_is_changed(handled: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with signals_held(), signals_held():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ValueError, match="own"), signals_held():
        raise ValueError("own")
    assert handled == []


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_have_no_handlers() -> None:
    done = []

    def work() -> None:
        with signals_held():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
