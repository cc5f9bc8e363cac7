"""Device, precision, torchrun processes, memory layout and compilation of a training."""

from __future__ import annotations

import logging
from datetime import timedelta
from importlib.util import find_spec

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from distill.core.errors import ConfigError, DistillError
from distill.core.hardware import avoid_amx, keep_float32, resolved
from distill.models.load import pick_device
from distill.training.objective.objective import Joint
from distill.training.ranks import Ranks

_PATIENCE = timedelta(hours=6)  # long, because ranks wait while the first validates; torchrun detects dead ranks
_left: list[object] = []  # detached process groups, see `leave`


def launch(device: str, precision: str, ranks: Ranks) -> Fabric:
    """Set up training on one device, or as one of the processes of torchrun (gloo between CPUs, nccl between GPUs).

    Args:
        device: `auto`, `cpu` or `cuda[:N]`; with several ranks, each uses the GPU with its local number.
        precision: see `distill.core.hardware`.
        ranks: from the environment.

    Raises:
        DistillError: the device does not exist, or there are fewer GPUs than processes.
    """
    if ranks.size > 1 and ":" in device:
        raise DistillError(f"--device: found {device!r} for {ranks.size} processes, expected cuda, cpu or auto")
    where = pick_device(device)
    if where.type == "cpu":
        avoid_amx()
    precision = resolved(precision, where)
    keep_float32(where, precision)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it prints the precision to the terminal
    if ranks.size == 1:
        alone = [where.index] if where.index is not None else 1
        fabric = Fabric(accelerator=where.type, devices=alone, precision=precision, plugins=[LightningEnvironment()])
        fabric.launch()  # sets the current device
        return fabric
    if where.type == "cuda" and torch.cuda.device_count() < ranks.local_size:
        raise DistillError(
            f"--nproc-per-node: found {ranks.local_size} processes for {torch.cuda.device_count()} GPUs, expected at "
            "most one a GPU, or --device cpu"
        )
    if ranks.size % ranks.local_size:
        raise DistillError(
            f"--nproc-per-node: found {ranks.size} processes in all and {ranks.local_size} on this machine, expected "
            "as many on every machine"
        )
    # Teacher and decoder do not run in every step, so the set of parameters with a gradient changes from step to step.
    fabric = Fabric(
        accelerator=where.type,
        devices=ranks.local_size,
        num_nodes=ranks.size // ranks.local_size,
        precision=precision,
        strategy=DDPStrategy(
            cluster_environment=TorchElasticEnvironment(),
            process_group_backend="nccl" if where.type == "cuda" else "gloo",
            timeout=_PATIENCE,
            find_unused_parameters=True,
        ),
    )
    fabric.launch()
    return fabric


def leave() -> None:
    """Detach from the other ranks, if there are any; work after the last step is done by one rank alone.

    The process group itself is kept until the process ends. Otherwise the module wrapped by torch would hold the last
    reference and free the group with Python's lock held while a thread of the group waits for that lock, and a rank
    would occasionally hang (observed with torch 2.13 and gloo).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _left.append(torch.distributed.group.WORLD)
        torch.distributed.destroy_process_group()


def lay_out(module: nn.Module, *, channels_last: bool = True) -> None:
    """Convert the weights of convolutions to a memory format, which their outputs then follow; values are unchanged.

    Args:
        module: network with 2D and 3D convolutions; weights on other ranks are unaffected.
        channels_last: otherwise the default format, for comparison.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        wanted = formats.get(parameter.ndim) if channels_last else torch.contiguous_format
        if wanted is not None:
            parameter.data = parameter.data.contiguous(memory_format=wanted)


def compile_networks(joint: Joint, device: torch.device) -> None:
    """Compile the teacher and both halves of the student with torch; their parameters keep their names.

    The decoder is not compiled, because the number of its queries changes from step to step.

    Raises:
        ConfigError: on a CPU, or if Triton is missing.
    """
    if device.type == "cpu":  # tested with torch 2.13: compilation takes minutes, then the backward pass fails
        raise ConfigError(
            "student.training.compile: found a CPU, expected a CUDA device; or set it to false (on a CPU compiling "
            "takes longer than it can save)"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("student.training.compile: found no triton package, expected one; or set it to false")
    if joint.teacher is not None:
        joint.teacher.compile(dynamic=False)
    if joint.student is not None:
        for name in ("encode", "decode"):
            setattr(joint.student, name, torch.compile(getattr(joint.student, name), dynamic=False))
