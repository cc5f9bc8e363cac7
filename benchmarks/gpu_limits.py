"""Largest inputs that fit into the memory of a device, a stage of `benchmarks/gpu.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu_inputs import device_memory, give_back, new_peak, pair_of, read_sections, usable_precisions, whole_bytes

from distill.core.geometry import Box
from distill.inference.assembly import Slab
from distill.inference.decode import decode_slab
from distill.inference.options import Runtime
from distill.models.build import build_teacher
from distill.models.load import load_student
from students.streaming.runner import SectionRunner
from teachers.sliding_window import run_teacher

if TYPE_CHECKING:
    from gpu import Setup

SHARE = 0.9  # of the memory that is free, to be taken by the largest size


def largest_stage(setup: Setup, seconds: float) -> dict[str, Any]:
    """Find the largest section of a student, block of the query decoder and window of a teacher in the free memory."""
    device, began = torch.device(setup.device), time.monotonic()
    precision = usable_precisions(device, setup)[-1]
    trained, pair = load_student("ac4", device), pair_of(setup, "ac4_gpu")
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
        sections = read_sections(setup, side, layers)
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
    peak = new_peak(device)
    run(sides[0])
    needed = peak.lap()
    free = device_memory(device)[0] if free is None else free
    each = max(1.0, needed) / sides[0] ** 2
    fitting = [side for side in sides if free is None or np.isnan(each) or side**2 * each <= SHARE * free]
    predicted = (fitting or [sides[0]])[-1]
    tried: list[dict[str, Any]] = [{"side": sides[0], "bytes": whole_bytes(needed)}]
    best = sides[0]
    smaller = [side for side in reversed(sides[1:]) if side <= predicted]
    for side, following in zip(smaller, [*smaller[1:], sides[0]], strict=True):
        if time.monotonic() > end:
            print(f"side {side}: no time was left", flush=True)
            break
        peak = new_peak(device)
        try:
            run(side)
        except RuntimeError as error:  # also of libraries that cannot address as much
            why = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error).splitlines()[0]
            print(f"side {side}: {why} on {device}; {following} is tried", flush=True)
            tried.append({"side": side, "error": str(error).splitlines()[0]})
            give_back(device)
            continue
        tried.append({"side": side, "bytes": whole_bytes(peak.lap())})
        best = side
        break
    give_back(device)
    return {"predicted": predicted, "largest": best, "free_bytes": free, "tried": tried}
