"""Time and memory of the methods of `distill segment`, stage by stage.

    python benchmarks/methods_speed.py ac4.h5:volumes/raw --model ac4 --methods flood waterz query --json RESULT.json
    python benchmarks/methods_speed.py ac4.h5:volumes/raw --model ac4 --affinity all.zarr:affinity --sections 48 96 384

Each row is one process that segments the first sections of the source in blocks, mirrored where it has fewer. With
`--affinity`, stored affinities of the source take the place of the network, for the methods that need no features.
Stages are processor seconds of the process, so that other processes of the machine disturb them little; `wall` is the
elapsed time, and `load` the load average of the machine before and after. `peak_gb` is the resident memory of the
process.
Stages: grey values (of whole sections), load (the network), read, network, decode (supervoxels or instances of blocks),
stitch (contacts), write (scratch arrays), merge, ids (final arrays).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hardware import machine
from tables import provenance, write_json

import distill.core.timing as timing
import distill.inference.blockwise.worker as worker
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box
from distill.core.timing import StageTimer
from distill.inference.blockwise.corrections import Sections
from distill.inference.blockwise.networks import Cutting, Solved, instances_of
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.plan import Block
from distill.inference.blockwise.segment import segment
from distill.inference.options import Options
from distill.io.volume import open_grey, open_volume
from distill.segmentation.supervoxels import supervoxels

FROM_AFFINITIES = ("decode", "stitch", "merge", "ids")


class StoredBlocks:
    """Segments blocks from stored affinities, in place of `distill.inference.blockwise.networks.StudentBlocks`."""

    def __init__(self, affinity: str, method: str, threshold: float | None) -> None:
        self._volume, self._method, self._threshold = open_volume(affinity), method, threshold

    def solve(self, block: Block, sections: Sections, timer: StageTimer) -> Solved:
        """Read sections as `mirrored` lays them out; their z affinities are approximate behind the first mirror."""
        depth = self._volume.size[0]
        with timer.timed("read"):
            _, (y, y_stop), (x, x_stop) = zip(block.box.start, block.box.stop, strict=True)
            places = [reflected(z, depth) for z in range(block.box.start[0], block.box.stop[0])]
            stored = np.concatenate(
                [self._volume.read(Box((z, y, x), (z + 1, y_stop, x_stop)))[:3] for z in places], axis=1
            )
        affinity = from_uint8(stored)
        with timer.timed("decode"):
            if self._method == "flood":
                pieces = [
                    (number, box, supervoxels(stored[(slice(None), *box.relative_to(block.box.start).slices)]))
                    for number, box in block.tiles
                ]
                found = [(number, box, ids.astype(np.uint64)) for number, box, ids in pieces]
            else:
                found = [(block.index, block.box, instances_of(Cutting(self._method, self._threshold), affinity))]
        return Solved(found, affinity, stored, 0)


def _without_network(affinity: str) -> None:
    plain = worker._tools

    def tools(work: worker.Work) -> Any:
        found = plain(work)
        return replace(found, instances=StoredBlocks(affinity, work.method, work.threshold))

    worker._tools = functools.lru_cache(maxsize=1)(tools)  # type: ignore[assignment]


def reflected(z: int, depth: int) -> int:
    """Return the section of the source at place z of its mirrored sections."""
    period = max(1, 2 * (depth - 1))
    return min(z % period, period - z % period)


def mirrored(source: str, sections: int, folder: Path) -> tuple[str, tuple[float, float, float]]:
    """Write that many sections to an array, forwards and backwards, and return its name and voxel size."""
    volume = open_grey(source)
    depth, height, width = volume.size
    path = folder / "sections.npy"
    array = np.lib.format.open_memmap(path, "w+", volume.dtype, (sections, height, width))
    for z in range(sections):
        at = reflected(z, depth)
        array[z] = next(iter(volume.sections(at, at + 1)))
    array.flush()
    return str(path), volume.resolution


def peak() -> float:
    """Return the most resident memory of this process in GB, without that of the process that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1e6


def alone(
    source: str, model: str, method: str, sections: int, threads: int, folder: Path, affinity: str | None
) -> dict[str, Any]:
    """Segment once in this process."""
    torch.set_num_threads(threads)
    path, resolution = mirrored(source, sections, folder)
    if affinity is not None:
        _without_network(affinity)
    timing.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    before = os.getloadavg()[0]
    wall, processor = time.perf_counter(), time.process_time()
    options = Options(device="cpu", resolution=resolution)
    found = segment(path, model, folder / "out.zarr", options, Blocking(method=method))  # type: ignore[arg-type]
    stages = {name: round(value, 2) for name, value in found.timer.seconds.items()}
    return {
        "method": method,
        "sections": sections,
        "megavoxels": round(np.prod(np.load(path, mmap_mode="r").shape) / 1e6, 1),
        "threads": threads,
        "stages": stages,
        "from_affinities": round(sum(stages.get(name, 0.0) for name in FROM_AFFINITIES), 2),
        "processor": round(time.process_time() - processor, 1),
        "wall": round(time.perf_counter() - wall, 1),
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "peak_gb": round(peak(), 2),
        "objects": found.about["objects"],
        "precision": found.about["precision"],
        "backend": found.about["backend"],
    }


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each row."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["flood"], choices=("flood", "query", "waterz", "mws"))
    parser.add_argument("--sections", type=int, nargs="+", default=[100])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--affinity", metavar="SOURCE", help="of the source's sections, instead of the network")
    parser.add_argument("--scratch", type=Path, help="folder for sections and stores; they are removed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.alone:
        method, sections, threads = asked.methods[0], asked.sections[0], asked.threads[0]
        row = alone(asked.source, asked.model, method, sections, threads, asked.alone, asked.affinity)
        print(json.dumps(row))
        return
    rows: list[dict[str, Any]] = []
    for method in asked.methods:
        for sections in asked.sections:
            for threads in asked.threads:
                row = _in_a_process(asked, method, sections, threads)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if asked.json:
                    head = provenance(Path(__file__).name, words)
                    write_json(asked.json, {**head, "machine": machine(torch.device("cpu")), "rows": rows})


def _in_a_process(asked: argparse.Namespace, method: str, sections: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        words = [asked.source, "--model", asked.model, "--methods", method, "--sections", str(sections)]
        words += ["--threads", str(threads), "--alone", folder]
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        words += ["--affinity", asked.affinity] if asked.affinity else []
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{method}: exit code {done.returncode}\n{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


if __name__ == "__main__":
    main()
