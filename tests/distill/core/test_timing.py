"""Stages add up over threads and marks; a stage within a stage counts once."""

from __future__ import annotations

import threading
import time

import pytest

from distill.core.timing import StageTimer


def test_a_stage_inside_another_counts_for_the_inner_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 4.0, 5.0, 9.0, 11.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    timer = StageTimer()
    with timer.timed("decode"):
        with timer.timed("read"):
            pass
        with timer.timed("network"):
            pass
    with timer.timed("decode"):
        pass
    assert timer.seconds == {"read": 3.0, "network": 4.0, "decode": 11.0 - 7.0 + 1.0}


def test_a_failed_stage_counts_and_leaves_no_stage_open(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 2.0, 5.0, 6.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    timer = StageTimer()
    with pytest.raises(RuntimeError), timer.timed("read"):
        raise RuntimeError
    with timer.timed("write"):
        pass
    assert timer.seconds == {"read": 2.0, "write": 1.0}


def test_stages_of_two_threads_do_not_lie_within_each_other() -> None:
    timer, inside, ended = StageTimer(), threading.Event(), threading.Event()

    def write() -> None:
        with timer.timed("write"):
            inside.wait()

    thread = threading.Thread(target=write)
    thread.start()
    with timer.timed("read"):
        inside.set()
        thread.join()
        ended.set()
    assert set(timer.seconds) == {"read", "write"}
    assert min(timer.seconds.values()) >= 0
    assert ended.is_set()


def test_marks_count_from_the_mark_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 11.0, 14.0, 15.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    timer = StageTimer(("data", "losses"))
    timer.start()
    for stage in ("data", "losses", "data"):
        timer.mark(stage)
    assert timer.seconds == {"data": 2.0, "losses": 3.0}
    with pytest.raises(KeyError, match="optimizer"):
        timer.mark("optimizer")


def test_stages_of_another_timer_are_added() -> None:
    timer = StageTimer()
    timer.add({"read": 1.0})
    timer.add({"read": 0.5, "write": 2.0})
    assert timer.seconds == {"read": 1.5, "write": 2.0}
