"""Faces of blocks, and the comparison of neighbouring blocks.

Contacts across the border between the owned voxels of two blocks are counted, so that the result is that of all tiles
in one array. Except for `flood`, instances of two blocks are also compared where these overlap: tile by tile for
`query`; other methods segment a block as a whole.

Names of faces: the axis, `high` towards later blocks and `low` towards earlier ones, then the content.

Legend: D h w = z y x of a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.geometry import Box, Triple
from distill.inference.blockwise.plan import Block, Plan
from distill.inference.blockwise.tables import BlockTable, Evidence, Faces, none
from distill.segmentation.agglomeration import contacts_across
from distill.segmentation.shared_voxels import Shares, shared_voxels

Ids = NDArray[np.uint64]
Affinity = NDArray[np.float32]

AXES = "zyx"


@dataclass(frozen=True)
class Laid:
    """A block's pieces under ids that are unique in the whole volume.

    Attributes:
        ids: (D, H, W) of the block's box; pieces divide their overlaps in the middle.
        pieces: number, position and ids of each piece.
        affinity: (3, D, H, W).
    """

    ids: Ids
    pieces: Sequence[tuple[int, Box, Ids]]
    affinity: Affinity


def faces(plan: Plan, block: Block, laid: Laid, *, compared: bool) -> Faces:
    """Extract the faces of a block: ids and affinities of the owned border.

    Args:
        plan: of the block.
        block: its number and boxes.
        laid: its ids.
        compared: include the ids of every piece where it overlaps other blocks.
    """
    found: dict[str, NDArray[Any]] = {}
    for axis in range(3):
        for side, region in _shared(plan, block, axis).items() if compared else ():
            for number, box, ids in block_pieces(laid, region):
                found[f"{AXES[axis]}_{side}_tile_{number}"] = ids[region.intersect(box).relative_to(box.start).slices]
        for side, edge in (("low", _line(block.owned, axis, 0)), ("high", _line(block.owned, axis, -1))):
            if not _meets(plan, block, axis, side):
                continue
            here = edge.relative_to(block.box.start).slices
            found[f"{AXES[axis]}_{side}_ids"] = laid.ids[here]
            if side == "low":
                found[f"{AXES[axis]}_low_edges"] = laid.affinity[(axis, *here)]
    return found


def compare_blocks(
    plan: Plan, axis: int, first: tuple[Block, BlockTable], second: tuple[Block, BlockTable], method: str
) -> Evidence:
    """Compare two neighbouring blocks along an axis.

    Args:
        plan: of both.
        axis: 0, 1 or 2.
        first: the earlier block and its table with the faces of this axis that are `high`.
        second: the later one, with those that are `low`.
        method: decides what is compared where the blocks overlap, see `compared_pieces`.
    """
    (a, a_table), (b, b_table) = first, second
    name = AXES[axis]
    high, low = _shared(plan, a, axis).get("high"), _shared(plan, b, axis).get("low")
    shares = []
    for number, box in compared_pieces(a, method):
        for other, other_box in compared_pieces(b, method):
            both = box.intersect(other_box)
            if high is None or low is None or not both.voxels or not _side_by_side(box, other_box, axis):
                continue
            mine = _cut(a_table.faces[f"{name}_high_tile_{number}"], high.intersect(box), both)
            theirs = _cut(b_table.faces[f"{name}_low_tile_{other}"], low.intersect(other_box), both)
            shares.append(shared_voxels(mine, theirs))
    contacts = none().contacts
    if b.owned.start[axis] == a.owned.stop[axis]:
        contacts = contacts_across(
            a_table.faces[f"{name}_high_ids"], b_table.faces[f"{name}_low_ids"], b_table.faces[f"{name}_low_edges"]
        )
    return Evidence(Shares.joined(shares), contacts)


def compared_pieces(block: Block, method: str) -> Sequence[tuple[int, Box]]:
    """Return number and position of the pieces of a block whose instances are joined by the voxels that they share."""
    if method == "flood":
        return ()
    return block.tiles if method == "query" else ((block.index, block.box),)


def block_pieces(laid: Laid, region: Box) -> list[tuple[int, Box, Ids]]:
    """Return the pieces that have voxels in a region."""
    return [piece for piece in laid.pieces if piece[1].intersect(region).voxels]


def _shared(plan: Plan, block: Block, axis: int) -> dict[str, Box]:
    """Return the overlap of a block with later (`high`) and earlier (`low`) blocks along an axis, if any."""
    place, count = (block.slab, block.row, block.column)[axis], plan.grid[axis]
    found = {}
    if place + 1 < count:
        found["high"] = _span(block.box, axis, _start(plan, axis, place + 1), block.box.stop[axis])
    if place:
        found["low"] = _span(block.box, axis, block.box.start[axis], _stop(plan, axis, place - 1))
    return {side: box for side, box in found.items() if box.voxels}


def _meets(plan: Plan, block: Block, axis: int, side: str) -> bool:
    place = (block.slab, block.row, block.column)[axis]
    return place > 0 if side == "low" else place + 1 < plan.grid[axis]


def _start(plan: Plan, axis: int, place: int) -> int:
    return place * (plan.depth - 1) if axis == 0 else (plan.rows, plan.columns)[axis - 1][place].start


def _stop(plan: Plan, axis: int, place: int) -> int:
    if axis == 0:
        return min(plan.shape[0], place * (plan.depth - 1) + plan.depth)
    return (plan.rows, plan.columns)[axis - 1][place].stop


def _span(box: Box, axis: int, start: int, stop: int) -> Box:
    """Return a box between two positions along an axis; empty if they are reversed."""
    low, high = list(box.start), list(box.stop)
    low[axis], high[axis] = start, max(start, stop)
    return Box(_triple(low), _triple(high))


def _line(box: Box, axis: int, at: int) -> Box:
    """Return the first (0) or the last (-1) layer of voxels of a box along an axis."""
    start = box.start[axis] if at == 0 else box.stop[axis] - 1
    return _span(box, axis, start, start + 1)


def _cut(array: NDArray[Any], stored: Box, wanted: Box) -> NDArray[Any]:
    return array[(..., *wanted.relative_to(stored.start).slices)]


def _side_by_side(a: Box, b: Box, axis: int) -> bool:
    return all(a.start[k] == b.start[k] and a.stop[k] == b.stop[k] for k in range(3) if k != axis)


def _triple(numbers: Sequence[int]) -> Triple:
    z, y, x = numbers
    return z, y, x
