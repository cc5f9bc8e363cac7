"""Merge the contacts of many blocks part by part, so that no process holds the contacts of the whole volume.

Level 0 reduces each block, level 1 parts of 2 x 2 x 2 blocks, and so on until one part is the volume. A part loads what
is left of its parts and the contacts across their common faces, merges what it can decide
(`distill.segmentation.reduction`), and writes what is left. The result is that of one merge over all tables, id by id.

Only for `flood`: instances of queries are first joined across blocks by the voxels that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import new_folder, replacing
from distill.core.geometry import Triple
from distill.core.labels import Relabelling, concatenate, ranks
from distill.inference.blockwise.plan import Plan
from distill.inference.blockwise.tables import (
    FOLDER,
    pair_path,
    read_evidence,
    read_head,
    read_ids,
    read_table,
    table_path,
)
from distill.io.readers.array import readable
from distill.io.readers.npy import columns
from distill.io.writers.store import writing
from distill.segmentation.agglomeration import RegionGraph
from distill.segmentation.reduction import PartGraph, reduce_part

FROM_BLOCKS = 512  # number of blocks from which contacts are merged in parts; fewer fit into memory

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Part:
    """Part of a plan: all blocks whose place in the grid, divided by 2**level, is `place`."""

    level: int
    place: Triple

    def parts(self, plan: Plan) -> list[Part]:
        """Return the parts of the level below; none of a block."""
        if self.level == 0:
            return []
        counts = part_counts(plan, self.level - 1)
        spans = [range(2 * at, min(2 * at + 2, count)) for at, count in zip(self.place, counts, strict=True)]
        return [Part(self.level - 1, (z, y, x)) for z in spans[0] for y in spans[1] for x in spans[2]]

    def blocks(self, plan: Plan) -> Iterator[Triple]:
        """Iterate over the places of its blocks in the grid."""
        side = 2**self.level
        spans = [range(at * side, min((at + 1) * side, count)) for at, count in zip(self.place, plan.grid, strict=True)]
        return ((z, y, x) for z in spans[0] for y in spans[1] for x in spans[2])

    def contains(self, place: Triple, level: int) -> bool:
        """Return whether a part of a level that is not higher lies in it."""
        return all(at >> (self.level - level) == own for at, own in zip(place, self.place, strict=True))


def levels(plan: Plan) -> int:
    """Return the number of levels; the last one has one part."""
    return max(count - 1 for count in plan.grid).bit_length() + 1


def part_counts(plan: Plan, level: int) -> Triple:
    """Return the number of parts of a level along z, y and x."""
    z, y, x = (-(-count // 2**level) for count in plan.grid)
    return z, y, x


def parts_of(plan: Plan, level: int) -> list[Part]:
    """Return all parts of a level."""
    counts = part_counts(plan, level)
    return [Part(level, (z, y, x)) for z in range(counts[0]) for y in range(counts[1]) for x in range(counts[2])]


def reduced_folder(store: Path, digest: str) -> Path:
    """Return where the parts are."""
    return store / FOLDER / f"reduced-{digest[:16]}"


def begin_parts(store: Path, digest: str) -> None:
    """Make the folder of the parts, if it is not there."""
    folder = reduced_folder(store, digest)
    if not folder.is_dir():
        with writing(folder), new_folder(folder):
            pass


def part_path(store: Path, digest: str, part: Part) -> Path:
    """Return the file of a part."""
    z, y, x = part.place
    return reduced_folder(store, digest) / f"{part.level}-{z:06d}-{y:06d}-{x:06d}.npz"


def write_part(store: Path, plan: Plan, digest: str, part: Part, threshold: float) -> None:
    """Reduce a part whose own parts are there, and write what is left.

    Args:
        store: with the tables of all blocks and pairs.
        plan: how the volume was cut.
        digest: of the final ids, see `distill.inference.blockwise.merge.merge_digest`.
        part: to reduce.
        threshold: mean affinity that a contact must exceed.

    Raises:
        SourceError: a table or part is missing or damaged.
    """
    path = part_path(store, digest, part)
    if path.is_file():
        return
    given = [_read_part(part_path(store, digest, one)) for one in part.parts(plan)]
    if part.level == 0:
        (at,) = part.blocks(plan)
        given = [_LeftPart(PartGraph.of(read_table(table_path(store, plan.at(*at).index)).inside.contacts), _nothing())]
    names = _joined([one.open for one in given])
    inside, outside = _faces(store, plan, part)
    graphs = [one.left for one in given] + [PartGraph.of(graph).renamed(names) for graph in inside]
    opened = np.unique(np.concatenate([np.zeros(0, np.uint64), *outside]))
    open_now = Relabelling(opened, opened)
    open_now = replace(open_now, new=_looked_up(opened, names))
    reduced = reduce_part(graphs, np.unique(open_now.new), threshold)
    changed = reduced.merged.old != reduced.merged.new
    arrays = {
        **{f"left_{name}": getattr(reduced.left, name) for name in _LEFT},
        "merged_old": reduced.merged.old[changed],
        "merged_new": reduced.merged.new[changed],
        "open_old": opened,
        "open_new": _looked_up(open_now.new, reduced.merged),
    }
    # two workers may process the same part if one was presumed dead: each has its own temporary file
    with writing(path), replacing(path, alone=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def final_ids_of_parts(store: Path, plan: Plan, digest: str) -> Relabelling:
    """Compute final ids 1..n of the supervoxels that own a voxel, from the merges of all parts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    found = [read_ids(table_path(store, index)) for index in range(plan.count)]
    ids, seen = (np.concatenate([one[k] for one in found]) for k in (0, 1))
    order = np.argsort(ids, kind="stable")
    ids, seen = ids[order], seen[order]
    ends: list[list[NDArray[np.intp]]] = [[], []]
    for level in range(levels(plan)):
        for part in parts_of(plan, level):
            path = part_path(store, digest, part)
            with readable(path), np.load(path, allow_pickle=False) as file:
                for side, pair in zip(ends, columns(file, merged_old="iu", merged_new="iu"), strict=True):
                    side.append(np.searchsorted(ids, pair))
    a, b = (np.concatenate(side) for side in ends)
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(ids),) * 2)
    members = connected_components(graph, directed=False)[1]
    _, first, where = np.unique(members, return_index=True, return_inverse=True)
    return Relabelling(ids[seen], ranks(ids[first[where]][seen]))


