"""Test the guarantees of a stream on processes: memory over thousands of sections, ranges, kills, full disks.

    python benchmarks/stream_store.py memory --model RUN --sections 2000 --figure docs/figures/stream_memory.png
    python benchmarks/stream_store.py ranges --model RUN --sections 2000 --parts 4
    python benchmarks/stream_store.py kills --model RUN --sections 60 --kills 20
    python benchmarks/stream_store.py full --model RUN --sections 60      # as root: a tmpfs that is too small

Sections are those of a phantom of 64, played forwards and backwards, as TIFF files; RUN is a run folder of that kind of
tissue, such as that of `make demo`. Everything is made in --work and removed from there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from hardware import machine

from distill.data.phantom import make_phantom
from distill.inference.streaming.output.manifest import all_lines

NM = (30.0, 6.0, 6.0)
PERIOD = 64
MIB = 2**20


def main() -> None:
    """Parse the arguments and run one of the four tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "ranges", "kills", "full"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--sections", type=int, default=2000)
    parser.add_argument("--side", type=int, default=192, help="pixels of a section's side")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--work", type=Path, help="folder for what is made; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        folder = Path(work) / "sections"
        make_sections(folder, given.sections, given.side)
        print(f"{given.sections} sections of {given.side} x {given.side}, {json.dumps(machine(torch.device('cpu')))}")
        if given.what == "memory":
            memory(Path(work), folder, given)
        elif given.what == "ranges":
            ranges(Path(work), folder, given)
        elif given.what == "kills":
            kills(Path(work), folder, given)
        else:
            full(Path(work), folder, given)


def make_sections(folder: Path, count: int, side: int) -> None:
    """Write a phantom's sections, alternating forwards and backwards."""
    raw = make_phantom((PERIOD, side, side), NM, 0).raw
    folder.mkdir(parents=True)
    for z in range(count):
        at = z % (2 * PERIOD - 2)
        tifffile.imwrite(folder / f"s_{z:06d}.tif", raw[at if at < PERIOD else 2 * PERIOD - 2 - at])


def command(folder: Path, out: Path, given: argparse.Namespace, *more: str) -> list[str]:
    """Return the command line of `distill stream` in exact arithmetic."""
    words = ["stream", str(folder), "--model", given.model, "--out", str(out), "--resolution", "30,6,6"]
    words += ["--device", "cpu", "--precision", "32-true", "--backend", given.backend, *more]
    return [sys.executable, "-c", "from distill.cli import main; main()", *words]


def finish_command(out: Path) -> list[str]:
    """Return the command line of `distill finish`."""
    return [sys.executable, "-c", "from distill.cli import main; main()", "finish", str(out)]


@dataclass(frozen=True)
class Sample:
    """Memory of a process when so many sections were done."""

    seconds: float
    sections: int
    resident: float  # MiB


def memory(work: Path, folder: Path, given: argparse.Namespace) -> None:
    """Measure resident memory during a stream, and during the last pass."""
    out = work / "out.zarr"
    samples = sampled(command(folder, out, given), out)
    streaming = [s for s in samples if 0 < s.sections < given.sections]
    thirds = np.array_split(np.array([s.resident for s in streaming]), 3)
    sections = np.array([s.sections for s in streaming], float)
    slope = np.polyfit(sections, [s.resident for s in streaming], 1)[0]
    print("median of the first, second and last third: " + ", ".join(f"{np.median(t):.0f}" for t in thirds) + " MiB")
    print(f"slope {slope * 1000:.2f} MiB per 1,000 sections; peak {max(s.resident for s in samples):.0f} MiB")
    last = [s.resident for s in samples if s.sections >= given.sections]
    tables = sum(path.stat().st_size for path in (out / "stream" / "slabs").iterdir())
    ids = sum(len(np.load(path)["ids"]) for path in (out / "stream" / "slabs").iterdir())
    peak = max(last, default=float("nan"))
    print(f"last pass: peak {peak:.0f} MiB; {ids} supervoxels, tables of {tables / MIB:.1f} MiB")
    print(f"{samples[-1].seconds:.0f} s in all")
    if given.figure is not None:
        draw(samples, given.sections, given.figure)


def sampled(words: list[str], out: Path) -> list[Sample]:
    """Run a process and sample its memory every quarter of a second."""
    began = time.perf_counter()
    samples = []
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    manifest = out / "stream" / "manifest-00000000.jsonl"
    while running.poll() is None:
        status = Path(f"/proc/{running.pid}/status").read_text(encoding="utf-8")
        resident = next((line for line in status.splitlines() if line.startswith("VmRSS")), None)
        if resident is not None:
            done = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
            samples.append(Sample(time.perf_counter() - began, done, int(resident.split()[1]) / 1024))
        time.sleep(0.25)
    if running.returncode:
        raise SystemExit(running.returncode)
    return samples


