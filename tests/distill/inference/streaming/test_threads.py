"""Threads fail together and once; shares of a stream cover it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import DistillError
from distill.inference.streaming.plan import LAYER_BYTES, StreamPart, layer_depth, parse_part, share
from distill.inference.streaming.threads import Pipe, Threads


def test_items_come_in_order() -> None:
    taken: list[int] = []
    with Threads() as threads:
        pipe: Pipe[int] = Pipe(threads, 2)
        threads.start("take", lambda: taken.extend(pipe.get() for _ in range(50)))
        for item in range(50):
            pipe.put(item)
    assert taken == list(range(50))


def fail() -> None:
    raise OSError(28, "No space left on device")


def sends_for_ever() -> None:
    with Threads() as threads:
        pipe: Pipe[int] = Pipe(threads, 1)
        threads.start("write", fail)
        while True:
            pipe.put(1)


def waits_for_ever() -> None:
    with Threads() as threads:
        pipe: Pipe[int] = Pipe(threads, 1)
        threads.start("read", fail)
        pipe.get()


def is_done_already() -> None:
    with Threads() as threads:
        threads.start("late", lambda: (time.sleep(0.05), fail())[0])


@pytest.mark.parametrize("work", [sends_for_ever, waits_for_ever, is_done_already])
def test_a_thread_that_fails_ends_those_that_wait_for_it(work: Callable[[], None]) -> None:
    with pytest.raises(OSError, match="No space left"):
        work()


def test_the_own_error_wins_and_what_was_sent_is_still_done() -> None:
    taken: list[int] = []

    def take(pipe: Pipe[int]) -> None:
        while (item := pipe.get()) >= 0:
            time.sleep(0.01)
            taken.append(item)

    def interrupted() -> None:
        with Threads() as threads:
            pipe: Pipe[int] = Pipe(threads, 4)
            threads.start("write", lambda: take(pipe))
            threads.start("read", lambda: Pipe[None](threads, 1).get())
            for item in range(4):
                pipe.put(item)
            pipe.close(-1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert taken == [0, 1, 2, 3]


@given(st.integers(1, 3000), st.integers(1, 20), st.integers(1, 12))
def test_shares_cover_all_layers_once(total: int, depth: int, of: int) -> None:
    layers = -(-total // depth)
    if of > layers:
        with pytest.raises(DistillError, match=f"expected at most {layers} ranges"):
            share(StreamPart(0, of), total, depth)
        return
    found = [share(StreamPart(index, of), total, depth) for index in range(of)]
    assert [layer for layers_of, _ in found for layer in layers_of] == list(range(layers))
    assert [last for _, last in found] == [False] * (of - 1) + [True]
    sizes = [len(layers_of) for layers_of, _ in found]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 2**34))
def test_a_layer_fits(section_bytes: int) -> None:
    depth = layer_depth(section_bytes, None)
    assert depth in (1, 2, 4, 8, 16)
    assert depth == 1 or depth * section_bytes <= LAYER_BYTES
    assert depth == 16 or 2 * depth * section_bytes > LAYER_BYTES
    assert layer_depth(section_bytes, 7) == 7


def test_parts() -> None:
    assert parse_part(None) == StreamPart(0, 1)
    assert parse_part("3/4") == StreamPart(3, 4)
    for text in ("4/4", "1", "-1/4", "1/0", "a/b", "1/2/3"):
        with pytest.raises(DistillError, match=r"--range: found .* expected I/N with I from 0"):
            parse_part(text)
