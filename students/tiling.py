"""Tiles of a section that give what the whole section gives.

A tile is computed with a halo as wide as the network sees, from pixels that lie where the whole section's padding
would have put them. It begins at a multiple of the stride, and what the halo's own borders change does not reach the
core.
All tiles of a section have one shape, so that a backend builds its functions once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.errors import DistillError
from distill.geometry import Triple
from students.receptive import receptive_field
from students.section import Student, reflected


@dataclass(frozen=True)
class Tile:
    """A piece of a section and what it is computed from, in pixels; the section is padded to the stride."""

    start: tuple[int, int]  # (y, x) of the core
    stop: tuple[int, int]
    origin: tuple[int, int]  # (y, x) of the region around it
    size: tuple[int, int]  # (H, W) of the region, multiples of the stride

    @property
    def core(self) -> tuple[slice, slice]:
        """The core in the section."""
        y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return y, x

    def inside(self, scale: int) -> tuple[slice, slice]:
        """The core in the region's maps, at full (1) or half (2) resolution."""
        y, x = (
            slice((a - o) // scale, -(-(b - o) // scale))
            for a, b, o in zip(self.start, self.stop, self.origin, strict=True)
        )
        return y, x

    def grey(self, section: NDArray[Any]) -> NDArray[Any]:
        """The region's pixels of a section (H, W), reflected where it is padded."""
        rows, columns = (
            reflected(torch.arange(o, o + n), length).numpy()
            for o, n, length in zip(self.origin, self.size, section.shape, strict=True)
        )
        inner = section[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return inner[np.ix_(rows - rows.min(), columns - columns.min())]


def halo(student: Student, offsets: Sequence[Triple]) -> tuple[int, int]:
    """(y, x) pixels around a core that its affinities depend on.

    Args:
        student: in evaluation mode.
        offsets: of the affinities.

    Raises:
        DistillError: the student sees the whole section.
    """
    radius = receptive_field(student).radius
    if radius is None:
        raise DistillError(
            "--tile: this student's encoder pools or attends over the whole section, so that a tile would differ from "
            "it; expected no --tile, or an encoder of convolutions alone, such as tu-resnet10t"
        )
    y, x = (r + max(abs(offset[axis]) for offset in offsets) for axis, r in enumerate(radius, start=1))
    return y, x


def cut(size: Sequence[int], tile: int, halo: Sequence[int], stride: int) -> list[Tile]:
    """Tiles that cover a section, in order of y, then x.

    Args:
        size: (H, W) of the section.
        tile: side of a core, even, so that cores meet at half resolution too.
        halo: (y, x) around a core.
        stride: of the student.

    Raises:
        DistillError: the side is odd or below 2.
    """
    if tile < 2 or tile % 2:
        raise DistillError(f"--tile: found {tile}, expected an even number of pixels")
    rows, columns = (_spans(length, tile, around, stride) for length, around in zip(size, halo, strict=True))
    return [
        Tile((y.start, x.start), (y.stop, x.stop), (y.origin, x.origin), (y.length, x.length))
        for y in rows
        for x in columns
    ]


@dataclass(frozen=True)
class _Span:
    """A tile along one axis."""

    start: int
    stop: int
    origin: int
    length: int


def _spans(size: int, tile: int, around: int, stride: int) -> list[_Span]:
    padded = -(-size // stride) * stride
    length = min(padded, (-(-(tile + 2 * around) // stride) + 1) * stride)
    spans = []
    for start in range(0, size, tile):
        origin = min(max(0, (start - around) // stride * stride), padded - length)
        spans.append(_Span(start, min(size, start + tile), origin, length))
    return spans
