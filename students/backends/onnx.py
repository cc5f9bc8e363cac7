"""The two streaming functions on ONNX Runtime, and as ONNX models. On a CPU, ONNX Runtime computes in float32."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.errors import DistillError
from distill.core.hardware import FULL
from students.backends.base import Maps
from students.backends.functions import Decode, Decoded, Encode, ExtraOutputs, flat
from students.slab_adapter import SlabAdapter
from students.student import Samples, Student

OPSET = 18


class OnnxBackend:
    """ONNX Runtime backend; processes one section at a time."""

    name = "onnxruntime"
    batch = 1
    difference: float | None = None

    def __init__(self, student: Student, slab: SlabAdapter | None, wanted: ExtraOutputs, *, precision: str) -> None:
        """Load the library; models are built when sizes are known.

        Args:
            student: in evaluation mode, on the CPU.
            slab: its adapter, if features are needed.
            wanted: outputs in addition to the affinities.
            precision: `FULL`, see `distill.core.hardware`.

        Raises:
            DistillError: ONNX or its runtime is not installed, or the precision is not supported.
        """
        if precision != FULL:
            raise DistillError(f"--precision: found {precision!r}, expected {FULL} with --backend onnxruntime")
        self._runtime = load_runtime()
        self._student, self._slab, self._wanted = student, slab, wanted
        self._encoders: dict[tuple[int, ...], Any] = {}
        self._decoders: dict[tuple[Any, ...], tuple[Decode, Any]] = {}

    def encode(self, grey: Tensor) -> Maps:
        """See `Backend.encode`."""
        shape = tuple(grey.shape)
        if shape not in self._encoders:
            self._encoders[shape] = self._session(Encode(self._student), (torch.zeros(shape, device="cpu"),))
        return self._run(self._encoders[shape], [grey])

    def decode(
        self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int], samples: Sequence[Samples] = ()
    ) -> Decoded:
        """See `Backend.decode`."""
        key = size, tuple(part.shape for part in current), len(samples)
        given = [linked, *previous, *current, *flat(samples)]
        if key not in self._decoders:
            decode = Decode(self._student, self._slab, size, self._wanted, maps=len(current)).eval()
            self._decoders[key] = decode, self._session(decode, tuple(torch.zeros_like(part) for part in given))
        decode, session = self._decoders[key]
        return decode.named(self._run(session, given))

    def previous(self, last: Maps | None, current: Maps) -> Maps:
        """See `Backend.previous`."""
        return current if last is None else last

    def last(self, current: Maps, place: int) -> Maps:
        """See `Backend.last`."""
        return current

    def _session(self, module: nn.Module, example: tuple[Tensor, ...]) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        return self._runtime.InferenceSession(to_onnx(module, example), options, providers=["CPUExecutionProvider"])

    def _run(self, session: Any, given: Sequence[Tensor]) -> Maps:
        names = (wanted.name for wanted in session.get_inputs())
        found = session.run(None, {name: part.numpy() for name, part in zip(names, given, strict=True)})
        return tuple(torch.from_numpy(part) for part in found)


def to_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """Convert a module to an ONNX model.

    Args:
        module: in evaluation mode, in float32.
        example: its inputs.
        inputs: their names.
        outputs: names of the results.
        dynamic: names of input axes of variable length.

    Raises:
        DistillError: ONNX is not installed.
    """
    load_onnx()
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns that sizes become constants, which is intended
        torch.onnx.export(
            module.eval(),
            example,
            file,  # type: ignore[arg-type]  # the annotation leaves out files in memory
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )
    return file.getvalue()


def load_onnx() -> None:
    """Check that the package required by torch's exporter is installed.

    Raises:
        DistillError: it is not installed.
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise DistillError(f"{name}: not installed, expected `pip install 'affinity-distill[export]'`")


def load_runtime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        DistillError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise DistillError("onnxruntime: not installed, expected `pip install 'affinity-distill[export]'`") from None
    found: ModuleType = onnxruntime
    return found
