"""Training stages of `benchmarks/gpu.py`: time of a step, and a training for the time that is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_inputs import ROOT, overrides, pair_of

if TYPE_CHECKING:
    from gpu import Setup

KEPT = 16_000_000  # bytes, the largest file that is kept of a training


def steps_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Time training steps of teacher and student together, and of the student alone."""
    import training_step

    found: dict[str, Any] = {}
    for name in ("ac4_gpu", "ac4_student"):
        teacher, student = (ROOT / "configs" / name / f"{part}.yaml" for part in ("teacher", "student"))
        counts = ("--steps", "1" if setup.small else "20", "--rounds", "1", "--device", setup.device)
        variants = ("--variants", "student") if setup.small else ("--variants", "student", "student+teacher")
        result = training_step.main([str(teacher), str(student), *overrides(setup, name), *counts, *variants])
        found[name] = result["results"]
    return found


def train_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Train configs/ac4_gpu for the time that is left, and keep what is below 16 MB.

    Args:
        setup: see `Setup`.
        seconds: twenty seconds before they are over, the training receives the signal to stop and saves its state.
    """
    from distill.training.train import Progress, train

    kept = setup.out / "run"
    shutil.rmtree(kept, ignore_errors=True)
    words = ["student.training.validate_every=100000000", "student.training.save_every=200"]
    if setup.small:
        words.append("student.training.steps=1")
    else:
        words.append(f"student.training.minutes={max(0.5, (seconds - 40) / 60):.2f}")
    progress = Progress(
        on_start=lambda done, steps: print(f"{steps} steps", flush=True),
        on_step=lambda report, steps, left: None,
        on_validation=lambda step, judged, seconds: None,
        note=lambda line: print(line, flush=True),
    )
    stop = threading.Timer(max(1.0, seconds - 20), os.kill, (os.getpid(), signal.SIGINT))
    stop.daemon = True
    with tempfile.TemporaryDirectory() as folder:
        run, ended = Path(folder) / "run", "by itself"
        stop.start()
        try:
            train(
                pair_of(setup, "ac4_gpu", words),
                run,
                resume=False,
                device=setup.device,
                progress=progress,
                command=["benchmarks/gpu.py"],
            )
        except KeyboardInterrupt as error:
            ended = str(error) or "interrupted"
        finally:
            stop.cancel()
            files = keep(run, kept)
        rows = _metrics(run / "metrics.jsonl")
    steps = [row for row in rows if "parts" in row]
    each = sum(row["seconds"] for row in steps)
    return {
        "ended": ended,
        "steps": max((row["step"] for row in rows), default=0),
        "seconds_per_step": each / len(steps) if steps else None,
        "waiting_share": sum(row["parts"].get("data", 0.0) for row in steps) / each if each else None,
        "last": rows[-1] if rows else None,
        "files": files,
    }


def keep(run: Path, target: Path) -> list[dict[str, Any]]:
    """Copy a run folder so that no file exceeds 16 MB: larger weights at half precision, other large files in parts.

    Returns:
        Name and size of every file kept. `cat NAME.part-* > NAME` joins parts.
    """
    from distill.models.checkpoint import read_weights, write_tensors
    from distill.training.bundle import half_precision

    for file in sorted(one for one in run.rglob("*") if one.is_file()):
        place = target / file.relative_to(run)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.stat().st_size <= KEPT:
            shutil.copyfile(file, place)
        elif file.suffix == ".safetensors":
            weights = read_weights(file)
            write_tensors(place, weights.kind, half_precision(weights), weights.config, weights.notes)
        else:
            _in_parts(file, place)
    return [
        {"name": str(one.relative_to(target)), "bytes": one.stat().st_size}
        for one in sorted(target.rglob("*"))
        if one.is_file()
    ]


def _in_parts(file: Path, place: Path) -> None:
    with file.open("rb") as given:
        number = 0
        while part := given.read(KEPT):
            place.with_name(f"{place.name}.part-{number:03d}").write_bytes(part)
            number += 1


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
