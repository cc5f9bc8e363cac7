"""Score a segmentation against ground truth block by block (`distill evaluate`).

Memory is limited to a block of voxels and the pairs (ground-truth id, segment id) that occur, independent of the
volume.
"""

from __future__ import annotations

import statistics
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Nanometres, Triple, tiles
from distill.evaluation.aligned import Aligned, OnBlock, align, chunk_blocks, over_blocks
from distill.evaluation.contingency import PRESETS, Contingency, Scores, border_reach
from distill.evaluation.metrics import WorstObjects, worst_objects
from distill.io.truth import EVERYWHERE, Known, open_known
from distill.io.volume import Volume, open_labels, voxel_shift

_MEANS = ("voi_split", "voi_merge", "voi_sum", "arand", "cremi_score")


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (n - 1; None for a single value)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class BlockScores:
    """Scores of the separate blocks of a volume.

    Attributes:
        size: extent z, y, x in voxels.
        scores: of every block with a counted voxel, in z, y, x order.
        empty: number of blocks without a counted voxel, which are skipped.
    """

    size: Triple
    scores: tuple[Scores, ...]
    empty: int

    def statistic(self, name: str) -> Statistic | None:
        """Return the statistic of one score over the blocks; None for a score that the preset does not have."""
        values = [getattr(one, name) for one in self.scores]
        if any(value is None for value in values):
            return None
        return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def to_dict(self) -> dict[str, Any]:
        """Return all values by name, ready for JSON."""
        rows: dict[str, Any] = {
            "preset": self.scores[0].preset,
            "size_zyx": list(self.size),
            "n": len(self.scores),
            "n_without_ground_truth": self.empty,
        }
        for name in _MEANS:
            found = self.statistic(name)
            rows[name] = None if found is None else {"mean": found.mean, "std": found.std}
        return rows


@dataclass(frozen=True)
class Evaluation:
    """Scores and the worst objects.

    Attributes:
        scores: of the whole segmentation.
        worst: objects with the largest errors.
        box: evaluated region, in voxels of the labels.
        table: contingency table of the scores.
        blocks: scores of its blocks, if requested.
    """

    scores: Scores
    worst: WorstObjects
    box: Box
    table: Contingency
    blocks: BlockScores | None = None


def evaluate(
    segmentation: str,
    labels: str,
    preset: str,
    resolution: Nanometres | None = None,
    worst: int = 5,
    *,
    blocks: Triple | None = None,
    known: Known = EVERYWHERE,
    workers: int = 1,
    on_block: OnBlock = lambda done, total: None,
) -> Evaluation:
    """Score a segmentation at its position inside the labelled volume.

    Args:
        segmentation: source, positioned by its offset.
        labels: source of the ground truth, of the same size or larger.
        preset: see `distill.evaluation.contingency`.
        resolution: for files without one.
        worst: number of objects to list.
        blocks: also score blocks of this extent (z, y, x) separately.
        known: where the ground truth is valid.
        workers: number of reading and counting processes; the result does not depend on it.
        on_block: called with the number of blocks read and their total.

    Raises:
        ShapeError: voxel sizes differ, or the segmentation extends beyond the labels.
        DistillError: bad input, or no ground truth within the segmentation.
    """
    both = align(open_labels(segmentation, resolution=resolution), open_known(labels, known, resolution=resolution))
    table = Contingency(preset, resolution=both.truth.resolution)
    with closing(over_blocks(partial(count_block, both, preset), chunk_blocks(both.found), workers, on_block)) as parts:
        for part in parts:
            table.update(part)
    if not table.counted:
        where = " away from borders" if PRESETS[preset].border_nm is not None else ""
        where += "" if known == EVERYWHERE else " where --ignore and --mask leave some"
        raise DistillError(
            f"{both.truth.source}: found no ground truth other than 0{where} among the {table.voxels:,} voxels that "
            f"{both.found.source} covers, expected some to count"
        )
    scored = None if blocks is None else score_blocks(both, preset, blocks, workers, on_block)
    return Evaluation(table.scores(), worst_objects(table, worst), both.box, table, scored)


def count_block(both: Aligned, preset: str, box: Box) -> Contingency:
    """Count one block; tables of blocks add up to that of the volume, also under `cremi`.

    Args:
        both: segmentation and ground truth.
        preset: see `distill.evaluation.contingency`.
        box: voxels of the segmentation.
    """
    table = Contingency(preset, resolution=both.truth.resolution)
    border_nm = PRESETS[preset].border_nm
    reach = (0, 0) if border_nm is None else border_reach(both.truth.resolution, border_nm)
    wide = box.grow((0, *reach), both.found.box)
    (_, top, left), (_, bottom, right) = (
        tuple(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in ((box.start, wide.start), (box.stop, wide.stop))
    )
    table.add(both.found.read(box), both.labels(wide), ((top, bottom), (left, right)))
    return table


def score_blocks(
    both: Aligned,
    preset: str,
    size: Triple,
    workers: int = 1,
    on_block: OnBlock = lambda done, total: None,
) -> BlockScores:
    """Score blocks separately; the last block along an axis is shifted to end at the volume's border.

    Args:
        both: segmentation and ground truth.
        preset: see `distill.evaluation.contingency`; `cremi` masks the same borders as for the whole volume.
        size: extent z, y, x in voxels, reduced to the volume where that is smaller.
        workers: processes.
        on_block: called with the number of blocks done and their total.

    Raises:
        DistillError: an extent is below 1, or no block has valid ground truth.
    """
    if min(size) < 1:
        raise DistillError(f"--blocks: found {size}, expected Z,Y,X of at least 1 each")
    z, y, x = (min(a, b) for a, b in zip(size, both.found.size, strict=True))
    boxes = list(tiles(both.found.box, (z, y, x), (z, y, x)))
    with closing(over_blocks(partial(count_block, both, preset), boxes, workers, on_block)) as tables:
        scores = tuple(table.scores() for table in tables if table.counted)
    if not scores:
        raise DistillError(f"--blocks: found no block of {both.truth.source} with ground truth to count")
    return BlockScores((z, y, x), scores, len(boxes) - len(scores))


def position_in_truth(found: Volume, truth: Volume) -> Box:
    """Return the position of the segmentation in voxels of the labels.

    Raises:
        ShapeError: voxels of another size, part of a voxel between them, or a segmentation that reaches beyond.
    """
    box = found.box.shift(voxel_shift(found, truth))
    if not truth.box.contains(box):
        raise ShapeError(
            f"{found.source}: covers voxels {box.start} to {box.stop} (z, y, x) of {truth.source}, which has "
            f"{truth.size}"
        )
    return box
