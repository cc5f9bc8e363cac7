"""What `distill --version` prints."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distill import __version__
from distill.core.hardware import cpu_precision

_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")  # there only with a GPU's driver


def version_lines() -> list[str]:
    """Return the versions of the program, Python and torch, and the device and precision that `auto` selects.

    Without a driver of a GPU, the processor's flags say it all and torch, which takes seconds to import, is not loaded.
    """
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "is not installed"
    device, precision = _computing()
    return [
        f"distill {__version__}",
        f"Python {platform.python_version()}, torch {torch}",
        f"device {device}",
        f"precision {precision}",
    ]


def _computing() -> tuple[str, str]:
    cpu = f"cpu ({platform.processor() or platform.machine()})"
    precision = None if any(Path(driver).exists() for driver in _DRIVERS) else cpu_precision()
    if precision is not None:
        return cpu, precision
    import torch

    from distill.core.hardware import AUTO, choose
    from distill.models.load import pick_device

    device = pick_device("auto")
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else cpu
    return name, choose(AUTO, device).precision
