"""Simulate the workers of `distill segment` with measured times: 10^5 blocks, 100 workers, failures, a killed worker.

    python benchmarks/scheduler_simulation.py --rates block_contents.json --out RESULT.json

Discrete events of the policy of `distill.inference.blockwise.executor.Workers`: a bounded number of tasks is submitted,
in order; a free worker takes the next one; an attempt that fails is repeated, after the tasks that wait, up to
`--retries` times; the task of a worker that dies is run by another one; the client handles results one by one. The
phases wait for each other: blocks, pairs of blocks, shards of the arrays.

The seconds of a task are drawn from measured ones (`block_contents.py`); those of a block are scaled to its voxels,
those of a pair to its face, those of a shard to its voxels. The chances of failures and stragglers are assumptions. The
seconds of the client per task are measured here, with tasks that do nothing, unless `--client` gives them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import machine
from numpy.typing import NDArray
from tables import provenance, table, write_json

from distill.config import DecoderConfig
from distill.core.geometry import Triple, parse_triple
from distill.inference.blockwise.executor import MOST_FAILED, Task, most_submitted, open_pool
from distill.inference.blockwise.finish import part, part_count
from distill.inference.blockwise.plan import Plan, make_plan
from distill.inference.blockwise.worker import TaskReport

DECODER = DecoderConfig(block=(17, 272, 272), overlap=(1, 32, 32))  # of the bundled model
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Chances:
    """What goes wrong.

    Attributes:
        failure: chance that an attempt fails, at a random moment.
        straggler: chance that an attempt is slow.
        factor: how many times as long a slow attempt takes.
        retries: of a failing task.
        killed: number of workers that die, at random moments of the time that the work takes at least.
    """

    failure: float = 0.0
    straggler: float = 0.0
    factor: float = 1.0
    retries: int = 2
    killed: int = 0


@dataclass
class Simulated:
    """A phase that was simulated; times in seconds.

    Attributes:
        tasks: number of tasks.
        finished: tasks that were completed, each once.
        failed: tasks that failed after all retries.
        makespan: until the client has handled the last result.
        useful: time of workers in attempts that were completed.
        wasted: time of workers in attempts that failed or died.
        longest: attempt that was completed.
        client: time of the client.
        waiting: most tasks that were submitted and not handled, at a time.
    """

    tasks: int
    finished: int = 0
    failed: int = 0
    makespan: float = 0.0
    useful: float = 0.0
    wasted: float = 0.0
    longest: float = 0.0
    client: float = 0.0
    waiting: int = 0
    order: list[int] = field(default_factory=list, repr=False)  # tasks as they were completed

    def record(self, workers: int) -> dict[str, Any]:
        """Return the values, and the share of the workers' time that was useful."""
        found = {key: value for key, value in asdict(self).items() if key != "order"}
        return {**found, "efficiency": self.useful / (workers * self.makespan) if self.makespan else 1.0}


