"""Select the precision that a processor or a GPU computes efficiently.

`auto` is bfloat16 (convolutions and matrix products; weights and sums stay in float32) where the hardware supports it,
and float32 elsewhere: a CPU without bfloat16 emulates it, ten to a hundred times slower. No other module names the
type. torch is imported inside functions, so that the command line starts quickly.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from distill.core.errors import DistillError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "32-true", "bf16-mixed", "int8"]
TrainingPrecision = Literal["auto", "32-true", "bf16-mixed"]
ExportPrecision = Literal["32-true", "int8"]
AUTO: Precision = "auto"
FULL: Precision = "32-true"
EXACT: ExportPrecision = "32-true"
MIXED: Precision = "bf16-mixed"
INT8: Precision = "int8"  # of the student on OpenVINO; everything else computes in float32 then
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # oneDNN's names of instruction sets
_WITHOUT = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
_PARTLY = ("AVX2_VNNI_2",)  # converts, but multiplies in float32
_WITHOUT_AMX = "AVX512_CORE_BF16"
_GAIN = 1.2  # required speed-up of a timed convolution over float32
_REPEATS = 3


@dataclass(frozen=True)
class Chosen:
    """A selected precision and the reason for it.

    Attributes:
        precision: `FULL`, `MIXED` or `INT8`.
        reason: `auto`, `as asked for` or `as the run began`.
        device: description of the device.
        warning: cost of the precision on this device; None if there is none.
    """

    precision: Precision
    reason: str
    device: str
    warning: str | None = None

    @property
    def line(self) -> str:
        """Format the choice for the first line of a run."""
        return f"device {self.device}, precision {self.precision} ({self.reason})"

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the first line of a run, and the warning if there is one."""
        return (self.line,) if self.warning is None else (self.line, self.warning)

    def record(self) -> dict[str, str]:
        """Return the choice for run.json."""
        return {"hardware": self.device, "precision": self.precision, "precision_by": self.reason}


def check_precision(name: str, key: str = "--precision") -> Precision:
    """Check the name of a precision.

    Args:
        name: the name given.
        key: name of the option, for the message.

    Raises:
        DistillError: it is none of `PRECISIONS`.
    """
    for known in PRECISIONS:
        if name == known:
            return known
    raise DistillError(f"{key}: found {name!r}, expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")


def choose(precision: str, device: torch.device, *, begun: str | None = None) -> Chosen:
    """Select the precision of a run on a device.

    Args:
        precision: one of `PRECISIONS`.
        device: computing device.
        begun: precision of the run that is being resumed; `auto` keeps it.

    Raises:
        DistillError: an unknown precision.
    """
    asked = check_precision(precision)
    native = has_bfloat16(device)
    where = describe_device(device)
    if asked != AUTO:
        reason = "as asked for"
    elif begun in (FULL, MIXED, INT8):
        asked, reason = check_precision(str(begun)), "as the run began"
    else:
        return Chosen(MIXED if native else FULL, "auto", where)
    return Chosen(asked, reason, where, _cost(device) if asked == MIXED and not native else None)


def resolved(precision: str, device: torch.device) -> Precision:
    """Resolve `auto` to `FULL` or `MIXED`; `INT8` is never chosen by it.

    Raises:
        DistillError: an unknown precision.
    """
    asked = check_precision(precision)
    if asked != AUTO:
        return asked
    return MIXED if has_bfloat16(device) else FULL


