"""Double the work of bookkeeping that must grow in proportion: time for each amount, and its ratio to the one before.

    python benchmarks/doubling.py --out result.json

Four kinds: boxes of the final arrays (blocks), look-ups in the plan of blocks, files of a folder that is followed, and
the merge of slab tables (streams). A ratio near 2 is proportional work, near 4 quadratic. The smallest of three times
counts, in processor seconds of this process, so that other processes matter little.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from hardware import machine
from tables import provenance, table, write_json

from distill.config import DecoderConfig
from distill.inference.blockwise import finish
from distill.inference.blockwise.plan import make_plan
from distill.inference.streaming.finish import final_ids
from distill.inference.streaming.output.manifest import STREAM_FOLDER
from distill.inference.streaming.sections.watch import Following, FollowSource
from distill.inference.streaming.slabs import SlabTable, write_slab_table
from distill.segmentation.agglomeration import RegionGraph
from distill.segmentation.shared_voxels import Shares

REPEATS = 3
Run = Callable[[], object]


def laying(amount: int) -> Run:
    """Boxes of all shards of a volume of so many shards."""
    shape = (16, 1024 * 10, 1024 * (amount // 10))
    return lambda: [finish.part(shape, number) for number in range(finish.part_count(shape))]


def planning(amount: int) -> Run:
    """Blocks and pairs of a plan of so many blocks."""
    config = DecoderConfig(block=(16, 256, 256), overlap=(1, 32, 32))
    plan = make_plan((16, 256 + 224 * 9, 256 + 224 * (amount // 10 - 1)), config, (16, 256, 256))
    assert plan.count == amount

    def run() -> None:
        """Nothing is kept, because Python's search for garbage in long lists is not proportional to their length."""
        deque(plan.pairs(), maxlen=0)
        deque((plan.touching(block.owned) for block in plan.blocks()), maxlen=0)

    return run


def following(amount: int) -> Run:
    """Reading all of so many small files that wait in a folder."""
    folder = Path(tempfile.mkdtemp())
    for number in range(amount):
        tifffile.imwrite(folder / f"s{number:06d}.tif", np.full((8, 8), number % 256, np.uint8))

    def run() -> None:
        source = FollowSource(folder, Following(settle=0.0, until=amount), (30.0, 6.0, 6.0), note=print)
        assert all(source.read(z) is not None for z in range(amount))

    return run


def merging(amount: int) -> Run:
    """Final ids from so many tables of slabs, each with 200 supervoxels and a shared section."""
    store = Path(tempfile.mkdtemp())
    folder = store / STREAM_FOLDER / "slabs"
    folder.mkdir(parents=True)
    for k in range(amount):
        ids = np.arange(1, 201, dtype=np.uint64) + np.uint64(1000 * k)
        u, v = ids[:-1], ids[1:]
        contacts = RegionGraph(u, v, np.full(199, 0.4), np.ones(199, np.int64))
        planes = [ids[np.arange(4096).reshape(64, 64) % 200]]
        joined = Shares.joined([])
        table = SlabTable(ids, np.ones(200, bool), joined, contacts, 2 * k, 2 * k + 2, planes, planes)
        write_slab_table(folder / f"{k:08d}.npz", table)
    return lambda: final_ids(store, 2 * amount, 2, 0.5)


KINDS: dict[str, tuple[Callable[[int], Run], tuple[int, ...]]] = {
    "boxes of final arrays": (laying, (10_000, 20_000, 40_000)),
    "plan look-ups": (planning, (2_000, 4_000, 8_000)),
    "following a folder": (following, (1_000, 2_000, 4_000)),
    "merge of slab tables": (merging, (200, 400, 800)),
}


def measure(make: Callable[[int], Run], amount: int) -> float:
    """Processor seconds of the fastest of some runs."""
    run, taken = make(amount), []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--divide", type=int, default=1, help="amounts divided by this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    rows: list[list[str]] = []
    for name in given.only:
        make, amounts = KINDS[name]
        before = 0.0
        for amount in (one // given.divide for one in amounts):
            seconds = measure(make, amount)
            rows.append([name, f"{amount:,}", f"{seconds:.3f}", f"{seconds / before:.2f}" if before else ""])
            before = seconds
    print(table(["work", "amount", "processor s", "ratio"], rows))
    if given.out is not None:
        about = {**provenance("doubling.py", words), "machine": machine(torch.device("cpu"))}
        write_json(given.out, {"rows": rows, **about})
    return 0


if __name__ == "__main__":
    sys.exit(main())
