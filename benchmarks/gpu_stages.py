"""Stages of `benchmarks/gpu.py`. Each returns what is written to JSON; nothing is measured on import.

Times are of the host's clock after the device has finished. A roofline has two bounds: operations over the best rate of
a matrix product or convolution, and bytes over the best rate of a copy; bytes are what every operation reads and writes
when each runs by itself, so fused kernels may exceed the second.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hardware import DTYPES, copy_rate, machine, peak_rate
from measure import DevicePeak, HostPeak, now
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from distill.config import Pair, StudentNetwork, load_pair
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box, Triple
from distill.core.hardware import FULL, has_bfloat16
from distill.core.memory import free_memory
from distill.inference.assembly import Slab
from distill.inference.decode import by_method, decode_slab
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models.build import build_student, build_teacher
from distill.models.load import load_student, load_teacher
from students.streaming.runner import SectionRunner
from students.student import Student
from teachers.sliding_window import run_teacher, sliding_windows

if TYPE_CHECKING:
    from gpu import Setup

ROOT = Path(__file__).resolve().parents[1]
RAW, LABELS = "volumes/raw", "volumes/labels/neuron_ids"
KEPT = 16_000_000  # bytes, the largest file that is kept of a training
WATERZ = 0.5  # score, the published threshold
SHARE = 0.9  # of the memory that is free, to be taken by the largest size
Grey = NDArray[np.uint8]
SMALL_PAIR = (
    *("teacher.filters=[8,8,8,8,8]", "teacher.fused=8", "teacher.branch_width=4", "teacher.branch_depth=1"),
    *("teacher.embedding=4", "teacher.decoder.width=8", "teacher.decoder.depth=1", "teacher.decoder.learned=4"),
    *("teacher.decoder.block=[4,48,48]", "teacher.decoder.overlap=[1,12,12]", "teacher.queries.start=0"),
    *("student.width=4", "student.embedding=4", "student.training.crop=[3,32,32]", "student.training.batch=1"),
    *("student.training.warmup=0", "student.training.workers=0", "student.training.log_every=1"),
)


def machine_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Measure the peaks that other stages are compared with."""
    device = torch.device(setup.device)
    free, whole = _memory(device)
    side = 128 if setup.small else None
    return {
        **machine(device),
        "memory_bytes": whole,
        "free_bytes": free,
        "precisions": {name: vars(peak_rate(device, DTYPES[name], side)) for name in _precisions(device, setup)},
        "copy_bytes_per_second": copy_rate(device, 2**20 if setup.small else None),
        "link_bytes_per_second": _link_rates(device, 2**20 if setup.small else 2**28),
    }


def suite_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Run the tests that need a GPU."""
    page = setup.out / "suite.xml"
    marked = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    if setup.small:
        marked = [file for file in marked if file.name == "test_flooding.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, marked),
        "-m",
        "gpu",
        f"--junitxml={page}",
        "-p",
        "no:cacheprovider",
    ]
    subprocess.run(command, cwd=ROOT, timeout=seconds, check=False)
    (suite,) = ElementTree.parse(page).getroot().iter("testsuite")
    page.unlink()
    bad = [
        f"{one.get('classname')}.{one.get('name')}"
        for one in suite.iter("testcase")
        if one.find("failure") is not None or one.find("error") is not None
    ]
    return {**{key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}, "bad": bad}


def stream_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Run students on sections, from host memory to host memory, operation by operation."""
    sides = (64,) if setup.small else (1024, 2048, 4096)
    return _streamed(setup, seconds, sides, "eager", _precisions(torch.device(setup.device), setup)[::-1])


