"""Expected run length of a segmentation, on SWC files or skeletons of the labels (`distill evaluate --skeletons`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.choices import SkeletonUnits
from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres
from distill.evaluation.aligned import OnBlock, align, block_extent, over_blocks
from distill.evaluation.run_length.scores import RunLength, run_length
from distill.evaluation.run_length.skeletons import Skeleton, read_skeletons
from distill.io.truth import EVERYWHERE, Known, open_known
from distill.io.volume import Volume, open_labels

UNITS: tuple[SkeletonUnits, ...] = ("nm", "um", "voxel")

_ON_BORDER = 1e-3  # fraction of a voxel: positions rounded to a voxel's lower face belong to it
_NM_PER_UM = 1000.0


def evaluate_run_length(
    segmentation: str,
    skeletons: Sequence[Skeleton],
    resolution: Nanometres | None = None,
    merge_nodes: int = 1,
    *,
    workers: int = 1,
    on_block: OnBlock = lambda done, total: None,
) -> RunLength:
    """Compute the expected run length of a segmentation; only blocks that contain nodes are read.

    Args:
        segmentation: source, positioned by its resolution and offset.
        skeletons: nodes in nm, in world coordinates.
        resolution: for files without one.
        merge_nodes: see `distill.evaluation.run_length.scores`.
        workers: number of reading processes.
        on_block: called with the number of blocks read and their total.

    Raises:
        DistillError: bad input, or no edge of a skeleton lies inside the segmentation.
    """
    volume = open_labels(segmentation, resolution=resolution)
    sizes = np.cumsum([0, *(len(one.nodes) for one in skeletons)])
    places = np.concatenate([one.nodes for one in skeletons])
    voxels, inside = node_voxels(volume, places)
    ids = np.zeros(len(places), np.uint64)
    ids[inside] = ids_at(volume, voxels[inside], workers, on_block)
    cut = [slice(first, last) for first, last in itertools.pairwise(sizes)]
    try:
        return run_length(skeletons, [ids[part] for part in cut], [inside[part] for part in cut], merge_nodes)
    except DistillError as error:
        if inside.any():
            raise
        low, high = places.min(0).round(1).tolist(), places.max(0).round(1).tolist()
        end = [o + n * r for o, n, r in zip(volume.offset, volume.size, volume.resolution, strict=True)]
        raise DistillError(
            f"{error}: the nodes lie from {low} to {high} nm (z, y, x), {volume.source} from {list(volume.offset)} to "
            f"{end} nm; see --skeleton-units"
        ) from None


def open_skeletons(path: Path, units: SkeletonUnits, grid: Volume) -> list[Skeleton]:
    """Read skeletons of SWC files, in nm.

    Args:
        path: file, or folder of files.
        units: of the coordinates: `nm` or `um` in world coordinates, in which the segmentation has its offset, or
            `voxel` for voxel indices of the segmentation, with whole numbers at voxel centres.
        grid: the segmentation.

    Raises:
        DistillError: an unknown unit, or a file that is not SWC.
    """
    if units not in UNITS:
        raise DistillError(f"--skeleton-units: found {units!r}, expected {', '.join(UNITS)}")
    found = read_skeletons(path)
    if units == "nm":
        return found
    scale = np.full(3, _NM_PER_UM) if units == "um" else np.array(grid.resolution)
    start = np.zeros(3) if units == "um" else np.array(grid.offset) + 0.5 * scale
    return [replace(one, nodes=one.nodes * scale + start) for one in found]


def skeletonize(
    segmentation: str, labels: str, resolution: Nanometres | None = None, known: Known = EVERYWHERE
) -> list[Skeleton]:
    """Skeletonise the ground-truth objects within the segmentation by kimimaro (TEASAR) with its default settings.

    The labels of that region are held in memory. Objects of less than 1,000 voxels have no skeleton.

    Args:
        segmentation: source, positioned by its offset.
        labels: source of the ground truth, of the same size or larger.
        resolution: for files without one.
        known: where the ground truth is valid.

    Raises:
        DistillError: kimimaro is not installed, bad input, or no object is large enough.
    """
    try:
        import kimimaro
    except ImportError:
        raise DistillError(
            "--skeletonize: kimimaro is not installed, expected the extra: pip install 'affinity-distill[skeletons]' "
            "(kimimaro's licence is the GPL)"
        ) from None
    both = align(open_labels(segmentation, resolution=resolution), open_known(labels, known, resolution=resolution))
    truth = both.truth.read(both.box)
    found = kimimaro.skeletonize(truth, anisotropy=both.truth.resolution, progress=False, parallel=1)
    centre = np.array(both.found.offset) + 0.5 * np.array(both.truth.resolution)
    made = [
        Skeleton(str(label), np.asarray(one.vertices, np.float64) + centre, np.asarray(one.edges, np.int64))
        for label, one in sorted(found.items())
        if len(one.edges)
    ]
    if not made:
        raise DistillError(f"{both.truth.source}: found no object that makes a skeleton, expected some of 1,000 voxels")
    return made


def node_voxels(volume: Volume, places: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the voxel of every node, and whether it lies in the volume.

    Args:
        volume: its voxel v extends from offset + v * resolution to offset + (v + 1) * resolution.
        places: (N, 3) z, y, x in nm.
    """
    exact = (places - np.array(volume.offset)) / np.array(volume.resolution)
    voxels = np.floor(exact + _ON_BORDER).astype(np.int64)
    return voxels, ((voxels >= 0) & (voxels < np.array(volume.size))).all(1)


def ids_at(
    volume: Volume, voxels: NDArray[np.int64], workers: int = 1, on_block: OnBlock = lambda done, total: None
) -> NDArray[np.uint64]:
    """Look up ids at voxels, reading block by block.

    Args:
        volume: labels.
        voxels: (N, 3) inside it.
        workers: number of reading processes.
        on_block: called with the number of blocks read and their total.
    """
    if not len(voxels):
        return np.zeros(0, np.uint64)
    block = voxels // np.array(block_extent(volume))
    _, where = np.unique(block, axis=0, return_inverse=True)
    order = np.argsort(where, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(where[order])) + 1)
    boxes = []
    for part in parts:
        (z0, y0, x0), (z1, y1, x1) = voxels[part].min(0).tolist(), voxels[part].max(0).tolist()
        boxes.append(Box((z0, y0, x0), (z1 + 1, y1 + 1, x1 + 1)))
    ids = np.zeros(len(voxels), np.uint64)
    with closing(over_blocks(partial(_read, volume), boxes, workers, on_block)) as read:
        for part, box, found in zip(parts, boxes, read, strict=True):
            ids[part] = found[tuple((voxels[part] - np.array(box.start)).T)]
    return ids


def _read(volume: Volume, box: Box) -> NDArray[np.uint64]:
    ids: NDArray[np.uint64] = volume.read(box)
    return ids
