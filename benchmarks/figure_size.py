"""How long does the embedding figure of a large section take beyond the networks, and how much memory?

    python benchmarks/figure_size.py --run RUN --json OUT.json [--side 2048] [--embeddings KEPT.npz]

A made section of 2048 x 2048 pixels, windows of 6 x 256 x 256 side by side, 300 dpi, both networks of a run. It runs in
a process of its own, so that the largest resident memory is that of the figure, networks and imports included.

With `--embeddings` the first call keeps what the networks gave and a later one draws from it, so that the figure can be
timed in a moment when the machine has nothing else to do. It says no time of the networks, and of the memory the larger
of both calls.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hardware import machine
from tables import provenance, table, write_json

from distill.core.errors import DistillError

if TYPE_CHECKING:
    from viz.embeddings.figure import Looked

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
    parser.add_argument("--embeddings", type=Path, help="file to keep the networks' part in, or to take it from")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # this very script, measured
    options = parser.parse_args(argv)
    try:
        if options.child is not None:
            options.child.write_text(json.dumps(measure(options.run, options.side, options.embeddings)))
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


def measure(run: str, side: int, kept: Path | None) -> dict[str, Any]:
    """Seconds of the networks and of what follows, and the largest resident memory of this process.

    Raises:
        DistillError: no such run, or `kept` of another side.
    """
    from viz.embeddings.figure import draw_pca

    before: dict[str, float | None]
    if kept is not None and kept.exists():
        looked, held = _restored(kept, side)
        before = {"networks": None, "mib_after_networks": held}
    else:
        looked, seconds = _looked(run, side)
        held = _mib()
        before = {"networks": seconds, "mib_after_networks": held}
        if kept is not None:
            _keep(kept, looked, held)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        draw_pca(looked, Path(folder) / "pca.png")
    figure = time.perf_counter() - began
    return {**before, "figure": figure, "mib": max(_mib(), held), "side": side}


def _looked(run: str, side: int) -> tuple[Looked, float]:
    """A made section as the run's networks see it, and the seconds that they take."""
    from distill.data.phantom import make_phantom
    from distill.inference.embeddings import Windows
    from distill.inference.options import Runtime
    from distill.io.volume import volume_from_array
    from distill.models.load import load_student, load_teacher
    from viz.embeddings.figure import Networks, look

    runtime = Runtime(torch.device("cpu"))
    small = make_phantom((_DEPTH + 1, 512, 512), _NM, 0).raw
    times = -(-side // 512)
    volume = volume_from_array(np.tile(small, (1, times, times))[:, :side, :side], _NM)
    networks = Networks(load_teacher(run, runtime.device), load_student(run, runtime.device), runtime)
    began = time.perf_counter()
    looked = look(volume, networks, _DEPTH // 2, Windows((_DEPTH, _WINDOW, _WINDOW)))
    return looked, time.perf_counter() - began


def _keep(path: Path, looked: Looked, mib: float) -> None:
    teacher, student = looked.embeddings
    with path.open("wb") as file:
        np.savez(file, pair=looked.pair, teacher=teacher, student=student, inside=looked.inside, mib_after_networks=mib)


def _restored(path: Path, side: int) -> tuple[Looked, float]:
    from distill.inference.embeddings import Sliding, Windows
    from viz.embeddings.figure import Looked

    windows = Windows((_DEPTH, _WINDOW, _WINDOW))
    with np.load(path) as found:
        pair, inside, embeddings = found["pair"], found["inside"], (found["teacher"], found["student"])
        held = float(found["mib_after_networks"])
    if inside.shape != (side, side):
        raise DistillError(f"{path}: found a section of {inside.shape}, expected {(side, side)}; give another file")
    sliding = Sliding.over(windows, (_DEPTH, _WINDOW, _WINDOW), (_DEPTH + 1, side, side))
    return Looked(pair, embeddings, inside, sliding, windows.kind, (_NM[1], _NM[2])), held


def _mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table_of(found: dict[str, Any]) -> str:
    """A table of one row."""
    seconds = ["-" if found[key] is None else f"{found[key]:.1f}" for key in ("networks", "figure")]
    memory = [f"{found[key]:.0f}" for key in ("mib_after_networks", "mib")]
    return table(["networks, s", "figure beyond them, s", "MiB, networks", "MiB, all"], [[*seconds, *memory]])


if __name__ == "__main__":
    sys.exit(main())