def compiled_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Run students as `stream_stage` does, with the backend that `auto` takes, which compiles on a GPU."""
    device = torch.device(setup.device)
    return _streamed(
        setup,
        seconds,
        (64 if setup.small else 2048,),
        "eager" if setup.small else "auto",
        _precisions(device, setup)[-1:],
    )


def _streamed(
    setup: Setup, seconds: float, sides: Sequence[int], backend: str, precisions: Sequence[str]
) -> dict[str, Any]:
    device, end = torch.device(setup.device), time.monotonic() + seconds
    students = {"ac4": load_student("ac4", device).student}
    if not setup.small:
        published = build_student(StudentNetwork(kind="cad", width=16, embedding=16)).eval().requires_grad_(False)
        students["cad, random weights"] = published.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copied, rows = copy_rate(device, 2**20 if setup.small else None), []
    for precision in precisions:
        peak = peak_rate(device, DTYPES[precision], 128 if setup.small else None).per_second
        for name, student in students.items():
            cost = _cost(student, device, precision, setup)
            bounds = {
                "operations_per_voxel": cost[0],
                "bytes_per_voxel_unfused": cost[1],
                "bound_by_operations": peak / cost[0] / 1e6,
                "bound_by_bytes": copied / cost[1] / 1e6,
            }
            for side in sides:
                row = {"student": name, "precision": precision, "side": side}
                if time.monotonic() > end - 10 and rows:
                    rows.append({**row, "error": "no time was left"})
                    continue
                found = _throughput(student, device, precision, backend, _sections(setup, side))
                best = found["mvoxel_per_second"]
                rows.append({**row, **found, **bounds, "of_bound_by_operations": best / bounds["bound_by_operations"]})
                print(
                    f"{name}, {precision}, {side} x {side}, {found['backend']}: {best:.1f} Mvoxel/s, copies "
                    f"{100 * found['share_of_copies']:.0f} % of the time when stages wait for each other",
                    flush=True,
                )
    return {"unit": "Mvoxel/s from uint8 sections to uint8 affinities, both in host memory", "rows": rows}


def decoder_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Compare the query decoder and flooding with waterz on the same affinities."""
    device = torch.device(setup.device)
    trained = load_student("ac4", device)
    side, depth = (64, 3) if setup.small else (512, trained.decoding.block[0])
    if setup.small:
        block = (depth, 48, 48)
        trained = replace(trained, decoding=trained.decoding.model_copy(update={"block": block, "overlap": (1, 8, 8)}))
    raw = _crop(setup, (depth, side, side))
    precision = _precisions(device, setup)[-1]
    runner = SectionRunner(
        trained.student,
        trained.slab,
        device=device,
        precision=precision,
        backend="eager",
        normaliser=trained.normaliser,
    )
    slab = Slab(0, [output for n in range(0, depth, runner.batch) for output in runner.push(raw[n : n + runner.batch])])
    affinity, repeat = from_uint8(slab.stored()), 1 if setup.small else 3
    runtime, voxels = Runtime(device, precision, "eager"), raw.size
    found: dict[str, Any] = {"shape": list(raw.shape), "precision": precision}
    peak = _peak(device)
    found["query"] = _timed(lambda: decode_slab(trained, slab, runtime), device, repeat, voxels)
    found["query"]["peak_bytes"] = _whole(peak.lap())
    plain = by_method(trained, "flood")
    found["flood"] = _timed(lambda: decode_slab(plain, slab, runtime), device, repeat, voxels)
    try:
        from distill.segmentation.agglomeration import waterz

        found["waterz"] = _timed(lambda: waterz(affinity, [WATERZ]), torch.device("cpu"), repeat, voxels)
    except Exception as error:  # noqa: BLE001 - an optional package; what else there is, is kept
        found["waterz"] = {"error": str(error)}
    if "seconds" in found["waterz"]:
        found["waterz_over_query"] = min(found["waterz"]["seconds"]) / min(found["query"]["seconds"])
    return found


