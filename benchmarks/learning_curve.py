"""Measure the benefit of a few labelled sections of another volume, for a trained student and for random weights.

    python benchmarks/learning_curve.py --medulla fib25_medulla.h5 --cortex ac4.h5 --out FOLDER --minutes 2.5
    --json benchmarks/results/learning_curve_NAME.json

Each point is `distill finetune` on the first 2, 5, 10 or 20 sections, those that it sets aside for validation among
them, then `distill segment` and `distill evaluate` (preset skimage) on sections that it never saw. `medulla` is every
fourth section of the medulla volume; `cortex` is AC4 from row and column 512 (the student `ac4` learnt sections 0-59 as
recorded) at another contrast: grey values to the power of 1.6, then times 0.7. The points from nothing have the network
of the model and random weights. FOLDER keeps what is done point by point: the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
from hardware import machine
from numpy.typing import NDArray
from rows import Rows
from tables import provenance, table, write_json

from distill.core.errors import DistillError
from distill.io.volume import LABELS_DATASET, RAW_DATASET, open_labels, open_volume
from distill.io.writers.cremi import write_cremi

COUNTS = (2, 5, 10, 20)
STARTS = ("model", "nothing")
_NOTHING = ("student.weights=null", "student.training.lr=2e-3")  # as the model itself was trained


@dataclass(frozen=True)
class Prepared:
    """A volume to learn from and to test on; the first 20 sections are for learning."""

    path: Path
    test: tuple[int, int]


@dataclass(frozen=True)
class Point:
    """Scores of one training; `refused` holds the message of a command that gave none."""

    volume: str
    start: str
    sections: int
    steps: int | None = None
    seconds: float = 0.0
    voi_split: float | None = None
    voi_merge: float | None = None
    voi: float | None = None
    arand: float | None = None
    refused: str | None = None


def another_contrast(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Raise grey values to the power of 1.6, then multiply by 0.7."""
    return np.round(0.7 * 255 * (raw / 255.0) ** 1.6).astype(np.uint8)


def prepare(name: str, source: Path, folder: Path) -> Prepared:
    """Write the sections that a curve needs, unless they exist.

    Raises:
        DistillError: a file that cannot be read.
    """
    path, test = folder / f"{name}.h5", ((47, 63) if name == "medulla" else (20, 28))
    if path.exists():
        return Prepared(path, test)
    volume, truth = open_volume(f"{source}:{RAW_DATASET}"), open_labels(f"{source}:{LABELS_DATASET}")
    raw, labels = volume.read(), truth.read()
    z, y, x = volume.resolution
    if name == "medulla":
        raw, labels, z = raw[::4], labels[::4], 4 * z
    else:
        kept = np.r_[0:20, 80:88]  # test sections 60 away from those to learn from
        raw, labels = another_contrast(raw[kept, 512:, 512:]), labels[kept, 512:, 512:]
    write_cremi(path, raw=raw, labels=labels, resolution=(z, y, x))
    return Prepared(path, test)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    asked = _parser().parse_args(argv)
    try:
        found = run(asked)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(HEADER, [cells(one) for one in found]))
    if asked.json is not None:
        length = {"minutes": asked.minutes if asked.steps is None else None, "steps": asked.steps}
        about = {"machine": machine(torch.device("cpu")), **length, "points": found}
        write_json(asked.json, {**provenance("learning_curve.py", argv), **about})
    return 0


def run(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Compute all requested points that are missing; return all points of the folder.

    Raises:
        DistillError: bad input, or a folder that holds points of other settings.
    """
    settings = {
        key: str(getattr(asked, key)) for key in ("model", "minutes", "steps", "method", "precision", "overrides")
    }
    kept = Rows(asked.out, settings)
    sources = {name: getattr(asked, name) for name in ("medulla", "cortex") if getattr(asked, name) is not None}
    names = []
    for volume, source in sources.items():
        prepared = prepare(volume, source, asked.out)
        base = f"{volume} model 0"
        names.append(base)
        if base not in kept:
            kept.keep(base, asdict(_scored(asked, prepared, asked.model, Point(volume, "model", 0))))
        for count in sorted(asked.counts, key=lambda n: (n not in (min(COUNTS), max(COUNTS)), n)):  # the ends first
            for start in asked.starts:
                name = f"{volume} {start} {count}"
                names.append(name)
                if name in kept:
                    continue
                point = _point(asked, prepared, Point(volume, start, count))
                print(f"{name}: {point.refused or f'VOI {point.voi:.3f}, {point.steps} steps'}", flush=True)
                kept.keep(name, asdict(point))
    found = [row for name in names if (row := kept.get(name)) is not None]
    return sorted(found, key=lambda row: (row["volume"], row["start"], row["sections"]))


def _point(asked: argparse.Namespace, prepared: Prepared, point: Point) -> Point:
    """Train, then score the test sections."""
    began = time.perf_counter()
    folder = asked.out / f"{point.volume}-{point.start}-{point.sections}"
    sources = [f"{prepared.path}:{dataset}" for dataset in (RAW_DATASET, LABELS_DATASET)]
    words = ["--sections", f"0:{point.sections}", "--out", str(folder)]
    changes = [*(_NOTHING if point.start == "nothing" else ()), *asked.overrides]
    if asked.steps is None:
        words += ["--minutes", f"{asked.minutes:g}"]
    else:
        changes.insert(0, f"student.training.steps={asked.steps}")
    precision = [f"student.training.precision={asked.precision}"] if asked.precision else []
    resume = ["--resume"] if folder.exists() else []
    done = rows.distill("finetune", asked.model, *sources, *words, *changes, *precision, *resume)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        return replace(point, seconds=seconds, refused=rows.message(done, asked.out))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = max(json.loads(line)["step"] for line in lines)
    return _scored(asked, prepared, str(folder), replace(point, seconds=seconds, steps=steps))


def _scored(asked: argparse.Namespace, prepared: Prepared, model: str, point: Point) -> Point:
    """Segment the test sections with a model and score them."""
    out = asked.out / f"{point.volume}-{point.start}-{point.sections}.zarr"
    raw, labels = (f"{prepared.path}:{dataset}" for dataset in (RAW_DATASET, LABELS_DATASET))
    sections = ":".join(map(str, prepared.test))
    return replace(point, **rows.scores(asked, raw, labels, model, out, "--sections", sections))


HEADER = ("volume", "start", "sections", "steps", "split", "merge", "VOI", "ARAND")


def cells(row: dict[str, Any]) -> list[str]:
    """Format a line of the table."""
    about = [row["volume"], row["start"], str(row["sections"]), "-" if row["steps"] is None else str(row["steps"])]
    if row["voi"] is None:
        return [*about, *["-"] * 3, row["refused"]]
    return [*about, *(f"{row[key]:.3f}" for key in ("voi_split", "voi_merge", "voi", "arand"))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--medulla", type=Path, metavar="FILE", help="fib25_medulla.h5")
    parser.add_argument("--cortex", type=Path, metavar="FILE", help="ac4.h5")
    parser.add_argument("--model", default="ac4", help="what is trained further, and gives the network")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of sections")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--minutes", type=float, default=2.5, help="of each training")
    parser.add_argument("--steps", type=int, help="of each training, in place of minutes")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="of every training")
    rows.add_options(parser, what="points", method="waterz")
    return parser


if __name__ == "__main__":
    sys.exit(main())
