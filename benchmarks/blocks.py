r"""Measure `distill segment` in blocks: workers against one process byte by byte, a killed worker, memory and time by
volume.

    python benchmarks/blocks.py --sections ../shared/data/ac4_sections --model ac4 --json OUT.json
    python benchmarks/blocks.py --scaling --sections ../shared/data/ac4_sections --model ac4 \
        --json benchmarks/results/blocks_scaling_epyc.json --figure docs/figures/blocks_scaling.png

The volume is made of the real sections, mirrored along all axes as often as it takes, in chunks, never whole in
memory. The first form makes 100 x 1024 x 1024 voxels (--shape) and runs one process, two workers, and two workers one
of which is killed; the second grows the number of sections at --side from 50 to 400 million voxels (--millions). Memory
is the resident memory of the command and all its children, looked at four times a second. Everything is made in --work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from hardware import machine
from numpy.typing import NDArray

from distill.core.geometry import Box, Triple, grid, parse_triple
from distill.io.volume import open_volume
from distill.io.writers.store import create_zarr

NM = (30.0, 6.0, 6.0)
CHUNK = (16, 256, 256)
GIB = 2**30


@dataclass(frozen=True)
class Ran:
    """A run of the command.

    Attributes:
        voxels: of the volume.
        workers: processes.
        seconds: of the command.
        main_bytes: most memory of the command itself.
        worker_bytes: most memory of one of its children.
        total_bytes: most memory of all together.
        killed: whether a worker was killed in the middle.
        stages: seconds by stage, summed over workers.
        objects: in the segmentation.
    """

    voxels: int
    workers: int
    seconds: float
    main_bytes: int
    worker_bytes: int
    total_bytes: int
    killed: bool
    stages: dict[str, float]
    objects: int


def main() -> None:
    """Parse the arguments and run one of the two benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", required=True, help="real sections: a volume or a folder of images")
    parser.add_argument("--model", default="ac4")
    parser.add_argument("--shape", type=lambda text: parse_triple(text, "--shape"), default=(100, 1024, 1024))
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--millions", default="50,100,200,400", help="--scaling: voxels")
    parser.add_argument("--side", type=int, default=1024, help="--scaling: pixels of a section's side")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--words", default="", help="further words for distill segment, such as '--block 17,512,512'")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--work", type=Path, help="folder for what is made; a temporary one by default")
    given = parser.parse_args()
    about = {"command": sys.argv, "machine": machine(torch.device("cpu")), "torch": torch.__version__}
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        ran = scaling(Path(work), given) if given.scaling else workers(Path(work), given)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**about, "runs": [asdict(one) for one in ran]}, indent=2) + "\n")
    if given.figure is not None:
        draw(ran, given.figure)


def workers(work: Path, given: argparse.Namespace) -> list[Ran]:
    """Compare one process, several workers, and several of which one is killed: time, memory and bytes."""
    source = make_volume(given.sections, work / "raw.zarr", given.shape)
    runs = []
    for name, count, kill in (("one", 1, False), ("several", given.workers, False), ("killed", given.workers, True)):
        ran = segment(source, work / name / "out.zarr", given, count, kill=kill)
        runs.append(ran)
        say(ran)
        if name != "one":
            a, b = work / "one" / "out.zarr", work / name / "out.zarr"
            differ = compared(a, b)
            print(f"  {len(files(a))} files compared with those of one process, {len(differ)} different", *differ[:5])
    return runs


def scaling(work: Path, given: argparse.Namespace) -> list[Ran]:
    """Segment volumes with increasing numbers of sections, one process each."""
    runs = []
    for millions in given.millions.split(","):
        depth = max(2, round(float(millions) * 1e6 / given.side**2))
        source = make_volume(given.sections, work / f"raw_{millions}.zarr", (depth, given.side, given.side))
        runs.append(segment(source, work / f"out_{millions}" / "out.zarr", given, 1, kill=False))
        say(runs[-1])
    return runs


