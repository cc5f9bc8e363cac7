"""The demo: every command line in it is one that `distill` takes, and its table shows the scores of the files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[3] / "examples"

STAND_IN = """#!/bin/sh
echo "$@" >>"{log}"
case "$*" in
*--json*) echo '{{"voi_split": 0.25, "voi_merge": 0.5, "voi_sum": 0.75, "arand": 0.125}}' ;;
esac
"""


def test_each_command_of_the_demo_exists_with_its_options(cli: Callable[..., Any], tmp_path: Path) -> None:
    """A stand-in for `distill` notes what it was called with; the real one names its options."""
    log, binaries = tmp_path / "log", tmp_path / "bin"
    binaries.mkdir()
    (binaries / "distill").write_text(STAND_IN.format(log=log))
    (binaries / "distill").chmod(0o755)
    (binaries / "python").symlink_to(sys.executable)
    environment = os.environ | {"BIN": str(binaries), "DEMO": str(tmp_path / "demo")}
    done = subprocess.run(["sh", str(EXAMPLES / "demo.sh")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in log.read_text().splitlines()]
    names = ["errors", "evaluate", "pca", "phantom", "render", "sample", "segment", "stream", "train"]
    assert sorted({call[0] for call in calls}) == names
    used: dict[str, set[str]] = {}
    for name, *words in calls:
        used.setdefault(name, set()).update(word for word in words if word.startswith("--"))
    for name, options in used.items():
        assert options <= set(re.findall(r"--[a-z-]+", cli(name, "--help").out)), name
    for said in re.findall(r"^== \d/\d .*\n.*\n.*", done.stdout, re.MULTILINE):
        assert "Look at: " in said.splitlines()[2]
    assert done.stdout.count("Look at: ") == 8
    assert "phantom trained student       0.250 0.500 0.750 0.125" in done.stdout


def test_the_table_has_a_row_a_file(tmp_path: Path) -> None:
    for name, value in (("one_run", 0.1), ("two", 2.0)):
        scores = {"voi_split": value, "voi_merge": 2 * value, "voi_sum": 3 * value, "arand": value / 4}
        (tmp_path / f"{name}.json").write_text(json.dumps(scores))
    files = [str(tmp_path / f"{name}.json") for name in ("one_run", "two")]
    done = subprocess.run([sys.executable, str(EXAMPLES / "score_table.py"), *files], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "        VOI split merge   sum ARAND",
        "one run     0.100 0.200 0.300 0.025",
        "two         2.000 4.000 6.000 0.500",
    ], done.stderr
