"""Blocks cover a volume once, along its chunks; several processes give what one gives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple
from distill.evaluation.aligned import chunk_blocks, over_blocks
from distill.io.volume import volume_from_array

sizes = st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 17))


@given(sizes, st.one_of(st.none(), sizes), st.sampled_from([None, 2, 5]), st.integers(1, 400))
def test_blocks_cover_once_and_cut_no_chunk(
    size: Triple, chunks: Triple | None, channels: int | None, most: int
) -> None:
    shape = size if channels is None else (channels, *size)
    whole = chunks if chunks is None or channels is None else (1, *chunks)
    volume = replace(volume_from_array(np.zeros(shape, np.uint8), (1, 1, 1)), chunks=whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.evaluation.aligned.BLOCK_VOXELS", most)
        blocks = chunk_blocks(volume)
    seen = np.zeros(size, int)
    smallest = int(np.prod(np.minimum(chunks or (1, 1, 1), size))) * (channels or 1)
    for block in blocks:
        seen[block.slices] += 1
        assert block.voxels * (channels or 1) <= max(most, smallest)
        for a, b, n, c in zip(block.start, block.stop, size, chunks or (1, 1, 1), strict=True):
            assert a % c == 0
            assert b % c == 0 or b == n
    assert (seen == 1).all()


def voxels(box: Box) -> int:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C reaches workers too, which is not theirs to answer
    return box.voxels


def killed(box: Box) -> int:
    if box.start[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return box.voxels


def refused(limit: int, box: Box) -> int:
    if box.start[0] == limit:
        raise DistillError(f"box {box.start}: no")
    return box.voxels


BOXES = [Box((z, 0, 0), (z + 1, z + 1, 1)) for z in range(7)]


def test_in_order_by_any_number_of_processes() -> None:
    for workers in (1, 2):
        seen: list[tuple[int, int]] = []
        found = list(over_blocks(voxels, BOXES, workers, lambda a, b, seen=seen: seen.append((a, b))))
        assert found == list(range(1, 8))
        assert seen == [(k, 7) for k in range(1, 8)]
    assert list(over_blocks(voxels, [], 2)) == []


def test_what_a_worker_says_and_a_worker_that_dies() -> None:
    for workers in (1, 2):
        with pytest.raises(DistillError, match=r"box \(2, 0, 0\): no"):
            list(over_blocks(partial(refused, 2), BOXES, workers))
    with pytest.raises(DistillError, match="--workers: one of 2 worker processes died"):
        list(over_blocks(killed, BOXES, 2))
    with pytest.raises(DistillError, match="--workers: found 0"):
        list(over_blocks(voxels, BOXES, 0))


def endless(folder: str, box: Box) -> int:
    """The first block is done; the others would never be."""
    (Path(folder) / f"{os.getpid()}").touch()
    if box.start[0]:
        time.sleep(3600)
    return box.voxels


@pytest.mark.parametrize("interrupted", [False, True])
def test_workers_end_with_what_they_compute_when_nobody_waits_for_it(tmp_path: Path, interrupted: bool) -> None:
    """By Ctrl-C while a block is waited for, and where the results are no longer read."""

    def stop(done: int, total: int) -> None:
        if interrupted:
            raise KeyboardInterrupt

    with closing(over_blocks(partial(endless, str(tmp_path)), BOXES, 2, stop)) as found:
        assert next(found) == 1
        while len(list(tmp_path.iterdir())) < 2:  # both workers compute
            time.sleep(0.01)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                next(found)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
