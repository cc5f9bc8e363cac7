"""Divide a volume into blocks: slabs of sections times groups of the decoder's tiles.

The tiles are those of the whole section, so that the result of a tile does not depend on the grouping. Blocks share a
section along z and the overlap of the tiles along y and x. Blocks divide an overlap in the middle, as tiles do; the
shared section is owned by the earlier slab. The owned boxes partition the volume.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill.config import DecoderConfig
from distill.core.errors import DistillError
from distill.core.geometry import Box, Span, Triple, owned_spans
from distill.inference.decode import decoder_tiles
from distill.segmentation.stitching import MOST_BLOCKS

SIDE = 1024  # default extent of a block along y and x, rounded to whole tiles


@dataclass(frozen=True)
class Group:
    """Neighbouring tiles along y or x."""

    first: int  # number of the first tile
    tiles: tuple[Span, ...]
    owned: Span

    @property
    def start(self) -> int:
        """Return the first voxel."""
        return self.tiles[0][0]

    @property
    def stop(self) -> int:
        """Return the voxel after the last one."""
        return self.tiles[-1][1]


@dataclass(frozen=True)
class Block:
    """A slab of sections times a group of tiles along y and one along x."""

    index: int
    slab: int
    row: int
    column: int
    box: Box  # what is computed
    owned: Box  # what is written
    tiles: tuple[tuple[int, Box], ...]  # number of each decoder tile in the whole volume, and its place in it

    def __str__(self) -> str:
        """Describe the block for messages."""
        return f"block {self.index} (voxels {self.box.start} to {self.box.stop})"


@dataclass(frozen=True)
class Plan:
    """All blocks of a volume; they are numbered along z, then y, then x.

    Attributes:
        shape: (D, H, W) of the volume.
        depth: sections of a slab; neighbouring slabs share one.
        rows: groups of tiles along y.
        columns: groups of tiles along x.
    """

    shape: Triple
    depth: int
    rows: tuple[Group, ...]
    columns: tuple[Group, ...]

    @property
    def slabs(self) -> int:
        """Number of slabs; the last one may be thinner, but never consists of the shared section only."""
        return max(1, -(-(self.shape[0] - 1) // (self.depth - 1)))

    @property
    def grid(self) -> Triple:
        """Number of blocks along z, y and x."""
        return self.slabs, len(self.rows), len(self.columns)

    @property
    def count(self) -> int:
        """Number of blocks."""
        z, y, x = self.grid
        return z * y * x

    @property
    def cell(self) -> Triple:
        """Return the maximum extent of the owned voxels of a block along each axis."""
        y, x = (max(group.owned[1] - group.owned[0] for group in axis) for axis in (self.rows, self.columns))
        return min(self.depth, self.shape[0]), y, x

    @cached_property
    def _wide(self) -> int:
        """Return the number of decoder tiles along x."""
        return sum(len(group.tiles) for group in self.columns)

    @cached_property
    def tiles(self) -> int:
        """Return the number of decoder tiles of a slab."""
        return self._wide * sum(len(group.tiles) for group in self.rows)

    def at(self, slab: int, row: int, column: int) -> Block:
        """Return the block at a position in the grid."""
        rows, columns = self.rows[row], self.columns[column]
        z = slab * (self.depth - 1)
        stop = min(self.shape[0], z + self.depth)
        (y, y_stop), (x, x_stop) = rows.owned, columns.owned
        wide, each = self._wide, self.tiles
        tiles = tuple(
            (slab * each + i * wide + j, Box((z, tile_y[0], tile_x[0]), (stop, tile_y[1], tile_x[1])))
            for i, tile_y in enumerate(rows.tiles, start=rows.first)
            for j, tile_x in enumerate(columns.tiles, start=columns.first)
        )
        index = (slab * len(self.rows) + row) * len(self.columns) + column
        box = Box((z, rows.start, columns.start), (stop, rows.stop, columns.stop))
        return Block(index, slab, row, column, box, Box((z + (slab > 0), y, x), (stop, y_stop, x_stop)), tiles)

    def block(self, index: int) -> Block:
        """Return a block by its number."""
        _, rows, columns = self.grid
        return self.at(index // (rows * columns), index // columns % rows, index % columns)

    def blocks(self) -> Iterator[Block]:
        """Iterate over all blocks in order."""
        return (self.block(index) for index in range(self.count))

    def touching(self, box: Box) -> list[Block]:
        """Return the blocks that own a voxel of a box, in order."""
        z, stop, step = box.start[0], box.stop[0], self.depth - 1
        slabs = range(max(0, (z - 1) // step), min(self.slabs - 1, max(0, (stop - 2) // step)) + 1)
        rows, columns = (
            range(bisect_right(ends, box.start[axis]), min(len(ends), bisect_left(ends, box.stop[axis]) + 1))
            for axis, ends in enumerate(self._ends, start=1)
        )
        return [self.at(slab, row, column) for slab in slabs for row in rows for column in columns]

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        """Return the ends of the owned voxels of the groups along y and x, which ascend."""
        return [group.owned[1] for group in self.rows], [group.owned[1] for group in self.columns]

    def pairs(self) -> Iterator[tuple[int, int, int]]:
        """Iterate over all pairs of blocks with a common face: axis, number of the earlier, number of the later
        block.
        """
        slabs, rows, columns = self.grid
        for slab in range(slabs):
            for row in range(rows):
                for column in range(columns):
                    here = self.at(slab, row, column).index
                    if slab + 1 < slabs:
                        yield 0, here, self.at(slab + 1, row, column).index
                    for other in _meeting(self.rows, row):
                        yield 1, here, self.at(slab, other, column).index
                    for other in _meeting(self.columns, column):
                        yield 2, here, self.at(slab, row, other).index


def make_plan(shape: Triple, config: DecoderConfig, block: Triple | None) -> Plan:
    """Divide a volume into blocks.

    Args:
        shape: (D, H, W) of the volume.
        config: block and overlap of the decoder's tiles.
        block: maximum extent of a block in voxels; by default the decoder's depth and 1024 x 1024.

    Raises:
        DistillError: a block is smaller than a tile of the decoder, or has fewer than two sections.
    """
    sides = zip(config.block[1:], config.overlap[1:], strict=True)
    wanted = block or (config.block[0], *(_usual(side, overlap) for side, overlap in sides))
    strips = decoder_tiles((1, shape[1], 1), config), decoder_tiles((1, 1, shape[2]), config)  # not their product
    spans = [
        sorted({(tile.start[axis], tile.stop[axis]) for tile in strip}) for axis, strip in enumerate(strips, start=1)
    ]
    least = (2, *(min(config.block[axis], shape[axis]) for axis in (1, 2)))
    if any(side < n for side, n in zip(wanted, least, strict=True)):
        raise DistillError(f"--block: found {_text(wanted)}, expected at least {_text(least)}, a tile of the decoder")
    rows, columns = (_groups(axis, side) for axis, side in zip(spans, wanted[1:], strict=True))
    plan = Plan(shape, wanted[0], rows, columns)
    count = plan.slabs * plan.tiles
    if count > MOST_BLOCKS:
        raise DistillError(
            f"--sections: found {shape[0]:,} of {shape[1]} x {shape[2]} pixels, {count:,} tiles of the decoder, "
            f"expected at most {MOST_BLOCKS:,}: ids do not reach further; segment it in parts by --sections"
        )
    return plan


def plan_of(settings: Mapping[str, Any]) -> Plan:
    """Return the blocks of a store from its settings; each of them is listed as one tile.

    Args:
        settings: see `distill.inference.blockwise.begin.settings_of`.
    """
    sides = [[(int(start), int(stop)) for start, stop in settings[name]] for name in ("rows", "columns")]
    rows, columns = (
        tuple(Group(n, (span,), own) for n, (span, own) in enumerate(zip(spans, owned_spans(spans), strict=True)))
        for spans in sides
    )
    shape = (int(settings["size"][0]), rows[-1].stop, columns[-1].stop)
    return Plan(shape, int(settings["depth"]), rows, columns)


def _usual(side: int, overlap: int) -> int:
    count = max(1, round((SIDE - overlap) / max(1, side - overlap)))
    return max(SIDE, side + (count - 1) * (side - overlap))


def _groups(spans: Sequence[Span], side: int) -> tuple[Group, ...]:
    """Group as many tiles as fit into a block; a shifted tile may begin an odd voxel early and still counts."""
    cuts = [0]
    for number, (_, stop) in enumerate(spans):
        if number > cuts[-1] and stop - spans[cuts[-1]][0] > side:
            cuts.append(number)
    ends = list(zip(cuts, [*cuts[1:], len(spans)], strict=True))
    owned = owned_spans([(spans[first][0], spans[stop - 1][1]) for first, stop in ends])
    return tuple(Group(first, tuple(spans[first:stop]), own) for (first, stop), own in zip(ends, owned, strict=True))


def _meeting(groups: Sequence[Group], number: int) -> list[int]:
    """Return the later groups that overlap a group, and always the next one."""
    stop = groups[number].stop
    found = []
    for k in range(number + 1, len(groups)):
        if k > number + 1 and groups[k].start >= stop:  # they begin in order
            break
        found.append(k)
    return found


def _text(triple: Sequence[int]) -> str:
    return ",".join(map(str, triple))
