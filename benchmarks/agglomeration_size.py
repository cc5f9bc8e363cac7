"""Time and memory of merging regions by the mean affinity of their contacts, over the number of contacts.

    python benchmarks/agglomeration_size.py --contacts 1000000 10000000 --json RESULT.json

Regions lie on a cubic grid with fourteen neighbours; sizes and mean affinities of the contacts are random, most of them
near 0 or 1: almost all regions merge, the hard case. Each number runs in a process of its own, which also checks that
contacts in another order give the same merges.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from distill.segmentation.agglomeration import RegionGraph, merges_above

STEPS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))


def graph(contacts: int, seed: int = 0) -> RegionGraph:
    """A graph of about so many contacts."""
    side = round((contacts / len(STEPS)) ** (1 / 3)) + 1
    ids = np.arange(1, side**3 + 1, dtype=np.uint64).reshape(side, side, side)
    ends = []
    for z, y, x in STEPS:
        u, v = ids[: side - z, : side - y, : side - x].ravel(), ids[z:, y:, x:].ravel()
        ends.append((u, v))
    u, v = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 500, len(u))
    return RegionGraph(u, v, count * rng.beta(0.3, 0.5, len(u)), count)


def measure(contacts: int) -> dict[str, Any]:
    """Merge once, compiled beforehand."""
    merges_above(graph(100), 0.5)
    made = graph(contacts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    found = merges_above(made, 0.3)
    seconds, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    order = np.random.default_rng(1).permutation(len(made.u))
    other = merges_above(RegionGraph(made.u[order], made.v[order], made.total[order], made.count[order]), 0.3)
    for name in ("keeps", "goes", "means"):
        assert np.array_equal(getattr(found, name), getattr(other, name)), "the order of contacts changes nothing"
    return {
        "contacts": len(made.u),
        "regions": len(found.ids),
        "merges": len(found.means),
        "looks": found.looks,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_gb": peak,
        "graph_gb": before / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each number of contacts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contacts", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.alone:
        print(json.dumps(measure(asked.alone)))
        return
    rows = []
    for contacts in asked.contacts:
        words = [sys.executable, __file__, "--alone", str(contacts)]
        rows.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
