"""Transfer sections to the device and results back; on a GPU through pinned memory, concurrently with the computation.

Legend: N sections, H W = y x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.devices import to_device
from distill.core.normalisation import Correction


class Transfer:
    """Copies to and from the device. On a GPU, each direction has its own stream, so neither waits for a kernel of a
    later
    step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._gpu = device.type == "cuda"
        if self._gpu:
            self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def sections(self, sections: NDArray[Any], corrections: Sequence[Correction]) -> Tensor:
        """Normalise sections (N, H, W) to (N, 1, H, W) float32 in [0, 1] on the device.

        On a GPU, uint8 sections are copied unchanged and normalised there if one correction holds for all pixels.
        """
        there = self._gpu and sections.dtype == np.uint8 and not any(one.tile for one in corrections)
        if not there:
            given = np.stack([one.apply(section) for one, section in zip(corrections, sections, strict=True)])
            return (self._up_to_device(given) if self._gpu else torch.from_numpy(given))[:, None]
        grey = self._up_to_device(sections).float()[:, None]
        numbers = [(one.middle.item(), one.width.item(), one.target) for one in corrections]
        middle, width, target = to_device(numbers, self._device).T.view(3, -1, 1, 1, 1)
        normalised: Tensor = ((grey - middle) / width + target).clamp_(0, 1)
        return normalised

    def _up_to_device(self, given: NDArray[Any]) -> Tensor:
        pinned = torch.empty(given.shape, dtype=torch.from_numpy(given[:0]).dtype, pin_memory=True)
        pinned.numpy()[...] = given
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            there = pinned.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        there.record_stream(computing)
        return there

    def host(self, result: Tensor) -> NDArray[Any]:
        """Copy a result to host memory; from a GPU, it is available after `wait`."""
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
