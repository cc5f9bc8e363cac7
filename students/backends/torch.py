"""The two streaming functions on PyTorch, eager or compiled.

Legend: B sections of a step, H W = y x.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.core.devices import to_device
from distill.core.hardware import MIXED, computing
from students.backends.base import Maps
from students.backends.functions import Decode, Decoded, Encode, ExtraOutputs, flat
from students.backends.fuse import fused, keep_entry_exact
from students.slab_adapter import SlabAdapter
from students.student import Samples, Student

_MOST_SIZES = 64  # of sections and border tiles in one process


class TorchBackend:
    """PyTorch backend, eager or compiled; batch norms folded, channels last."""

    def __init__(
        self,
        student: Student,
        slab: SlabAdapter | None,
        wanted: ExtraOutputs,
        *,
        device: torch.device,
        precision: str,
        compiled: bool,
    ) -> None:
        """Prepare copies of the networks on the device.

        Args:
            student: in evaluation mode; not modified.
            slab: its adapter, if features are needed.
            wanted: outputs in addition to the affinities.
            device: computing device.
            precision: see `distill.core.hardware`.
            compiled: compile kernels for every size with torch.compile. CUDA graphs are not used: a step of whole
                sections takes milliseconds, so that launch overhead is negligible, and results would be overwritten.
        """
        self.name = "compile" if compiled else "eager"
        self.difference: float | None = None
        self.batch = 8 if device.type == "cuda" else 1
        self._student = fused(student).to(device)
        if precision == MIXED:
            keep_entry_exact(self._student)
        self._student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._slab, self._wanted, self._device, self._compiled = slab, wanted, device, compiled
        self._precision = precision
        if compiled:  # the limit counts the sizes of all tiles together; beyond it, torch runs them uncompiled
            dynamo: Any = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_SIZES)
        self._encode: Any = self._built(Encode(self._student))
        self._decode: dict[tuple[tuple[int, int], int], tuple[Decode, Any]] = {}

    def _built(self, module: torch.nn.Module) -> Any:
        if not self._compiled:
            return module
        with _quiet(True):
            return torch.compile(module, dynamic=False)

    def _computing(self) -> torch.autocast:
        return computing(self._device, self._precision)

    def encode(self, grey: Tensor) -> Maps:
        """See `Backend.encode`."""
        with torch.inference_mode(), self._computing(), _quiet(self._compiled):
            maps: Maps = self._encode(grey.to(self._device).contiguous(memory_format=torch.channels_last))
        return maps

    def decode(
        self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int], samples: Sequence[Samples] = ()
    ) -> Decoded:
        """See `Backend.decode`."""
        key = size, len(current)
        if key not in self._decode:
            decode = Decode(self._student, self._slab, size, self._wanted, maps=len(current)).to(self._device)
            self._decode[key] = decode, self._built(decode)
        decode, run = self._decode[key]
        places = [to_device(part, self._device) for part in flat(samples)]
        with torch.inference_mode(), self._computing(), _quiet(self._compiled):
            return decode.named(run(to_device(linked, self._device), *previous, *current, *places))

    def previous(self, last: Maps | None, current: Maps) -> Maps:
        """See `Backend.previous`."""
        before = self.last(current, 0) if last is None else last
        if len(current[0]) == 1:
            return before
        with torch.inference_mode():
            return tuple(torch.cat([one, many[:-1]]) for one, many in zip(before, current, strict=True))

    def last(self, current: Maps, place: int) -> Maps:
        """See `Backend.last`."""
        if len(current[0]) == 1:
            return current
        with torch.inference_mode():  # a copy, because a view would keep the whole batch
            return tuple(part[place : place + 1].clone(memory_format=torch.preserve_format) for part in current)


@contextlib.contextmanager
def _quiet(compiled: bool) -> Iterator[None]:
    """Suppress the warnings that torch's compiler issues about itself."""
    if not compiled:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