def computing(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which torch computes in a precision; weights keep their type.

    Args:
        device: computing device.
        precision: one of `PRECISIONS`.
    """
    import torch

    found = resolved(precision, device)
    keep_float32(device, found)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=found == MIXED)


def keep_float32(device: torch.device, precision: Precision) -> None:
    """Keep a GPU from rounding the factors of float32 convolutions to TF32, which has ten bits, in this process.

    Args:
        device: computing device.
        precision: nothing is changed for `MIXED`, whose factors have eight bits.
    """
    import torch

    if device.type == "cuda" and precision == FULL:
        torch.backends.cudnn.allow_tf32 = False


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 faster than in float32.

    For a CPU, the flags of the processor decide, within the limit that the user sets for oneDNN by its environment
    variable. Where the flags are not sufficient (other architectures), one convolution is timed in both types, once per
    process.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    known = _by_flags(_flags(), _limit())
    if known is not None:
        return known
    convolution, product = slowdown(device)
    return convolution < 1 / _GAIN and product < 1


def describe_device(device: torch.device) -> str:
    """Describe a device, for example `cpu (AVX2, no bfloat16)`."""
    import torch

    able = "bfloat16" if has_bfloat16(device) else "no bfloat16"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}, {able})"
    if device.type != "cpu":
        return str(device)
    name, limit = torch.backends.cpu.get_cpu_capability(), _limit()
    return f"cpu ({name}, {able}{f', oneDNN limited to {limit}' if limit else ''})"


@functools.lru_cache(maxsize=8)
def slowdown(device: torch.device) -> tuple[float, float]:
    """Measure the times of a small convolution and a matrix product in bfloat16 relative to float32, once per
    process.
    """
    import torch

    clock = time.thread_time if device.type == "cpu" else time.perf_counter  # not affected by other processes

    def least(kind: torch.dtype, run: Any) -> float:
        taken = []
        with torch.inference_mode():
            for _ in range(1 + _REPEATS):
                began = clock()
                run(kind)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken.append(clock() - began)
        return min(taken[1:])

    generator = torch.Generator().manual_seed(0)
    maps = (
        torch.rand(1, 32, 64, 64, generator=generator, device="cpu")
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    weight = (
        torch.rand(32, 32, 3, 3, generator=generator, device="cpu")
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    matrix = torch.rand(128, 128, generator=generator, device="cpu").to(device)
    given = {kind: (maps.to(kind), weight.to(kind), matrix.to(kind)) for kind in (torch.float32, torch.bfloat16)}
    runs = (
        lambda kind: torch.conv2d(given[kind][0], given[kind][1], padding=1),
        lambda kind: given[kind][2] @ given[kind][2],
    )
    convolution, product = (least(torch.bfloat16, run) / least(torch.float32, run) for run in runs)
    return convolution, product


def _cost(device: torch.device) -> str:
    convolution, product = slowdown(device)
    return (
        f"warning: precision {MIXED}: this {device.type.upper()} has no bfloat16: measured now, a convolution takes "
        f"{convolution:.3g} times as long as in float32, a matrix product {product:.3g} times; {FULL} is faster"
    )


def avoid_amx() -> bool:
    """Keep oneDNN from using AMX in this process and those that it starts; bfloat16 then runs on AVX-512.

    In bfloat16 on AMX, the weight gradient of a 3D convolution without padding writes outside its memory (oneDNN of
    torch 2.13, channels last or not, rows of 98 voxels or more): training the 3D teacher crashes. Convolutions in 2D,
    with padding, forward or without AMX were not affected in some hundred shapes.

    oneDNN reads the variable when it is first used, so call this before.

    Returns:
        Whether the limit was set: not if the CPU has no AMX, nor if the user has set a limit.
    """
    if not _flags().get("amx_bf16") or any(os.environ.get(name) for name in _LIMITS):
        return False
    os.environ[_LIMITS[0]] = _WITHOUT_AMX
    return True


def volume_precision(device: torch.device, precision: str) -> str:
    """Return the precision in which a 3D network is safe.

    In bfloat16 on AMX, oneDNN (of torch 2.13) also computes some 3D convolutions wrongly in the forward pass: those of
    one channel and one section give NaN at random. 3D networks therefore run in float32 there, unless oneDNN is kept
    from AMX (`avoid_amx`).

    Args:
        device: where the network runs.
        precision: `FULL` or `MIXED`.
    """
    on_amx = _flags().get("amx_bf16") and "AMX" in (_limit() or "AMX")
    return FULL if precision == MIXED and device.type == "cpu" and on_amx else precision


def _limit() -> str | None:
    """Return the highest instruction set that the user allows oneDNN; None = no limit."""
    found = next((os.environ[name].upper() for name in _LIMITS if os.environ.get(name)), None)
    return None if found in ("DEFAULT", "ALL") else found


def _flags() -> dict[str, Any]:
    """Return the processor flags known to torch; empty where torch does not report them."""
    import torch

    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    return dict(ask())


def cpu_precision() -> Precision | None:
    """Return what `auto` is on this machine's CPU, without loading torch; None where that has to be measured."""
    flags: dict[str, Any] = {"architecture": platform.machine()}
    try:
        text = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return None
    names = set(text.partition(":")[2].split())
    flags |= {name: name in names for name in ("avx512_bf16", "amx_bf16", "avx_ne_convert")}
    native = _by_flags(flags, _limit())
    return None if native is None else MIXED if native else FULL


def _by_flags(flags: dict[str, Any], limit: str | None) -> bool | None:
    """Return whether a CPU supports bfloat16 according to its flags; None = undecided."""
    if limit in _WITHOUT:
        return False
    if flags.get("architecture") != "x86_64" or "avx512_bf16" not in flags:
        return None
    if flags["avx512_bf16"] or flags.get("amx_bf16"):
        return None if limit in _PARTLY else True
    return None if flags.get("avx_ne_convert") else False
