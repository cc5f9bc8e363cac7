"""Measure wall time, processor time and peak memory of a `distill` command.

    python benchmarks/command.py --repeat 3 --json OUT.json -- stream SECTIONS --model ac4 --out {new}/out.zarr

`{new}` is a new, empty folder in every run, removed after it. The first run warms the file cache and is reported apart
from the others. Processor time is that of the command and of all processes that it started and waited for. The peak is
the resident memory of the largest of these processes, not their sum.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from hardware import machine
from tables import provenance, table, write_json


@dataclass(frozen=True)
class Ran:
    """One run of a command.

    Attributes:
        seconds: wall time.
        cpu_seconds: processor time, user and system.
        peak_bytes: most resident memory of a process.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; the exit code is that of a failing command."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    runs = []
    for number in range(1 + options.repeat):
        code, ran = run(options.words)
        if code != 0:
            print(f"distill {' '.join(options.words)}: exit code {code}", file=sys.stderr)
            return code
        runs.append(ran)
        print(f"{'warm-up' if number == 0 else f'run {number}'}: {ran.seconds:.2f} s", flush=True)
    print(table(("", "least", "median", "most"), rows(runs[1:])))
    if options.json is not None:
        found = {
            "machine": machine(torch.device("cpu")),
            "warm_up": asdict(runs[0]),
            "runs": list(map(asdict, runs[1:])),
        }
        write_json(options.json, {**provenance(Path(__file__).name, argv), **found})
    return 0


def run(words: Sequence[str]) -> tuple[int, Ran]:
    """Run `distill WORDS` once; return its exit code and measurements."""
    with tempfile.TemporaryDirectory(prefix="command.") as new:
        command = [sys.executable, "-m", "distill", *(word.replace("{new}", new) for word in words)]
        began = time.perf_counter()
        pid = os.posix_spawn(sys.executable, command, os.environ)
        _, status, used = os.wait4(pid, 0)
        seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    ran = Ran(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit)
    return os.waitstatus_to_exitcode(status), ran


def rows(runs: Sequence[Ran]) -> list[tuple[str, str, str, str]]:
    """Return minimum, median and maximum of every quantity."""
    quantities = {
        "wall time (s)": [one.seconds for one in runs],
        "processor time (s)": [one.cpu_seconds for one in runs],
        "peak memory (MB)": [one.peak_bytes / 1e6 for one in runs],
    }
    return [
        (name, f"{min(values):.2f}", f"{statistics.median(values):.2f}", f"{max(values):.2f}")
        for name, values in quantities.items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs after the first one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("words", nargs="+", help="of the command, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
