"""Where training runs and how: device, precision, the processes of torchrun, memory layout, compiled networks."""

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
from distill.core.hardware import resolved
from distill.models.load import pick_device
from distill.training.objective.objective import Joint
from distill.training.ranks import Ranks

_PATIENCE = timedelta(hours=6)  # the other ranks wait while the first one validates; a dead one torchrun notices itself
_left: list[object] = []  # process groups that were left, see `leave`


def launch(device: str, precision: str, ranks: Ranks) -> Fabric:
    """Start on one device, or as one of the processes of torchrun (gloo between CPUs, nccl between GPUs).

    Args:
        device: `auto`, `cpu` or `cuda[:N]`; with several ranks each takes the GPU of its number.
        precision: see `distill.core.hardware`.
        ranks: from the environment.

    Raises:
        DistillError: no such device, or fewer GPUs than processes.
    """
    where = pick_device(device)
    precision = resolved(precision, where)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision on the terminal
    if ranks.size == 1:
        alone = [where.index] if where.index is not None else 1
        fabric = Fabric(accelerator=where.type, devices=alone, precision=precision, plugins=[LightningEnvironment()])
        fabric.launch()  # makes the device the current one
        return fabric
    if ":" in device:
        raise DistillError(f"--device: found {device!r} for {ranks.size} processes, expected cuda, cpu or auto")
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
    # Teacher and decoder do not run at every step, so the parameters that get a gradient change from step to step.
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
    """Take leave of the other ranks, where there are any: what follows the last step is one rank's own.

    The group itself stays until the process ends. Else the module that torch wrapped would be the last to hold it, and
    free it with Python's lock in hand while a thread of the group waits for that lock: a rank would hang now and then
    (seen with torch 2.13 and gloo).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _left.append(torch.distributed.group.WORLD)
        torch.distributed.destroy_process_group()


def lay_out(module: nn.Module, *, channels_last: bool = True) -> None:
    """Bring the weights of convolutions into the layout that their outputs then take, values unchanged.

    Args:
        module: 2D and 3D convolutions; weights of other ranks stay.
        channels_last: else the usual layout, for comparison.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        wanted = formats.get(parameter.ndim) if channels_last else torch.contiguous_format
        if wanted is not None:
            parameter.data = parameter.data.contiguous(memory_format=wanted)


def compile_networks(joint: Joint, device: torch.device) -> None:
    """Let torch compile the teacher and both halves of the student; their parameters keep their names.

    The decoder stays as it is: the number of its queries changes from step to step.

    Raises:
        ConfigError: on a CPU, or Triton is not there.
    """
    if device.type == "cpu":  # tried with torch 2.13: minutes of compiling, then a backward pass that breaks off
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