def simulate(seconds: Seconds, workers: int, rng: np.random.Generator, chances: Chances, client: float) -> Simulated:
    """Run tasks on workers.

    Args:
        seconds: (N,) of every task without faults.
        workers: at the beginning; more than `chances.killed`.
        rng: of the faults.
        chances: of the faults.
        client: seconds of the client per result, one after another.

    Raises:
        ValueError: no worker would be left.
    """
    if chances.killed >= workers:
        raise ValueError(f"killed: found {chances.killed} of {workers} workers, expected fewer than all")
    found, count, least = Simulated(len(seconds)), len(seconds), float(seconds.sum()) / workers
    window, attempts = most_submitted(workers), np.zeros(count, np.int64)
    ready: deque[int] = deque(range(min(window, count)))
    following, submitted, free_at = len(ready), len(ready), 0.0
    idle, alive = list(range(workers))[::-1], [True] * workers
    running: dict[int, tuple[int, float, float, bool]] = {}  # by worker: task, begin, seconds, whether it fails
    events: list[tuple[float, int, str, int]] = []
    kills = zip(rng.uniform(0, least, chances.killed), rng.permutation(workers)[: chances.killed], strict=True)
    for number, (moment, worker) in enumerate(kills):
        heapq.heappush(events, (float(moment), -1 - number, "kill", int(worker)))
    serial, now = 0, 0.0

    def begin() -> None:
        nonlocal serial
        while idle and ready:
            worker, task = idle.pop(), ready.popleft()
            failing, slow, share = rng.random(3)
            fails = bool(failing < chances.failure)
            takes = float(seconds[task]) * (chances.factor if slow < chances.straggler else 1.0)
            takes *= float(share) if fails else 1.0
            running[worker] = task, now, takes, fails
            heapq.heappush(events, (now + takes, serial, "end", worker))
            serial += 1

    def handled(task: int) -> None:
        nonlocal free_at, serial
        free_at = max(free_at, now) + client
        found.client += client
        heapq.heappush(events, (free_at, serial, "handled", task))
        serial += 1

    begin()
    while submitted:
        found.waiting = max(found.waiting, submitted)
        now, _, kind, who = heapq.heappop(events)
        if kind == "handled":
            submitted -= 1
            found.makespan = now
            if following < count and found.failed < MOST_FAILED:
                ready.append(following)
                following, submitted = following + 1, submitted + 1
        elif kind == "kill":
            alive[who] = False
            if who in running:
                task, began, _, _ = running.pop(who)
                found.wasted += now - began
                ready.appendleft(task)
            else:
                idle.remove(who)
        elif alive[who]:
            task, _, takes, fails = running.pop(who)
            idle.append(who)
            attempts[task] += 1
            if not fails:
                found.finished, found.useful = found.finished + 1, found.useful + takes
                found.longest = max(found.longest, takes)
                found.order.append(task)
                handled(task)
            else:
                found.wasted += takes
                if attempts[task] > chances.retries:
                    found.failed += 1
                    handled(task)
                else:
                    ready.append(task)
        begin()
    return found


@dataclass(frozen=True)
class Rates:
    """Measured times of a method, to draw from.

    Attributes:
        block: processor seconds per voxel computed.
        pair: per voxel of a face.
        shard: per voxel.
    """

    block: Seconds
    pair: Seconds
    shard: Seconds


def read_rates(path: Path, method: str) -> Rates:
    """Read the times of a method from a result of `block_contents.py`."""
    (row,) = (one for one in json.loads(path.read_text())["rows"] if one["method"] == method)
    seconds = {name: np.array(values) for name, values in row["task_seconds"].items()}
    return Rates(
        np.array(row["seconds_per_million"]) / 1e6,
        seconds["solve_pair"] * row["pairs"] / row["face_voxels"],
        seconds["lay_part"] * len(seconds["lay_part"]) / row["voxels"],
    )


def phases(plan: Plan, rates: Rates, rng: np.random.Generator) -> Iterator[tuple[str, Seconds]]:
    """Draw the seconds of every task, phase by phase."""
    voxels = block_voxels(plan)
    yield "blocks", voxels * rng.choice(rates.block, len(voxels))
    areas = face_voxels(plan)
    yield "pairs", areas * rng.choice(rates.pair, len(areas))
    shards = np.array([part(plan.shape, number).voxels for number in range(part_count(plan.shape))], np.float64)
    yield "shards", shards * rng.choice(rates.shard, len(shards))


def block_voxels(plan: Plan) -> Seconds:
    """Return the voxels of the boxes of all blocks, in order."""
    return _product(*_extents(plan, owned=False))


def face_voxels(plan: Plan) -> Seconds:
    """Return the voxels of the faces between neighbouring blocks: along z, then y, then x."""
    z, y, x = _extents(plan, owned=True)
    ones = [np.ones(len(axis) - 1) for axis in (z, y, x)]
    return np.concatenate([_product(ones[0], y, x), _product(z, ones[1], x), _product(z, y, ones[2])])


