"""Ways to run the stream's two functions, and which one to take.

Legend: B sections of a step, H W = y x.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.core.errors import DistillError
from distill.core.hardware import AUTO, FULL, MIXED, Precision, check_precision, computing, has_bfloat16, resolved
from students.backends.functions import Decode, Decoded, Encode, Wanted, flat
from students.backends.fuse import fused, keep_entry_exact
from students.slab_adapter import SlabAdapter
from students.student import Samples, Student

BACKENDS = ("auto", "eager", "compile", "openvino", "onnxruntime")

Maps = tuple[Any, ...]  # an encoded section as the backend keeps it


class Backend(Protocol):
    """Runs `Encode` and `Decode` for sections of any size; the same input always gives the same bits."""

    name: str
    batch: int  # most sections that it takes at once

    def encode(self, grey: Tensor) -> Maps:
        """Encode (B, 1, H, W) float32 in [0, 1]; the result lives until the second next call."""

    def decode(
        self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int], samples: Sequence[Samples] = ()
    ) -> Decoded:
        """Decode pairs of sections (or tiles) of this size before padding; see `Decode.forward`."""

    def previous(self, last: Maps | None, current: Maps) -> Maps:
        """Maps of the sections before those of a step: the last one of the step before, then all but its own last."""

    def last(self, current: Maps, place: int) -> Maps:
        """Maps of one section of a step, for `previous` in the next."""


class TorchBackend:
    """Plain torch, or its compiler; batch norms folded, channels last."""

    def __init__(
        self,
        student: Student,
        slab: SlabAdapter | None,
        wanted: Wanted,
        *,
        device: torch.device,
        precision: str,
        compiled: bool,
    ) -> None:
        """Prepare copies of the networks on the device.

        Args:
            student: in evaluation mode; stays as it is.
            slab: its adapter, if features are wanted.
            wanted: results beside the affinities.
            device: where to compute.
            precision: see `distill.core.hardware`.
            compiled: build kernels for every size by torch.compile. Not with CUDA graphs: a step of whole sections
                takes milliseconds, so that launching kernels does not count, and results would be overwritten.
        """
        self.name = "compile" if compiled else "eager"
        self.batch = 8 if device.type == "cuda" else 1
        self._student = fused(student).to(device)
        if precision == MIXED:
            keep_entry_exact(self._student)
        self._student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._slab, self._wanted, self._device, self._compiled = slab, wanted, device, compiled
        self._precision = precision
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
        places = [part.to(self._device) for part in flat(samples)]
        with torch.inference_mode(), self._computing(), _quiet(self._compiled):
            return decode.named(run(linked.to(self._device), *previous, *current, *places))

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
        with torch.inference_mode():  # a copy: a view would keep the whole batch
            return tuple(part[place : place + 1].clone(memory_format=torch.preserve_format) for part in current)


@contextlib.contextmanager
def _quiet(compiled: bool) -> Iterator[None]:
    """Without the warnings that torch's compiler gives about itself where it builds something."""
    if not compiled:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_backend(
    name: str,
    student: Student,
    slab: SlabAdapter | None,
    wanted: Wanted,
    *,
    device: torch.device,
    precision: str,
) -> Backend:
    """The way to run a student.

    Args:
        name: one of `BACKENDS`, see `settled`.
        student: in evaluation mode.
        slab: its adapter, if features are wanted.
        wanted: results beside the affinities.
        device: where to compute.
        precision: see `distill.core.hardware`.

    Raises:
        DistillError: unknown name or precision, a package that is missing, or a combination that does not exist.
    """
    name, precision = settled(name, precision, device)
    if name in ("eager", "compile"):
        return TorchBackend(student, slab, wanted, device=device, precision=precision, compiled=name == "compile")
    if device.type != "cpu":
        raise DistillError(f"--backend: found {name!r} with --device {device.type}, expected eager or compile there")
    if name == "onnxruntime":
        from students.backends.onnx import OnnxBackend

        return OnnxBackend(student, slab, wanted, precision=precision)
    from students.backends.openvino import OpenVINOBackend

    return OpenVINOBackend(student, slab, wanted, precision=precision)


def settled(name: str, precision: str, device: torch.device) -> tuple[str, Precision]:
    """Backend and precision with `auto` replaced.

    Args:
        name: one of `BACKENDS`. `auto` is what was measured fastest: on a CPU OpenVINO where it is installed, else
            eager; on a GPU torch.compile where it finds its tools, else eager. A precision that the CPU lacks is
            eager's: OpenVINO would compute in float32.
        precision: see `distill.core.hardware`; `auto` is float32 with ONNX Runtime, which has no other.
        device: where to compute.

    Raises:
        DistillError: unknown backend or precision.
    """
    if name not in BACKENDS:
        raise DistillError(f"--backend: found {name!r}, expected {', '.join(BACKENDS)}")
    only = FULL if name == "onnxruntime" and check_precision(precision) == AUTO else precision
    chosen = resolved(only, device)
    return (_fastest(device, chosen) if name == "auto" else name), chosen


def _fastest(device: torch.device, precision: Precision) -> str:
    if device.type == "cpu":
        suits = importlib.util.find_spec("openvino") and (precision == FULL or has_bfloat16(device))
        return "openvino" if suits else "eager"
    tools = importlib.util.find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
    return "compile" if tools else "eager"
