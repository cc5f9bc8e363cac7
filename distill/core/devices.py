"""Copy small tables from the host to a device without waiting for what the device computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: Tensor | NDArray[Any] | Sequence[Any], device: torch.device) -> Tensor:
    """Copy values to a device; to a GPU through pinned memory, because any other copy waits for all queued kernels.

    Args:
        values: on the host; a tensor or an array may be shared with the result if that is on the host too.
        device: of the result.

    Returns:
        A tensor of the same type and shape.
    """
    here = torch.as_tensor(values)
    if device.type != "cuda" or here.device.type != "cpu":
        return here.to(device)
    pinned = torch.empty(here.shape, dtype=here.dtype, pin_memory=True)
    pinned.copy_(here)
    return pinned.to(device, non_blocking=True)
