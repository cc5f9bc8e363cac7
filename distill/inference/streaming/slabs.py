"""Segment slabs of consecutive sections independently, one at a time, and write their tables.

The table of a slab (its supervoxels, contacts, and the sections at its borders) is written to a separate file. Nothing
of a slab stays in memory, and its table does not depend on the process that computed the previous slab. When the stream
is finished, contacts between slabs are counted, and instances of the query decoder compared in the shared section.

Legend: D H W = z y x of a slab; a run is a sequence of consecutive good sections in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.config import DecoderConfig
from distill.core.affinity_conventions import from_uint8
from distill.core.atomic import replacing
from distill.core.geometry import Triple
from distill.core.labels import distinct_ids
from distill.inference.assembly import Piece, Slab, lay_blocks
from distill.inference.decode import decode_slab, decoder_overlap, decoder_tiles
from distill.inference.options import Runtime
from distill.io.readers.array import readable
from distill.io.readers.npy import columns
from distill.io.writers.store import writing
from distill.models.load import TrainedStudent
from distill.segmentation.agglomeration import RegionGraph, contacts_across, region_graph
from distill.segmentation.shared_voxels import Shares, shared_voxels
from distill.segmentation.stitching import MOST_BLOCKS, Stitcher
from students.streaming.runner import SectionOutput

_BORDER = ("first", "edges", "last")


@dataclass(frozen=True)
class SectionRun:
    """Consecutive good sections, at the positions `at`; `shared` if the previous slab owns the first."""

    at: list[int]
    sections: list[SectionOutput]
    shared: bool


@dataclass(frozen=True)
class Border:
    """Sections of a slab that have contacts with other slabs.

    Attributes:
        first: (H, W) ids of the first section that it owns.
        edges: (H, W) uint8 affinities from there to the section before.
        last: (H, W) ids of the last section.
    """

    first: NDArray[np.uint64]
    edges: NDArray[np.uint8]
    last: NDArray[np.uint64]


@dataclass(frozen=True)
class SlabTable:
    """Table of a slab.

    Attributes:
        ids: (S,) its supervoxels, ascending.
        seen: (S,) bool, whether each owns a voxel of the volume.
        shares: voxels shared by its blocks; empty for `flood`.
        contacts: mean affinity along the contacts of its own sections.
        first: number of the first section, which the previous slab owns if it is its last one.
        last: number of the last section.
        first_plane: ids (h, w) of its blocks in the first section, in the order of the tiles; none for `flood`.
        last_plane: ids (h, w) of its blocks in the last section; none for `flood`.
        border: its sections next to other slabs.
    """

    ids: NDArray[np.uint64]
    seen: NDArray[np.bool_]
    shares: Shares
    contacts: RegionGraph
    first: int
    last: int
    first_plane: list[NDArray[np.uint64]]
    last_plane: list[NDArray[np.uint64]]
    border: Border | None = None


@dataclass(frozen=True)
class SlabResult:
    """A slab decoded: ids (H, W) of the sections that it owns, and its table."""

    number: int
    sections: list[tuple[int, NDArray[np.uint64]]]
    table: SlabTable


def solve_slab(
    model: TrainedStudent, runtime: Runtime, number: int, depth: int, runs: Sequence[SectionRun]
) -> SlabResult | None:
    """Decode the runs of a slab.

    Args:
        model: with a decoder.
        runtime: device and precision.
        number: of the slab.
        depth: stride between slabs in sections.
        runs: in order.

    Returns:
        Its owned sections and table; None if it owns no section. Ids increase with the slab number.
    """
    tables: list[SlabTable] = []
    sections: list[tuple[int, NDArray[np.uint64]]] = []
    for k, run in enumerate(runs):
        if run.shared and len(run.at) == 1:
            continue
        height, width = run.sections[0].affinity.shape[1:]
        blocks = len(decoder_tiles((1, height, width), model.decoding))
        slab = Slab(0, run.sections)
        pieces = decode_slab(model, slab, runtime)
        first = (number * _runs(depth) + k) * blocks
        overlap = None if model.decoder is None else decoder_overlap((1, height, width), model.decoding)
        ids, table = number_run(pieces, slab.stored(), overlap, first, run)
        skip = int(run.shared)
        sections += zip(run.at[skip:], ids[skip:], strict=True)
        tables.append(table)
    return SlabResult(number, sections, _joined(tables)) if tables else None


def _runs(depth: int) -> int:
    """Return how many numbers are reserved for the runs of a slab."""
    return depth + 2


def most_sections(size: tuple[int, int], config: DecoderConfig, depth: int) -> int:
    """Return how many sections a stream can have before the numbers of its decoder blocks are used up.

    Args:
        size: (H, W) on the model's grid.
        config: of the decoder.
        depth: stride between slabs in sections.
    """
    blocks = len(decoder_tiles((1, *size), config))
    return MOST_BLOCKS // (_runs(depth) * blocks) * depth


def number_run(
    pieces: Sequence[Piece], stored: NDArray[np.uint8], overlap: Triple | None, first_block: int, run: SectionRun
) -> tuple[NDArray[np.uint64], SlabTable]:
    """Number the blocks of a run with ids (D, H, W) unique in the whole volume, and build their table.

    Args:
        pieces: blocks of the run, in z, y, x order.
        stored: (3, D, H, W) affinities, 0..255.
        overlap: most voxels that blocks share, to compare them there; None = use contacts only.
        first_block: number of the first block.
        run: sections.
    """
    shape: Triple = stored.shape[1], stored.shape[2], stored.shape[3]
    stitcher = None if overlap is None else Stitcher(overlap)
    parts = lay_blocks(stitcher, pieces, range(first_block, first_block + len(pieces)), shape)
    skip = int(run.shared)
    own = parts.ids[skip:]
    contacts = region_graph(own, from_uint8(stored[:, skip:]))
    seen = distinct_ids(own)
    border = Border(own[0].copy(), stored[0, skip].copy(), own[-1].copy())
    if stitcher is None:
        table = SlabTable(
            seen, np.ones(len(seen), bool), Shares.joined([]), contacts, run.at[0], run.at[-1], [], [], border
        )
        return parts.ids, table
    names = np.concatenate([distinct_ids(block) for block in parts.blocks])
    planes = [[block[z].copy() for block in parts.blocks] for z in (0, -1)]
    table = SlabTable(
        names, np.isin(names, seen), stitcher.shares(), contacts, run.at[0], run.at[-1], planes[0], planes[1], border
    )
    return parts.ids, table


def _joined(tables: Sequence[SlabTable]) -> SlabTable:
    """Concatenate the tables of the runs of one slab, in order."""
    if len(tables) == 1:
        return tables[0]
    return SlabTable(
        np.concatenate([t.ids for t in tables]),
        np.concatenate([t.seen for t in tables]),
        Shares.joined([t.shares for t in tables]),
        RegionGraph.concatenate(t.contacts for t in tables).summed(),
        tables[0].first,
        tables[-1].last,
        tables[0].first_plane,
        tables[-1].last_plane,
        _both_ends(tables[0].border, tables[-1].border),
    )


def _both_ends(first: Border | None, last: Border | None) -> Border | None:
    return None if first is None or last is None else Border(first.first, first.edges, last.last)


def write_slab_table(path: Path, table: SlabTable) -> None:
    """Write a table atomically, and wait until it is on disk."""
    arrays: dict[str, Any] = {
        "ids": table.ids,
        "seen": table.seen,
        "share_a": table.shares.a,
        "share_b": table.shares.b,
        "share": table.shares.share,
        "contact_u": table.contacts.u,
        "contact_v": table.contacts.v,
        "contact_total": table.contacts.total,
        "contact_count": table.contacts.count,
        "planes": np.array([table.first, table.last], np.int64),
    }
    for name, planes in (("first", table.first_plane), ("last", table.last_plane)):
        arrays |= {f"{name}_{k:06d}": plane for k, plane in enumerate(planes)}
    if table.border is not None:
        arrays |= {f"border_{name}": getattr(table.border, name) for name in _BORDER}
    with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_slab_table(path: Path, *, planes: bool = True) -> SlabTable:
    """Read a table written by `write_slab_table`.

    Args:
        path: of the table.
        planes: read the ids of the shared sections too, which are as large as the sections.

    Raises:
        SourceError: the file is missing or damaged.
    """
    with readable(path), np.load(path, allow_pickle=False) as file:
        first, last = (int(n) for n in file["planes"])
        found = [[file[key] for key in _planes(file, n)] if planes else [] for n in ("first", "last")]
        ids, seen = columns(file, ids="iu", seen="b")
        return SlabTable(
            ids,
            seen,
            Shares(*columns(file, share_a="iu", share_b="iu", share="f")),
            RegionGraph(*columns(file, contact_u="iu", contact_v="iu", contact_total="f", contact_count="iu")),
            first,
            last,
            found[0],
            found[1],
            Border(*(file[f"border_{name}"] for name in _BORDER)) if planes and "border_last" in file.files else None,
        )


def _planes(file: Any, which: str) -> list[str]:
    """Return the array names of the block ids in the first or last section of a slab, in the order of the tiles."""
    return sorted(key for key in file.files if key.startswith(f"{which}_"))


def seam(before: Path, after: Path) -> tuple[Shares, RegionGraph]:
    """Compare two neighbouring slabs.

    Returns:
        Voxels shared in the section that both decoded, and contacts between it and the next one; both are empty if the
        slabs share no section. Tables of earlier versions have no contacts.
    """
    with (
        readable(before),
        np.load(before, allow_pickle=False) as one,
        readable(after),
        np.load(after, allow_pickle=False) as other,
    ):
        none = np.zeros(0, np.uint64)
        contacts = RegionGraph(none, none, np.zeros(0), np.zeros(0, np.int64))
        if int(one["planes"][1]) != int(other["planes"][0]):
            return Shares.joined([]), contacts
        if "border_last" in one.files and "border_first" in other.files:
            edges = from_uint8(other["border_edges"])
            contacts = contacts_across(one["border_last"], other["border_first"], edges)
        pairs = zip(_planes(one, "last"), _planes(other, "first"), strict=True)
        return Shares.joined(shared_voxels(one[a], other[b]) for a, b in pairs), contacts
