"""Data, configurations and memory that the stages of `benchmarks/gpu.py` share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hardware import DTYPES
from measure import DevicePeak, HostPeak, now
from numpy.typing import NDArray

from distill.config import Pair, load_pair
from distill.core.geometry import Box, Triple
from distill.core.hardware import FULL, has_bfloat16
from distill.core.memory import free_memory
from distill.io.volume import LABELS_DATASET, RAW_DATASET, open_volume

if TYPE_CHECKING:
    from gpu import Setup

ROOT = Path(__file__).resolve().parents[1]
Grey = NDArray[np.uint8]
SMALL_PAIR = (
    *("teacher.filters=[8,8,8,8,8]", "teacher.fused=8", "teacher.branch_width=4", "teacher.branch_depth=1"),
    *("teacher.embedding=4", "teacher.decoder.width=8", "teacher.decoder.depth=1", "teacher.decoder.learned=4"),
    *("teacher.decoder.block=[4,48,48]", "teacher.decoder.overlap=[1,12,12]", "teacher.queries.start=0"),
    *("student.width=4", "student.embedding=4", "student.training.crop=[3,32,32]", "student.training.batch=1"),
    *("student.training.warmup=0", "student.training.workers=0", "student.training.log_every=1"),
)


def time_runs(run: Callable[[], Any], device: torch.device, repeat: int, voxels: int) -> dict[str, Any]:
    """Time `repeat` runs after a warm-up."""
    began = now(device)
    run()
    first, seconds = now(device) - began, []
    for _ in range(repeat):
        began = now(device)
        run()
        seconds.append(now(device) - began)
    return {"first_seconds": first, "seconds": seconds, "mvoxel_per_second": voxels / min(seconds) / 1e6}


def usable_precisions(device: torch.device, setup: Setup) -> list[str]:
    """Return float32, then bfloat16 where the device has it."""
    return [name for name in DTYPES if name == FULL or (has_bfloat16(device) and not setup.small)]


def device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Return free and whole memory in bytes; None where it is not known."""
    if device.type != "cuda":
        return free_memory(), None
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info(device)
    return free, whole


def new_peak(device: torch.device) -> DevicePeak | HostPeak:
    """Return a probe of the memory of a device."""
    return DevicePeak(device) if device.type == "cuda" else HostPeak()


def whole_bytes(value: float) -> int | None:
    """Return whole bytes, None for nan."""
    return None if np.isnan(value) else int(value)


def give_back(device: torch.device) -> None:
    """Return cached memory to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def read_crop(setup: Setup, shape: Triple) -> Grey:
    """Read a box of this shape, or what there is of it, from the origin."""
    volume = open_volume(f"{setup.data}:{RAW_DATASET}")
    return volume.read(Box.of_shape(tuple(min(a, b) for a, b in zip(shape, volume.size, strict=True))))  # type: ignore[arg-type]


def read_sections(setup: Setup, side: int, count: int = 8) -> Grey:
    """Read sections of a side, mirrored where the data are smaller."""
    raw = read_crop(setup, (count, side, side))
    missing = [(0, max(0, n - have)) for n, have in zip((count, side, side), raw.shape, strict=True)]
    return np.pad(raw, missing, mode="symmetric")


def pair_of(setup: Setup, name: str, more: Sequence[str] = ()) -> Pair:
    """Load a configuration of `configs/` with the data and sizes of a setup."""
    folder = ROOT / "configs" / name
    return load_pair(folder / "teacher.yaml", folder / "student.yaml", [*overrides(setup, name), *more])


def overrides(setup: Setup, name: str) -> list[str]:
    """Return the overrides of a configuration: data of the setup, and sizes of a test."""
    depth = open_volume(f"{setup.data}:{RAW_DATASET}").size[0]
    train = round(0.75 * depth)
    words = [f"student.data.raw={setup.data}:{RAW_DATASET}", f"student.data.labels={setup.data}:{LABELS_DATASET}"]
    words += [f"student.data.train=[0,{train}]", f"student.data.validation=[{train},{depth}]"]
    if name == "ac4_student":
        words.append("student.data.test=null")
        small = [one for one in SMALL_PAIR if "branch" not in one and not re.match(r"student\.(width|embedding)", one)]
    else:
        small = list(SMALL_PAIR)
    return words + (small if setup.small else [])
