"""What the blocks of a segmentation contain and take: supervoxels, contacts, bytes of each kind of file, seconds.

    python benchmarks/block_contents.py SECTIONS --resolution 30,6,6 --model ac4 --block 17,656,656 --out RESULT.json

Segments the volume in one process of one thread, in temporary folders. Seconds of a task are processor
seconds of the process, so that other processes matter little; those of the first block include loading and compiling
the network and are listed apart. These are the rates of `scale.py` and the times of `scheduler_simulation.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hardware import machine
from tables import provenance, write_json

from distill.core.choices import Method
from distill.core.geometry import parse_triple
from distill.inference.blockwise.executor import Failed, Here, OnDone, Task
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.plan import plan_of
from distill.inference.blockwise.segment import segment
from distill.inference.blockwise.tables import FOLDER
from distill.inference.blockwise.worker import TaskReport
from distill.inference.options import Options
from distill.inference.settings import read_settings

METHODS: tuple[Method, ...] = ("flood", "query")


def contents(store: Path) -> dict[str, Any]:
    """Count what a finished store contains; bytes are those of the files."""
    plan = plan_of(read_settings(store, FOLDER, "segment"))
    tables, pairs = sorted((store / FOLDER / "tables").glob("*.npz")), sorted((store / FOLDER / "pairs").glob("*.npz"))
    supervoxels = inside = face_bytes = faces = 0
    for path in tables:
        with np.load(path, allow_pickle=False) as file:
            supervoxels += len(file["ids"])
            inside += len(file["contact_u"])
        face_bytes += _packed(path, lambda name: name.startswith("face_"))
    across = shares = 0
    for path in pairs:
        with np.load(path, allow_pickle=False) as file:
            across += len(file["contact_u"])
            shares += len(file["share_a"])
    for axis, first, _ in plan.pairs():
        sides = [n for k, n in enumerate(plan.block(first).owned.shape) if k != axis]
        faces += sides[0] * sides[1]
    z, y, x = plan.shape
    return {
        "shape": list(plan.shape),
        "voxels": z * y * x,
        "computed": sum(block.box.voxels for block in plan.blocks()),
        "blocks": plan.count,
        "pairs": len(pairs),
        "face_voxels": faces,
        "supervoxels": supervoxels,
        "contacts_inside": inside,
        "contacts_across": across,
        "shares_across": shares,
        "table_bytes": sum(path.stat().st_size for path in tables),
        "face_bytes": face_bytes,
        "pair_bytes": sum(path.stat().st_size for path in pairs),
        **{
            f"{name}_bytes": sum(path.stat().st_size for path in (store / name).rglob("*") if path.is_file())
            for name in ("affinity", "supervoxels", "segmentation")
        },
    }


class TimedHere(Here):
    """The executor of one process, which records the processor seconds of every task by the name of its function."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        super().__init__(retries=0)
        self._seconds = seconds

    def run(self, tasks: Iterable[Task], on_done: OnDone) -> list[Failed]:
        """Run all tasks; see `Pool.run`."""
        return super().run((replace(task, function=self._timed(task.function)) for task in tasks), on_done)

    def _timed(self, function: Callable[..., TaskReport]) -> Callable[..., TaskReport]:
        def run(*arguments: Any) -> TaskReport:
            began = time.process_time()
            report = function(*arguments)
            self._seconds.setdefault(function.__name__, []).append(time.process_time() - began)
            return report

        return run


def measured(source: str, model: str, method: Method, options: Options, block: str, out: Path) -> dict[str, Any]:
    """Segment a volume, and return its contents and the processor seconds of its tasks."""
    seconds: dict[str, list[float]] = {}
    blocking = Blocking(block=parse_triple(block, "--block"), method=method)
    with patch("distill.inference.blockwise.segment.open_pool", lambda *_: nullcontext(TimedHere(seconds))):
        segment(source, model, out, options, blocking)
    plan = plan_of(read_settings(out, FOLDER, "segment"))
    computed = [one.box.voxels for one in plan.blocks()]
    first, *others = (1e6 * s / n for s, n in zip(seconds["solve_block"], computed, strict=True))
    return {
        "method": method,
        **contents(out),
        "first_block_seconds_per_million": first,
        "seconds_per_million": others,
        "task_seconds": seconds,
    }


def _packed(path: Path, wanted: Callable[[str], bool]) -> int:
    """Return the compressed bytes of some arrays of a file."""
    with zipfile.ZipFile(path) as file:
        return sum(info.compress_size for info in file.infolist() if wanted(info.filename))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every method."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="volume or folder of images")
    parser.add_argument("--resolution", type=lambda text: tuple(map(float, text.split(","))), help="nm, z,y,x")
    parser.add_argument("--model", default="ac4")
    parser.add_argument("--block", default="17,656,656", help="at most; small blocks have many faces")
    parser.add_argument("--methods", nargs="+", default=METHODS[:1], choices=METHODS)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    options, rows = Options(resolution=asked.resolution), []
    with tempfile.TemporaryDirectory() as folder:
        for method in asked.methods:
            out = Path(folder) / f"{method}.zarr"
            rows.append(measured(asked.source, asked.model, method, options, asked.block, out))
            result = {**provenance("block_contents.py", argv), "machine": machine(torch.device("cpu")), "rows": rows}
            write_json(asked.out, result)
            print(rows[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