def make_volume(sections: str, store: Path, shape: Triple) -> str:
    """Write a Zarr volume of real sections, mirrored repeatedly, chunk by chunk."""
    real = open_volume(sections, resolution=NM)
    array = create_zarr(store, "raw", shape=shape, dtype=real.dtype, resolution=NM, chunks=CHUNK)
    grey = real.read()
    lines = [mirrored(length, wanted) for length, wanted in zip(real.size, shape, strict=True)]
    for box in grid(Box.of_shape(shape), CHUNK):
        at = [line[part] for line, part in zip(lines, box.slices, strict=True)]
        array.write(box, np.ascontiguousarray(grey[np.ix_(*at)]))
    return f"{store}:raw"


def mirrored(length: int, wanted: int) -> NDArray[np.int64]:
    """Return the index of a line of `length` at each position in `wanted`, alternating forwards and backwards."""
    period = max(1, 2 * (length - 1))
    at = np.arange(wanted) % period
    return np.where(at < length, at, period - at)


def segment(source: str, out: Path, given: argparse.Namespace, count: int, *, kill: bool) -> Ran:
    """Run the command, sample its memory, and optionally kill one of its workers when a block is done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    words = ["segment", source, "--model", given.model, "--out", str(out), "--workers", str(count)]
    began = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-c", "from distill.cli import main; main()", *words, *given.words.split()],
        stdout=subprocess.DEVNULL,
    )
    most, killed = {"main": 0, "worker": 0, "total": 0}, threading.Event()
    while running.poll() is None:
        main_bytes, children = memory(running.pid)
        most = {
            "main": max(most["main"], main_bytes),
            "worker": max(most["worker"], *children.values(), 0),
            "total": max(most["total"], main_bytes + sum(children.values())),
        }
        if kill and not killed.is_set() and list((out / "blocks" / "tables").glob("*.npz")):
            victim = max(children, key=lambda pid: children[pid])
            os.kill(victim, signal.SIGKILL)
            killed.set()
        time.sleep(0.25)
    if running.returncode:
        raise SystemExit(running.returncode)
    record = json.loads(out.with_name("out.zarr.run.json").read_text())
    return Ran(
        voxels=int(np.prod(open_volume(source).size)),
        workers=count,
        seconds=time.perf_counter() - began,
        main_bytes=most["main"],
        worker_bytes=most["worker"],
        total_bytes=most["total"],
        killed=killed.is_set(),
        stages=record["stages"],
        objects=record["objects"],
    )


def memory(pid: int) -> tuple[int, dict[int, int]]:
    """Return the resident bytes of a process and of each of its children."""
    try:
        process = psutil.Process(pid)
        children = {child.pid: child.memory_info().rss for child in process.children(recursive=True)}
        return process.memory_info().rss, children
    except psutil.Error:  # ended between two looks
        return 0, {}


def say(ran: Ran) -> None:
    """Print one run in two lines."""
    print(
        f"{ran.voxels / 1e6:.1f} million voxels, {ran.workers} workers{', one killed' if ran.killed else ''}: "
        f"{ran.seconds:.0f} s, {ran.voxels / ran.seconds / 1e6:.3f} Mvoxel/s, memory "
        f"{ran.main_bytes / GIB:.2f} GiB main, {ran.worker_bytes / GIB:.2f} GiB worker, "
        f"{ran.total_bytes / GIB:.2f} GiB together, {ran.objects} objects"
    )
    print("  " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in ran.stages.items()), flush=True)


def files(store: Path) -> dict[str, bytes]:
    """Read all files of a store, without times of day."""
    found = {}
    for path in store.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "job.json":
                data = json.dumps(json.loads(data) | {"created": ""}).encode()
            found[path.relative_to(store).as_posix()] = data
    return found


def compared(a: Path, b: Path) -> list[str]:
    """Return the names of files that differ."""
    one, other = files(a), files(b)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def draw(runs: list[Ran], path: Path) -> None:
    """Plot memory and time against the number of voxels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    millions = [one.voxels / 1e6 for one in runs]
    panels: tuple[tuple[Any, list[float], str], ...] = (
        (left, [one.total_bytes / GIB for one in runs], "peak memory of all processes (GiB)"),
        (right, [one.seconds / 60 for one in runs], "time (minutes)"),
    )
    for axes, values, name in panels:
        axes.plot(millions, values, "o-", color="#1b6ca8")
        axes.set(xlabel="million voxels", ylabel=name, xlim=(0, None), ylim=(0, 1.15 * max(values)))
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"figure: {path}")


if __name__ == "__main__":
    main()
