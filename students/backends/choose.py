"""Select the runtime of a student."""

from __future__ import annotations

import functools
import importlib.util
import shutil

import torch

from distill.core.errors import DistillError
from distill.core.hardware import AUTO, FULL, INT8, Precision, check_precision, has_bfloat16, resolved
from students.backends.base import Backend
from students.backends.functions import ExtraOutputs
from students.backends.int8 import Calibration
from students.backends.torch import TorchBackend
from students.deferred import DeferredStudent, network_of
from students.slab_adapter import SlabAdapter
from students.student import Student

BACKENDS = ("auto", "eager", "compile", "openvino", "onnxruntime")


def make_backend(
    name: str,
    student: Student | DeferredStudent,
    slab: SlabAdapter | None,
    wanted: ExtraOutputs,
    *,
    device: torch.device,
    precision: str,
    calibration: Calibration | None = None,
) -> Backend:
    """Build the backend of a student.

    Args:
        name: one of `BACKENDS`, see `settled`.
        student: in evaluation mode.
        slab: its adapter, if features are needed.
        wanted: outputs in addition to the affinities.
        device: computing device.
        precision: see `distill.core.hardware`.
        calibration: sections from which `int8` takes its ranges.

    Raises:
        DistillError: the name or precision is unknown, a package is missing, the combination is not supported, or
            `int8` has no sections or differs too much from float32.
    """
    name, precision = settled(name, precision, device)
    if name in ("eager", "compile"):
        return TorchBackend(
            network_of(student), slab, wanted, device=device, precision=precision, compiled=name == "compile"
        )
    if device.type != "cpu":
        raise DistillError(f"--backend: found {name!r} with --device {device.type}, expected eager or compile there")
    if name == "onnxruntime":
        from students.backends.onnx import OnnxBackend

        return OnnxBackend(network_of(student), slab, wanted, precision=precision)
    from students.backends.openvino import OpenVINOBackend

    if precision != INT8:
        calibration = None
    elif calibration is None:
        raise DistillError(
            "--precision int8: found no sections to take ranges from, expected `distill stream` or `distill segment` "
            "of a source, or `distill export --sample SOURCE`"
        )
    return OpenVINOBackend(student, slab, wanted, precision=precision, calibration=calibration)


def settled(name: str, precision: str, device: torch.device) -> tuple[str, Precision]:
    """Resolve `auto` in backend and precision.

    Args:
        name: one of `BACKENDS`. `auto` is the fastest in measurements: on a CPU OpenVINO if it is installed, otherwise
            eager; on a GPU torch.compile if its tools are available, otherwise eager. A precision not supported by the
            CPU uses eager, because OpenVINO would compute in float32.
        precision: see `distill.core.hardware`; `auto` is float32 with ONNX Runtime, which supports no other.
        device: computing device.

    Raises:
        DistillError: unknown backend or precision.
    """
    if name not in BACKENDS:
        raise DistillError(f"--backend: found {name!r}, expected {', '.join(BACKENDS)}")
    only = FULL if name == "onnxruntime" and check_precision(precision) == AUTO else precision
    chosen = resolved(only, device)
    if chosen == INT8:
        return _of_int8(name, device), chosen
    return (_fastest(device, chosen) if name == "auto" else name), chosen


def _of_int8(name: str, device: torch.device) -> str:
    if name not in ("auto", "openvino"):
        raise DistillError(
            f"--precision: found {INT8} with backend {name}, expected the backend openvino (distill stream, segment or "
            f"export), or {FULL}"
        )
    if device.type != "cpu":
        raise DistillError(f"--precision: found {INT8} with --device {device.type}, expected --device cpu")
    return "openvino"


def _fastest(device: torch.device, precision: Precision) -> str:
    if device.type == "cpu":
        suits = importlib.util.find_spec("openvino") and (precision == FULL or has_bfloat16(device))
        return "openvino" if suits else "eager"
    tools = importlib.util.find_spec("triton") and any(map(shutil.which, ("cc", "gcc", "clang")))
    return "compile" if tools and compiles(device) else "eager"


@functools.lru_cache(maxsize=8)
def compiles(device: torch.device) -> bool:
    """Return whether a small kernel can be compiled and run; tried once per process.

    The tools may be present and fail, for want of Python's headers for example.
    """
    try:
        found = torch.compile(_small, dynamic=False)(torch.zeros(8, device=device))
        return bool((found == 1).all())
    except Exception:  # noqa: BLE001 - compilers fail in any way
        return False


def _small(x: torch.Tensor) -> torch.Tensor:
    return x.cos() + x
