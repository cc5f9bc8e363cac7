"""Describe the machine and measure its peak performance."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import now

SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product shows the peak
COPY_BYTES = 2**28  # far beyond any cache
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
_REPEAT = 5


@dataclass(frozen=True)
class Peak:
    """The most that a device did in this run.

    Attributes:
        per_second: operations, a multiply-add counts as two.
        by: what reached them.
    """

    per_second: float
    by: str


def peak_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> Peak:
    """Measure the best rate of a large matrix product and of 3x3 convolutions in both memory formats.

    In float32 a GPU may round the factors of convolutions to TF32, as torch's default is: then that is the peak.
    """
    side = side or SIDE[device.type]
    images, channels, size = 16 if device.type == "cpu" else 64, 64, max(8, side // 16)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    image = torch.randn(images, channels, size, size, device=device, dtype=dtype)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    last = image.contiguous(memory_format=torch.channels_last)
    kernel_last = kernel.contiguous(memory_format=torch.channels_last)
    convolved = 2 * image.numel() * channels * 9
    with torch.inference_mode():
        rates = [
            Peak(2 * side**3 / _least(lambda: matrix @ matrix, device), f"matrix product, side {side}"),
            Peak(convolved / _least(lambda: F.conv2d(image, kernel, padding=1), device), "conv2d 3x3, 64 channels"),
            Peak(
                convolved / _least(lambda: F.conv2d(last, kernel_last, padding=1), device),
                "conv2d 3x3, 64 channels, channels last",
            ),
        ]
    return max(rates, key=lambda rate: rate.per_second)


def copy_rate(device: torch.device, size: int | None = None) -> float:
    """Measure the best copy rate of a large array of `size` bytes, in bytes per second read and written together."""
    size = size or COPY_BYTES
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _least(lambda: target.copy_(source), device)


def machine(device: torch.device) -> dict[str, Any]:
    """Return hardware names, versions and threads."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }


def _least(run: Callable[[], object], device: torch.device) -> float:
    run()
    seconds = []
    for _ in range(_REPEAT):
        began = now(device)
        run()
        seconds.append(now(device) - began)
    return min(seconds)


def _cpu_name() -> str:
    try:
        found = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = []
    return found[0] if found else platform.processor() or platform.machine()
