"""A short campaign; `fuzz.py` says how a long one is run."""

from __future__ import annotations

from pathlib import Path

import fuzz


def test_damaged_files_are_refused_or_read_right(tmp_path: Path) -> None:
    found = fuzz.campaign(tmp_path, seed=0, numbers=range(3 * len(fuzz.KINDS)))
    assert [one for one in found if one.verdict not in ("refused", "right")] == []
    assert {one.verdict for one in found} == {"refused", "right"}
