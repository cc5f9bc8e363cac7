"""Measure everything that needs a GPU in one run of limited time, and train for what is left of it.

    python benchmarks/gpu.py prepare ac4.h5 DATA.h5
    python benchmarks/gpu.py run DATA.h5 --out RESULTS [--seconds 570]

`run` needs no network and nothing but this folder, DATA.h5 and the installed packages. Every stage is a process of its
own: one that fails or takes too long costs none of the others, and its error is the stage's result. RESULTS/gpu.json is
written after each stage. On a CPU, `--small` runs all of it at sizes that say nothing about speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import provenance, write_json

from distill.core.errors import DistillError

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 55 * 2**20  # bytes of code and data together
CROP = ((0, 80), (0, 512), (512, 1024))  # of ac4.h5: sections, rows, columns
PACKAGES = ("torch", "numpy", "scipy", "cc3d", "h5py", "tensorstore", "lightning_fabric", "numba", "pydantic")
OPTIONAL = ("waterz", "pytest")  # one stage each needs them
_SPARE = 5  # seconds, for the start and the end of a process
# name: most seconds, on a GPU. The last one takes what is left.
STAGES = {
    **{"machine": 40, "suite": 60, "stream": 60, "compiled": 80, "decoder": 45, "teacher": 45, "largest": 60},
    "steps": 60,
}
LAST = "train"
LEAST_TRAINING = 60  # seconds; with less left there is no training


@dataclass(frozen=True)
class Setup:
    """What every stage is given.

    Attributes:
        data: volume with image and labels, see `prepare`.
        out: folder of the results.
        device: `cuda` or `cpu`.
        small: sizes for a test of the script.
    """

    data: Path
    out: Path
    device: str
    small: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, run, or run one stage."""
    argv = sys.argv[1:] if argv is None else argv
    asked = _parser().parse_args(argv)
    try:
        if asked.command == "prepare":
            prepare(asked.source, asked.target)
            return 0
        if missing := _missing(PACKAGES):
            raise DistillError(
                f"{sys.executable}: found no {', '.join(missing)}, expected the packages of pyproject.toml"
            )
        setup = Setup(asked.data.resolve(), asked.out.resolve(), _device(asked.device), asked.small)
        if not setup.data.is_file():
            raise DistillError(
                f"{asked.data}: no such file, expected that of: python benchmarks/gpu.py prepare ac4.h5 {asked.data}"
            )
        if asked.command == "stage":
            write_json(stage_path(setup, asked.name), measured(asked.name, setup, asked.seconds))
            return 0
        found = run(setup, asked.seconds, argv, apart=not asked.together)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    return int(any("error" in stage for stage in found["stages"].values()))


def prepare(source: Path, target: Path) -> None:
    """Write the crop of AC4 that all stages use, and check that code and data together stay below 55 MiB.

    Raises:
        DistillError: the source is not AC4, the target exists, or the limit is exceeded.
    """
    from distill.core.geometry import Box
    from distill.io.volume import LABELS_DATASET, RAW_DATASET, open_grey, open_labels
    from distill.io.writers.cremi import write_cremi

    if target.exists():
        raise DistillError(f"{target}: exists already, expected a new path")
    raw, labels = open_grey(f"{source}:{RAW_DATASET}"), open_labels(f"{source}:{LABELS_DATASET}")
    box = Box(*(tuple(ends[at] for ends in CROP) for at in (0, 1)))  # type: ignore[arg-type]
    if any(stop > size for stop, size in zip(box.stop, raw.size, strict=True)):
        raise DistillError(f"{source}: found {raw.size} voxels, expected AC4 with at least {box.stop}")
    write_cremi(target, raw=raw.read(box), labels=labels.read(box), resolution=raw.resolution)
    data, code = target.stat().st_size, code_bytes()
    print(f"{target}: {data / 2**20:.1f} MiB, code {code / 2**20:.1f} MiB, together at most {LARGEST / 2**20:.0f}")
    if data + code > LARGEST:
        target.unlink()
        raise DistillError(f"{target}: code and data take {data + code:,} bytes, expected at most {LARGEST:,}")


