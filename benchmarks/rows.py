"""Rows of a benchmark that segments and scores by commands: each is kept as soon as it is there.

The same command therefore continues where it stopped.
"""

from __future__ import annotations

import argparse
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
        """Return a row, None where it is not done yet."""
        found: dict[str, Any] | None = self._rows.get(name)
        return found


def distill(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `distill WORDS` with what this interpreter imports."""
    return subprocess.run([sys.executable, "-m", "distill", *words], capture_output=True, text=True, check=False)


def add_options(parser: argparse.ArgumentParser, *, what: str, method: str) -> None:
    """Add what such benchmarks have in common: where results go, and how sections are segmented.

    Args:
        parser: of the benchmark.
        what: its rows are called.
        method: the default one.
    """
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help=f"for the {what}; kept between calls")
    parser.add_argument("--method", choices=("query", "waterz", "mws"), default=method)
    parser.add_argument("--precision", help="of the networks; default that of the commands")
    parser.add_argument("--json", type=Path, help="result file")


def scores(asked: argparse.Namespace, raw: str, labels: str, model: str, out: Path, *words: str) -> dict[str, Any]:
    """Segment a source and score it with the preset skimage, by the commands.

    Args:
        asked: options of `add_options`.
        raw: source of the sections.
        labels: source of their ids, of the sections that `words` leave.
        model: of `distill segment`, or of `distill stream` for the method `query`.
        out: store to make.
        words: more words of that command.

    Returns:
        `voi_split`, `voi_merge`, `voi` and `arand`; or `refused`, what a command that failed printed last.
    """
    verb = ["stream"] if asked.method == "query" else ["segment", "--method", asked.method]
    precision = ["--precision", asked.precision] if asked.precision else []
    done = distill(*verb, raw, "--model", model, "--out", str(out), *precision, *words, "--overwrite")
    if done.returncode == 0:
        done = distill("evaluate", f"{out}:segmentation", labels, "--worst", "0", "--json")
    if done.returncode != 0:
        return {"refused": message(done, asked.out)}
    found = json.loads(done.stdout)
    split, merge = found["voi_split"], found["voi_merge"]
    return {"voi_split": split, "voi_merge": merge, "voi": split + merge, "arand": found["arand"]}


def message(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """Return the last line that a failed command printed, the folder's path cut out."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].replace(str(folder), "FOLDER")
