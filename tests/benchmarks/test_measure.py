"""The benchmarks' instruments against amounts that are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hardware
import measure
import pytest
import tables
import torch
from torch import nn

CPU = torch.device("cpu")


class Meter:
    """A probe whose amounts the test sets."""

    def __init__(self) -> None:
        self.amount = 0.0

    def lap(self) -> float:
        amount, self.amount = self.amount, 0.0
        return amount


class Adds(nn.Module):
    """A module that takes a known amount."""

    def __init__(self, meter: Meter, amount: float) -> None:
        super().__init__()
        self.meter, self.amount = meter, amount

    def forward(self) -> None:
        self.meter.amount += self.amount


def test_everything_since_a_mark_belongs_to_the_next() -> None:
    meter = Meter()
    line = measure.Timeline(meter)
    first, second = Adds(meter, 1), Adds(meter, 10)
    with line.after(first, "to the end of first"), line.before(second, "to second"):
        meter.amount += 100
        first()
        meter.amount += 1000
        second()
    line.mark("rest")
    first()
    line.mark("rest")
    assert line.laps == {"to the end of first": 101, "to second": 1000, "rest": 11}


def test_stages_get_their_own_operations() -> None:
    first, second = nn.Linear(3, 5, bias=False), nn.Linear(5, 7, bias=False)

    def run(line: measure.Timeline) -> torch.Tensor:
        with line.after(first, "first"), torch.no_grad():
            x = second(first(torch.ones(11, 3)))
        line.mark("second")
        return x

    found, result = measure.costs(run, CPU, 3)
    assert result.shape == (11, 7)
    assert {name: cost.operations for name, cost in found.items()} == {
        "first": 2 * 11 * 3 * 5,
        "second": 2 * 11 * 5 * 7,
    }
    for cost in found.values():
        assert len(cost.seconds) == 3
        assert 0 < cost.best <= cost.median


STAGES = """
import measure, torch

def run(line):
    kept = torch.ones(4 * 2**20)
    line.mark("keeps 16")
    torch.ones(8 * 2**20)
    torch.ones(12 * 2**20)
    line.mark("48 at most")
    kept += 1
    line.mark("nothing")

found, _ = measure.costs(run, torch.device("cpu"), 1)
print(*(cost.peak_bytes for cost in found.values()))
"""


def test_the_peak_is_what_a_stage_holds_beyond_its_start() -> None:
    """In a process of its own: one that has freed much has room for an array that is then never given back."""
    folder = Path(measure.__file__).parent
    search = os.pathsep.join((str(folder), str(folder.parent)))
    done = subprocess.run(
        [sys.executable, "-c", STAGES],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = done.stdout.split()
    if "None" in peaks:
        pytest.skip("this system tells no high-water mark")
    for peak, wanted in zip(peaks, (16, 48, 0), strict=True):
        assert abs(int(peak) - wanted * 2**20) < 2 * 2**20


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
