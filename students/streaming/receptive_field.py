"""Measure the receptive field of a student.

The receptive field is measured instead of derived from the layers: NaN propagates to every value computed from it,
through convolution, pooling, ReLU, bilinear upsampling and normalisation, for any weights.

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
    """The input pixels of either section that can change an output pixel."""

    radius: tuple[int, int] | None  # (y, x) largest distance in pixels; None: the whole section

    @property
    def extent(self) -> tuple[int, int] | None:
        """Return the (y, x) sides of the window around an output pixel, 2 radius + 1; None for the whole section."""
        return None if self.radius is None else (2 * self.radius[0] + 1, 2 * self.radius[1] + 1)


def receptive_field(student: Student, *, far: int = 4096) -> ReceptiveField:
    """Measure the receptive field of the embeddings of both branches and of the half and full maps, in evaluation mode.

    The radius is the halo of a tile: further than the radius from its borders, a tile that begins at a multiple of the
    student's stride is computed from the same pixels as the whole section. A half-resolution pixel counts as the pixels
    that it covers.

    A line of NaN across a narrow strip is placed at every position of one stride, in the middle of a strip long enough
    that no NaN reaches its ends. Other positions behave alike, because the stages repeat with the stride. This also
    holds for upsampling with align_corners=True: its weights change with the size of the map and along the map, but the
    two pixels that it mixes do not; a tile then reads the same pixels as the section, with slightly different weights.
    It does not hold for attention within windows wider than the stride, whose radius may exceed the measured one. In
    float64, no convolution is computed in tiles, which would spread NaN further.

    Args:
        student: any mode, type and device; a copy is measured.
        far: longest strip in pixels; if NaN spreads from the middle to its ends, the receptive field is taken as
            unlimited.

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
        lines = torch.split(torch.arange(middle, middle + student.stride, device="cpu"), _AT_ONCE)
        radius.append(max(_reach(_seen(exact, axis, length, some), some) for some in lines))
    return ReceptiveField((radius[0], radius[1]))


def has_global_context(student: Student, *, far: int = 4096) -> bool:
    """Return whether a pixel changes outputs at any distance along y or x, so that tiles differ from the whole section.

    Args:
        student: any mode, type and device; a copy is measured.
        far: longest strip in pixels; if NaN spreads from the middle to its ends, the receptive field is taken as
            unlimited.
    """
    return any(_room(student, axis, far) is None for axis in _AXES)


def _room(student: Student, axis: int, far: int) -> int | None:
    """Return the length of a strip that contains the receptive field of its middle stride; None if it exceeds `far`."""
    rough = _measurable(student, torch.float32)
    length = 8 * student.stride
    while length <= far:
        ends = torch.tensor([length // 2, length // 2 + student.stride - 1], device="cpu")
        seen = _seen(rough, axis, length, ends)
        if not seen[:, [0, -1]].any():
            return length
        length *= 2
    return None


def _measurable(student: Student, dtype: torch.dtype) -> Student:
    return copy.deepcopy(student).eval().to("cpu", dtype)


def _seen(student: Student, axis: int, length: int, lines: Tensor) -> Tensor:
    """Return the output lines (N, L) along an axis that depend on each of N input lines of a strip, bool."""
    shape = [len(lines), 1, student.stride, student.stride]
    shape[axis] = length
    strips = torch.zeros(shape, dtype=next(student.parameters()).dtype, device="cpu")
    strips.movedim(axis, 1)[torch.arange(len(lines), device="cpu"), lines] = torch.nan
    with torch.inference_mode():
        features = student.encode(strips)
        pair = student.decode(features, features)
    maps = (pair.previous, pair.current, pair.full, pair.half.repeat_interleave(2, axis))
    across = _AXES[0] if axis == _AXES[1] else _AXES[1]
    return torch.stack([found.isnan().any(across).any(1) for found in maps]).any(0)


def _reach(seen: Tensor, lines: Tensor) -> int:
    """Return the largest distance between a line and the output lines that depend on it."""
    which, where = seen.nonzero(as_tuple=True)
    assert len(where), "NaN is lost on its way"
    assert not seen[:, [0, -1]].any(), "the strip is too short"
    return int((where - lines[which]).abs().max())
