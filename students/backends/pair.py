"""A student as one function of two sections, for model zoos: grey values in, affinities out.

Legend: H W = y x.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from distill.core.affinity import pair_affinity
from students.backends.fuse import fused
from students.backends.onnx import load_onnx
from students.student import Student

OPSET = 18


class PairAffinity(nn.Module):
    """Predict the affinities between two neighbouring sections and within the second one."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, sections: Tensor) -> Tensor:
        """Map (1, 2, H, W) float32 in [0, 1], the previous section first, to (1, 3, H, W) float32 in [0, 1].

        Channels are edges of the second section to the previous voxel along z, y, x. H and W are multiples of the
        student's stride.
        """
        pair = self.student(sections[:, :1], sections[:, 1:])
        return pair_affinity(pair.previous, pair.current).float()


def pair_function(student: Student) -> PairAffinity:
    """Build the function of a student in evaluation mode on the CPU, with batch norms folded."""
    network = fused(student).float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return PairAffinity(network).eval()


def write_pair(student: Student, path: Path) -> None:
    """Write the function as one ONNX file with free height and width.

    Raises:
        DistillError: the package onnx is not installed.
    """
    load_onnx()
    stride, module = student.stride, pair_function(student)
    example = torch.rand(1, 2, 4 * stride, 4 * stride, generator=torch.Generator().manual_seed(0), device="cpu")
    rows, columns = Dim("rows", min=1, max=2**16), Dim("columns", min=1, max=2**16)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own modules
        program = torch.export.export(module, (example,), dynamic_shapes=({2: stride * rows, 3: stride * columns},))
        made = torch.onnx.export(
            program,
            input_names=("sections",),
            output_names=("affinity",),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert made is not None
    made.save(path)