_LEFT = ("u", "v", "total", "count", "first_u", "first_v")


@dataclass(frozen=True)
class _LeftPart:
    """What is left of a part, and the region of each of its ids with contacts elsewhere."""

    left: PartGraph
    open: Relabelling


def _nothing() -> Relabelling:
    none = np.zeros(0, np.uint64)
    return Relabelling(none, none)


def _read_part(path: Path) -> _LeftPart:
    kinds = dict(zip(_LEFT, ("iu", "iu", "f", "iu", "iu", "iu"), strict=True))
    with readable(path), np.load(path, allow_pickle=False) as file:
        left = PartGraph(*columns(file, **{f"left_{name}": kind for name, kind in kinds.items()}))
        return _LeftPart(left, Relabelling(*columns(file, open_old="iu", open_new="iu")))


def _joined(names: list[Relabelling]) -> Relabelling:
    """Join the regions of ids that no two parts share."""
    every = concatenate([_nothing(), *names])
    order = np.argsort(every.old, kind="stable")
    return Relabelling(every.old[order], every.new[order])


def _looked_up(ids: Ids, names: Relabelling) -> Ids:
    """Return the names of ids; those that are not listed stay."""
    if not len(names.old):
        return ids
    where = np.minimum(np.searchsorted(names.old, ids), len(names.old) - 1)
    return np.where(names.old[where] == ids, names.new[where], ids)


def _faces(store: Path, plan: Plan, part: Part) -> tuple[list[RegionGraph], list[Ids]]:
    """Return the contacts across faces between the parts of a part, and the ids with contacts across its own faces."""
    inside, outside = [], []
    below = part.level - 1
    for place in part.blocks(plan):
        for axis in range(3):
            for step in (1, -1):
                z, y, x = (at + step * (k == axis) for k, at in enumerate(place))
                if not 0 <= (z, y, x)[axis] < plan.grid[axis]:
                    continue
                here, there = place, (z, y, x)
                same = part.contains(there, 0)
                if same and (step < 0 or _shifted(here, below) == _shifted(there, below)):
                    continue
                before, after = (here, there) if step > 0 else (there, here)
                graph = _across(store, plan, axis, before, after)
                if same:
                    inside.append(graph)
                else:
                    own = read_ids(table_path(store, plan.at(*place).index))[0]
                    outside.append(np.intersect1d(own, np.concatenate([graph.u, graph.v])))
    return inside, outside


def _shifted(place: Triple, level: int) -> Triple | None:
    """Return the part of a level that a block lies in; None below the blocks."""
    return None if level < 0 else (place[0] >> level, place[1] >> level, place[2] >> level)


def _across(store: Path, plan: Plan, axis: int, before: Triple, after: Triple) -> RegionGraph:
    """Return the contacts across the face of two blocks."""
    first, second = plan.at(*before).index, plan.at(*after).index
    heads = tuple(read_head(table_path(store, index)).generation for index in (first, second))
    return read_evidence(pair_path(store, axis, first, second), (heads[0], heads[1])).contacts
