"""Transfer results from the model's grid to the grid of the source.

Both grids begin at the border of the section. A source pixel takes its value from the model pixel that contains its
centre.

Affinities: the edge between two neighbouring source pixels follows the straight path between their model pixels and
takes the minimum affinity along it. If both lie in the same model pixel, the path contains no edge; the affinity is
then the maximum of that pixel's in-plane affinities. Edges inside neurites thus stay high, and edges inside membranes,
which belong to no object, stay low.

Legend: K offsets, D H W = z y x of the source, h w = y x on the model's grid; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres, Triple

SAME = 1e-3  # relative difference of pixel sizes that is ignored
_MOST = 16.0  # maximum ratio of pixel sizes; beyond it, the resolution is probably wrong

Scalar = TypeVar("Scalar", bound=np.generic)
_Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rescaling:
    """Mapping between the grid of the source and that of a model.

    Attributes:
        recorded: (H, W) of a section of the source.
        model: (h, w) of the same section on the model's grid.
        factor: source pixels per model pixel, along y and x.
    """

    recorded: tuple[int, int]
    model: tuple[int, int]
    factor: tuple[float, float]

    def at(self, axis: int, start: int, stop: int) -> _Indices:
        """Return the model pixel of each of the source pixels `start` to `stop`.

        Args:
            axis: 0 = y, 1 = x.
            start: first pixel.
            stop: one past the last.
        """
        inside = np.floor((np.arange(start, stop) + 0.5) / self.factor[axis]).astype(np.int64)
        found: _Indices = np.minimum(inside, self.model[axis] - 1)
        return found

    def used(self, axis: int, start: int, stop: int) -> _Indices:
        """Return those of the model pixels `start` to `stop` that contain the centre of a source pixel."""
        found: _Indices = np.unique(self.at(axis, 0, self.recorded[axis]))
        return found[(found >= start) & (found < stop)]

    def model_box(self, box: Box) -> Box:
        """Return the voxels on the model's grid that determine ids and affinities of a box of the source."""
        spans = [self._span(axis, box.start[axis + 1], box.stop[axis + 1]) for axis in (0, 1)]
        (y, y_stop), (x, x_stop) = spans
        return Box((box.start[0], y, x), (box.stop[0], y_stop, x_stop))

    def nearest(self, found: NDArray[Scalar], box: Box, within: Box) -> NDArray[Scalar]:
        """Transfer ids or embeddings to source voxels.

        Args:
            found: (..., D, h, w) on the model's grid.
            box: voxels of the source.
            within: voxels on the model's grid that `found` covers, at least those of `model_box`.

        Returns:
            (..., D, H, W) of `box`.
        """
        rows, columns = (self.at(axis, box.start[axis + 1], box.stop[axis + 1]) for axis in (0, 1))
        rows, columns = rows - within.start[1], columns - within.start[2]
        return np.take(np.take(found, rows, -2), columns, -1)

    def affinity(self, found: NDArray[Scalar], offsets: Sequence[Triple], box: Box, within: Box) -> NDArray[Scalar]:
        """Transfer affinities to source voxels, as defined in the module.

        The first row of the y channel and the first column of the x channel have no partner and are filled by
        reflection, as on the model's grid.

        Args:
            found: (K, D, h, w) on the model's grid, of any numeric type.
            offsets: K, nearest neighbours or along z only.
            box: voxels of the source.
            within: voxels on the model's grid that `found` covers, at least those of `model_box`.

        Returns:
            (K, D, H, W) of `box`.

        Raises:
            DistillError: see `check_offsets`.
        """
        check_offsets(offsets)
        result = self.nearest(found, box, within)
        kept: NDArray[Scalar] | None = None
        for axis, channel in ((0, list(offsets).index(NEAREST[1])), (1, list(offsets).index(NEAREST[2]))):
            edges = self._partners(axis, box.start[axis + 1], box.stop[axis + 1])
            if edges is None:  # one pixel: no edge
                result[channel] = _one(found.dtype)
                continue
            there, here = (pixels - within.start[axis + 1] for pixels in edges)
            other = self.at(1 - axis, box.start[2 - axis], box.stop[2 - axis]) - within.start[2 - axis]
            turned = np.moveaxis(np.take(found[channel], other, -1 if axis == 0 else -2), axis - 2, -1)
            path = np.take(turned, here, -1)
            for step in range(1, int((here - there).max(initial=0))):
                longer = here - there > step
                path[..., longer] = np.minimum(path[..., longer], np.take(turned, here[longer] - step, -1))
            inside = here == there
            if inside.any():
                kept = self._inside(found, offsets, within) if kept is None else kept
                own = np.moveaxis(np.take(kept, other, -1 if axis == 0 else -2), axis - 2, -1)
                path[..., inside] = np.take(own, here[inside], -1)
            result[channel] = np.moveaxis(path, -1, axis - 2)
        return result

    def _partners(self, axis: int, start: int, stop: int) -> tuple[_Indices, _Indices] | None:
        """Return the model pixels of each source pixel's partner and of the pixel itself; None if there is no edge."""
        if self.recorded[axis] == 1:
            return None
        pixels = np.arange(start, stop)
        pixels[pixels == 0] = min(2, self.recorded[axis] - 1)
        every = self.at(axis, 0, int(pixels.max(initial=0)) + 1)
        return every[pixels - 1], every[pixels]

    def _span(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        if start == stop:
            return 0, 0
        last = max(stop - 1, min(2, self.recorded[axis] - 1)) if start == 0 else stop - 1
        first, last = max(0, start - 1), last
        begin, end = (int(self.at(axis, one, one + 1)[0]) for one in (first, last))
        return begin, min(self.model[axis], end + 2)

    def _inside(self, found: NDArray[Scalar], offsets: Sequence[Triple], within: Box) -> NDArray[Scalar]:
        """Return the affinity within each model pixel, (D, h, w): the maximum of its four in-plane edges."""
        listed = list(offsets)
        largest = np.zeros(found.shape[1:], found.dtype)
        for axis, offset in ((-2, NEAREST[1]), (-1, NEAREST[2])):
            edges = np.moveaxis(found[listed.index(offset)], axis, -1)
            into = np.moveaxis(largest, axis, -1)
            first = 1 if within.start[axis] == 0 else 0  # edges at the border are reflections
            np.maximum(into[..., first:], edges[..., first:], out=into[..., first:])
            np.maximum(into[..., :-1], edges[..., 1:], out=into[..., :-1])
        return largest


def rescaling_of(
    source: str, size: tuple[int, int], resolution: Nanometres, pixel: tuple[float, float]
) -> Rescaling | None:
    """Determine the mapping between the grid of sections and that of a model.

    Args:
        source: name of the sections, for messages.
        size: (H, W) of a section of the source.
        resolution: of the sections, nm.
        pixel: y and x of the model's pixels, nm.

    Returns:
        The mapping; None if the grids are the same.

    Raises:
        DistillError: one pixel is more than 16 times as large as the other.
    """
    factor = pixel[0] / resolution[1], pixel[1] / resolution[2]
    if all(abs(one - 1) <= SAME for one in factor):
        return None
    if not all(1 / _MOST <= one <= _MOST for one in factor):
        found, wanted = (" x ".join(f"{n:g}" for n in pair) for pair in (resolution[1:], pixel))
        raise DistillError(
            f"--rescale: {source} has pixels of {found} nm, the model's are {wanted} nm (y, x); expected at most "
            f"{_MOST:g} times as large or as small, give the right size by --resolution Z,Y,X"
        )
    y, x = (1.0 if abs(one - 1) <= SAME else one for one in factor)
    height, width = (max(1, int(n / one + 0.5)) for n, one in zip(size, (y, x), strict=True))
    return Rescaling(size, (height, width), (y, x))


def check_offsets(offsets: Sequence[Triple]) -> None:
    """Check that affinities at these offsets can be transferred between grids.

    Raises:
        DistillError: an offset beyond nearest neighbours has an in-plane component.
    """
    for offset in offsets:
        if offset not in NEAREST and any(offset[1:]):
            raise DistillError(
                f"--offset {','.join(map(str, offset))}: found --rescale, expected further offsets along z alone, such "
                "as -2,0,0: in the section they have no whole number of pixels on both grids"
            )


def _one(dtype: np.dtype[Any]) -> int:
    return 255 if dtype == np.uint8 else 1