def teacher_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Run teachers over a volume by sliding windows."""
    device, end, rows = torch.device(setup.device), time.monotonic() + seconds, []
    small = load_teacher("ac4", device)
    pair = _pair(setup, "ac4_gpu")
    published = build_teacher(pair.teacher).eval().requires_grad_(False).to(device)
    shape: Triple = (4, 64, 64) if setup.small else (32, 512, 512)
    raw = _crop(setup, shape).astype(np.float32) / np.float32(255)
    for name, teacher, block in (
        ("ac4", small.teacher, small.config.decoder.block),
        (f"{pair.teacher.kind} of configs/ac4_gpu, random weights", published, pair.teacher.decoder.block),
    ):
        if time.monotonic() > end - 5 and rows:
            rows.append({"teacher": name, "error": "no time was left"})
            continue
        if setup.small:
            block = (4, 48, 48)
        overlap = (1, block[1] // 8, block[2] // 8)
        windows = sliding_windows(shape, block, overlap)
        for precision in reversed(_precisions(device, setup)):
            peak = _peak(device)
            timed = _timed(
                lambda t=teacher, w=windows, p=precision: run_teacher(t, raw, w, device=device, precision=p),  # type: ignore[misc]
                device,
                1,
                raw.size,
            )
            about = {"teacher": name, "precision": precision, "window": list(block), "windows": len(windows)}
            rows.append({**about, **timed, "peak_bytes": _whole(peak.lap())})
    return {"shape": list(shape), "rows": rows}


def largest_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Find the largest section of a student, block of the query decoder and window of a teacher in the free memory."""
    device, began = torch.device(setup.device), time.monotonic()
    precision = _precisions(device, setup)[-1]
    trained, pair = load_student("ac4", device), _pair(setup, "ac4_gpu")
    published = build_teacher(pair.teacher).eval().requires_grad_(False).to(device)
    sides = (64, 96, 128) if setup.small else tuple(1024 * n for n in (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32))
    windows = (48, 64) if setup.small else tuple(64 * n for n in (3, 4, 6, 8, 10, 12, 16, 20, 24, 32))
    blocks = (48, 64) if setup.small else (272, 512, 1024, 1536, 2048, 3072, 4096)
    depth, layers = (4, 3) if setup.small else (pair.teacher.decoder.block[0], trained.decoding.block[0])

    def section(side: int) -> None:
        runner = SectionRunner(trained.student, None, device=device, precision=precision, backend="eager", batch=1)
        for _ in range(2):  # the second is paired with the first
            runner.push(np.zeros((1, side, side), np.uint8))

    def block(side: int) -> None:
        runner = SectionRunner(
            trained.student,
            trained.slab,
            device=device,
            precision=precision,
            backend="eager",
            normaliser=trained.normaliser,
        )
        sections = _sections(setup, side, layers)
        slab = Slab(
            0, [one for n in range(0, layers, runner.batch) for one in runner.push(sections[n:][: runner.batch])]
        )
        whole = trained.decoding.model_copy(update={"block": (layers, side, side), "overlap": (1, 2, 2)})
        decode_slab(replace(trained, decoding=whole), slab, Runtime(device, precision, "eager"))

    def window(side: int) -> None:
        box = Box.of_shape((depth, side, side))
        run_teacher(published, np.zeros(box.shape, np.float32), [box], device=device, precision=precision)

    found: dict[str, Any] = {"student_section": largest(section, sides, device, end=began + seconds / 3)}
    found["decoder_block"] = {"depth": layers, **largest(block, blocks, device, end=began + 2 * seconds / 3)}
    found["teacher_window"] = {"depth": depth, **largest(window, windows, device, end=began + seconds)}
    return found


