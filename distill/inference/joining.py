"""Final ids from what slabs or blocks told: shared voxels first, then contacts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.core.labels import Relabelling, ranks
from distill.inference.in_memory import merge_contacts
from distill.segmentation.agglomeration import RegionGraph
from distill.segmentation.stitching import Shares, unite


def final_relabelling(
    ids: Sequence[NDArray[np.uint64]],
    seen: Sequence[NDArray[np.bool_]],
    shares: Sequence[Shares],
    contacts: list[RegionGraph],
    threshold: float | None,
) -> Relabelling:
    """Final ids 1..n of the supervoxels that own a voxel.

    Args:
        ids: supervoxels, ascending over all parts.
        seen: whether each owns a voxel.
        shares: of all parts.
        contacts: of all parts; the list is emptied, so that its arrays can go.
        threshold: see `merge_contacts`; None = go by shared voxels alone.
    """
    every = np.concatenate([np.zeros(0, np.uint64), *ids])
    mapping = unite(every, Shares.joined(shares))
    if threshold is not None and contacts:
        names = ("u", "v", "total", "count")
        joined = RegionGraph(*(np.concatenate([getattr(graph, name) for graph in contacts]) for name in names))
        contacts.clear()
        mapping = merge_contacts(mapping, [joined], threshold)
    there = np.concatenate([np.zeros(0, bool), *seen])
    return Relabelling(mapping.old[there], ranks(mapping.new[there]))
