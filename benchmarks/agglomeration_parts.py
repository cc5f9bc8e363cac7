"""Memory of the last pass of a segmentation in blocks: one merge over all contacts, and merging part by part.

    python benchmarks/agglomeration_parts.py --contacts 1000000 10000000 --json RESULT.json

The graph of agglomeration_size.py in 8 x 8 x 8 blocks, written as the tables of `distill segment --method flood`. One
merge, every level of parts and the final ids run in processes of their own; `peak_gb` is the resident memory of the
largest, `start_gb` that of a process that has only imported the modules. Both ways must give the same ids.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from agglomeration_size import graph

from distill.core.labels import Relabelling, ranks
from distill.inference.blockwise import reduce
from distill.inference.blockwise.merge import merge_blocks
from distill.inference.blockwise.plan import Group, Plan
from distill.inference.blockwise.tables import (
    BlockTable,
    Evidence,
    none,
    pair_path,
    table_path,
    write_evidence,
    write_table,
)
from distill.segmentation.agglomeration import RegionGraph
from distill.segmentation.shared_voxels import Shares

SIDE, THRESHOLD, DIGEST = 8, 0.3, "parts"


def plan() -> Plan:
    """8 x 8 x 8 blocks."""
    groups = tuple(Group(n, ((10 * n, 10 * n + 10),), (10 * n, 10 * n + 10)) for n in range(SIDE))
    return Plan((SIDE + 1, 10 * SIDE, 10 * SIDE), 2, groups, groups)


def write_tables(store: Path, contacts: int) -> int:
    """Write the tables of a graph whose contacts cross a face of blocks at most; returns their number."""
    given = graph(contacts)
    side = round((contacts / 7) ** (1 / 3)) + 1
    edges = np.linspace(0, side, SIDE + 1).astype(int)
    place = np.searchsorted(edges, np.arange(side), side="right") - 1
    z, y, x = np.unravel_index(np.arange(side**3), (side,) * 3)
    block = (place[z] * SIDE + place[y]) * SIDE + place[x]
    order = np.argsort(block, kind="stable")
    first = np.searchsorted(block[order], np.arange(SIDE**3 + 1))
    local = np.empty(side**3, np.int64)
    local[order] = np.arange(side**3) - first[block[order]]
    ids = (block.astype(np.uint64) << np.uint64(32)) + local.astype(np.uint64) + np.uint64(1)
    a, b = block[given.u.astype(int) - 1], block[given.v.astype(int) - 1]
    u, v = ids[given.u.astype(int) - 1], ids[given.v.astype(int) - 1]
    step = b - a
    kept = np.isin(step, (0, 1, SIDE, SIDE**2))  # blocks meet across faces alone
    a, b, u, v, total, count = (one[kept] for one in (a, b, u, v, given.total, given.count))
    (store / "blocks" / "tables").mkdir(parents=True)
    (store / "blocks" / "pairs").mkdir()
    by_block = np.lexsort((b, a))
    a, b, u, v, total, count = (one[by_block] for one in (a, b, u, v, total, count))
    key = a * SIDE**3 + b
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    slices = {int(key[at]): slice(int(at), int(stop)) for at, stop in zip(starts, [*starts[1:], len(key)], strict=True)}

    def part(one: int, other: int) -> RegionGraph:
        at = slices.get(one * SIDE**3 + other, slice(0, 0))
        return RegionGraph(u[at], v[at], total[at], count[at])

    by_index = {one.index: one.box for one in plan().blocks()}
    for index, box in by_index.items():
        own = ids[order[first[index] : first[index + 1]]]
        evidence = Evidence(Shares.joined([]), part(index, index))
        table = BlockTable(box, own, np.ones(len(own), bool), evidence, (True, True), {}, str(index))
        write_table(table_path(store, index), table)
    for axis, one, other in plan().pairs():
        evidence = Evidence(none().shares, part(one, other))
        write_evidence(pair_path(store, axis, one, other), evidence, (str(one), str(other)))
    return len(u)


def step(store: Path, what: str) -> Relabelling | None:
    """Run one step in this process."""
    if what == "whole":
        return merge_blocks(store, plan(), "flood", THRESHOLD)
    if what == "ids":
        return reduce.final_ids_of_parts(store, plan(), DIGEST)
    reduce.begin_parts(store, DIGEST)
    for part in reduce.parts_of(plan(), int(what)):
        reduce.write_part(store, plan(), DIGEST, part, THRESHOLD)
    return None


def peak() -> float:
    """Return the most resident memory of this process in GB, without that of the process that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1e6


def alone(store: Path, what: str) -> None:
    """Run one step, compiled beforehand, and print what it took."""
    from distill.segmentation.agglomeration import merges_above
    from distill.segmentation.reduction import PartGraph, reduce_part

    merges_above(graph(100), THRESHOLD)
    reduce_part([PartGraph.of(graph(100))], np.zeros(0, np.uint64), THRESHOLD)
    started = peak()
    wall, processor = time.perf_counter(), time.process_time()
    found = step(store, what)
    row: dict[str, Any] = {
        "step": what,
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "peak_gb": peak(),
        "start_gb": started,
    }
    if found is not None:
        np.save(store / f"{what}.npy", ranks(found.new))
        row["segments"] = int(found.new.max())
    else:
        files = list(reduce.reduced_folder(store, DIGEST).glob(f"{what}-*.npz"))
        left = 0
        for file in files:
            with np.load(file) as arrays:
                left += len(arrays["left_u"])
        row["contacts_left"] = left
    print(json.dumps(row))


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each step and number of contacts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contacts", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.alone:
        alone(Path(asked.alone[0]), asked.alone[1])
        return
    rows = []
    for contacts in asked.contacts:
        with tempfile.TemporaryDirectory() as folder:
            number = write_tables(Path(folder), contacts)
            for what in ("whole", *map(str, range(reduce.levels(plan()))), "ids"):
                words = [sys.executable, __file__, "--alone", folder, what]
                done = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                rows.append({"contacts": number, **json.loads(done)})
                print(rows[-1], flush=True)
            one, other = (np.load(Path(folder) / f"{name}.npy") for name in ("whole", "ids"))
            assert np.array_equal(one, other), "both ways give the same ids"
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
