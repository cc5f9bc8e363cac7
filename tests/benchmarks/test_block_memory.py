"""Tasks of the memory measurement, and that a process is measured."""

from __future__ import annotations

import pytest
from block_memory import BLOCKS, TILES, Ran, _pair, _sizes, rows, run


def test_every_size_is_a_task() -> None:
    tasks = _sizes("raw.h5", ["flood", "waterz"])
    assert len(tasks) == 2 * len(BLOCKS) + len(TILES)
    assert all(words[-2:] == ["--out", "{new}/out.zarr"] for words in tasks.values())
    assert set(_pair("raw.h5")) == {"distill segment", "distill.segment"}


def test_a_process_is_measured() -> None:
    found = run("sum", ["-c", "x = bytearray(50_000_000); print(sum(range(10**6)))"])
    assert found.cpu_seconds > 0
    assert found.peak_bytes > 50_000_000
    with pytest.raises(SystemExit, match="fails: exit code 3"):
        run("fails", ["-c", "raise SystemExit(3)"])


def test_rows_are_medians() -> None:
    runs = [Ran("a", 1, 10**9), Ran("b", 5, 10**9), Ran("a", 3, 3 * 10**9), Ran("a", 2, 2 * 10**9)]
    assert rows(runs) == [("a", "2.0", "2.00"), ("b", "5.0", "1.00")]
