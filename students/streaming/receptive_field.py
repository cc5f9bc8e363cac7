"""How far an output pixel of a student sees.

Measured rather than added up from the layers: a NaN spreads to whatever is computed from it, through convolution,
pooling, ReLU, bilinear upsampling and normalisation alike, whatever the weights are.

Legend: N positions, L length of a strip along the measured axis.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from students.student import Student

_AXES = (-2, -1)  # y, x
_AT_ONCE = 8  # positions in one batch


@dataclass(frozen=True)
class ReceptiveField:
    """Which input pixels of either section may change an output pixel."""

    radius: tuple[int, int] | None  # (y, x) distance of the furthest one in pixels; None: the whole section

    @property
    def extent(self) -> tuple[int, int] | None:
        """(y, x) sides of the window around an output pixel, 2 radius + 1 pixels; None: the whole section."""
        return None if self.radius is None else (2 * self.radius[0] + 1, 2 * self.radius[1] + 1)


def receptive_field(student: Student, *, far: int = 4096) -> ReceptiveField:
    """Measure how far the embeddings of both branches and the half and full maps see, in evaluation mode.

    The radius is the halo of a tile: further than that inside its borders, a tile that begins at a multiple of the
    student's stride is computed from the same pixels as the whole section. A half-resolution pixel counts as the pixels
    that it covers.

    A line of NaN across a narrow strip takes every position of one stride, in the middle of a strip so long that none
    arrives at its ends. Other positions see the same, for the stages repeat from stride to stride. That holds for
    upsampling with align_corners=True too: its weights change with the map's size and along the map, but not which two
    pixels it mixes; there a tile sees the section's pixels, but weighs them a little differently. It does not hold for
    attention within windows wider than the stride, whose radius may be larger than what is measured. In float64 no
    convolution is computed in tiles, which would spread NaN further.

    Args:
        student: any mode, type and device; a copy is measured.
        far: longest strip in pixels; what reaches its ends from the middle is said to reach everything.

    Returns:
        The radius, None for encoders with global pooling (squeeze-excitation) or attention.
    """
    radius = []
    exact = _measurable(student, torch.float64)
    for axis in _AXES:
        length = _room(student, axis, far)
        if length is None:
            return ReceptiveField(None)
        middle = length // 2
        lines = torch.split(torch.arange(middle, middle + student.stride), _AT_ONCE)
        radius.append(max(_reach(_seen(exact, axis, length, some), some) for some in lines))
    return ReceptiveField((radius[0], radius[1]))


def has_global_context(student: Student, *, far: int = 4096) -> bool:
    """Whether a pixel changes outputs at any distance, along y or x: then tiles differ from the whole section.

    Args:
        student: any mode, type and device; a copy is measured.
        far: longest strip in pixels; what reaches its ends from the middle is said to reach everything.
    """
    return any(_room(student, axis, far) is None for axis in _AXES)


def _room(student: Student, axis: int, far: int) -> int | None:
    """Length of a strip that holds what sees the lines of its middle stride; None if that is longer than `far`."""
    rough = _measurable(student, torch.float32)
    length = 8 * student.stride
    while length <= far:
        ends = torch.tensor([length // 2, length // 2 + student.stride - 1])
        seen = _seen(rough, axis, length, ends)
        if not seen[:, [0, -1]].any():
            return length
        length *= 2
    return None


def _measurable(student: Student, dtype: torch.dtype) -> Student:
    return copy.deepcopy(student).eval().to("cpu", dtype)


def _seen(student: Student, axis: int, length: int, lines: Tensor) -> Tensor:
    """Output lines (N, L) along an axis that depend on each of these N input lines of a strip, bool."""
    shape = [len(lines), 1, student.stride, student.stride]
    shape[axis] = length
    strips = torch.zeros(shape, dtype=next(student.parameters()).dtype)
    strips.movedim(axis, 1)[torch.arange(len(lines)), lines] = torch.nan
    with torch.inference_mode():
        features = student.encode(strips)
        pair = student.decode(features, features)
    maps = (pair.previous, pair.current, pair.full, pair.half.repeat_interleave(2, axis))
    across = _AXES[0] if axis == _AXES[1] else _AXES[1]
    return torch.stack([found.isnan().any(across).any(1) for found in maps]).any(0)


def _reach(seen: Tensor, lines: Tensor) -> int:
    """Largest distance of lines that see one of these from it."""
    which, where = seen.nonzero(as_tuple=True)
    assert len(where), "NaN is lost on its way"
    assert not seen[:, [0, -1]].any(), "the strip is too short"
    return int((where - lines[which]).abs().max())
