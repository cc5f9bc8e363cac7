"""Compare the seams of a 3D teacher run by sliding window with those of a 2D student on whole sections.

    python benchmarks/seams.py real --run RUN SECTIONS --sections 6 16 --crop 384 --json OUT.json
    python benchmarks/seams.py synthetic --json OUT.json

`real` scores both networks of a run (`distill train`) on sections of a volume, with windows of several sizes, side by
side and blended over a quarter of their width, and as a control the student run by the same windows.
`synthetic` plants steps of known strength at the window borders of made embeddings and says what the scores make of
them: false alarms, coverage of the intervals, detection. Definitions of the scores: docs/results/seams.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import machine
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree
from tables import provenance, table, write_json

from distill.core.errors import DistillError
from distill.core.geometry import parse_numbers
from distill.evaluation.seams.bench import HEADER, bench_seams
from distill.evaluation.seams.border import seam_score
from distill.evaluation.seams.shift import ShiftScore, shift_score
from distill.evaluation.seams.stride import stride_score
from distill.inference.embeddings import Embedding, Mask
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models.load import load_student, load_teacher, pick_device

SIDE, WINDOW = 256, 64  # pixels of a made section
BORDERS = list(range(WINDOW, SIDE, WINDOW))
HALFWAY = list(range(WINDOW // 2, SIDE, WINDOW))
CONTRASTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    about = machine(torch.device("cpu"))
    print(f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}", flush=True)
    try:
        began = time.perf_counter()
        result = real(options) if options.what == "real" else synthetic(options.trials)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    seconds = time.perf_counter() - began
    print(f"{seconds:.0f} s")
    if options.json is not None:
        write_json(options.json, {**provenance("seams.py", argv), "machine": about, "seconds": seconds, **result})
    return 0


def real(options: argparse.Namespace) -> dict[str, Any]:
    """Score both networks of a run on sections of a volume.

    Raises:
        DistillError: no such run, sections or windows.
    """
    resolution = parse_numbers(options.resolution, "--resolution") if options.resolution else None
    runtime = Runtime(pick_device("cpu"), options.precision)
    teacher, student = load_teacher(options.run, runtime.device), load_student(options.run, runtime.device)
    volume = open_volume(options.source, resolution=resolution)
    where = options.sections, options.windows, options.crop, options.depth
    rows = bench_seams(volume, teacher, student, *where, runtime)
    print(f"\n{options.crop} x {options.crop} pixels, sections {options.sections}, windows {options.depth} deep\n")
    print(table(list(HEADER), [row.cells() for row in rows]))
    about = {"crop": options.crop, "sections": options.sections, "depth": options.depth}
    return {**about, "precision": options.precision, "rows": [row.to_dict() for row in rows]}


def synthetic(trials: int) -> dict[str, Any]:
    """Evaluate the scores on planted steps: coverage, false alarms, detection, means by contrast."""
    result: dict[str, Any] = {"trials": trials, "side": SIDE, "window": WINDOW}
    for name, make in (("smooth field", smooth), ("cells", cells)):
        rows, kept = [], []
        for contrast in CONTRASTS:
            scores = [_trial(make, seed, contrast) for seed in range(trials)]
            scale = np.array([change for change, _ in scores])
            one = {key: _summary([s[key] for _, s in scores], contrast, scale) for key in scores[0][1]}
            kept.append({"contrast": contrast, **one})
            rows.append([f"{contrast:g}", *(_said(one[key]) for key in ("border", "stride", "shift"))])
        header = ["contrast", "border: mean, detected, covered", "stride", "shift"]
        print(
            f"\n{name}, {trials} sections of {SIDE} x {SIDE}, windows of {WINDOW}\n\n{table(header, rows)}", flush=True
        )
        nulls = [float(np.mean([row[key]["null"] for row in kept])) for key in ("border", "stride", "shift")]
        print("mean of the nulls: " + ", ".join(f"{v:.3f}" for v in nulls))
        result[name] = kept
    return result


def smooth(rng: np.random.Generator) -> tuple[Embedding, Mask]:
    """Draw a smooth random field of five channels, correlated over about 6 pixels, without exclusions."""
    field = np.stack([gaussian_filter(rng.normal(size=(SIDE, SIDE)), 4, mode="wrap") for _ in range(5)])
    return (field / field.std()).astype(np.float32), np.zeros((SIDE, SIDE), bool)


def cells(rng: np.random.Generator) -> tuple[Embedding, Mask]:
    """Draw convex cells of one vector each, with texture and noise; membranes between them are noise and excluded."""
    points = rng.uniform(-20, SIDE + 20, (60, 2))
    distance, index = KDTree(points).query(np.argwhere(np.ones((SIDE, SIDE))), k=2)
    label, membrane = index[:, 0].reshape(SIDE, SIDE), (np.diff(distance) < 4).reshape(SIDE, SIDE)
    texture, _ = smooth(rng)
    field = rng.normal(size=(5, 60))[:, label] + 0.15 * texture + 0.1 * rng.normal(size=texture.shape)
    field[:, membrane] = rng.normal(size=(5, np.count_nonzero(membrane)))
    return field.astype(np.float32), membrane


def planted(field: Embedding, exclude: Mask, contrast: float, first: int, rng: np.random.Generator) -> Embedding:
    """Add a random direction in every window to the field at unit length.

    The step across borders has `contrast` times the root mean square change between neighbouring rows, both averaged
    over runs of 8 pixels.
    """
    unit = field / np.linalg.norm(field, axis=0)
    index = (np.arange(SIDE) + WINDOW - first) // WINDOW if first else np.arange(SIDE) // WINDOW
    step = contrast * ordinary_change(unit, exclude) / np.sqrt(2)  # two random directions lie sqrt(2) apart (rms)
    offset = rng.normal(size=(5, SIDE // WINDOW + 1, SIDE // WINDOW + 1))
    offset /= np.linalg.norm(offset, axis=0)
    return np.asarray(unit + step * offset[:, index][:, :, index], np.float32)


def ordinary_change(unit: NDArray[np.floating[Any]], exclude: Mask) -> float:
    """Compute the root mean square change of unit vectors between neighbouring rows, averaged over runs of 8 pixels."""
    runs = np.diff(unit, axis=1).reshape(5, SIDE - 1, -1, 8).mean(axis=3)
    kept = (~exclude[1:] & ~exclude[:-1]).reshape(SIDE - 1, -1, 8).all(axis=2)
    return float(np.sqrt((runs**2).sum(axis=0)[kept].mean()))


def _trial(
    make: Callable[[np.random.Generator], tuple[Embedding, Mask]], seed: int, contrast: float
) -> tuple[float, dict[str, Any]]:
    """Return the section's ordinary change, and its scores."""
    rng = np.random.default_rng(seed)
    field, exclude = make(rng)
    one, other = (planted(field, exclude, contrast, first, rng) for first in (0, WINDOW // 2))
    both = sorted(BORDERS + HALFWAY)
    return ordinary_change(field / np.linalg.norm(field, axis=0), exclude), {
        "border": seam_score(one, BORDERS, BORDERS, exclude=exclude),
        "stride": stride_score(one, BORDERS, BORDERS, exclude=exclude),
        "shift": shift_score(one, other, both, both, exclude=exclude),
    }


def _summary(scores: Sequence[Any], contrast: float, scale: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, share of intervals above nothing, and share that hold the truth.

    The truth is nothing, or else what all sections have in common: the mean ratio to what lies next to it, or the mean
    disagreement in units of the step.
    """
    ratio, low, high = (np.array([getattr(s, key) for s in scores]) for key in ("ratio", "low", "high"))
    nothing = 0.0 if isinstance(scores[0], ShiftScore) else 1.0
    unit = scale if isinstance(scores[0], ShiftScore) else np.ones_like(scale)
    truth = nothing if contrast == 0 else (ratio / unit).mean() * unit
    return {
        "mean": float(ratio.mean()),
        "detected": float(np.mean(low > nothing + 1e-6)),
        "covered": float(np.mean((low <= truth + 1e-6) & (truth - 1e-6 <= high))),
        "null": float(np.mean([s.null for s in scores])),
    }


def _said(one: dict[str, float]) -> str:
    return f"{one['mean']:.3f} {one['detected']:4.0%} {one['covered']:4.0%}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="what", required=True)
    measured = modes.add_parser("real", help="teacher against student on sections")
    measured.add_argument("source", help="volume of sections")
    measured.add_argument("--run", required=True, help="run folder of `distill train`")
    measured.add_argument("--sections", type=int, nargs="+", default=[6])
    measured.add_argument("--resolution", metavar="Z,Y,X", help="nm per voxel, for files without one")
    measured.add_argument("--crop", type=int, default=384, help="pixels, from the upper left corner")
    measured.add_argument("--depth", type=int, default=6, help="sections of a window")
    measured.add_argument("--windows", type=int, nargs="+", default=[96, 128], help="pixels")
    measured.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    made = modes.add_parser("synthetic", help="planted steps")
    made.add_argument("--trials", type=int, default=100)
    for mode in (measured, made):
        mode.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
