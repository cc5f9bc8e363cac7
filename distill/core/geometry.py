"""Boxes and tiles in voxel space.

Axes are z, y, x everywhere. Sizes and positions are in voxels; resolution and offset are in nm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distill.core.errors import DistillError

Triple = tuple[int, int, int]
Nanometres = tuple[float, float, float]
Span = tuple[int, int]  # start and stop along an axis
WHOLE = 1e-3  # of a voxel, by which whole voxels may be missed


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box `start <= p < stop` of voxels, axes z, y, x."""

    start: Triple
    stop: Triple

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise DistillError(f"box: stop {self.stop} lies before start {self.start}")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """Return the box from the origin that covers `shape` (z, y, x)."""
        z, y, x = shape
        return cls((0, 0, 0), (int(z), int(y), int(x)))

    @property
    def shape(self) -> Triple:
        """Return the extent per axis in voxels."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of this box in an array whose origin is voxel (0, 0, 0)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def shift(self, by: Triple) -> Box:
        """Move the box by `by` voxels."""
        return Box(_add(self.start, by), _add(self.stop, by))

    def relative_to(self, origin: Triple) -> Box:
        """Express the box in coordinates with zero at `origin`."""
        return self.shift((-origin[0], -origin[1], -origin[2]))

    def intersect(self, other: Box) -> Box:
        """Return the overlap of two boxes, empty (zero voxels) if they do not meet."""
        start = _zip(max, self.start, other.start)
        return Box(start, _zip(max, start, _zip(min, self.stop, other.stop)))

    def contains(self, other: Box) -> bool:
        """Return whether `other` lies entirely inside."""
        return self.intersect(other) == other

    def grow(self, by: Triple, within: Box) -> Box:
        """Extend the box by `by` voxels on both sides of each axis, clipped to `within`."""
        start = _zip(max, (self.start[0] - by[0], self.start[1] - by[1], self.start[2] - by[2]), within.start)
        return Box(start, _zip(min, _add(self.stop, by), within.stop))


def tiles(whole: Box, size: Triple, stride: Triple) -> Iterator[Box]:
    """Cover `whole` with boxes of `size`, in z, y, x order.

    Args:
        whole: region to cover.
        size: tile extent in voxels; reduced to the region's extent where the region is smaller.
        stride: step in voxels, at most `size` on each axis, so that no voxel is missed.

    Yields:
        Tiles inside `whole`; the last one along an axis is shifted to end at the border and keeps its size.

    Raises:
        DistillError: a size or stride is below 1, or a stride exceeds the size.
    """
    if min(size) < 1 or min(stride) < 1 or any(s > n for s, n in zip(stride, size, strict=True)):
        raise DistillError(f"tiles: size {size} and stride {stride}: expected 1 <= stride <= size on each axis")
    starts = []
    for axis in range(3):
        extent = min(size[axis], whole.shape[axis])
        last = whole.shape[axis] - extent
        steps = [*range(0, last, stride[axis]), last]
        starts.append([(whole.start[axis] + s, whole.start[axis] + s + extent) for s in steps])
    for z, y, x in itertools.product(*starts):
        yield Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def grid(whole: Box, step: Triple) -> list[Box]:
    """Partition `whole` into boxes of `step` voxels, in z, y, x order; boxes at the far borders are clipped."""
    starts = [range(a, b, n) for a, b, n in zip(whole.start, whole.stop, step, strict=True)]
    return [
        Box((z, y, x), (z + step[0], y + step[1], x + step[2])).intersect(whole)
        for z, y, x in itertools.product(*starts)
    ]


def parse_triple(text: str, name: str) -> Triple:
    """Parse three integers from `Z,Y,X`.

    Raises:
        DistillError: the text is anything else; the message names `name`.
    """
    numbers = parse_numbers(text, name)
    if not all(math.isfinite(n) and n == int(n) for n in numbers):
        raise DistillError(f"{name}: found {text!r}, expected three whole numbers Z,Y,X such as 64,512,512")
    z, y, x = (int(n) for n in numbers)
    return z, y, x


def parse_numbers(text: str, name: str) -> Nanometres:
    """Parse three numbers from `Z,Y,X`.

    Raises:
        DistillError: the text is anything else; the message names `name`.
    """
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise DistillError(f"{name}: found {text!r}, expected three numbers Z,Y,X such as 30,6,6") from None
    return z, y, x


def whole_voxels(exact: Sequence[float]) -> Triple | None:
    """Round a position in voxels, z, y, x; None if an axis is further than `WHOLE` from a whole voxel."""
    z, y, x = (round(e) for e in exact)
    if any(abs(e - n) > WHOLE for e, n in zip(exact, (z, y, x), strict=True)):
        return None
    return z, y, x


def of_another_shape(one: Nanometres, other: Nanometres) -> bool:
    """Return whether two voxel sizes differ by more than half along an axis, enough to change what a network sees."""
    ratio = [a / b for a, b in zip(one, other, strict=True)]
    return max(ratio) > 1.5 or min(ratio) < 1 / 1.5


def _add(a: Triple, b: Triple) -> Triple:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _zip(pick: Callable[[int, int], int], a: Triple, b: Triple) -> Triple:
    return pick(a[0], b[0]), pick(a[1], b[1]), pick(a[2], b[2])


def owned_spans(spans: Sequence[Span]) -> list[Span]:
    """Divide overlapping spans in the middle of their overlaps, so that each owns what it sees with most context.

    Args:
        spans: start and stop along an axis, in order; neither starts nor stops decrease.

    Returns:
        For each span its own part; a single shared voxel belongs to the first.
    """
    owned = [*spans]
    for k, (earlier, later) in enumerate(pairwise(spans)):
        if later[0] < earlier[1]:
            cut = (later[0] + earlier[1] + 1) // 2
            owned[k], owned[k + 1] = (owned[k][0], cut), (cut, later[1])
    return owned


def owned_boxes(boxes: Sequence[Box]) -> list[Box]:
    """Divide the overlaps of a grid of blocks among them, in the middle (see `owned_spans`).

    Args:
        boxes: a full grid, as from `tiles`, in any order.

    Returns:
        For each box its own part; together they cover what the boxes cover, every voxel once.

    Raises:
        DistillError: the boxes form no grid.
    """
    owned: list[dict[Span, Span]] = []
    for axis in range(3):
        spans = sorted({(box.start[axis], box.stop[axis]) for box in boxes})
        owned.append(dict(zip(spans, owned_spans(spans), strict=True)))
    if len(set(boxes)) != len(boxes) or len(boxes) != len(owned[0]) * len(owned[1]) * len(owned[2]):
        raise DistillError(f"boxes: found {len(boxes)}, expected a full grid of distinct tiles")
    parts = [[owned[k][box.start[k], box.stop[k]] for k in range(3)] for box in boxes]
    return [Box(as_triple([a for a, _ in part]), as_triple([b for _, b in part])) for part in parts]


def largest_overlap(boxes: Sequence[Box]) -> Triple:
    """Return the maximum overlap in voxels of consecutive boxes along each axis, as required by a `Stitcher`."""
    result = []
    for axis in range(3):
        spans = sorted({(box.start[axis], box.stop[axis]) for box in boxes})
        result.append(max((a[1] - b[0] for a, b in pairwise(spans)), default=0))
    return as_triple([max(0, n) for n in result])


def as_triple(numbers: Sequence[int]) -> Triple:
    z, y, x = numbers
    return z, y, x
