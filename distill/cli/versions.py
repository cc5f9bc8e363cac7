"""What `distill --version` prints."""

from __future__ import annotations

import platform

from distill import __version__


def version_lines() -> list[str]:
    """Versions of the program, Python and torch, and what a command would compute on."""
    import torch

    from distill.core.hardware import AUTO, choose
    from distill.models.load import pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [
        f"distill {__version__}",
        f"Python {platform.python_version()}, torch {torch.__version__}",
        f"device {device} ({name})",
        f"precision {choose(AUTO, device).precision}",
    ]
