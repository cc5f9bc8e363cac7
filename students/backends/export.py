"""Export the student's two streaming functions to other runtimes, for any height and width that are multiples of its
stride.

encode: grey (1, 1, H, W) float32 in [0, 1] -> the section's maps. decode: linked (1, 1, 1, 1) float32, 0 for the first
section of a stream, otherwise 1; the maps of the previous section; those of the current one -> affinity (1, 3, H, W)
uint8, channels z, y, x, and embedding (1, E, H, W) float32 of unit length.

Legend: E embedding channels, H W = y x, K maps of an encoded section.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from distill.core.choices import ExportFormat
from distill.core.errors import DistillError
from students.backends.functions import Decode, Encode, ExtraOutputs
from students.backends.fuse import fused
from students.backends.onnx import load_onnx, load_runtime
from students.backends.openvino_models import load_openvino
from students.student import Student

EXPORT_FORMATS = ("onnx", "openvino", "torch")
_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
_OPSET = 18


@dataclass(frozen=True)
class ExportedFunction:
    """One of the two functions, with the names of its inputs and outputs."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    strides: tuple[int, ...]  # divisor of each input's rows and columns; 0 where they are fixed


def functions(student: Student) -> tuple[ExportedFunction, ExportedFunction]:
    """Build encode and decode of a student in evaluation mode on the CPU, with batch norms folded."""
    network = fused(student).float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    side = 4 * student.stride
    grey = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0), device="cpu")
    encode = Encode(network).eval()
    with torch.no_grad():
        maps = encode(grey)
    decode = Decode(network, None, None, ExtraOutputs(current=True), maps=len(maps)).eval()
    # Copies: an exporter takes two inputs that are one tensor for one input.
    before = tuple(part.clone() for part in maps)
    names = tuple(f"map{n}" for n in range(len(maps)))
    strides = tuple(side // part.shape[-1] for part in maps)
    return (
        ExportedFunction("encode", encode, (grey,), ("grey",), names, (1,)),
        ExportedFunction(
            "decode",
            decode,
            (torch.ones(1, 1, 1, 1, device="cpu"), *before, *maps),
            ("linked", *(f"previous_{name}" for name in names), *(f"current_{name}" for name in names)),
            ("affinity", "embedding"),
            (0, *strides, *strides),
        ),
    )


def program(function: ExportedFunction, stride: int) -> ExportedProgram:
    """Convert a function to torch's exported program, with free height and width."""
    rows, columns = Dim("rows", min=1, max=2**16), Dim("columns", min=1, max=2**16)
    shapes = [{2: stride // own * rows, 3: stride // own * columns} if own else {} for own in function.strides]
    wanted = (shapes[0],) if function.name == "encode" else (shapes[0], tuple(shapes[1:]))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own modules
        return torch.export.export(function.module, function.example, dynamic_shapes=wanted)


def write(student: Student, function: ExportedFunction, form: ExportFormat, folder: Path) -> Path:
    """Write a function to a folder.

    Returns:
        The file; OpenVINO stores weights in a .bin file next to it.

    Raises:
        DistillError: the format's package is not installed.
    """
    path = folder / (function.name + _SUFFIX[form])
    if form == "onnx":
        load_onnx()
    elif form == "openvino":
        load_openvino()
    exported = program(function, student.stride)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "torch":
            torch.export.save(exported, path)
        elif form == "onnx":
            _onnx(function, exported).save(path)
        else:
            save_named(load_openvino().convert_model(exported), function, folder)
    return path


def save_named(model: Any, function: ExportedFunction, folder: Path) -> None:
    """Write an OpenVINO model of a function with the names of its inputs and outputs."""
    for port, name in zip((*model.inputs, *model.outputs), (*function.inputs, *function.outputs), strict=True):
        port.get_tensor().set_names({name})
    load_openvino().save_model(model, folder / f"{function.name}.xml", compress_to_fp16=False)


def _onnx(function: ExportedFunction, exported: ExportedProgram) -> ONNXProgram:
    made = torch.onnx.export(
        exported,
        input_names=function.inputs,
        output_names=function.outputs,
        opset_version=_OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert made is not None
    return made


def run_exported(path: Path, form: ExportFormat, given: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Run an exported function in its own runtime.

    Raises:
        DistillError: the runtime is not installed.
    """
    arrays = [part.numpy() for part in given]
    if form == "torch":
        with torch.no_grad():
            return [np.asarray(part) for part in torch.export.load(path).module()(*given)]
    if form == "onnx":
        session = load_runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_inputs()]
        return [np.asarray(part) for part in session.run(None, dict(zip(names, arrays, strict=True)))]
    model = load_openvino().Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.asarray(part) for part in model(arrays).to_tuple()]


@dataclass(frozen=True)
class Difference:
    """Largest difference between an exported function and torch on a pair of sections."""

    maps: float  # relative to the largest value
    affinity: float  # in [0, 1]
    embedding: float  # between unit vectors


def compare(student: Student, encode: Path, decode: Path, form: ExportFormat, pair: NDArray[np.float32]) -> Difference:
    """Run both exported functions and torch on two sections.

    Args:
        student: the exported student.
        encode: its file.
        decode: its file.
        form: of both.
        pair: (2, H, W) float32 in [0, 1], sides at least the stride; cropped to multiples of it.

    Raises:
        DistillError: the sections are smaller than the stride.
    """
    stride = student.stride
    height, width = (length // stride * stride for length in pair.shape[1:])
    if 0 in (height, width):
        raise DistillError(f"sample: found sections of {pair.shape[1:]}, expected at least {stride} pixels a side")
    grey = [torch.from_numpy(np.ascontiguousarray(section[None, None, :height, :width])) for section in pair]
    ours, theirs = functions(student), []
    with torch.no_grad():
        maps = [ours[0].module(section) for section in grey]
        wanted = ours[1].module(torch.ones(1, 1, 1, 1, device="cpu"), *maps[0], *maps[1])
    theirs = [[torch.from_numpy(np.array(part)) for part in run_exported(encode, form, [section])] for section in grey]
    found = run_exported(decode, form, [torch.ones(1, 1, 1, 1, device="cpu"), *theirs[0], *theirs[1]])
    apart = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(theirs[1], maps[1], strict=True)
    )
    affinity = np.abs(found[0].astype(np.float32) - wanted[0].numpy().astype(np.float32)).max() / 255
    return Difference(apart, float(affinity), float(np.abs(found[1] - wanted[1].numpy()).max()))
