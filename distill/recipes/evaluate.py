"""`distill evaluate`: a segmentation against ground truth."""

from __future__ import annotations

from dataclasses import dataclass

from distill.errors import ShapeError
from distill.geometry import Box
from distill.metrics import Contingency, Scores, WorstObjects, worst_objects
from distill.volume import Volume, open_labels, voxel_shift


@dataclass(frozen=True)
class Evaluation:
    """Scores and the objects that cost most."""

    scores: Scores
    worst: WorstObjects
    box: Box  # evaluated part, in voxels of the labels


def evaluate(
    segmentation: str, labels: str, preset: str, resolution: tuple[float, float, float] | None = None, worst: int = 5
) -> Evaluation:
    """Score a segmentation where it lies inside the labelled volume, section by section.

    Args:
        segmentation: source; its offset says where it lies.
        labels: source of the ground truth, the same size or larger.
        preset: see `distill.metrics`.
        resolution: for files without one.
        worst: how many objects to list.

    Raises:
        ShapeError: other voxels, or a segmentation that reaches beyond the labels.
    """
    found, truth = open_labels(segmentation, resolution=resolution), open_labels(labels, resolution=resolution)
    box = placed(found, truth)
    table = Contingency(preset, resolution=truth.resolution)
    for z, section in enumerate(found.sections()):
        here = Box((box.start[0] + z, *box.start[1:]), (box.start[0] + z + 1, *box.stop[1:]))
        table.add(section[None], truth.read(here))
    return Evaluation(table.scores(), worst_objects(table, worst), box)


def placed(found: Volume, truth: Volume) -> Box:
    """Where the segmentation lies in the labels' voxels.

    Raises:
        ShapeError: voxels of another size, part of a voxel between them, or a segmentation that reaches beyond.
    """
    box = Box.of_shape(found.size).shift(voxel_shift(found, truth))
    if not truth.box.contains(box):
        raise ShapeError(
            f"{found.source}: covers voxels {box.start} to {box.stop} (z, y, x) of {truth.source}, "
            f"which has {truth.size}"
        )
    return box
