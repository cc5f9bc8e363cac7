"""Record the convolutions of training steps, and time them alone: the least that the same steps could take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@dataclass(frozen=True)
class _Form:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def filled(self) -> Tensor:
        """Return a tensor of this form with random values."""
        found = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return found.normal_()


@dataclass(frozen=True)
class Call:
    """A call of a convolution or of its backward pass."""

    function: Any
    arguments: Any  # those of the call, with `_Form` for tensors

    def seconds(self) -> float:
        """Run it on random values, and return the time of the call alone."""
        given = tree_map(lambda one: one.filled() if isinstance(one, _Form) else one, self.arguments)
        with torch.no_grad():
            began = time.perf_counter()
            self.function(*given)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter() - began


class Convolutions(TorchDispatchMode):
    """Record all convolutions, forward and backward, while this context is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            assert not kwargs
            self.calls.append(Call(func, tree_map(_form, args)))
        return func(*args, **(kwargs or {}))


def floor(calls: Sequence[Call]) -> tuple[float, float]:
    """Return the seconds of all calls, forward and backward."""
    sums = dict.fromkeys(_CONVOLUTIONS, 0.0)
    for call in calls:
        sums[call.function] += call.seconds()
    forward, backward = sums.values()
    return forward, backward


def _form(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _Form(tuple(value.shape), value.stride(), value.dtype, value.device)