def largest(
    run: Callable[[int], None],
    sides: Sequence[int],
    device: torch.device,
    *,
    end: float,
    free: int | None = None,
) -> dict[str, Any]:
    """Find the largest side that fits: predicted from the memory of the smallest one, and smaller ones if it does not.

    Args:
        run: computes a square of this side.
        sides: ascending.
        device: whose memory is used.
        end: time (`time.monotonic`) after which no other side is tried.
        free: bytes, in place of what the device reports.

    Returns:
        `predicted` and `largest` side, `tried` with bytes or the reason, `free_bytes`.
    """
    peak = _peak(device)
    run(sides[0])
    needed = peak.lap()
    free = _memory(device)[0] if free is None else free
    each = max(1.0, needed) / sides[0] ** 2
    fitting = [side for side in sides if free is None or np.isnan(each) or side**2 * each <= SHARE * free]
    predicted = (fitting or [sides[0]])[-1]
    tried: list[dict[str, Any]] = [{"side": sides[0], "bytes": _whole(needed)}]
    best = sides[0]
    smaller = [side for side in reversed(sides[1:]) if side <= predicted]
    for side, following in zip(smaller, [*smaller[1:], sides[0]], strict=True):
        if time.monotonic() > end:
            print(f"side {side}: no time was left", flush=True)
            break
        peak = _peak(device)
        try:
            run(side)
        except RuntimeError as error:  # also of libraries that cannot address as much
            why = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error).splitlines()[0]
            print(f"side {side}: {why} on {device}; {following} is tried", flush=True)
            tried.append({"side": side, "error": str(error).splitlines()[0]})
            _give_back(device)
            continue
        tried.append({"side": side, "bytes": _whole(peak.lap())})
        best = side
        break
    _give_back(device)
    return {"predicted": predicted, "largest": best, "free_bytes": free, "tried": tried}


def steps_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Time training steps of teacher and student together, and of the student alone."""
    import training_step

    found: dict[str, Any] = {}
    for name in ("ac4_gpu", "ac4_student"):
        teacher, student = (ROOT / "configs" / name / f"{part}.yaml" for part in ("teacher", "student"))
        counts = ("--steps", "1" if setup.small else "20", "--rounds", "1", "--device", setup.device)
        variants = ("--variants", "student") if setup.small else ("--variants", "student", "student+teacher")
        result = training_step.main([str(teacher), str(student), *_words(setup, name), *counts, *variants])
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
                _pair(setup, "ac4_gpu", words),
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


def _throughput(student: Student, device: torch.device, precision: str, backend: str, sections: Grey) -> dict[str, Any]:
    """Time sections through a student: as a stream runs them, and by stages that wait for each other."""
    runner = SectionRunner(student, None, device=device, precision=precision, backend=backend)
    began = now(device)
    runner.push(sections[: runner.batch])
    build = now(device) - began
    seconds = []
    given = sections[: runner.batch]
    for _ in range(3):
        began = now(device)
        runner.push(given)
        seconds.append(now(device) - began)
    spent: dict[str, float] = {}

    @contextmanager
    def waiting(stage: str) -> Any:
        start = now(device)
        yield
        spent[stage] = spent.get(stage, 0.0) + now(device) - start

    timed: Callable[[str], AbstractContextManager[None]] = waiting
    runner.time_stages(timed)
    runner.push(given)
    return {
        "backend": runner.backend,
        "sections_together": len(given),
        "first_seconds": build,
        "seconds": seconds,
        "mvoxel_per_second": given.size / min(seconds) / 1e6,
        "stages_waiting_seconds": spent,
        "share_of_copies": spent.get("copy", 0.0) / max(sum(spent.values()), 1e-12),
    }


class _Bytes(TorchDispatchMode):
    """Counts what every operation reads and writes; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if not any(one.alias_info is not None and not one.alias_info.is_write for one in function._schema.returns):
            tensors = (*tree_flatten((args, kwargs))[0], *tree_flatten(found)[0])
            self.total += sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor))
        return found


def _cost(student: Student, device: torch.device, precision: str, setup: Setup) -> tuple[float, float]:
    """Count operations and bytes per voxel of a stream, without a fusing backend."""
    section = _sections(setup, 64 if setup.small else 1024)[:1]
    runner = SectionRunner(student, None, device=device, precision=precision, backend="eager", batch=1)
    runner.push(section)
    with FlopCounterMode(display=False) as counter:
        runner.push(section)
    with _Bytes() as moved:
        runner.push(section)
    return counter.get_total_flops() / section.size, moved.total / section.size


