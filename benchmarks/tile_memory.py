"""Memory and time of a large section in tiles: the most that the process holds, sections included.

    python benchmarks/tile_memory.py --side 32768 --tile 1024 --checkpoint AC34.ckpt --json OUT.json

Sections are uint8 noise, each wholly in memory; what a tile gives is dropped, as if written.
The first section makes one the previous one; the time is that of the second, of which --rows of tiles are run (all by
default) and scaled.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from hardware import machine
from stream import make
from tables import provenance, write_json

from distill.core.errors import DistillError
from distill.core.hardware import AUTO
from distill.models.load import pick_device
from students.streaming.runner import SectionRunner


@dataclass(frozen=True)
class Measured:
    """A section in tiles."""

    preset: str
    backend: str
    precision: str
    side: int
    tile: int
    halo: tuple[int, int]
    tiles: int  # run
    of: int
    seconds: float  # of those that were run, without the first, which builds the functions
    pixels_per_second: float
    peak_bytes: int  # resident, of the whole process


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    try:
        found = measure(options)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{found.side} x {found.side} in tiles of {found.tile} with halo {found.halo}, "
        f"{found.backend} {found.precision}: {found.tiles} of {found.of} tiles, {found.pixels_per_second / 1e6:.2f} "
        f"Mpixel/s, peak {found.peak_bytes / 1e9:.2f} GB"
    )
    if options.json is not None:
        about = provenance(Path(__file__).name, argv)
        write_json(options.json, {**about, "machine": machine(pick_device(options.device)), **asdict(found)})
    return 0


def measure(options: argparse.Namespace) -> Measured:
    """Run tiles.

    Raises:
        DistillError: the student has no tiles, or the backend cannot be had.
    """
    runner = SectionRunner(
        make(options.preset, options.checkpoint),
        None,
        device=pick_device(options.device),
        precision=options.precision,
        backend=options.backend,
        tile=options.tile,
    )
    rng = np.random.default_rng(0)
    before, section = (rng.integers(0, 256, (options.side, options.side), np.uint8) for _ in range(2))
    runner.prime(before)
    across = -(-options.side // options.tile)
    wanted = across * min(across, options.rows or across)
    pieces = runner.tiles(section)
    rows, columns, _ = next(pieces)
    began, done, pixels = time.perf_counter(), 1, 0
    while done < wanted:
        rows, columns, _ = next(pieces)
        done += 1
        pixels += (rows.stop - rows.start) * (columns.stop - columns.start)
        if done % across == 0:
            print(f"row {done // across} of {across}: peak {peak_bytes() / 1e9:.2f} GB", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    return Measured(
        options.preset,
        runner.backend,
        options.precision,
        options.side,
        options.tile,
        runner.halo or (0, 0),
        done,
        across * across,
        seconds,
        pixels / seconds,
        peak_bytes(),
    )


def peak_bytes() -> int:
    """The most that this process has held so far (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=8192, help="height and width, pixels")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--rows", type=int, help="rows of tiles to run")
    parser.add_argument("--preset", choices=["cad", "smp"], default="cad")
    parser.add_argument("--checkpoint", type=Path, help="published weights of preset cad")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default=AUTO)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
