"""Measure training from two chunked volumes of any size: memory by step, waiting for data, and exact resume.

    python benchmarks/large_volumes.py SOURCE.h5 FOLDER --gigabytes 10 --steps 40 --out OUT.json

A part of SOURCE (CREMI layout) is mirrored until each volume has that many voxels of one byte: `one.h5` (HDF5, gzip)
and `two.zarr` (Zarr v2, zlib), in chunks of 20 x 128 x 128, each with its labels as uint64. Compressed chunks are
written as they are, once for every place. A student alone is trained on both, twice: unbroken, and broken off by a
signal half-way and resumed. FOLDER keeps volumes and runs; remove it afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import torch
import yaml
from hardware import machine
from numpy.typing import NDArray
from tables import provenance, write_json

from distill.io.volume import open_labels, open_volume
from distill.models.checkpoint import read_weights

CHUNK = (20, 128, 128)
DEPTH = 200  # sections of a volume
TEACHER: dict[str, Any] = {  # never run
    "filters": [8] * 5,
    "fused": 8,
    "branch_width": 8,
    "branch_depth": 0,
    "decoder": {"width": 8, "depth": 1, "learned": 1, "block": [4, 128, 128], "overlap": [1, 16, 16]},
    "loss": {"multi_offset": 0.0, "affinity": 0.0},
    "queries": {"teacher": 0.0, "student": 0.0},
}


@dataclass(frozen=True)
class Peak:
    """Most memory that training and its data workers held while some steps were taken."""

    first: int
    last: int
    main_mb: float
    workers_mb: float


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    voxels: tuple[int, int]
    bytes_on_disk: tuple[int, int]
    steps: int
    peaks: tuple[Peak, ...]
    waited: float  # share of the steps' time, without the first
    seconds: float  # median of a step
    broken_off_at: int
    resumed_alike: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Create missing volumes, train, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    volumes = make_volumes(options.source, options.folder, options.gigabytes)
    found = measure(options.folder, volumes, options)
    for peak in found.peaks:
        steps = f"steps {peak.first:>5} to {peak.last:>5}"
        print(f"{steps}: training {peak.main_mb:7.0f} MB, workers {peak.workers_mb:7.0f} MB")
    print(f"waited for data: {100 * found.waited:.1f} % of the steps' time, {found.seconds:.3f} s a step (median)")
    print(f"broken off after step {found.broken_off_at}, resumed: {'the same' if found.resumed_alike else 'DIFFERENT'}")
    if options.out is not None:
        machine_ = machine(torch.device("cpu"))
        write_json(options.out, {**provenance("large_volumes.py", argv), "machine": machine_, "found": asdict(found)})
    return 0 if found.resumed_alike else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="HDF5 file in CREMI layout")
    parser.add_argument("folder", type=Path, help="for volumes and runs")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of each image, uncompressed")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--crop", type=int, nargs=3, default=[6, 128, 128])
    parser.add_argument("--width", type=int, default=8, help="of the student, kind cad")
    parser.add_argument("--normalisation", default="mean-std", help="of grey values, by the statistics of sections")
    parser.add_argument("--windows", type=int, default=5, help="groups of steps that memory is listed for")
    parser.add_argument("--out", type=Path)
    return parser


def make_volumes(source: Path, folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """Mirror part of the source into two volumes, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    one, two = folder / "one.h5", folder / "two.zarr"
    if (folder / "made").exists():
        return one, two
    side = max(2, round(math.sqrt(gigabytes * 1e9 / DEPTH) / CHUNK[1])) * CHUNK[1]
    shape = (DEPTH, side, side)
    resolution = open_volume(source).resolution
    values = {"raw": open_volume(source), "labels": open_labels(source)}
    packed = {name: _mirrored(volume.read(_part(volume.size))) for name, volume in values.items()}
    with h5py.File(one, "w") as file:
        for name, path in (("raw", "volumes/raw"), ("labels", "volumes/labels/neuron_ids")):
            stored = file.create_dataset(
                path, shape, values[name].dtype, chunks=CHUNK, compression="gzip", compression_opts=1
            )
            stored.attrs["resolution"] = resolution
            for place, data in _places(shape, packed[name]):
                stored.id.write_direct_chunk(tuple(n * c for n, c in zip(place, CHUNK, strict=True)), data)
    for name, chunks in packed.items():
        array = two / name
        array.mkdir(parents=True, exist_ok=True)
        header = {
            "zarr_format": 2,
            "shape": shape,
            "chunks": CHUNK,
            "dtype": values[name].dtype.newbyteorder("<").str,
            "compressor": {"id": "zlib", "level": 1},
            "fill_value": 0,
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        (array / ".zarray").write_text(json.dumps(header))
        (array / ".zattrs").write_text(json.dumps({"resolution": resolution, "offset": [0, 0, 0], "units": "nm"}))
        for place, data in _places(shape, chunks):
            file_ = array / "/".join(map(str, place))
            file_.parent.mkdir(parents=True, exist_ok=True)
            file_.write_bytes(data)
    (two / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / "made").touch()
    return one, two


def _part(size: tuple[int, int, int]) -> Any:
    """Whole chunks from the first voxel on, at most 1 x 4 x 4 of them."""
    from distill.core.geometry import Box

    depth, *sides = (min(most, n // c) * c for most, n, c in zip((1, 4, 4), size, CHUNK, strict=True))
    return Box((0, 0, 0), (depth, sides[0], sides[1]))


def _mirrored(part: NDArray[Any]) -> dict[tuple[int, int, int], bytes]:
    """Compressed chunks of a part and its mirror images, a period of two parts along every axis."""
    counts = [n // c for n, c in zip(part.shape, CHUNK, strict=True)]
    found = {}
    for place in np.ndindex(*(2 * n for n in counts)):
        at = [p if p < n else 2 * n - 1 - p for p, n in zip(place, counts, strict=True)]
        cut = part[tuple(slice(a * c, (a + 1) * c) for a, c in zip(at, CHUNK, strict=True))]
        turned = np.flip(cut, [axis for axis in range(3) if place[axis] >= counts[axis]])
        found[place[0], place[1], place[2]] = zlib.compress(np.ascontiguousarray(turned).tobytes(), 1)
    return found


def _places(
    shape: tuple[int, int, int], chunks: dict[tuple[int, int, int], bytes]
) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """All chunks of a volume."""
    period = [n + 1 for n in max(chunks)]
    for place in np.ndindex(*(n // c for n, c in zip(shape, CHUNK, strict=True))):
        z, y, x = (p % n for p, n in zip(place, period, strict=True))
        yield place, chunks[z, y, x]


def measure(folder: Path, volumes: tuple[Path, Path], options: argparse.Namespace) -> Measured:
    """Train without interruption, then interrupted and resumed."""
    one, two = volumes
    names = ((f"{one}:volumes/raw", f"{one}:volumes/labels/neuron_ids"), (f"{two}:raw", f"{two}:labels"))
    sizes = [open_volume(raw).size for raw, _ in names]
    entries = [
        {
            "raw": raw,
            "labels": labels,
            "train": [0, size[0] - 4],
            "validation": [[size[0] - 4, size[0]], [0, 128], [0, 128]],
        }
        for (raw, labels), size in zip(names, sizes, strict=True)
    ]
    (folder / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    (folder / "student.yaml").write_text(yaml.safe_dump(_student(entries, options)))
    for name in ("unbroken", "broken"):
        shutil.rmtree(folder / name, ignore_errors=True)
    memory = _train(folder, "unbroken", None)
    _train(folder, "broken", options.steps // 2)
    broken_off_at = len(_losses(folder / "broken"))
    _train(folder, "broken", None)
    rows = _rows(folder / "unbroken")
    times = np.array([(row["waited"], row["seconds"]) for row in rows[1:]])
    return Measured(
        voxels=(math.prod(sizes[0]), math.prod(sizes[1])),
        bytes_on_disk=(one.stat().st_size, sum(file.stat().st_size for file in two.rglob("*") if file.is_file())),
        steps=options.steps,
        peaks=tuple(_peaks(memory, options.steps, options.windows)),
        waited=float(times[:, 0].sum() / times[:, 1].sum()),
        seconds=float(np.median(times[:, 1])),
        broken_off_at=broken_off_at,
        resumed_alike=_alike(folder / "unbroken", folder / "broken"),
    )


def _student(entries: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "kind": "cad",
        "width": options.width,
        "loss": {"cross": 0.0, "graft": 0.0},
        "data": {"volumes": entries, "memory": 0, "normalisation": options.normalisation},
        "training": {
            "steps": options.steps,
            "crop": options.crop,
            "batch": 1,
            "lr": 1e-3,
            "precision": "32-true",
            "workers": options.workers,
            "log_every": 1,
            "validate_every": options.steps,
            "save_every": options.steps,
        },
    }


def _train(folder: Path, name: str, stop_after: int | None) -> list[tuple[int, float, float]]:
    """Run `distill train` in a process of its own; steps done, and MB of it and of its workers, every half second."""
    words = [sys.executable, "-m", "distill", "train", "teacher.yaml", "student.yaml", "--resume", "--device", "cpu"]
    process = psutil.Popen([*words, "--out", name], cwd=folder, stdout=subprocess.DEVNULL)
    seen, stopped = [], False
    while process.poll() is None:
        done = len(_losses(folder / name))
        if stop_after is not None and done >= stop_after and not stopped:
            process.send_signal(signal.SIGTERM)
            stopped = True
        seen.append((done, *_memory(process)))
        time.sleep(0.5)
    expected = 0 if stop_after is None else 130
    if process.returncode != expected:
        raise SystemExit(f"distill train ended with {process.returncode}, expected {expected}")
    return seen


def _memory(process: psutil.Process) -> tuple[float, float]:
    """MB that a process and its children alone hold."""
    found = [0.0, 0.0]
    try:
        for which, one in enumerate([process, *process.children(recursive=True)]):
            found[min(which, 1)] += one.memory_full_info().uss / 2**20
    except psutil.Error:  # ended between two looks
        pass
    return found[0], found[1]


def _peaks(memory: Sequence[tuple[int, float, float]], steps: int, windows: int) -> Iterator[Peak]:
    edges = np.linspace(0, steps, windows + 1).astype(int)
    for first, last in itertools.pairwise(edges):
        inside = [row[1:] for row in memory if first < row[0] <= last and row[0] < steps]
        if inside:
            yield Peak(int(first) + 1, int(last), max(row[0] for row in inside), max(row[1] for row in inside))


def _rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return [row for row in map(json.loads, (line for line in lines if line.endswith("}"))) if "loss" in row]


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in _rows(run)]


def _alike(one: Path, other: Path) -> bool:
    """Whether two runs have the same losses and weights, bit for bit."""
    weights = [read_weights(run / "best" / "student.safetensors").tensors for run in (one, other)]
    same = weights[0].keys() == weights[1].keys() and all(
        tensor.equal(weights[1][name]) for name, tensor in weights[0].items()
    )
    return same and _losses(one) == _losses(other)


if __name__ == "__main__":
    sys.exit(main())
