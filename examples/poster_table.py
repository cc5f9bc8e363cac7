"""Train every kind of teacher alike, segment held-out sections, and print the AGQ poster's table with both numbers.

    python examples/poster_table.py ac4.h5 --out poster --steps 1500 --crop 6,128,128 --seeds 0

Every row is trained with the same steps, crops, augmentation, optimiser and seed, from its file in configs/teachers/.
Thresholds come from validation sections, scores from test sections. Rows that are there are kept, and an interrupted
training continues: the same command resumes where it stopped. It writes table.md, table.json and table.png into --out
after every row. `--time` trains a few steps of every row and prints seconds a step instead.

The published numbers are those of AC3 (100 x 1024 x 1024, trained on AC4) at published width; ours are those of narrow
networks after a short training on a part of one volume: columns may be compared, not their differences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "benchmarks"))

from rows import Rows, distill, message  # noqa: E402
from tables import provenance, write_json  # noqa: E402

# VOI sum and ARAND on AC3: Chen et al., ICLR 2025, table and poster; PEA, FragViT and APViT as cited there
PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "agq": (0.967, 0.095),
    "pea": (1.084, 0.094),
    "seunet": (1.282, None),
    "resunet": (1.295, None),
    "superhuman": (1.408, None),
    "swinunetr": (1.429, None),
    "mala": (1.546, None),
    "lsd": (1.677, None),
    "unetr": (3.031, None),
    "ml-de": (None, None),
    "APViT": (0.976, 0.078),
    "FragViT": (1.054, 0.093),
}
KINDS = tuple(kind for kind in PUBLISHED if kind.islower())
STARTED = "inflated"  # not published, and no row unless asked for: it starts as a trained student
HEADS = ("agq", "resunet", "seunet", "mala", "lsd")  # published without an embedding
TIMES = "Published seconds in all for 100 x 1024 x 1024: AGQ 33.7, other rows 100.1 to 286.1."
COLUMNS = ("network", "seed", "VOI split", "merge", "sum", "ARAND", "flood sum", "published sum", "published ARAND")
SIZES = ("parameters", "MFLOP/voxel")
COSTS = (
    *("model s", "watershed s", "agglomeration s", "total s", "GiB"),
    *(f"{size}{width}" for width in ("", ", published width") for size in SIZES),
)


def main() -> None:
    """Make the rows that are missing, and write the table after each."""
    asked = _asked()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.time:
        for kind in asked.methods:
            print(f"{kind:12} {_seconds_a_step(asked, kind):.2f} s a step", flush=True)
        return
    names = ("volume", "steps", "crop", "box", "train", "validation", "test", "set")
    settings = {key: json.dumps(getattr(asked, key)) for key in names}
    rows = Rows(asked.out, settings)
    for seed in asked.seeds:
        for kind in asked.methods if seed == asked.seeds[0] else _best(asked, rows):
            name = f"{kind}-s{seed}"
            if name in rows:
                continue
            print(f"{time.strftime('%d %b %H:%M')} {name}", flush=True)
            row = _row(asked, kind, seed)
            if "refused" in row:
                print(f"{name}: {row['refused']}", file=sys.stderr, flush=True)
                continue
            rows.keep(name, row)
            _write(asked, rows)
    _write(asked, rows)


def _best(asked: argparse.Namespace, rows: Rows) -> list[str]:
    """Return the kinds with the lowest VOI of the first seed, which get the further seeds too."""
    scores = {}
    for kind in asked.methods:
        row = rows.get(f"{kind}-s{asked.seeds[0]}")
        if row is not None:
            scores[kind] = row["methods"][row["method"]]["voi"]
    return sorted(scores, key=lambda kind: scores[kind])[: asked.best]


def _asked(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", help="HDF5 file with volumes/raw and volumes/labels/neuron_ids")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=list(KINDS), choices=(*KINDS, STARTED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--best", type=int, default=3, metavar="N", help="kinds that get the further seeds too")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--crop", type=_numbers, default=[6, 128, 128], metavar="Z,Y,X")
    parser.add_argument("--train", type=_numbers, default=[0, 60], metavar="FIRST,STOP", help="sections")
    parser.add_argument("--validation", type=_numbers, default=[60, 80], metavar="FIRST,STOP")
    parser.add_argument("--test", type=_numbers, default=[80, 100], metavar="FIRST,STOP")
    parser.add_argument("--box", type=_numbers, default=[512, 1024, 512, 1024], metavar="Y0,Y1,X0,X1")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides, for every row")
    parser.add_argument("--time", type=int, metavar="STEPS", help="print seconds a step instead")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def overrides(asked: argparse.Namespace, kind: str, seed: int, steps: int) -> list[str]:
    """Return what makes a teacher of configs/teachers/ a row: trained alone, on the parts asked for."""
    training = {
        "steps": steps,
        "crop": asked.crop,
        "seed": seed,
        "warmup": 0,
        "lr_warmup": min(100, steps // 10),
        "teacher_every": 1,
        "validate_every": steps,
        "save_every": 100,
        "log_every": 1 if steps < 100 else 20,
    }
    words = [_parts(asked, whole=kind == "agq" and not asked.time)]
    words += [f"student.training.{key}={json.dumps(value)}" for key, value in training.items()]
    words += [f"student.loss.{term}=0" for term in ("slice", "cross", "graft")] + ["teacher.queries.student=0"]
    if kind in HEADS:
        words += ["teacher.embedding=0", "teacher.loss.multi_offset=0"]
    if kind == "agq":
        words += [f"teacher.queries.start={steps // 5}", "teacher.queries.every=2"]
    else:  # the decoder is not used, so nothing is chosen for it
        words += ["teacher.queries.teacher=0", "teacher.decoder.seeds.kind=mean"]
    return [*words, *asked.set]


def _parts(asked: argparse.Namespace, *, whole: bool) -> str:
    """Return the override of the parts; a run that chooses nothing validates on a corner, not on the `whole` part."""
    y, x = asked.box[:2], asked.box[2:]
    volume = {"raw": f"{asked.volume}:volumes/raw", "labels": f"{asked.volume}:volumes/labels/neuron_ids"}
    parts = {name: [getattr(asked, name), y, x] for name in ("train", "validation", "test")}
    if not whole:
        z0, z1 = asked.validation
        parts["validation"] = [[z0, min(z1, z0 + 4)], [y[0], min(y[1], y[0] + 256)], [x[0], min(x[1], x[0] + 256)]]
    return f"student.data.volumes=[{json.dumps({**volume, **parts})}]"


def _train(asked: argparse.Namespace, kind: str, seed: int, steps: int, run: Path) -> subprocess.CompletedProcess[str]:
    folder = REPO / "configs" / "teachers"
    files = [str(folder / f"{kind}.yaml"), str(folder / "student.yaml")]
    return distill("train", *files, *overrides(asked, kind, seed, steps), "--out", str(run), "--resume")


def _row(asked: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    """Train and score one row; `refused` holds the last line of a command that failed."""
    run = asked.out / f"{kind}-s{seed}"
    began = time.perf_counter()
    done = _train(asked, kind, seed, asked.steps, run)
    if done.returncode != 0:
        return {"refused": message(done, asked.out)}
    trained = time.perf_counter() - began
    command = [sys.executable, str(REPO / "examples" / "poster_row.py"), str(run), "--seed", str(seed)]
    command += ["--set", _parts(asked, whole=True)]
    scored = subprocess.run(command, capture_output=True, text=True, check=False)
    if scored.returncode != 0:
        return {"refused": message(scored, asked.out)}
    return {"kind": kind, "seed": seed, "seconds_of_last_training": trained, **json.loads(scored.stdout)}


def _seconds_a_step(asked: argparse.Namespace, kind: str) -> float:
    """Median of the steps after the first quarter, from the log of a short run."""
    run = asked.out / "timing" / kind
    done = _train(asked, kind, 0, asked.time, run)
    if done.returncode != 0:
        raise SystemExit(message(done, asked.out))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    return median(seconds[len(seconds) // 4 :])


def _write(asked: argparse.Namespace, rows: Rows) -> None:
    """Write table.md, table.json and table.png, and print the table."""
    import torch

    from distill.core.hardware import describe_device

    found = [row for seed in asked.seeds for kind in asked.methods if (row := rows.get(f"{kind}-s{seed}")) is not None]
    if not found:
        return
    header = "| " + " | ".join((*COLUMNS, *COSTS)) + " |"
    lines = [header, "|" + " --- |" * len((*COLUMNS, *COSTS)), *(f"| {' | '.join(_cells(row))} |" for row in found)]
    hardware = describe_device(torch.device("cpu"))
    notes = [
        f"{asked.steps} steps with crops of {' x '.join(map(str, asked.crop))} for every row; sections "
        f"{asked.train[0]}-{asked.train[1] - 1} for training, {asked.validation[0]}-{asked.validation[1] - 1} for "
        f"thresholds, {asked.test[0]}-{asked.test[1] - 1} for these scores, rows {asked.box[0]}-{asked.box[1] - 1}, "
        f"columns {asked.box[2]}-{asked.box[3] - 1}. Segmented by watershed and waterz, AGQ by its queries, ML-De by "
        "clustering, whose time stands in the column of the watershed. SuperHuman, UNETR and SwinUNETR are embedding "
        "networks here (cosine affinities at twelve offsets), while the published ones predict affinities.",
        f"Times are those of {found[0]['voxels'] / 1e6:.1f} million voxels on {hardware}.",
        "Published numbers: AC3, 100 x 1024 x 1024, published width (Chen et al., ICLR 2025). " + TIMES,
        "Published without a row here: "
        + ", ".join(f"{name} {_number(PUBLISHED[name][0])}" for name in PUBLISHED if name not in KINDS)
        + ".",
    ]
    if any(row["kind"] == STARTED for row in found):
        notes.append(
            f"{STARTED} starts as a trained student (`teacher.student`), whose steps are not counted: its row may not "
            "be compared with the others."
        )
    text = "\n".join([*lines, "", *notes, ""])
    (asked.out / "table.md").write_text(text, encoding="utf-8")
    write_json(
        asked.out / "table.json",
        {**provenance("../examples/poster_table.py", sys.argv[1:]), "hardware": hardware, "rows": found},
    )
    _draw(found, asked.out / "table.png")
    print(text, flush=True)


def _cells(row: dict[str, Any]) -> list[str]:
    own, flood = row["methods"][row["method"]], row["methods"]["flood"]
    theirs = PUBLISHED.get(row["kind"], (None, None))
    times = [row["seconds_model"], own["seconds_watershed"], own["seconds_agglomeration"]]
    return [
        row["kind"],
        str(row["seed"]),
        *(f"{own[key]:.3f}" for key in ("voi_split", "voi_merge", "voi", "arand")),
        f"{flood['voi']:.3f}",
        *(_number(value) for value in theirs),
        *(f"{seconds:.1f}" for seconds in (*times, sum(times))),
        f"{row['peak_memory_gib']:.1f}",
        *(
            cell
            for width in ("", "_published")
            for cell in (f"{row[f'parameters{width}']:,}", f"{row[f'operations_per_voxel{width}'] / 1e6:.3f}")
        ),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw VOI sums: bars for ours, one point a seed, and marks for the published numbers."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    ours = [[row["methods"][row["method"]]["voi"] for row in rows if row["kind"] == kind] for kind in kinds]
    figure = Figure(figsize=(1.5 + 0.7 * len(kinds), 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(kinds)), [sum(one) / len(one) for one in ours], color="#B3B3B3", label="narrow, short training")
    for place, values in enumerate(ours):
        axes.plot([place] * len(values), values, "o", color="#0072B2", markersize=4)
    marks = [(place, mark) for place, kind in enumerate(kinds) if (mark := PUBLISHED.get(kind, (None,))[0]) is not None]
    axes.plot(*zip(*marks, strict=True), "D", color="#E69F00", label="published, AC3", linestyle="") if marks else None
    axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    axes.set_ylabel("VOI (bits)")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
