"""How many voxels a second of one core does `distill copy` write, in each format?

    python benchmarks/copy_formats.py RAW LABELS [--json OUT.json] [--repeat 3]

Both sources are read into NPY files of 24 x 1024 x 1024 voxels first, laid side by side where they are smaller, so that
reading costs little: uint8 grey values, uint64 ids. What counts is processor time of all threads, which other work on
the machine disturbs less than the clock; waiting for the disk is not in it. The best of the repetitions stands.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import machine
from tables import provenance, table, write_json

from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.io.volume import Volume, open_labels, open_volume
from distill.io.writers.copy import Copying, copy

_SHAPE = (24, 1024, 1024)
_CASES = (
    ("zarr3", 1),
    ("zarr3", 4),
    ("zarr2", 1),
    ("n5", 1),
    ("precomputed", 1),
    ("precomputed", 4),
    ("hdf5", 1),
    ("tiff", 1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", help="uint8 volume")
    parser.add_argument("labels", help="volume of ids")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(argv)
    about = machine(torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for kind, volume in (("uint8", open_volume(options.raw)), ("uint64", open_labels(options.labels))):
                source = Path(folder) / f"{kind}.npy"
                np.save(source, _filled(volume))
                for form, levels in _CASES:
                    if (kind, form) != ("uint64", "tiff"):  # which holds 16 bits
                        rows.append({"values": kind, **_case(source, form, levels, volume, options.repeat)})
                        print(rows[-1], flush=True)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    print(table_of(rows))
    if options.json is not None:
        write_json(options.json, {**provenance("copy_formats.py", argv), "machine": about, "rows": rows})
    return 0


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Plain text, one line a case."""
    return table(
        ("format", "levels", "values", "Mvoxel/s", "wall s", "MB"),
        [
            (
                r["format"],
                str(r["levels"]),
                r["values"],
                f"{r['rate']:.1f}",
                f"{r['wall']:.2f}",
                f"{r['bytes'] / 1e6:.1f}",
            )
            for r in rows
        ],
    )


def _filled(volume: Volume) -> Any:
    """The first sections of a volume, repeated until they are as large as wanted."""
    depth, height, width = (min(a, b) for a, b in zip(_SHAPE, volume.size, strict=True))
    part = volume.read(Box((0, 0, 0), (depth, height, width)))
    times = tuple(-(-n // have) for n, have in zip(_SHAPE, part.shape, strict=True))
    return np.tile(part, times)[: _SHAPE[0], : _SHAPE[1], : _SHAPE[2]]


def _case(source: Path, form: str, levels: int, volume: Volume, repeat: int) -> dict[str, Any]:
    rates, walls, size = [], [], 0
    for _ in range(repeat):
        out = source.parent / "out"
        used, began = _processor(), time.perf_counter()
        copy(str(source), str(out), Copying(form, levels, resolution=volume.resolution), lambda done, total: None)
        rates.append(float(np.prod(_SHAPE)) / 1e6 / (_processor() - used))
        walls.append(time.perf_counter() - began)
        files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        out.unlink() if out.is_file() else shutil.rmtree(out)
    return {"format": form, "levels": levels, "rate": max(rates), "wall": min(walls), "bytes": size}


def _processor() -> float:
    """Seconds of user and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
