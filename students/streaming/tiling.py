"""Divide a section into tiles that give the same result as the whole section.

A tile is computed with a halo as wide as the receptive field, from pixels at the positions that the padding of the
whole section gives them. It begins at a multiple of the stride, and border effects of the halo do not reach the core.
All tiles of a section have the same shape, so a backend builds its functions once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.core.geometry import Triple
from students.streaming.receptive_field import receptive_field
from students.student import Student, reflected


@dataclass(frozen=True)
class Tile:
    """Core of a tile and the region from which it is computed, in pixels; the section is padded to the stride."""

    start: tuple[int, int]  # (y, x) of the core
    stop: tuple[int, int]
    origin: tuple[int, int]  # (y, x) of the region around it
    size: tuple[int, int]  # (H, W) of the region, multiples of the stride

    @property
    def core(self) -> tuple[slice, slice]:
        """Return the core in the section."""
        y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return y, x

    def inside(self, scale: int) -> tuple[slice, slice]:
        """Return the core in the region's maps, at full (1) or half (2) resolution."""
        y, x = (
            slice((a - o) // scale, -(-(b - o) // scale))
            for a, b, o in zip(self.start, self.stop, self.origin, strict=True)
        )
        return y, x

    def window(self, section: Sequence[int]) -> tuple[slice, slice]:
        """Return the pixels of a section of size (H, W) that the region is filled from."""
        rows, columns = self._sources(section)
        return slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)

    def filled(self, window: NDArray[Any], section: Sequence[int]) -> NDArray[Any]:
        """Fill the region from `window` (..., h, w), with reflection where the section (H, W) is padded."""
        rows, columns = (lines - lines.min() for lines in self._sources(section))
        return window[(..., *np.ix_(rows, columns))]

    def _sources(self, section: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = (
            reflected(torch.arange(o, o + n, device="cpu"), length).numpy()
            for o, n, length in zip(self.origin, self.size, section, strict=True)
        )
        return rows, columns


def halo(student: Student, offsets: Sequence[Triple]) -> tuple[int, int]:
    """Return the (y, x) pixels around a core on which its affinities depend.

    Args:
        student: in evaluation mode.
        offsets: of the affinities.

    Raises:
        DistillError: the receptive field is the whole section.
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
    """Divide a section into tiles, in order of y, then x.

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
    cores = [[(start, min(length, start + tile)) for start in range(0, length, tile)] for length in size]
    return around(size, cores[0], cores[1], halo, stride, least=tile)


def around(
    size: Sequence[int],
    rows: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, int]],
    halo: Sequence[int],
    stride: int,
    *,
    least: int = 0,
) -> list[Tile]:
    """Build tiles with given cores, in order of y, then x.

    Args:
        size: (H, W) of the section.
        rows: start and stop of the cores along y; even, so that cores are whole at half resolution too.
        columns: start and stop of the cores along x; even.
        halo: (y, x) around a core.
        stride: of the student.
        least: minimum core size for which regions are dimensioned.
    """
    spans = [
        _spans(length, cores, least, reach, stride)
        for length, cores, reach in zip(size, (rows, columns), halo, strict=True)
    ]
    return [
        Tile((y.start, x.start), (y.stop, x.stop), (y.origin, x.origin), (y.length, x.length))
        for y in spans[0]
        for x in spans[1]
    ]


@dataclass(frozen=True)
class _Span:
    """A tile along one axis."""

    start: int
    stop: int
    origin: int
    length: int


def _spans(size: int, cores: Sequence[tuple[int, int]], least: int, reach: int, stride: int) -> list[_Span]:
    padded = -(-size // stride) * stride
    longest = max(least, *(stop - start for start, stop in cores))
    length = min(padded, (-(-(longest + 2 * reach) // stride) + 1) * stride)
    origins = [min(max(0, (start - reach) // stride * stride), padded - length) for start, _ in cores]
    return [_Span(start, stop, origin, length) for (start, stop), origin in zip(cores, origins, strict=True)]
