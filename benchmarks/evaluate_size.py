"""Time and memory of `distill evaluate` by the size of the volume, up to volumes larger than what it may hold.

    python benchmarks/evaluate_size.py --depth 25 --preset skimage --json OUT.json

Ground truth: blocky objects of about 50 x 64 x 64 voxels whose borders move at random from section to section;
segmentation: the same, with a random tenth of its blocks of 5 x 16 x 16 voxels each under ids of its own. Both lie in
Zarr stores with chunks of 25 x 256 x 256. One process; seconds are its own CPU time, so that a busy machine does not
change them much, and memory is the kernel's high-water mark, beyond what was resident before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from hardware import machine
from measure import HostPeak
from tables import provenance, write_json

from distill.core.geometry import Box, Nanometres
from distill.evaluation.segmentation import evaluate
from distill.evaluation.worst_objects.locate import find_spots
from distill.io.volume import open_labels
from distill.io.writers.store import ZarrArray, create_zarr

_SIDE, _STEP = 1000, 25
_NM: Nanometres = (40.0, 4.0, 4.0)


@dataclass(frozen=True)
class Measured:
    """One volume."""

    voxels: int
    preset: str
    pairs: int
    seconds: float  # CPU time of scoring
    peak_bytes: int
    places_seconds: float  # CPU time of looking up the worst ten objects
    places_peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.depth, options.preset)
    print(
        f"{found.voxels / 1e6:.0f} million voxels, preset {found.preset}, {found.pairs:,} pairs: scores "
        f"{found.seconds:.1f} s, {found.peak_bytes / 1e6:.0f} MB; places of the worst {found.places_seconds:.1f} s, "
        f"{found.places_peak_bytes / 1e6:.0f} MB"
    )
    if options.json is not None:
        about = provenance(Path(__file__).name, argv)
        write_json(options.json, {**about, "machine": machine(torch.device("cpu")), **asdict(found)})
    return 0


def measure(folder: Path, depth: int, preset: str) -> Measured:
    """Write two volumes of `depth` sections of 1000 x 1000 and score one against the other."""
    names = [_create(folder / f"{name}.zarr", depth) for name in ("truth", "found")]
    rng = np.random.default_rng(0)
    for z in range(0, depth, _STEP):
        truth = _labels(rng, z, min(_STEP, depth - z))
        blocks = np.arange(1, 5 * 63 * 63 + 1).reshape(5, 63, 63) * (rng.random((5, 63, 63)) < 0.1) * 10**6
        wrong = blocks.repeat(5, 0).repeat(16, 1).repeat(16, 2)[: len(truth), :_SIDE, :_SIDE]
        found = (truth + wrong.astype(np.uint64)).astype(np.uint64)
        for (_, array), values in zip(names, (truth, found), strict=True):
            array.write(Box((z, 0, 0), (z + len(truth), _SIDE, _SIDE)), values)
    sources = [source for source, _ in names]
    probe, began = HostPeak(), time.process_time()
    scored = evaluate(sources[1], sources[0], preset)
    seconds, peak = time.process_time() - began, probe.lap()
    began = time.process_time()
    find_spots(open_labels(sources[1]), open_labels(sources[0]), scored.worst)
    places = time.process_time() - began
    pairs = len(scored.table.pairs().u)
    return Measured(depth * _SIDE**2, preset, pairs, seconds, int(peak), places, int(probe.lap()))


def _create(path: Path, depth: int) -> tuple[str, ZarrArray]:
    array = create_zarr(
        path, "ids", shape=(depth, _SIDE, _SIDE), dtype=np.uint64, resolution=_NM, chunks=(_STEP, 256, 256)
    )
    return f"{path}:ids", array


def _labels(rng: np.random.Generator, z: int, depth: int) -> np.ndarray:
    """Blocks of ids whose borders are shifted at random in every section."""
    y, x = np.ogrid[:_SIDE, :_SIDE]
    sections = []
    for k in range(z, z + depth):
        dy, dx = rng.integers(0, 4, 2)
        sections.append(1 + (k // 50) * 10_000 + (y + dy) // 64 * 100 + (x + dx) // 64)
    return np.stack(sections).astype(np.uint64)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=25, help="sections of a million voxels")
    parser.add_argument("--preset", default="skimage")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