def _link_rates(device: torch.device, size: int) -> dict[str, float] | None:
    """Measure copies between pinned memory of the host and the device; None on a CPU."""
    if device.type != "cuda":
        return None
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True, device="cpu")
    there = torch.empty(size, dtype=torch.uint8, device=device)
    rates = {}
    for name, target, source in (("to_device", there, host), ("from_device", host, there)):
        times = []
        for _ in range(4):
            began = now(device)
            target.copy_(source, non_blocking=True)
            times.append(now(device) - began)
        rates[name] = size / min(times)
    return rates


def _timed(run: Callable[[], Any], device: torch.device, repeat: int, voxels: int) -> dict[str, Any]:
    """Run once to warm up, then `repeat` times."""
    began = now(device)
    run()
    first, seconds = now(device) - began, []
    for _ in range(repeat):
        began = now(device)
        run()
        seconds.append(now(device) - began)
    return {"first_seconds": first, "seconds": seconds, "mvoxel_per_second": voxels / min(seconds) / 1e6}


def _precisions(device: torch.device, setup: Setup) -> list[str]:
    """Float32, and then bfloat16 where the device has it."""
    return [name for name in DTYPES if name == FULL or (has_bfloat16(device) and not setup.small)]


def _memory(device: torch.device) -> tuple[int | None, int | None]:
    """Return free and whole memory in bytes; None where it is not known."""
    if device.type != "cuda":
        return free_memory(), None
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    return free, whole


def _peak(device: torch.device) -> DevicePeak | HostPeak:
    return DevicePeak(device) if device.type == "cuda" else HostPeak()


def _whole(value: float) -> int | None:
    return None if np.isnan(value) else int(value)


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _crop(setup: Setup, shape: Triple) -> Grey:
    volume = open_volume(f"{setup.data}:{RAW}")
    return volume.read(Box.of_shape(tuple(min(a, b) for a, b in zip(shape, volume.size, strict=True))))  # type: ignore[arg-type]


def _sections(setup: Setup, side: int, count: int = 8) -> Grey:
    """Sections of a side, mirrored where the data are smaller."""
    raw = _crop(setup, (count, side, side))
    missing = [(0, max(0, n - have)) for n, have in zip((count, side, side), raw.shape, strict=True)]
    return np.pad(raw, missing, mode="symmetric")


def _pair(setup: Setup, name: str, more: Sequence[str] = ()) -> Pair:
    folder = ROOT / "configs" / name
    return load_pair(folder / "teacher.yaml", folder / "student.yaml", [*_words(setup, name), *more])


def _words(setup: Setup, name: str) -> list[str]:
    """Overrides of a configuration: the crop's data, and sizes of a test."""
    depth = open_volume(f"{setup.data}:{RAW}").size[0]
    train = round(0.75 * depth)
    words = [f"student.data.raw={setup.data}:{RAW}", f"student.data.labels={setup.data}:{LABELS}"]
    words += [f"student.data.train=[0,{train}]", f"student.data.validation=[{train},{depth}]"]
    if name == "ac4_student":
        words.append("student.data.test=null")
        small = [one for one in SMALL_PAIR if "branch" not in one and not re.match(r"student\.(width|embedding)", one)]
    else:
        small = list(SMALL_PAIR)
    return words + (small if setup.small else [])


STAGES: dict[str, Callable[[Setup, float], dict[str, Any]]] = {
    "machine": machine_stage,
    "suite": suite_stage,
    "stream": stream_stage,
    "compiled": compiled_stage,
    "decoder": decoder_stage,
    "teacher": teacher_stage,
    "largest": largest_stage,
    "steps": steps_stage,
    "train": train_stage,
}
