"""How long does the embedding figure of a large section take beyond the networks, and how much memory?

    python benchmarks/figure_size.py --run RUN --json OUT.json [--side 2048]

A made section of 2048 x 2048 pixels, windows of 6 x 256 x 256 side by side, 300 dpi, both networks of a run. It runs in
a process of its own, so that the largest resident memory is that of the figure, networks and imports included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
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

from distill.errors import DistillError

_DEPTH = 6
_WINDOW = 256
_NM = (30.0, 6.0, 6.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder of `distill train`")
    parser.add_argument("--side", type=int, default=2048, help="pixels along y and x")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # this very script, measured
    options = parser.parse_args(argv)
    try:
        if options.child is not None:
            options.child.write_text(json.dumps(measure(options.run, options.side)))
            return 0
        about = machine(torch.device("cpu"))
        print(f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            subprocess.run([sys.executable, __file__, *argv, "--child", str(result)], check=True)
            found = json.loads(result.read_text())
        print(table_of(found))
        if options.json is not None:
            write_json(options.json, {**provenance("figure_size.py", argv), "machine": about, **found})
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def measure(run: str, side: int) -> dict[str, Any]:
    """Seconds of the networks and of what follows, and the largest resident memory of this process."""
    import resource

    from distill.phantom import make_phantom
    from distill.recipes.embeddings import Windows
    from distill.recipes.models import load_student, load_teacher
    from distill.recipes.pca import Networks, draw_pca, look
    from distill.recipes.volumes import Runtime
    from distill.volume import volume_from_array

    runtime = Runtime(torch.device("cpu"), "bf16-mixed")
    small = make_phantom((_DEPTH + 1, 512, 512), _NM, 0).raw
    times = -(-side // 512)
    volume = volume_from_array(np.tile(small, (1, times, times))[:, :side, :side], _NM)
    networks = Networks(load_teacher(run, runtime.device), load_student(run, runtime.device), runtime)
    began = time.perf_counter()
    looked = look(volume, networks, _DEPTH // 2, Windows((_DEPTH, _WINDOW, _WINDOW)))
    seen = time.perf_counter()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as folder:
        draw_pca(looked, Path(folder) / "pca.png")
    drawn = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"networks": seen - began, "figure": drawn - seen, "mib_after_networks": held, "mib": peak, "side": side}


def table_of(found: dict[str, Any]) -> str:
    """A table of one row."""
    seconds = [f"{found[key]:.1f}" for key in ("networks", "figure")]
    memory = [f"{found[key]:.0f}" for key in ("mib_after_networks", "mib")]
    return table(["networks, s", "figure beyond them, s", "MiB, networks", "MiB, all"], [[*seconds, *memory]])


if __name__ == "__main__":
    sys.exit(main())
