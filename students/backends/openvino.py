"""The two streaming functions on OpenVINO, the fastest backend on a CPU.

Between the functions, maps keep the layout and precision of the convolutions (channels last), so that nothing is
converted back and forth. Models are built once per size and cached.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.errors import DistillError
from distill.core.hardware import INT8, MIXED, has_bfloat16
from distill.core.signals import signals_held
from students.backends.base import Maps
from students.backends.functions import Decode, Decoded, ExtraOutputs, flat, name_outputs
from students.backends.fuse import fused, take_entry
from students.backends.int8 import Calibration, quantised
from students.backends.openvino_models import FreeModels, free_models, load_openvino, to_openvino
from students.backends.signal_stack import signal_stack_kept
from students.deferred import DeferredStudent, form_of, network_of
from students.slab_adapter import SlabAdapter
from students.student import Samples, Student, pad_to_stride

Decoder = tuple[Callable[[tuple[Tensor, ...]], Decoded], Any]
_KEPT_SIZES = 8  # compiled models: tiles at borders have sizes of their own


class OpenVINOBackend:
    """OpenVINO backend; processes one section at a time, which fills the cores, so that results do not depend on batch
    size.
    """

    name = "openvino"
    batch = 1

    @signal_stack_kept()
    def __init__(
        self,
        student: Student | DeferredStudent,
        slab: SlabAdapter | None,
        wanted: ExtraOutputs,
        *,
        precision: str,
        calibration: Calibration | None = None,
    ) -> None:
        """Load the library; models are built when sizes are known.

        Args:
            student: in evaluation mode, on the CPU.
            slab: its adapter, if features are needed.
            wanted: outputs in addition to the affinities.
            precision: see `distill.core.hardware`; a CPU without support for `MIXED` computes in float32.
            calibration: sections from which the ranges of `INT8` are taken; None for any other precision.

        Raises:
            DistillError: OpenVINO is not installed; or NNCF is not, `INT8` differs too much, or features are wanted.
        """
        self._ov = load_openvino()
        self._core = self._ov.Core()
        self._source, self._slab, self._wanted = student, slab, wanted
        able = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        able = able and has_bfloat16(torch.device("cpu"))  # oneDNN's limit counts in OpenVINO, which does not report it
        self._half_precision = precision == MIXED and able
        self._stride, entry = form_of(student).stride, form_of(student).entry
        self._entry: nn.Module | None = None  # OpenVINO has one precision per model, so torch runs this layer
        self._taken: Student | None = None  # the student without that layer
        if self._half_precision and entry is not None:
            self._taken = fused(network_of(student))
            self._entry = take_entry(self._taken)
            if self._entry is not None:
                self._entry.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.difference: float | None = None
        self._int8: FreeModels | None = None
        if calibration is not None:
            if wanted.features:
                raise DistillError(f"--method: found query with --precision {INT8}, expected flood, waterz or mws")
            found = quantised(student, ExtraOutputs(wanted.current, wanted.previous), calibration)
            self._int8, self.difference = found.models, found.difference
        self._encoders: dict[tuple[int, ...], _Encoder] = {}
        self._decoders: dict[tuple[Any, ...], tuple[Decoder, tuple[int, int] | None]] = {}

    @signal_stack_kept()
    def encode(self, grey: Tensor) -> Maps:
        """See `Backend.encode`."""
        grey = pad_to_stride(grey, self._stride)
        if self._entry is not None:
            with torch.inference_mode():
                grey = self._entry(grey.contiguous(memory_format=torch.channels_last))
        shape = tuple(grey.shape)
        if shape not in self._encoders:
            _make_room(self._encoders)
            self._encoders[shape] = self._encoder(shape)
        given = grey if self._entry is None else grey.permute(0, 2, 3, 1)
        return self._encoders[shape](given.contiguous())

    @signal_stack_kept()
    def decode(
        self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int], samples: Sequence[Samples] = ()
    ) -> Decoded:
        """See `Backend.decode`."""
        key = size, tuple(tuple(part.shape) for part in current), len(samples)
        if key not in self._decoders:
            _make_room(self._decoders)
            self._decoders[key] = self._decoder(current, size, samples)
        (named, request), crop = self._decoders[key]
        given = [linked.numpy(), *previous, *current, *(part.numpy() for part in flat(samples))]
        request.infer(dict(enumerate(given)), share_inputs=True)
        outputs = [request.get_output_tensor(n).data for n in range(len(request.model_outputs))]
        if crop is not None:
            outputs = [part[..., : crop[0], : crop[1]] for part in outputs]
        return named(tuple(torch.from_numpy(part.copy()) for part in outputs))

    def previous(self, last: Maps | None, current: Maps) -> Maps:
        """See `Backend.previous`."""
        return current if last is None else last

    def last(self, current: Maps, place: int) -> Maps:
        """See `Backend.last`."""
        return current

    @cached_property
    def _models(self) -> FreeModels:
        """Return the two functions for any size."""
        if self._int8 is not None:
            return self._int8
        digest = self._source.digest if isinstance(self._source, DeferredStudent) else None
        wanted = ExtraOutputs(self._wanted.current, self._wanted.previous)
        key = None if digest is None else {"weights": digest, "entry": "torch" if self._entry is not None else "model"}
        return free_models(self._network, wanted, key)

    def _network(self) -> tuple[Student, int]:
        """Return the student that is converted, and the channels of its input."""
        if self._entry is None:
            return network_of(self._source), 1
        assert self._taken is not None
        return self._taken, int(next(self._entry.parameters()).shape[0])

    def _encoder(self, shape: tuple[int, ...]) -> _Encoder:
        steps = self._ov.preprocess.PrePostProcessor(self._models.encoder(shape))
        if self._entry is not None:
            steps.input(0).tensor().set_layout(self._ov.Layout("NHWC"))
            steps.input(0).model().set_layout(self._ov.Layout("NCHW"))
        for n in range(len(self._models.encode.outputs)):
            self._kept_as_is(steps.output(n))
        return _Encoder(self._ov, self._compiled(steps.build()))

    def _decoder(
        self, maps: Maps, size: tuple[int, int], samples: Sequence[Samples]
    ) -> tuple[Decoder, tuple[int, int] | None]:
        """Return how the outputs of a pair are named, its compiled model, and the size to crop to, if it has to be."""
        shapes = [(n, c, h, w) for n, h, w, c in (tuple(part.shape) for part in maps)]
        assert not samples or self._int8 is None, "see check_parts"
        if samples or self._wanted.features:  # what is looked up, or averaged at the border, depends on the size
            network = network_of(self._source) if self._taken is None else self._taken
            decode = Decode(network, self._slab, size, self._wanted, maps=len(maps)).eval()
            model, crop = self._of_size(decode, [*shapes, *shapes], size, samples), None
        else:
            model, crop = self._models.decoder(shapes), size
        steps = self._ov.preprocess.PrePostProcessor(model)
        for n in range(1, 1 + 2 * len(maps)):
            self._kept_as_is(steps.input(n))
        named = functools.partial(name_outputs, self._wanted)
        return (named, self._compiled(steps.build()).create_infer_request()), crop

    def _of_size(
        self,
        decode: Decode,
        shapes: Sequence[tuple[int, ...]],
        size: tuple[int, int],
        samples: Sequence[Samples],
    ) -> Any:
        """Convert a function for maps of these shapes (B, C, H', W')."""
        small = shapes
        if not samples and not any(length % self._stride for length in size):  # nothing is cropped or looked up
            side = 2 * self._stride  # a large section takes seconds and gigabytes
            small = [(n, c, side * h // size[0], side * w // size[1]) for n, c, h, w in shapes]
        example = (
            torch.ones(1, 1, 1, 1, device="cpu"),
            *(torch.zeros(shape, device="cpu") for shape in small),
            *flat(samples),
        )
        sizes = [[1, 1, 1, 1], *map(list, shapes), *(list(part.shape) for part in flat(samples))]
        return to_openvino(decode, example, sizes)

    def _kept_as_is(self, port: Any) -> None:
        """Keep a map channels last, in the precision of the computation, at the model's input or output."""
        kind = self._ov.Type.bf16 if self._half_precision else self._ov.Type.f32
        port.tensor().set_element_type(kind).set_layout(self._ov.Layout("NHWC"))
        port.model().set_layout(self._ov.Layout("NCHW"))

    def _compiled(self, model: Any) -> Any:
        with signals_held():
            return self._core.compile_model(model, "CPU", self.settings())

    def settings(self) -> dict[str, Any]:
        """Return OpenVINO's own settings."""
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self._half_precision else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }

    def profile(self) -> dict[str, list[tuple[str, float]]]:
        """Return kind and seconds of every layer in the last run of either function, if profiling is enabled."""
        last = {
            "encode": [encoder.request for encoder in self._encoders.values()][-1:],
            "decode": [request for (_, request), _ in self._decoders.values()][-1:],
        }
        return {
            name: [(node.node_type, node.real_time.total_seconds()) for node in request.profiling_info]
            for name, requests in last.items()
            for request in requests
        }


class _Encoder:
    """A compiled encoder that alternates between two sets of output maps, so that those of the previous section are
    kept.
    """

    def __init__(self, ov: ModuleType, model: Any) -> None:
        self.request = model.create_infer_request()
        self._sets = [tuple(ov.Tensor(port.element_type, port.shape) for port in model.outputs) for _ in range(2)]

    def __call__(self, grey: Tensor) -> Maps:
        self._sets.reverse()
        for n, tensor in enumerate(self._sets[0]):
            self.request.set_output_tensor(n, tensor)
        self.request.infer({0: grey.numpy()}, share_inputs=True)
        return self._sets[0]


def _make_room(kept: dict[Any, Any]) -> None:
    """Discard the oldest model, because each holds buffers of its size."""
    if len(kept) >= _KEPT_SIZES:
        del kept[next(iter(kept))]
