"""Cost of a training step of every kind of teacher in configs/teachers/: processor time, memory, size.

    python benchmarks/teacher_cost.py --out teacher_cost.json

Each kind runs in a process of its own on one thread, with the terms of a row of examples/poster_table.py on one crop of
cells with walls; `inflated`, which is no row, with its own two terms. Seconds are processor time of forward, backward
and nothing else (median of the measured steps). Memory is the peak of the process, of which `bare` is there before the
network is built. Operations are two for a multiplication and addition, of the network alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from hardware import machine
from tables import provenance, table, write_json

from distill.config import Pair, load_pair
from distill.config.teacher_kinds import PUBLISHED
from distill.models.build import build_teacher
from distill.training.objective.objective import Joint

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO / "examples"))

import poster_row  # noqa: E402
import poster_table  # noqa: E402

RESOLUTION = (30.0, 6.0, 6.0)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the kinds one after another, print, write."""
    asked = _asked(arguments)
    if asked.alone:
        found = alone(asked.alone, asked.crop, asked.measured)
        print(json.dumps(found))
        return found
    rows = []
    for kind in asked.kinds:
        words = ["--alone", kind, "--crop", ",".join(map(str, asked.crop)), "--measured", str(asked.measured)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{kind}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    about = {**provenance("teacher_cost.py", sys.argv[1:]), "machine": machine(torch.device("cpu")), "crop": asked.crop}
    result = {**about, "rows": rows}
    if asked.out is not None:
        write_json(asked.out, result)
    columns = ("kind", "seconds", "peak_gib", "parameters", "operations_per_voxel", "parameters_published")
    print(table(columns, [[f"{row[key]:.4g}" if key != "kind" else row[key] for key in columns] for row in rows]))
    return result


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(PUBLISHED), choices=PUBLISHED)
    parser.add_argument("--crop", type=poster_table._numbers, default=[6, 96, 96], metavar="Z,Y,X")
    parser.add_argument("--measured", type=int, default=3, metavar="STEPS")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", choices=PUBLISHED, help="measure one kind in this process")
    return parser.parse_args(arguments)


def pair_of(kind: str, crop: Sequence[int]) -> Pair:
    """Return the configuration of a row, or of `inflated` with its own terms and from random weights."""
    with_row = poster_table._asked(["none.h5", "--out", "none", "--crop", ",".join(map(str, crop))])
    words = poster_table.overrides(with_row, kind, 0, with_row.steps)
    folder = REPO / "configs" / "teachers"
    return load_pair(folder / f"{kind}.yaml", folder / "student.yaml", words)


def alone(kind: str, crop: Sequence[int], measured: int) -> dict[str, Any]:
    """Measure one kind: `seconds` and `spread` of a step, `peak_gib`, sizes as configured and as published."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare = _peak()
    pair = pair_of(kind, crop)
    joint = Joint(pair, RESOLUTION)
    batch = cells(crop)
    steps = pair.student.training.steps
    seconds = []
    for _ in range(measured + 1):
        began = time.process_time()
        terms = joint(batch, steps // 2)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - began)
        joint.zero_grad(set_to_none=True)
    peak = _peak()
    assert joint.teacher is not None, "a teacher alone"
    found: dict[str, Any] = {"kind": kind, "terms": sorted(terms), "seconds": median(seconds[1:])}
    found |= {"spread": [min(seconds[1:]), max(seconds[1:])], "peak_gib": peak, "bare_gib": bare}
    found |= _size("", joint.teacher.eval(), crop)
    return found | _size("_published", build_teacher(poster_row.published(pair.teacher)).eval(), crop)


def _size(name: str, network: Any, crop: Sequence[int]) -> dict[str, float]:
    z, y, x = crop
    count = sum(parameter.numel() for parameter in network.parameters())
    return {f"parameters{name}": count, f"operations_per_voxel{name}": poster_row.operations(network, (z, y, x))}


def cells(crop: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return grey values (1, 1, D, H, W) and labels (1, D, H, W) of square cells with dark walls."""
    depth, height, width = crop
    side = 24
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    wall = (rows % side < 3) | (columns % side < 3)
    section = np.where(wall, 0, 1 + rows // side * (width // side + 1) + columns // side)
    labels = torch.from_numpy(np.broadcast_to(section, (1, depth, height, width)).astype(np.int64))
    noise = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0))
    return (0.2 + 0.6 * (labels > 0) + 0.2 * noise)[:, None], labels


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
