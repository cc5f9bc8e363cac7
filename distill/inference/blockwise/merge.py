"""Compute final segment ids from the overlap and contact tables of all blocks, without voxels.

The result is two files that workers search without reading them entirely.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.core.atomic import new_folder, replacing
from distill.core.errors import SourceError
from distill.core.labels import Relabelling
from distill.inference.assembly import SupervoxelTables
from distill.inference.blockwise.options import merges_contacts
from distill.inference.blockwise.plan import Plan
from distill.inference.blockwise.tables import FOLDER, pair_path, read_evidence, read_table, table_path
from distill.io.readers.array import readable
from distill.io.writers.store import write_json, writing

BORDER_OF_FRAGMENTS = 0.5  # that of waterz at its default


def merge_blocks(store: Path, plan: Plan, method: str, threshold: float | None) -> Relabelling:
    """Compute final ids 1..n of the supervoxels that own a voxel, from the tables of all blocks.

    Args:
        store: with the tables of all blocks and pairs.
        plan: how the volume was cut.
        method: `flood` and `query` merge contacts above the threshold; the others merge those across blocks above
            `border_threshold`. Except for `flood`, instances that share most of their voxels are joined first.
        threshold: of the method.

    Raises:
        SourceError: a table is missing or broken.
    """
    tables = read_block_tables(store, plan)
    return tables.by_contacts(threshold if merges_contacts(method) else border_threshold(method, threshold))


def read_block_tables(store: Path, plan: Plan) -> SupervoxelTables:
    """Read the tables of all blocks and pairs of blocks.

    Raises:
        SourceError: a table is missing or broken.
    """
    tables, of = SupervoxelTables(), []
    for block in plan.blocks():
        table = read_table(table_path(store, block.index))
        if table.box != block.box:
            raise SourceError(f"{store}: {block}: its table is of {table.box.start} to {table.box.stop}")
        tables.add(table.ids, table.seen, table.inside.shares, table.inside.contacts)
        of.append(table.generation)
    for axis, first, second in plan.pairs():
        found = read_evidence(pair_path(store, axis, first, second), (of[first], of[second]))
        tables.join(found.shares, found.contacts)
    return tables


def border_threshold(method: str, threshold: float | None) -> float:
    """Return the mean affinity that a contact across blocks must exceed if the method has its own scale inside them."""
    assert threshold is not None, "methods without a decoder have a threshold"
    if method == "fragments":  # its threshold is a score of the transformer, which saw no contact across blocks
        return BORDER_OF_FRAGMENTS
    return 1 - threshold if method == "waterz" else threshold


def merge_digest(method: str, threshold: float | None, generations: Sequence[str]) -> str:
    """Hash what final ids are computed from: ids and segmentation are valid for that alone.

    Args:
        method: see `merge_blocks`.
        threshold: likewise.
        generations: of all blocks, in order.
    """
    made_from = json.dumps([method, threshold, list(generations)])
    return hashlib.sha256(made_from.encode()).hexdigest()


def write_mapping(store: Path, digest: str, mapping: Relabelling, threshold: float | None) -> None:
    """Write final ids atomically.

    Args:
        store: of the blocks.
        digest: see `merge_digest`.
        mapping: final ids.
        threshold: of the method.
    """
    folder = mapping_folder(store, digest)
    with writing(folder), new_folder(folder) as made:
        for name, array in (("old", mapping.old), ("new", mapping.new)):
            with replacing(made / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array)
        note = {"threshold": threshold, "objects": int(mapping.new.max(initial=0))}
        write_json(made / "merged.json", note)


def mapping_note(store: Path, digest: str) -> dict[str, float | int | None] | None:
    """Return threshold and number of objects of the final ids; None if they have not been computed."""
    path = mapping_folder(store, digest) / "merged.json"
    if not path.is_file():
        return None
    with readable(path):
        found: dict[str, float | int | None] = json.loads(path.read_text(encoding="utf-8"))
    return found


def open_mapping(store: Path, digest: str) -> Relabelling:
    """Open the final ids, which are looked up on disk."""
    folder = mapping_folder(store, digest)
    with readable(folder):
        return Relabelling(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("old", "new")))


def mapping_folder(store: Path, digest: str) -> Path:
    """Return where final ids are."""
    return store / FOLDER / f"merged-{digest[:16]}"
