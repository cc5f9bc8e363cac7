"""Settings of blocks without networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from blocks_of_labels import Setting


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A volume of 5 x 40 x 40 voxels in 2 x 2 x 2 blocks."""
    return Setting(tmp_path / "given", (5, 40, 40), monkeypatch)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int, int]], Setting]:
    """A volume of any size."""
    return lambda shape: Setting(tmp_path / "given", shape, monkeypatch)
