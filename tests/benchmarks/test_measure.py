"""Compare the instruments of the benchmarks with known amounts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import hardware
import measure
import pytest
import tables
import torch

CPU = torch.device("cpu")


STAGES = """
import measure, torch

peak = measure.HostPeak()
kept = torch.ones(16 * 2**20)
laps = [peak.lap()]
torch.ones(20 * 2**20)
torch.ones(24 * 2**20)
laps.append(peak.lap())
kept += 1
print(*laps, peak.lap())
"""


def test_the_peak_is_what_is_held_beyond_the_last_lap() -> None:
    """In a process of its own: the allocator keeps memory that other tests freed, and growth within it is not seen."""
    folder = Path(measure.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", STAGES],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(folder.parent)))},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [float(peak) for peak in done.stdout.split()]
    if any(map(math.isnan, peaks)):
        pytest.skip("this system reports no high-water mark")
    for peak, wanted in zip(peaks, (64, 96, 0), strict=True):  # MiB, above what the allocator would keep
        assert abs(peak - wanted * 2**20) < 2 * 2**20


def test_peaks_are_positive_and_say_what_reached_them() -> None:
    for dtype in hardware.DTYPES.values():
        peak = hardware.peak_rate(CPU, dtype)
        assert peak.per_second > 1e6
        assert peak.by
    assert hardware.copy_rate(CPU) > 1e6


def test_a_result_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    argv = ["--data", str(tmp_path / "a.h5"), f"--model={tmp_path}/run/", "--repeat", "1"]
    about = tables.provenance("x.py", argv)
    assert about["command"] == "python benchmarks/x.py --data a.h5 --model=run --repeat 1"
    out = tmp_path / "folder" / "x.json"
    tables.write_json(out, {**about, "machine": hardware.machine(CPU)})
    assert json.loads(out.read_text())["machine"]["threads"] == torch.get_num_threads()
    assert [file.name for file in out.parent.iterdir()] == ["x.json"]


def test_numbers_are_read_in_columns() -> None:
    lines = tables.table(["stage", "ms"], [["a", "1.00"], ["longer", "12.3"]]).split("\n")
    assert lines == ["stage     ms", "------------", "a       1.00", "longer  12.3"]
    assert [tables.milliseconds(s) for s in (0.00012, 0.001234, 0.0456, 1.5, 12.3456)] == [
        *("0.120", "1.23", "45.6", "1500", "12346")
    ]
