"""Stages of `benchmarks/gpu.py`. Each returns what is written to JSON; nothing is measured on import.

Times are of the host's clock after the device has finished. A roofline has two bounds: operations over the best rate of
a matrix product or convolution, and bytes over the best rate of a copy; bytes are what every operation reads and writes
when each runs by itself, so fused kernels may exceed the second.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu_inputs import (
    ROOT,
    Grey,
    device_memory,
    new_peak,
    pair_of,
    read_crop,
    read_sections,
    time_runs,
    usable_precisions,
    whole_bytes,
)
from gpu_limits import largest_stage
from gpu_training import steps_stage, train_stage
from hardware import DTYPES, copy_rate, machine, peak_rate
from measure import now
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from distill.config import StudentNetwork
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Triple
from distill.inference.assembly import Slab
from distill.inference.decode import by_method, decode_slab
from distill.inference.options import Runtime
from distill.models.build import build_student, build_teacher
from distill.models.load import load_student, load_teacher
from students.streaming.runner import SectionRunner
from students.student import Student
from teachers.sliding_window import run_teacher, sliding_windows

if TYPE_CHECKING:
    from gpu import Setup

WATERZ = 0.5  # score, the published threshold


def machine_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Measure the peaks that other stages are compared with."""
    device = torch.device(setup.device)
    free, whole = device_memory(device)
    side = 128 if setup.small else None
    return {
        **machine(device),
        "memory_bytes": whole,
        "free_bytes": free,
        "precisions": {name: vars(peak_rate(device, DTYPES[name], side)) for name in usable_precisions(device, setup)},
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
    return _streamed(setup, seconds, sides, "eager", usable_precisions(torch.device(setup.device), setup)[::-1])


def compiled_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Run students as `stream_stage` does, with the backend that `auto` takes, which compiles on a GPU."""
    device = torch.device(setup.device)
    return _streamed(
        setup,
        seconds,
        (64 if setup.small else 2048,),
        "eager" if setup.small else "auto",
        usable_precisions(device, setup)[-1:],
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
                found = _throughput(student, device, precision, backend, read_sections(setup, side))
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
    raw = read_crop(setup, (depth, side, side))
    precision = usable_precisions(device, setup)[-1]
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
    peak = new_peak(device)
    found["query"] = time_runs(lambda: decode_slab(trained, slab, runtime), device, repeat, voxels)
    found["query"]["peak_bytes"] = whole_bytes(peak.lap())
    plain = by_method(trained, "flood")
    found["flood"] = time_runs(lambda: decode_slab(plain, slab, runtime), device, repeat, voxels)
    try:
        from distill.segmentation.agglomeration import waterz

        found["waterz"] = time_runs(lambda: waterz(affinity, [WATERZ]), torch.device("cpu"), repeat, voxels)
    except Exception as error:  # noqa: BLE001 - an optional package; what else there is, is kept
        found["waterz"] = {"error": str(error)}
    if "seconds" in found["waterz"]:
        found["waterz_over_query"] = min(found["waterz"]["seconds"]) / min(found["query"]["seconds"])
    return found


def teacher_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Run teachers over a volume by sliding windows."""
    device, end, rows = torch.device(setup.device), time.monotonic() + seconds, []
    small = load_teacher("ac4", device)
    pair = pair_of(setup, "ac4_gpu")
    published = build_teacher(pair.teacher).eval().requires_grad_(False).to(device)
    shape: Triple = (4, 64, 64) if setup.small else (32, 512, 512)
    raw = read_crop(setup, shape).astype(np.float32) / np.float32(255)
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
        for precision in reversed(usable_precisions(device, setup)):
            peak = new_peak(device)
            timed = time_runs(
                lambda t=teacher, w=windows, p=precision: run_teacher(t, raw, w, device=device, precision=p),  # type: ignore[misc]
                device,
                1,
                raw.size,
            )
            about = {"teacher": name, "precision": precision, "window": list(block), "windows": len(windows)}
            rows.append({**about, **timed, "peak_bytes": whole_bytes(peak.lap())})
    return {"shape": list(shape), "rows": rows}


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
    section = read_sections(setup, 64 if setup.small else 1024)[:1]
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
