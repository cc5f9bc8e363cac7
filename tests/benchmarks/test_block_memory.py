"""Tasks of the memory measurement, and that a process is measured."""

from __future__ import annotations

import pytest
from block_memory import Ran, _pair, _parser, _sizes, rows, run


def test_every_size_is_a_task() -> None:
    words = ["--source", "raw.h5", "--blocks", "4,64,64", "8,64,64", "--tiles", "64", "0"]
    tasks = _sizes(_parser().parse_args(words))
    assert list(tasks) == ["segment --block 4,64,64", "segment --block 8,64,64", "stream --tile 64", "stream"]
    assert tasks["stream --tile 64"][-2:] == ["--tile", "64"]
    assert "--tile" not in tasks["stream"]
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
