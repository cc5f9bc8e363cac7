"""Optimise networks for inference: fold batch norms into convolutions, and keep the first layer in float32."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from students.student import Student

_Network = TypeVar("_Network", bound=Student)
_TOLERANCE = 1e-4  # relative to the largest value


def fused(student: _Network) -> _Network:
    """Return a copy in evaluation mode with batch norms folded into the convolutions that precede them.

    The pairs of convolution and norm are found by a trial run, for any encoder. The copy is compared with the original
    on noise and discarded if it differs, as it would if another layer also read the output of a convolution.
    """
    original = copy.deepcopy(student).eval()
    network = copy.deepcopy(original)
    for convolution, norm in _pairs(network):
        _replace(network, convolution, fuse_conv_bn_eval(convolution, norm))
        _replace(network, norm, _after(norm))
    return network if _alike(original, network) else original


class Exact(nn.Module):
    """A layer that computes in float32 under autocast and returns the type of autocast.

    The paper's network begins with kernels that compute differences of grey values, whose weights nearly cancel. In
    half precision, both factors are rounded before they cancel, and this single layer causes most of the network's
    error.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            found: Tensor = self.layer(x.float())
        return found.to(kind)


def keep_entry_exact(student: Student) -> None:
    """Make the layer that reads the grey values compute in float32, if the student has such a layer."""
    if student.entry is not None:
        _replace(student, student.get_submodule(student.entry), Exact(student.get_submodule(student.entry)))


def take_entry(student: Student) -> nn.Module | None:
    """Remove the layer of `Student.entry` from a network, which then takes the output of that layer as input."""
    if student.entry is None:
        return None
    entry = student.get_submodule(student.entry)
    _replace(student, entry, nn.Identity())
    return entry


def _pairs(network: Student) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Find convolutions and the norm that reads their output, each once."""
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # keeps the outputs alive, so that no id is reused
    found: dict[nn.Conv2d, nn.BatchNorm2d] = {}

    def note_result(module: nn.Module, _given: tuple[Tensor, ...], result: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(result)] = result, module

    def note_norm(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(given[0]) in made:
            found[made[id(given[0])][1]] = module

    handles = [m.register_forward_hook(note_result) for m in network.modules() if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(note_norm) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    _run(network)
    for handle in handles:
        handle.remove()
    return list(found.items())


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """Return the remaining operation of a norm: timm's norms include the activation."""
    layers = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(*layers) if layers else nn.Identity()


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def _run(network: Student) -> list[Tensor]:
    side = 2 * network.stride
    parameter = next(network.parameters())
    grey = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0), device="cpu").to(parameter)
    with torch.inference_mode():
        pair = network(grey[:1], grey[1:])
    return [pair.previous, pair.current, pair.half, pair.full]


def _alike(one: Student, other: Student) -> bool:
    """Compare on the CPU: a GPU rounds the factors of convolutions to ten bits, which is more than the tolerance."""
    first, second = (copy.deepcopy(network).to("cpu", torch.float32) for network in (one, other))
    return all(
        bool((a - b).abs().max() <= _TOLERANCE * a.abs().max().clamp(min=1e-6))
        for a, b in zip(_run(first), _run(second), strict=True)
    )
