"""Rows of a benchmark that runs commands: each is kept as soon as it is there, so that a run can be continued."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import write_json

from distill.core.errors import DistillError


class Rows:
    """Rows by name in a folder, of one set of settings."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """Take what the folder holds.

        Args:
            folder: made where absent.
            settings: what must be the same for all rows.

        Raises:
            DistillError: the folder holds rows of other settings.
        """
        self.path = folder / "rows.json"
        kept = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        for key, value in settings.items():
            found = kept.get("settings", {}).get(key, value)
            if found != value:
                raise DistillError(f"{self.path}: holds rows of {key} {found}, found {value}; expected another --out")
        self._settings, self._rows = dict(settings), kept.get("rows", {})

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def keep(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a row and write all of them."""
        self._rows[name] = dict(row)
        write_json(self.path, {"settings": self._settings, "rows": self._rows})

    def get(self, name: str) -> dict[str, Any] | None:
        """A row, None where it is not done yet."""
        found: dict[str, Any] | None = self._rows.get(name)
        return found


def distill(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `distill WORDS` with what this interpreter imports."""
    return subprocess.run([sys.executable, "-m", "distill", *words], capture_output=True, text=True, check=False)


def message(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """Last line of what a command that failed printed, the folder's path cut out."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].replace(str(folder), "FOLDER")