def code_bytes() -> int:
    """Return the size of all files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return sum((ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file())


def run(setup: Setup, seconds: float, argv: Sequence[str], *, apart: bool) -> dict[str, Any]:
    """Run all stages within a time.

    Args:
        setup: see `Setup`.
        seconds: of the whole run.
        argv: of the command, for the record.
        apart: run each stage in a process of its own.

    Returns:
        What gpu.json holds.
    """
    began = time.monotonic()
    missing = _missing(OPTIONAL)
    found: dict[str, Any] = {
        **provenance("gpu.py", list(argv)),
        "device": setup.device,
        "small": setup.small,
        "seconds_allowed": seconds,
        "missing_packages": missing,
        "stages": {},
    }
    for name in (*STAGES, LAST):
        left = seconds - (time.monotonic() - began)
        limit = left - _SPARE if name == LAST else min(STAGES[name], left - _SPARE)
        print(f"== {name}: at most {limit:.0f} of {left:.0f} s left", flush=True)
        if limit < (LEAST_TRAINING if name == LAST and not setup.small else 1):
            stage: dict[str, Any] = {"error": f"{left:.0f} s were left"}
        else:
            stage = in_process(name, setup, limit) if apart else measured(name, setup, limit)
        found["stages"][name] = stage
        found["seconds"] = time.monotonic() - began
        write_json(setup.out / "gpu.json", found)
        print(f"   {name}: {stage.get('error') or 'done'} ({found['seconds']:.0f} s so far)", flush=True)
    return found


def in_process(name: str, setup: Setup, seconds: float) -> dict[str, Any]:
    """Run a stage in a process of its own, which is ended after its time."""
    path = stage_path(setup, name)
    path.unlink(missing_ok=True)
    words = ["stage", name, str(setup.data), "--out", str(setup.out), "--device", setup.device]
    words += ["--seconds", str(seconds), *(["--small"] if setup.small else [])]
    began = time.monotonic()
    try:
        done = subprocess.run([sys.executable, __file__, *words], cwd=ROOT, timeout=seconds + _SPARE, check=False)
        error = f"ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"not done after {seconds:.0f} s"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        return found
    return {"error": error, "seconds": time.monotonic() - began}


def measured(name: str, setup: Setup, seconds: float) -> dict[str, Any]:
    """Run a stage in this process, and return its result or its error."""
    import gpu_stages

    began = time.monotonic()
    try:
        found: dict[str, Any] = {"result": _plain(gpu_stages.STAGES[name](setup, seconds))}
    except Exception as error:  # noqa: BLE001 - the result of the stage; the other stages run all the same
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return {**found, "seconds": time.monotonic() - began}


def _plain(value: Any) -> Any:
    """Replace numbers that JSON does not have by None."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stage_path(setup: Setup, name: str) -> Path:
    """Return where a stage in a process of its own leaves its result."""
    return setup.out / f"stage_{name}.json"


def _missing(names: Sequence[str]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def _device(name: str) -> str:
    from distill.models.load import pick_device

    return str(pick_device(name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="write the crop of AC4 that `run` takes")
    one.add_argument("source", type=Path, metavar="ac4.h5")
    one.add_argument("target", type=Path, metavar="DATA.h5")
    for name in ("run", "stage"):
        one = commands.add_parser(name, help="all stages" if name == "run" else "one of them")
        if name == "stage":
            one.add_argument("name", choices=[*STAGES, LAST])
        one.add_argument("data", type=Path, metavar="DATA.h5")
        one.add_argument("--out", type=Path, required=True, metavar="RESULTS")
        one.add_argument("--seconds", type=float, default=570.0)
        one.add_argument("--device", default="auto")
        one.add_argument("--small", action="store_true", help="sizes for a test of the script on a CPU")
        if name == "run":
            one.add_argument("--together", action="store_true", help="run all stages in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
