"""Tables of blocks and of pairs of blocks, in atomically written files.

A block's table is written after its voxels are on disk, and marks the block as complete.

Legend: S supervoxels, P pairs of them, E contacts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import replacing
from distill.core.errors import SourceError
from distill.core.geometry import Box
from distill.io.readers.array import readable
from distill.io.readers.npy import columns
from distill.io.writers.store import writing
from distill.segmentation.agglomeration import RegionGraph
from distill.segmentation.shared_voxels import Shares

FOLDER = "blocks"
Faces = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Evidence:
    """Candidates for joining.

    Attributes:
        shares: overlaps of two supervoxels.
        contacts: affinities along contacts, each edge counted once in all tables.
    """

    shares: Shares
    contacts: RegionGraph


@dataclass(frozen=True)
class BlockTable:
    """Table of one block.

    Attributes:
        box: computed region.
        ids: (S,) its supervoxels, ascending.
        seen: (S,) bool, whether one owns a voxel of the volume.
        inside: evidence within the block.
        stored: whether affinities and supervoxels have non-zero values, and therefore a file.
        faces: ids and affinities at the faces to other blocks, see `distill.inference.blockwise.faces`.
        generation: digest of the block's ids and of this table. A block that is done again on another machine may
            number its supervoxels otherwise; what was made from it before is then of another generation. Empty in
            stores of earlier versions.
        empty: number of owned voxels whose grey value is 0; None in stores of earlier versions.
    """

    box: Box
    ids: NDArray[np.uint64]
    seen: NDArray[np.bool_]
    inside: Evidence
    stored: tuple[bool, bool]
    faces: Faces = field(default_factory=dict)
    generation: str = ""
    empty: int | None = None

    def of(self, ids: NDArray[np.uint64]) -> BlockTable:
        """Return the table with its generation; `ids` are all of the block's (D, H, W)."""
        found = hashlib.blake2b(np.ascontiguousarray(ids).data, digest_size=16)
        for name, array in sorted(_table_arrays(self).items()):
            found.update(name.encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return replace(self, generation=found.hexdigest())


@dataclass(frozen=True)
class Head:
    """Completion record of a block, read without its evidence.

    Attributes:
        box: computed region.
        stored: see `BlockTable`.
        generation: see `BlockTable`.
        empty: see `BlockTable`.
    """

    box: Box
    stored: tuple[bool, bool]
    generation: str
    empty: int | None = None


def table_path(store: Path, index: int) -> Path:
    """Return the path of a block's table."""
    return store / FOLDER / "tables" / f"{index:08d}.npz"


def pair_path(store: Path, axis: int, first: int, second: int) -> Path:
    """Return the path of a pair's evidence."""
    return store / FOLDER / "pairs" / f"{'zyx'[axis]}-{first:08d}-{second:08d}.npz"


def none() -> Evidence:
    """Return empty evidence."""
    return Evidence(Shares.joined([]), RegionGraph.concatenate([]))


def write_table(path: Path, table: BlockTable) -> None:
    """Write a block's table and wait until it is on disk."""
    empty = {} if table.empty is None else {"empty": np.array(table.empty, np.int64)}
    _write(path, {**_table_arrays(table), "generation": np.array(table.generation), **empty})


def _table_arrays(table: BlockTable) -> dict[str, NDArray[Any]]:
    return {
        "box": np.array([table.box.start, table.box.stop], np.int64),
        "ids": table.ids,
        "seen": table.seen,
        "stored": np.array(table.stored),
        **_arrays(table.inside),
        **{f"face_{name}": array for name, array in table.faces.items()},
    }


def write_evidence(path: Path, found: Evidence, of: tuple[str, str]) -> None:
    """Write a pair's evidence and wait until it is on disk.

    Args:
        path: of the pair.
        found: the evidence.
        of: generations of the two blocks that it was taken from, and is valid for.
    """
    _write(path, {**_arrays(found), "of": np.array(of)})


def pair_is_of(path: Path, of: tuple[str, str]) -> bool:
    """Return whether a pair's evidence is there and of two generations.

    Raises:
        SourceError: the file is broken.
    """
    if not path.is_file():
        return False
    with readable(path), np.load(path, allow_pickle=False) as file:
        return _made_of(file) == of


def _made_of(file: Any) -> tuple[str, str]:
    first, second = file["of"].tolist() if "of" in file.files else ("", "")  # of earlier versions
    return first, second


def read_evidence(path: Path, of: tuple[str, str]) -> Evidence:
    """Read the evidence of a block or of a pair.

    Args:
        path: of the pair.
        of: generations of its blocks.

    Raises:
        SourceError: the file is missing or broken, or of other generations.
    """
    with readable(path), np.load(path, allow_pickle=False) as file:
        if _made_of(file) != of:
            raise SourceError(f"{path}: was computed from blocks that have been recomputed since; resume with --resume")
        return _evidence(file)


def read_table(path: Path, faces: str | None = None) -> BlockTable:
    """Read a block's table.

    Args:
        path: of the table.
        faces: read the faces whose names begin with this; none by default, because they are the largest part.

    Raises:
        SourceError: the file is missing or damaged.
    """
    with readable(path), np.load(path, allow_pickle=False) as file:
        head = _head(file)
        names = [] if faces is None else [name for name in file.files if name.startswith(f"face_{faces}")]
        ids, seen = columns(file, ids="iu", seen="b")
        return BlockTable(
            head.box,
            ids,
            seen,
            _evidence(file),
            head.stored,
            {name.removeprefix("face_"): file[name] for name in names},
            head.generation,
            head.empty,
        )


def read_ids(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Read the supervoxels of a block, and whether each owns a voxel of the volume.

    Raises:
        SourceError: the file is missing or damaged.
    """
    with readable(path), np.load(path, allow_pickle=False) as file:
        ids, seen = columns(file, ids="iu", seen="b")
        return ids, seen


def read_head(path: Path) -> Head:
    """Read the completion record of a block.

    Raises:
        SourceError: the file is missing or damaged.
    """
    with readable(path), np.load(path, allow_pickle=False) as file:
        return _head(file)


def _head(file: Any) -> Head:
    (z, y, x), (z_stop, y_stop, x_stop) = file["box"].tolist()
    affinity, supervoxels = file["stored"].tolist()
    generation = str(file["generation"]) if "generation" in file.files else ""
    empty = int(file["empty"]) if "empty" in file.files else None
    return Head(Box((z, y, x), (z_stop, y_stop, x_stop)), (affinity, supervoxels), generation, empty)


def _arrays(found: Evidence) -> dict[str, NDArray[Any]]:
    return {
        "share_a": found.shares.a,
        "share_b": found.shares.b,
        "share": found.shares.share,
        "contact_u": found.contacts.u,
        "contact_v": found.contacts.v,
        "contact_total": found.contacts.total,
        "contact_count": found.contacts.count,
    }


def _evidence(file: Any) -> Evidence:
    return Evidence(
        Shares(*columns(file, share_a="iu", share_b="iu", share="f")),
        RegionGraph(*columns(file, contact_u="iu", contact_v="iu", contact_total="f", contact_count="iu")),
    )


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    # two workers may process the same block if one was presumed dead: each has its own temporary file
    with writing(path), replacing(path, alone=False) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
