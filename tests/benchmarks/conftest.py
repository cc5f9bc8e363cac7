"""The scripts as modules, with peaks that take no time to measure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts import modules of their folder


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that fills the cores."""
    import hardware

    monkeypatch.setattr(hardware, "SIDE", {"cpu": 128})
    monkeypatch.setattr(hardware, "COPY_BYTES", 2**20)
