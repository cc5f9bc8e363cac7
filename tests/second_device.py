"""A second device on any machine: operations that mix it with the CPU are refused, as on a GPU.

Its tensors hold their values in CPU memory but report another device. They cannot be converted to NumPy, factory
functions with `device=` create them, and reading their values is counted, because on a GPU it waits for all kernels.
So are results whose size depends on values, and copies to the device, which wait too unless the memory is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_META = torch.device("meta")  # the only other kind of device whose backward pass runs without a driver
_FREE = ("_to_copy", "copy_", "_local_scalar_dense")
_INDEXING = ("index", "index_put", "index_put_")  # the places may lie on the CPU
_VIEWS = ("view", "_unsafe_view", "unsqueeze", "expand", "alias", "detach", "slice", "select", "transpose", "permute")
_SIZED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal")
_CONVOLUTIONS = ("convolution", "_convolution")


class OnDevice(Tensor):
    """A tensor of the second device."""

    values: Tensor
    shown: torch.device

    @staticmethod
    def __new__(cls, values: Tensor, shown: torch.device) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=_META,
        )
        made.values, made.shown = values, shown
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.shown

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.shown.type == "cuda"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: object) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("used outside of second_device()")


class _Mode(TorchDispatchMode):
    """Runs every operation on the CPU, and refuses those that mix devices."""

    def __init__(self, device: torch.device, rounding: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.device, self.rounding, self.read, self.sent = device, rounding, 0, 0
        self.blocks_read: list[int] = []
        self.made: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        tensors = [one for one in tree_flatten((args, named))[0] if isinstance(one, Tensor)]
        there = [one for one in tensors if isinstance(one, OnDevice)]
        name = function.overloadpacket.__name__
        unseen = [one for one in tensors if one.is_meta and not isinstance(one, OnDevice)]
        assert not unseen, f"{function}: a list as an index is not seen here; on a GPU it is copied at every call"
        to = named.get("device")
        if to is not None:
            named["device"] = torch.device("cpu")
        if name == "_local_scalar_dense" and there:
            self.read += 1
        if name == "_to_copy" and there and to is not None and torch.device(to).type == "cpu":
            self.read += 1
            self.blocks_read.append(there[0].numel())
        if there and (name in _SIZED_BY_VALUES or (name in _INDEXING and _has_mask(args[1]))):
            self.read += 1
        arrives = bool(tensors) and not there and to is not None and torch.device(to).type != "cpu"
        if name == "copy_" and there and there[0] is args[0]:
            arrives = not isinstance(args[1], OnDevice) and args[1].ndim > 0
        if arrives and not named.get("non_blocking"):
            self.sent += 1
        if there and name not in _FREE and not (name in _INDEXING and isinstance(tensors[0], OnDevice)):
            strange = [one for one in tensors if not isinstance(one, OnDevice) and one.ndim > 0]
            if strange:
                shapes = [tuple(one.shape) for one in strange]
                raise RuntimeError(f"{function}: expected all tensors on {self.device}, found {shapes} on the CPU")
        values = tree_map(_values, args)
        if there and self.rounding is not None and name in _CONVOLUTIONS:
            values = (self.rounding(values[0]), self.rounding(values[1]), *values[2:])
        found = function(*values, **tree_map(_values, named))
        if name == "copy_":
            return args[0]
        if not (there if to is None else torch.device(to).type not in ("cpu",)):
            return found
        if isinstance(found, Tensor) and name not in _VIEWS:
            self.made.append(found.numel())
        known = {id(one.values): one for one in there}
        return tree_map(lambda one: self._wrapped(one, known), found)

    def _wrapped(self, one: Any, known: dict[int, OnDevice]) -> Any:
        if not isinstance(one, Tensor):
            return one
        if id(one) in known:
            return known[id(one)]
        with torch._C._InferenceMode(False):  # whose tensors cannot be wrapped
            return OnDevice(one, self.device)


class _Queue:
    """Streams and events of a device that computes at once."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record(self) -> None:
        pass

    def elapsed_time(self, other: object) -> float:
        return 1.0


def _has_mask(places: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in places)


def _values(one: Any) -> Any:
    return one.values if isinstance(one, OnDevice) else one


@contextmanager
def second_device(
    kind: str = "cuda", rounding: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[torch.device, _Mode]]:
    """Let a second device exist within the block.

    Args:
        kind: type that it reports.
        rounding: applied to both factors of its convolutions, as GPUs round them to TF32.

    Returns:
        The device, and a mode that counts in `read` how often its values were read, in `sent` how often values were
        copied to it, and lists the sizes of tensors: in `blocks_read` of
        those that were copied from it, in `made` of those that operations made, other than views.
    """
    device = torch.device(kind, 0)
    autocast = torch.autocast

    def without(type_: str, *given: Any, **named: Any) -> Any:
        return autocast(type_, *given, **named) if type_ == "cpu" else nullcontext()

    def there(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: Any, *, device: Any = None, **named: Any) -> Tensor:
            found = data if isinstance(data, OnDevice) else make(data, **named)
            return found if device is None else found.to(device)

        return made

    with pytest.MonkeyPatch.context() as patch, _Mode(device, rounding) as mode:
        patch.setattr(torch, "autocast", without)
        for name in ("tensor", "as_tensor"):  # which fill their memory before any mode sees it
            patch.setattr(torch, name, there(getattr(torch, name)))
        for name in ("Stream", "Event"):
            patch.setattr(torch.cuda, name, _Queue)
        patch.setattr(torch.cuda, "current_stream", _Queue)
        patch.setattr(torch.cuda, "stream", nullcontext)
        empty = torch.empty
        patch.setattr(torch, "empty", lambda *size, pin_memory=False, **named: empty(*size, **named))
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        yield device, mode


def to_tf32(values: Tensor) -> Tensor:
    """Round float32 to the ten bits of TF32."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)