def _extents(plan: Plan, *, owned: bool) -> tuple[Seconds, Seconds, Seconds]:
    starts = np.arange(plan.slabs) * (plan.depth - 1)
    z = np.minimum(plan.shape[0], starts + plan.depth) - starts - (owned & (starts > 0))
    y, x = (
        np.array([one.owned[1] - one.owned[0] if owned else one.stop - one.start for one in axis], np.float64)
        for axis in (plan.rows, plan.columns)
    )
    return z.astype(np.float64), y, x


def _product(z: Seconds, y: Seconds, x: Seconds) -> Seconds:
    return (z[:, None, None] * y[:, None] * x).ravel()


def nothing(_: Any, number: int) -> TaskReport:
    """Do nothing, as a task."""
    return TaskReport(number, {}, "", 0)


def client_seconds(tasks: int) -> float:
    """Measure the processor seconds per task of the process with client and scheduler, with two workers of dask."""
    with open_pool(2, None, 0, lambda line: None) as pool:
        pool.run((Task("warm", nothing, (None, -1 - n)) for n in range(20)), lambda report: None)
        began = time.process_time()
        failed = pool.run((Task(str(n), nothing, (None, n)) for n in range(tasks)), lambda report: None)
        took = time.process_time() - began
    assert not failed, "nothing can fail"
    return took / tasks


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate all phases without and with faults."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, required=True, help="result of block_contents.py")
    parser.add_argument("--method", default="flood")
    parser.add_argument("--shape", type=lambda text: parse_triple(text, "--shape"), default=(3952, 19760, 19760))
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--failure", type=float, default=0.01)
    parser.add_argument("--straggler", type=float, default=0.01)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--retries", type=int, default=2)
    parser.add_argument("--client", type=float, help="seconds of the client per task; measured by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(argv)
    shape: Triple = asked.shape
    plan, rates = make_plan(shape, DECODER, None), read_rates(asked.rates, asked.method)
    client = client_seconds(300) if asked.client is None else asked.client
    slow = Chances(straggler=asked.straggler, factor=asked.factor)
    ways = {
        "no faults": Chances(),
        "stragglers": slow,
        "failures": Chances(failure=asked.failure, retries=asked.retries),
        "all, one worker killed": Chances(asked.failure, slow.straggler, slow.factor, asked.retries, killed=1),
    }
    rows = []
    for name, chances in ways.items():
        draws = np.random.default_rng(asked.seed)  # the same seconds of tasks for every way
        for phase, seconds in phases(plan, rates, draws):
            found = simulate(seconds, asked.workers, np.random.default_rng(asked.seed + 1), chances, client)
            least = max(float(seconds.sum()) / asked.workers, float(seconds.max()))
            rows.append({"way": name, "phase": phase, "least": least, **found.record(asked.workers)})
    result = {
        **provenance("scheduler_simulation.py", argv),
        "machine": machine(torch.device("cpu")),
        "shape": list(shape),
        "blocks": plan.count,
        "workers": asked.workers,
        "client_seconds": client,
        "ways": {name: asdict(chances) for name, chances in ways.items()},
        "rows": rows,
    }
    if asked.out:
        write_json(asked.out, result)
    print(f"{plan.count:,} blocks of {shape}, {asked.workers} workers, client {1e3 * client:.2f} ms per task")
    header = ["way, phase", "tasks", "at least (s)", "makespan (s)", "efficiency", "wasted (s)", "failed"]
    cells = [
        [
            f"{row['way']}, {row['phase']}",
            f"{row['tasks']:,}",
            f"{row['least']:,.0f}",
            f"{row['makespan']:,.0f}",
            f"{row['efficiency']:.3f}",
            f"{row['wasted']:,.0f}",
            str(row["failed"]),
        ]
        for row in rows
    ]
    print(table(header, cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
