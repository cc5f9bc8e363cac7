"""Convert the two streaming functions to OpenVINO models of free height and width, kept on disk between processes.

A model is traced on a small section and serves every size that is a multiple of the student's stride: sections are
padded before `encode`, and results are cropped after `decode`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.core.errors import DistillError
from distill.core.signals import signals_held
from students.backends.cache import cached
from students.backends.functions import Decode, Encode, ExtraOutputs
from students.student import Student

_FREE = -1  # a length that is set later


@dataclass(frozen=True)
class FreeModels:
    """`Encode` and `Decode` as OpenVINO models of free height and width."""

    encode: Any
    decode: Any

    def encoder(self, shape: Sequence[int]) -> Any:
        """Return `encode` for an input of this shape."""
        model = self.encode.clone()
        model.reshape({0: list(shape)})
        return model

    def decoder(self, shapes: Sequence[Sequence[int]]) -> Any:
        """Return `decode` for maps of these shapes (B, C, H', W')."""
        model = self.decode.clone()
        model.reshape({n: list(shape) for n, shape in enumerate([(1, 1, 1, 1), *shapes, *shapes])})
        return model


def free_models(
    network: Callable[[], tuple[Student, int]], wanted: ExtraOutputs, key: Mapping[str, str] | None
) -> FreeModels:
    """Return the models of a student.

    Args:
        network: function without arguments that returns the student, in evaluation mode, on the CPU, and the number of
            channels of its input; called only if the models are not in the cache.
        wanted: outputs in addition to the affinities, without features.
        key: what the models depend on (see `students.backends.cache`); None: they are not kept.
    """
    about = {"current": str(wanted.current), "previous": str(wanted.previous)}
    full = None if key is None else {"kind": "openvino", **key, **about}
    return models_of(cached(full, lambda: files_of(converted(network(), wanted))))


def converted(network: tuple[Student, int], wanted: ExtraOutputs) -> FreeModels:
    """Convert a student, in evaluation mode, on the CPU, with this number of input channels."""
    student, channels = network
    assert not wanted.features, "features depend on the size of the section"
    side = 2 * student.stride
    encode, grey = Encode(student).eval(), torch.zeros(1, channels, side, side, device="cpu")
    first = to_openvino(encode, (grey,), [[1, channels, _FREE, _FREE]])
    with torch.no_grad():
        maps = encode(grey)
    decode = Decode(student, None, None, wanted, maps=len(maps)).eval()
    shapes = [[1, part.shape[1], _FREE, _FREE] for part in maps]
    example = (torch.ones(1, 1, 1, 1, device="cpu"), *maps, *(part.clone() for part in maps))
    return FreeModels(first, to_openvino(decode, example, [[1, 1, 1, 1], *shapes, *shapes]))


def files_of(models: FreeModels) -> dict[str, bytes]:
    """Return both models as the files in which OpenVINO stores them, in float32."""
    ov, found = load_openvino(), {}
    with tempfile.TemporaryDirectory(prefix="distill.") as folder, signals_held():
        for name, model in (("encode", models.encode), ("decode", models.decode)):
            ov.save_model(model, Path(folder, f"{name}.xml"), compress_to_fp16=False)
            for ending in ("xml", "bin"):
                found[f"{name}.{ending}"] = Path(folder, f"{name}.{ending}").read_bytes()
    return found


def models_of(files: Mapping[str, bytes]) -> FreeModels:
    """Read both models from `files_of`."""
    core = load_openvino().Core()
    with signals_held():
        encode, decode = (core.read_model(files[f"{n}.xml"], files[f"{n}.bin"]) for n in ("encode", "decode"))
    return FreeModels(encode, decode)


def to_openvino(module: nn.Module, example: tuple[Tensor, ...], shapes: Sequence[Any] | None = None) -> Any:
    """Convert a module to an OpenVINO model.

    Args:
        module: in evaluation mode, in float32.
        example: its inputs.
        shapes: partial shapes of the inputs; those of the example by default.
    """
    ov = load_openvino()
    wanted = [list(part.shape) for part in example] if shapes is None else shapes
    with signals_held(), warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns that sizes become constants, which is intended
        # without torch's check of the trace, which would run it twice more
        traced = torch.jit.trace(module, example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        return ov.convert_model(traced, example_input=example, input=wanted)


def load_openvino() -> ModuleType:
    """Import the library without its package that sends usage statistics from every importing process.

    Raises:
        DistillError: it is not installed.
    """
    if "openvino" not in sys.modules:
        cast(dict[str, ModuleType | None], sys.modules).setdefault("openvino_telemetry", None)  # as if not installed
    try:
        import openvino
        import openvino.preprocess
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise DistillError("openvino: not installed, expected `pip install openvino`") from None
    found: ModuleType = openvino
    return found
