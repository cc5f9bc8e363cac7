"""A command is run as often as asked, each time in a folder of its own, and its cost is positive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Ran, main, rows


def test_a_command_is_measured_and_its_output_removed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert main(["--repeat", "2", "--json", str(out), "--", "sample", "{new}/sample.h5"]) == 0
    found = json.loads(out.read_text())
    assert len(found["runs"]) == 2
    for ran in (found["warm_up"], *found["runs"]):
        assert ran["seconds"] > 0
        assert ran["cpu_seconds"] > 0
        assert ran["peak_bytes"] > 10_000_000  # an interpreter with numpy
    places = {line.split(":")[0] for line in capfd.readouterr().out.splitlines() if "sample.h5: " in line}
    assert len(places) == 3
    assert not any(Path(place).exists() for place in places)


def test_a_command_that_fails_ends_the_measurement(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", str(tmp_path / "found.json"), "--", "info", str(tmp_path / "nothing.h5")]) == 2
    assert "exit code 2" in capfd.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_rows_hold_least_median_and_most() -> None:
    runs = [Ran(3.0, 6.0, 10_000_000), Ran(1.0, 2.0, 30_000_000), Ran(2.0, 4.0, 20_000_000)]
    assert rows(runs) == [
        ("wall time (s)", "1.00", "2.00", "3.00"),
        ("processor time (s)", "2.00", "4.00", "6.00"),
        ("peak memory (MB)", "10.00", "20.00", "30.00"),
    ]
