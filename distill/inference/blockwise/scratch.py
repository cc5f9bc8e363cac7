"""Scratch arrays with one file per block, for voxels of completed blocks until all blocks are done.

Owned boxes do not start at multiples of one step (blocks divide their overlaps), so two blocks would write to the same
chunk of an array on the volume's own grid. In a scratch array, every block has its own cell, as large as the largest
owned box. The last pass copies the voxels to the final arrays.

Legend: K affinity channels, D H W = z y x of a block's owned box.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.atomic import flush
from distill.core.geometry import Box, Nanometres, Triple
from distill.inference.blockwise.plan import Block, Plan
from distill.inference.blockwise.tables import FOLDER
from distill.io.writers.store import create_zarr, open_zarr_for_writing, writing

INNER = 128  # voxels of a chunk along y and x
NAMES = ("affinity", "supervoxels")
_KEY = {"affinity": "0/", "supervoxels": ""}  # prefix of a file name, before the block's position


@dataclass(frozen=True)
class Shelf:
    """Scratch arrays with one cell for each block of a plan."""

    store: Path
    plan: Plan

    @property
    def cell(self) -> Triple:
        """Return the extent of a cell: the largest owned box, in whole chunks."""
        z, y, x = self.plan.cell
        return z, _whole(y), _whole(x)

    def create(self, resolution: Nanometres) -> None:
        """Create the arrays."""
        z, y, x = (count * side for count, side in zip(self.plan.grid, self.cell, strict=True))
        inner = (self.cell[0], *(min(INNER, side) for side in self.cell[1:]))
        kinds: dict[str, tuple[tuple[int, ...], Any]] = {
            "affinity": ((len(NEAREST),), np.uint8),
            "supervoxels": ((), np.uint64),
        }
        for name, (channels, dtype) in kinds.items():
            create_zarr(
                self.store / FOLDER,
                name,
                shape=(*channels, z, y, x),
                dtype=dtype,
                resolution=resolution,
                chunks=(*(1 for _ in channels), *inner),
                shards=(*channels, *self.cell),
            )

    def write(self, block: Block, affinity: NDArray[np.uint8], ids: NDArray[np.uint64]) -> None:
        """Write the voxels of a block, (K, D, H, W) and (D, H, W), and wait until they are on disk."""
        place = self._place(block, block.owned)
        arrays: tuple[NDArray[Any], ...] = (affinity, ids)
        for name, array in zip(NAMES, arrays, strict=True):
            open_zarr_for_writing(self.store / FOLDER, name).write(place, array)
            path = self.path(name, block)
            with writing(path):
                for at in (path, *(folder for folder in path.parents if self.store / FOLDER in folder.parents)):
                    if at.exists():
                        flush(at)

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Read the voxels of a box of the volume from all blocks that own part of it."""
        array = open_zarr_for_writing(self.store / FOLDER, name).volume()
        channels = () if array.channels is None else (array.channels,)
        found = np.zeros((*channels, *box.shape), array.dtype)
        for block in self.plan.touching(box):
            part = block.owned.intersect(box)
            found[(..., *part.relative_to(box.start).slices)] = array.read(self._place(block, part))
        return found

    def path(self, name: str, block: Block) -> Path:
        """Return the file of a block; it does not exist if all voxels are 0."""
        return self.store / FOLDER / name / "c" / f"{_KEY[name]}{block.slab}/{block.row}/{block.column}"

    def _place(self, block: Block, part: Box) -> Box:
        z, y, x = (n * side for n, side in zip((block.slab, block.row, block.column), self.cell, strict=True))
        return part.relative_to(block.owned.start).shift((z, y, x))


def _whole(side: int) -> int:
    return side if side <= INNER else -(-side // INNER) * INNER
