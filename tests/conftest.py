"""Fixtures that every package's tests may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real file or folder; skips where the data are absent.

    They are looked for in the folder that DISTILL_DATA names, else in `../shared/data` beside the repository.
    """
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("DISTILL_DATA", root.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"real data {name} not found in {folder}; set DISTILL_DATA to the folder that holds it")
        return folder / name

    return find
