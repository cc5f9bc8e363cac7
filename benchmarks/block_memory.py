"""Measure memory and processor time of `distill segment` by block, of `distill stream` by tile, and of Python calls.

    python benchmarks/block_memory.py --source AC4.h5:volumes/raw#box=80,512,512:89,1024,1024 \
        --blocks 9,512,512 9,384,384 9,256,256 --tiles 0 256 128 --json OUT.json
    python benchmarks/block_memory.py --source sample.h5:volumes/raw --python --repeat 3 --json OUT.json

Every run is a process of its own that writes to a new folder, without a warm-up: processor time hardly depends on the
file cache. With `--python`, `distill segment` and `distill.segment` take turns instead, on the whole source.
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
from typing import Any

import torch
from hardware import machine
from tables import provenance, table, write_json

CALL = "import distill, sys; distill.segment(sys.argv[1], 'ac4', sys.argv[2], device='cpu', precision='32-true')"
EXACT = ("--model", "ac4", "--device", "cpu", "--precision", "32-true")


@dataclass(frozen=True)
class Ran:
    """One process.

    Attributes:
        name: what it ran.
        cpu_seconds: processor time, user and system.
        peak_bytes: most resident memory.
    """

    name: str
    cpu_seconds: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    tasks = _pair(options.source) if options.python else _sizes(options)
    runs, load = [], os.getloadavg()[0]
    about = {"machine": machine(torch.device("cpu")), "threads": torch.get_num_threads(), "load": round(load, 1)}
    for _ in range(options.repeat):
        for name, words in tasks.items():
            ran = run(name, words)
            runs.append(ran)
            print(
                f"{time.strftime('%H:%M')} {name}: {ran.cpu_seconds:.1f} s, {ran.peak_bytes / 1e9:.2f} GB", flush=True
            )
            if options.json is not None:
                found = {**provenance(Path(__file__).name, argv), **about, "runs": list(map(asdict, runs))}
                write_json(options.json, found)
    print(table(("", "processor time (s)", "peak memory (GB)"), rows(runs)))
    return 0


def run(name: str, words: Sequence[str]) -> Ran:
    """Run Python with these words once; `{new}` is a new folder.

    Raises:
        SystemExit: it fails.
    """
    with tempfile.TemporaryDirectory(prefix="block_memory.") as new:
        command = [sys.executable, *(word.replace("{new}", new) for word in words)]
        pid = os.posix_spawn(sys.executable, command, os.environ)
        _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{name}: exit code {os.waitstatus_to_exitcode(status)}")
    return Ran(name, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)  # kilobytes on Linux


def rows(runs: Sequence[Ran]) -> list[tuple[str, str, str]]:
    """Return the median of every task."""
    found: dict[str, list[Ran]] = {}
    for one in runs:
        found.setdefault(one.name, []).append(one)
    return [
        (
            name,
            f"{statistics.median(one.cpu_seconds for one in those):.1f}",
            f"{statistics.median(one.peak_bytes for one in those) / 1e9:.2f}",
        )
        for name, those in found.items()
    ]


def _sizes(options: argparse.Namespace) -> dict[str, list[str]]:
    tasks: dict[str, list[str]] = {}
    common = [options.source, *EXACT, "--method", options.method, "--out", "{new}/out.zarr"]
    for block in options.blocks:
        tasks[f"segment --block {block}"] = ["-m", "distill", "segment", *common, "--block", block]
    for tile in options.tiles:
        given = ["--tile", tile] if int(tile) else []
        tasks[" ".join(["stream", *given])] = ["-m", "distill", "stream", *common, *given]
    return tasks


def _pair(source: str) -> dict[str, list[str]]:
    return {
        "distill segment": ["-m", "distill", "segment", source, *EXACT, "--out", "{new}/out.zarr"],
        "distill.segment": ["-c", CALL, source, "{new}/out.zarr"],
    }


def _parser() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--method", default="flood")
    parser.add_argument("--blocks", nargs="*", default=[], metavar="Z,Y,X")
    parser.add_argument("--tiles", nargs="*", default=[], metavar="N", help="0 = whole sections")
    parser.add_argument("--python", action="store_true", help="the command against the function")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