def draw(samples: list[Sample], count: int, path: Path) -> None:
    """Plot memory against completed sections, and against the size of the affinities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot([s.sections for s in samples], [s.resident for s in samples], color="#1b6ca8", linewidth=1.2)
    axes.set(
        xlabel="sections that are done",
        ylabel="resident memory (MiB)",
        xlim=(0, count),
        ylim=(0, 1.15 * max(s.resident for s in samples)),
        title="distill stream: memory of the process",
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    print(f"figure: {path}")


def ranges(work: Path, folder: Path, given: argparse.Namespace) -> None:
    """Compare one process with several, run one after another, byte by byte."""
    whole, parts = work / "whole.zarr", work / "parts.zarr"
    subprocess.run(command(folder, whole, given), check=True, stdout=subprocess.DEVNULL)
    for index in range(given.parts):
        words = command(folder, parts, given, "--range", f"{index}/{given.parts}")
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(finish_command(parts), check=True, stdout=subprocess.DEVNULL)
    different = compared(whole, parts, ranges=True)
    print(f"{given.parts} processes and one: {files(whole)} files compared, {len(different)} different")
    print("\n".join(different))


def kills(work: Path, folder: Path, given: argparse.Namespace) -> None:
    """Send SIGKILL at random moments and resume; compare every finished stream, then start another."""
    whole, out, chance = work / "whole.zarr", work / "killed.zarr", random.Random(given.seed)
    running = subprocess.Popen(command(folder, whole, given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_start(running, whole)
    began = time.perf_counter()
    running.wait()
    span = time.perf_counter() - began  # from the lock to the end, without the start of the process
    marks, streams, different = [], 0, []
    while len(marks) < given.kills:
        before = len(all_lines(out))
        words = command(folder, out, given, "--resume")
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_start(running, out)
        time.sleep(chance.uniform(0, span))
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            running.wait()
            marks.append((before, len(all_lines(out))))
            if len(marks) < given.kills:
                continue
        subprocess.run(command(folder, out, given, "--resume"), check=True, capture_output=True)
        different += compared(whole, out, ranges=False)
        streams += 1
        shutil.rmtree(out)
    print("sections done before and after each kill: " + ", ".join(f"{a}-{b}" for a, b in marks))
    print(f"{len(marks)} kills in {streams} streams: {files(whole)} files compared in each, {len(different)} different")
    print("\n".join(different))


def full(work: Path, folder: Path, given: argparse.Namespace) -> None:
    """Run on a disk smaller than the store, then on larger ones until the stream is complete."""
    whole, disk = work / "whole.zarr", work / "disk"
    subprocess.run(command(folder, whole, given), check=True, stdout=subprocess.DEVNULL)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size // 2}k", "none", str(disk)], check=True)
    try:
        for times in (0.5, 0.7, 0.9, 4.0):
            subprocess.run(["mount", "-o", f"remount,size={int(size * times)}k", str(disk)], check=True)
            words = command(folder, disk / "out.zarr", given, "--resume")
            done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            count = len(all_lines(disk / "out.zarr"))
            print(f"disk of {times} times the store: exit code {done.returncode}, {count} sections done")
            print("  " + (done.stderr.splitlines() or [""])[-1])
        different = compared(whole, disk / "out.zarr", ranges=False)
        print(f"full disks and none: {files(whole)} files compared, {len(different)} different")
        print("\n".join(different))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def wait_for_start(running: subprocess.Popen[bytes], store: Path) -> None:
    """Wait until a process holds the lock of its manifest, or has ended."""
    manifest = store / "stream" / "manifest-00000000.jsonl"
    while running.poll() is None:
        if manifest.exists():
            with manifest.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
        time.sleep(0.005)


def files(store: Path) -> int:
    """Count the files in a store."""
    return sum(path.is_file() for path in store.rglob("*"))


def compared(a: Path, b: Path, *, ranges: bool) -> list[str]:
    """Return files that differ, ignoring times of day; with ranges, each process has its own manifest."""
    found = []
    names = {path.relative_to(root) for root in (a, b) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        if ranges and name.match("stream/manifest-*.jsonl"):
            continue
        if contents(a / name, ranges) != contents(b / name, ranges):
            found.append(str(name))
    return found


def contents(path: Path, ranges: bool) -> bytes | None:
    """Return a file's bytes without times of day; None if it does not exist."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return json.dumps([json.loads(line) | {"time": ""} for line in data.splitlines()]).encode()
    if path.name == "job.json":
        return json.dumps(json.loads(data) | {"created": ""} | ({"parts": 0} if ranges else {})).encode()
    return data


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
