"""Sections to the device and results back; on a GPU through pinned memory, beside the computation.

Legend: N sections, H W = y x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.sampling import as_unit_range


class Transfer:
    """Copies; on a GPU each direction has a stream of its own, so that neither waits for a kernel of a later step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gpu = device.type == "cuda"
        if self._gpu:
            self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def sections(self, sections: NDArray[Any]) -> Tensor:
        """Sections (N, H, W) as (N, 1, H, W) float32 in [0, 1] on the device; uint8 is converted there.

        Raises:
            ShapeError: of a type that sections do not have.
        """
        if not self._gpu:
            return grey_values(sections)
        given = sections if sections.dtype == np.uint8 else as_unit_range(sections)
        pinned = torch.empty(given.shape, dtype=torch.from_numpy(given[:0]).dtype, pin_memory=True)
        pinned.numpy()[...] = given
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            there = pinned.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        there.record_stream(computing)
        return (there.float() / 255 if given.dtype == np.uint8 else there)[:, None]

    def host(self, result: Tensor) -> NDArray[Any]:
        """A result in host memory; from a GPU it is there after `wait`."""
        if not self._gpu:
            return np.ascontiguousarray(result.numpy())
        pinned = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            pinned.copy_(result, non_blocking=True)
        result.record_stream(self._down)
        found: NDArray[Any] = pinned.numpy()
        return found

    def wait(self) -> None:
        """Wait until all results are in host memory."""
        if self._gpu:
            self._down.synchronize()


def grey_values(sections: NDArray[Any]) -> Tensor:
    """Sections (N, H, W) as (N, 1, H, W) float32 in [0, 1].

    Raises:
        ShapeError: of a type that sections do not have.
    """
    return torch.from_numpy(np.ascontiguousarray(as_unit_range(sections)))[:, None]
