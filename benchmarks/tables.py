"""Write results of benchmarks: plain-text tables and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.core.atomic import write_text


def provenance(script: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return command, commit (with a + if files differ from it) and date of a result; paths are reduced to names."""
    return {
        "command": " ".join(
            ["python", os.path.normpath(f"benchmarks/{script}"), *(re.sub(r"[^=]*/", "", a.rstrip("/")) for a in argv)]
        ),
        "commit": _commit(),
        "day": time.strftime("%Y-%m-%d"),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def milliseconds(seconds: float) -> str:
    """Format a time in ms with three digits."""
    return f"{1000 * seconds:.{max(0, 2 - math.floor(math.log10(max(1000 * seconds, 0.01))))}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain-text table, the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    git = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
