"""Read supervoxels and contacts from the tables of a store.

Legend: S supervoxels, O objects, E contacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.labels import Relabelling, ranks
from distill.inference.aside import made_by
from distill.inference.assembly import SupervoxelTables, contacts_of_objects, final_ids_above
from distill.inference.blockwise.bad_sections import read_bad, remaining
from distill.inference.blockwise.begin import is_blocks
from distill.inference.blockwise.merge import read_block_tables
from distill.inference.blockwise.options import merges_contacts
from distill.inference.blockwise.plan import plan_of
from distill.inference.blockwise.tables import FOLDER
from distill.inference.settings import read_settings
from distill.inference.streaming.finish import read_slab_tables
from distill.inference.streaming.output.manifest import is_stream, read_job
from distill.io.volume import open_volume
from distill.segmentation.agglomeration import Merges, RegionGraph, merges_above


@dataclass(frozen=True, eq=False)
class StoredGraph:
    """Supervoxels of a store with their contacts, before anything is merged by contact.

    Attributes:
        threshold: merge threshold of the segmentation in the store.
        sections: number of completed sections.
        stitched: object of every supervoxel by shared voxels alone; a supervoxel each for `flood`.
        seen: (S,) whether each supervoxel of `stitched` owns a voxel.
        contacts: (E,) contacts of supervoxels, each pair once.
    """

    threshold: float
    sections: int
    stitched: Relabelling
    seen: NDArray[np.bool_]
    contacts: RegionGraph

    @cached_property
    def numbers(self) -> Relabelling:
        """Return the numbers 1..n of the supervoxels that own a voxel, in ascending order of their ids."""
        ids = self.stitched.old[self.seen]
        return Relabelling(ids, np.arange(1, len(ids) + 1, dtype=np.uint64))

    @cached_property
    def objects(self) -> RegionGraph:
        """Return the contacts of objects, each pair once."""
        return contacts_of_objects(self.stitched, [self.contacts])

    def merges(self, lowest: float) -> Merges:
        """Return the merges of objects down to a mean affinity, in the order in which they happen."""
        return merges_above(self.objects, lowest)

    def segments(self, merges: Merges, threshold: float) -> NDArray[np.uint64]:
        """Return the final ids 1..n of the supervoxels that own a voxel, as a segmentation at this threshold has them.

        Args:
            merges: computed for this threshold or a lower one.
            threshold: merge objects with a mean affinity above it.
        """
        found = final_ids_above(self.stitched, merges, threshold)
        return ranks(found.new[self.seen])


def read_graph(store: Path) -> StoredGraph:
    """Read the supervoxels and contacts of a finished store of `distill stream` or `distill segment`.

    Raises:
        SourceError: no such store, it is not finished, its supervoxels were merged in blocks (waterz, mws), or a table
            is missing or damaged.
    """
    about = made_by(store)
    if is_stream(store):
        tables = _of_stream(store, about)
    elif is_blocks(store):
        tables = _of_blocks(store, about)
    else:
        raise SourceError(f"{store}: found no supervoxels, expected a store of distill stream or distill segment")
    assert about is not None, "refused where nothing is finished"
    threshold = about.get("merge_threshold")
    if threshold is None:
        raise SourceError(
            f"{store}: found no merge threshold, expected a segmentation with one: {_finish(store, '--merge 0.5')}"
        )
    stitched, seen = tables.united()
    sections = open_volume(f"{store}:supervoxels", missing="zero").size[0]
    return StoredGraph(
        float(threshold), int(about.get("sections", sections)), stitched, seen, tables.contacts().summed()
    )


def _of_stream(store: Path, about: Mapping[str, Any] | None) -> SupervoxelTables:
    job = read_job(store)
    if not job["segment"]:
        raise SourceError(f"{store}: found affinities alone, expected segments: stream without --no-segment")
    if about is None:
        raise SourceError(f"{store}: is not finished, expected a segmentation: distill finish {store}")
    return read_slab_tables(store, int(about["sections"]), int(job["depth"]))


def _of_blocks(store: Path, about: Mapping[str, Any] | None) -> SupervoxelTables:
    if about is None:
        raise SourceError(f"{store}: is not finished, expected a segmentation: distill segment ... --resume")
    method = str(about.get("method", "query"))
    if not merges_contacts(method):
        raise SourceError(
            f"{store}: found a segmentation by {method}, which keeps no supervoxels and no contacts inside blocks; "
            "expected one by distill segment --method flood"
        )
    plan = plan_of(read_settings(store, FOLDER, "segment"))
    found = remaining(plan.shape[0], read_bad(store) or [])
    if found is not None:
        plan = replace(plan, shape=(len(found.good), *plan.shape[1:]))
    return read_block_tables(store, plan)


def _finish(store: Path, option: str) -> str:
    return f"distill finish {store} {option}" if is_stream(store) else f"distill segment ... --resume {option}"
