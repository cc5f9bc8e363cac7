"""A few of the deaths of `kills.py`, by its own functions; the script does as many as one asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import COMMANDS, Case, check


@pytest.mark.slow
@pytest.mark.parametrize("command", [one for one in COMMANDS if one != "segment2"])
def test_killed_and_resumed_with_other_settings(
    command: str, phantom: Path, run: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    case = Case(command, phantom, run, tmp_path, tiny)
    assert check(case, seed=1, count=2).endswith("| same |")
