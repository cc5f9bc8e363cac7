"""Parts of objects found in one block, on disk: points, the triangles or edges between them, and where each id's lie.

Positions are x, y, z in half voxels of the whole array, exact integers where surfaces are concerned, so that parts of
neighbouring blocks share their points bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import new_folder
from distill.core.errors import SourceError
from distill.core.geometry import Box, Triple


@dataclass(frozen=True)
class Part:
    """A part of one object.

    Attributes:
        points: (N, 3) x, y, z.
        links: (M, 3) triangles or (M, 2) edges, numbers of points.
        radii: (N,) nm, of skeletons; (0,) for surfaces.
    """

    points: NDArray[np.float64]
    links: NDArray[np.uint32]
    radii: NDArray[np.float32]


@dataclass(frozen=True)
class Fragments:
    """All parts of a block, packed one after another.

    Attributes:
        ids: (n,) ascending.
        point_ends: (n,) number of points up to and including each id.
        link_ends: (n,) number of links up to and including each id.
        points: (N, 3).
        links: (M, 2 or 3), numbered within the id's own points.
        radii: (N,) or (0,).
    """

    ids: NDArray[np.uint64]
    point_ends: NDArray[np.int64]
    link_ends: NDArray[np.int64]
    points: NDArray[np.float64]
    links: NDArray[np.uint32]
    radii: NDArray[np.float32]

    def part(self, at: int) -> Part:
        """Return the part of the id number `at`."""
        first, stop = (int(self.point_ends[at - 1]) if at else 0), int(self.point_ends[at])
        begin, end = (int(self.link_ends[at - 1]) if at else 0), int(self.link_ends[at])
        return Part(self.points[first:stop], self.links[begin:end], self.radii[first:stop])


def pack(parts: dict[int, Part], corners: int) -> Fragments:
    """Pack the parts of a block.

    Args:
        parts: by id.
        corners: of a link, 2 or 3.
    """
    ids = sorted(parts)
    found = [parts[one] for one in ids]
    return Fragments(
        np.array(ids, np.uint64),
        np.cumsum([len(part.points) for part in found], dtype=np.int64),
        np.cumsum([len(part.links) for part in found], dtype=np.int64),
        np.concatenate([np.zeros((0, 3)), *(part.points for part in found)]),
        np.concatenate([np.zeros((0, corners), np.uint32), *(part.links for part in found)]),
        np.concatenate([np.zeros(0, np.float32), *(part.radii for part in found)]),
    )


def save(folder: Path, fragments: Fragments) -> None:
    """Write the fragments of a block; the folder appears when they are complete.

    Raises:
        SourceError: the disk refuses.
    """
    try:
        with new_folder(folder) as made:
            for name, values in vars(fragments).items():
                np.save(made / f"{name}.npy", values)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be written: {error.strerror or error}") from None


def load(folder: Path) -> Fragments:
    """Open the fragments of a block without reading their points.

    Raises:
        SourceError: they are damaged.
    """
    names = ("ids", "point_ends", "link_ends", "points", "links", "radii")
    try:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r" if name == "points" else None) for name in names]
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{folder}: cannot be read: {error}; expected to delete it and run the command again"
        ) from None
    return Fragments(*arrays)


def joined(parts: Sequence[Part]) -> Part:
    """Join the parts of one object; points at the same place become one, and links that collapse are dropped."""
    before = np.cumsum([0, *(len(part.points) for part in parts[:-1])])
    every = np.concatenate([part.points for part in parts])
    points, first, number = np.unique(every, axis=0, return_index=True, return_inverse=True)
    links = np.concatenate([part.links.astype(np.int64) + n for part, n in zip(parts, before, strict=True)])
    links = number.reshape(-1)[links]
    whole = (links != np.roll(links, 1, axis=1)).all(axis=1)
    radii = np.concatenate([part.radii for part in parts])
    return Part(points, links[whole].astype(np.uint32), radii[first] if len(radii) else radii)


def block_boxes(size: Triple, block: Triple) -> list[Box]:
    """Divide an array into blocks that share one layer of voxels with the next one along each axis."""
    starts = [range(0, max(1, n - 1), max(1, b - 1)) for n, b in zip(size, block, strict=True)]
    return [
        Box((z, y, x), (min(z + block[0], size[0]), min(y + block[1], size[1]), min(x + block[2], size[2])))
        for z, y, x in product(*starts)
    ]


def objects(tables: Iterable[Fragments]) -> dict[int, list[tuple[int, int]]]:
    """Return, for every id, the tables that hold parts of it and the number of each part."""
    found: dict[int, list[tuple[int, int]]] = {}
    for table, fragments in enumerate(tables):
        for at, one in enumerate(fragments.ids.tolist()):
            found.setdefault(one, []).append((table, at))
    return dict(sorted(found.items()))
