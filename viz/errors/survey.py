"""Find the objects with the largest errors of a segmentation, and draw them for one section (`distill errors`).

The sources are read section by section, twice: first to match objects and segments in the whole volume, then to locate
errors. Memory grows with the ids and the pairs of them that occur, as in `distill evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Nanometres
from distill.core.labels import Integers, compact, distinct_ids, sum_pairs
from distill.core.normalisation import as_picture
from distill.evaluation.aligned import overlapping
from distill.evaluation.contingency import Contingency, Scores
from distill.evaluation.metrics import ObjectError, worst_objects
from distill.evaluation.partners import MERGE, SPLIT, Partners, error_codes, largest_wrong_pieces, main_partners
from distill.evaluation.segmentation import position_in_truth
from distill.evaluation.worst_objects.connected import Pieces, connected_pieces
from distill.evaluation.worst_objects.locate import ErrorKind
from distill.io.volume import Volume, open_grey, open_labels
from viz.errors.figure import WrongObject, errors_figure
from viz.style import check_figure

_EVERY = 2**31  # more than the number of objects
OnSection = Callable[[int, int], None]


@dataclass
class Extents:
    """Bounding boxes of ids, updated section by section."""

    boxes: dict[int, Box] = field(default_factory=dict)

    def add(self, z: int, ids: Integers, counted: NDArray[np.bool_]) -> None:
        """Extend the box of every id that has a counted pixel in section `z`; 0 is treated like any other id."""
        shifted = np.where(counted, ids + np.uint64(1), np.uint64(0))
        places = ndimage.find_objects(compact(shifted).astype(np.int64))
        for number, (y, x) in zip(distinct_ids(shifted) - np.uint64(1), places, strict=True):
            here = Box((z, y.start, x.start), (z + 1, y.stop, x.stop))
            before = self.boxes.get(int(number), here)
            self.boxes[int(number)] = hull(before, here)


@dataclass(frozen=True)
class Survey:
    """Result of two passes over a segmentation and its ground truth; positions are voxels of the labels.

    Attributes:
        segmentation: the source.
        pieces: its ground truth, cut into connected pieces.
        box: position of the segmentation in the labels.
        table: contingency table of pieces and segments.
        neurons: contingency table of neurons and segments.
        partners: matched objects and segments.
        wrong: (Z,) number of erroneous voxels of every section of the segmentation.
        truth: boxes of the ground-truth objects.
        segments: boxes of the segments.
        split: boxes of the objects' largest erroneous fragments.
        merged: boxes of the segments' largest erroneous fragments.
    """

    segmentation: Volume
    pieces: Pieces
    box: Box
    table: Contingency
    neurons: Contingency
    partners: Partners
    wrong: NDArray[np.int64]
    truth: dict[int, Box]
    segments: dict[int, Box]
    split: dict[int, Box]
    merged: dict[int, Box]

    @property
    def labels(self) -> Volume:
        """Return ground truth with ids of pieces."""
        return self.pieces.labels


@dataclass(frozen=True)
class Errors:
    """Contents of the figure.

    Attributes:
        section: its number in the labels.
        counted: number of its labelled pixels.
        split: number of them in split errors only.
        merge: in merge errors only.
        both: in both.
        scores: of the whole volume.
        objects: as numbered in the figure, from 1.
        pieces: connected pieces of the ground truth, of which the split objects are.
    """

    section: int
    counted: int
    split: int
    merge: int
    both: int
    scores: Scores
    objects: tuple[WrongObject, ...]
    pieces: Pieces

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        listed = [
            {
                "number": number,
                "kind": found.kind,
                **asdict(found.error),
                "id": found.error.id if found.neuron is None else found.neuron,
                "bits_here": found.bits_here,
            }
            | {"box": asdict(found.box), "largest_wrong_piece": {"in": found.partner, **asdict(found.piece)}}
            for number, found in enumerate(self.objects, start=1)
        ]
        section = {"section": self.section, "labelled_pixels": self.counted}
        wrong = {"split_pixels": self.split, "merge_pixels": self.merge, "split_and_merge_pixels": self.both}
        return {
            **section,
            **wrong,
            "volume": self.scores.to_dict(),
            "voi_split_bound": self.pieces.bound,
            "objects": listed,
        }


def errors(
    segmentation: str,
    labels: str,
    raw: str,
    out: Path,
    section: int | None = None,
    worst: int = 8,
    resolution: Nanometres | None = None,
    on_section: OnSection = lambda done, total: None,
) -> Errors:
    """Draw the errors of one section.

    Args:
        segmentation: source, positioned in the labels by its offset.
        labels: source of the ground truth, of the same size or larger.
        raw: source of the image, of the size of the segmentation or larger.
        out: .png, .svg or .pdf.
        section: number in the labels; by default the one with most erroneous voxels.
        worst: maximum number of objects to list, those with the largest errors in the section.
        resolution: for files without one.
        on_section: called with the number of sections read and their total.

    Raises:
        DistillError: bad input, volumes that do not contain each other, or a section that does not exist.
    """
    check_figure(out)
    if worst < 0:
        raise DistillError(f"--worst: found {worst}, expected 0 or more")
    image = open_grey(raw, resolution=resolution)
    if image.channels is not None:
        raise ShapeError(f"{raw}: found {image.channels} channels, expected one grey-value volume z, y, x")
    seen = open_labels(segmentation, resolution=resolution)
    truth = open_labels(labels, resolution=resolution)
    seen, truth = overlapping(seen, truth)
    seen, image = overlapping(seen, image)
    box, in_raw = position_in_truth(seen, truth), position_in_truth(seen, image)
    if section is not None and not box.start[0] <= section < box.stop[0]:
        raise DistillError(
            f"--section: found {section}, expected {box.start[0]} to {box.stop[0] - 1}: the sections of {labels} that "
            f"{segmentation} covers"
        )
    pieces = connected_pieces(truth, box)
    found = survey(seen, pieces, on_section)
    z = int(found.wrong.argmax()) if section is None else section - box.start[0]
    ids, true = _section(found, z)
    neurons = pieces.whole(true)
    codes = error_codes(ids, true, found.partners, neurons)
    grey = as_picture(image.read(_slice(in_raw, z))[0])
    objects = _worst(found, ids, true, worst)
    number = box.start[0] + z
    errors_figure(
        grey, true, ids, found.partners, objects, image.resolution[1:], out, f"Section {number}", neurons=neurons
    )
    split, merge, both = (int(np.count_nonzero(codes == code)) for code in (SPLIT, MERGE, SPLIT | MERGE))
    return Errors(number, int(np.count_nonzero(true)), split, merge, both, found.neurons.scores(), objects, pieces)


def survey(segmentation: Volume, pieces: Pieces, on_section: OnSection = lambda done, total: None) -> Survey:
    """Find the errors of every section of a segmentation.

    Args:
        segmentation: segment ids.
        pieces: ground truth, of the same size or larger, whose splits are those of connected pieces.
        on_section: called with the number of sections read and their total; each is read twice.

    Raises:
        ShapeError: voxel sizes differ, or the segmentation extends beyond the labels.
        DistillError: there is no ground truth within the segmentation, or a source cannot be read.
    """
    labels = pieces.labels
    box = position_in_truth(segmentation, labels)
    depth = segmentation.size[0]
    table = Contingency("skimage")
    for z, ids, true in _sections(segmentation, labels, box):
        table.add(ids, true)
        on_section(z + 1, 2 * depth)
    neurons = table.relabelled(pieces.neuron)
    split_partners, merge_partners = main_partners(table), main_partners(neurons)
    partners = replace(split_partners, segments=merge_partners.segments, truth_of=merge_partners.truth_of)
    truth, segments, split, merged = (Extents() for _ in range(4))
    wrong = np.zeros(depth, np.int64)
    for z, ids, true in _sections(segmentation, labels, box):
        whole = pieces.whole(true)
        wrong[z] = np.count_nonzero(error_codes(ids, true, partners, whole))
        codes = largest_wrong_pieces(ids, true, partners, whole)
        at = box.start[0] + z
        truth.add(at, true, true != 0)
        segments.add(at, ids, true != 0)
        split.add(at, true, codes & SPLIT > 0)
        merged.add(at, ids, codes & MERGE > 0)
        on_section(depth + z + 1, 2 * depth)
    _, y, x = box.start
    shifted = [
        {number: one.shift((0, y, x)) for number, one in extents.boxes.items()}
        for extents in (truth, segments, split, merged)
    ]
    return Survey(segmentation, pieces, box, table, neurons, partners, wrong, *shifted)


def hull(one: Box, other: Box) -> Box:
    """Return the smallest box around two boxes."""
    low = [min(a, b) for a, b in zip(one.start, other.start, strict=True)]
    high = [max(a, b) for a, b in zip(one.stop, other.stop, strict=True)]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _slice(box: Box, z: int) -> Box:
    first = box.start[0] + z
    return Box((first, *box.start[1:]), (first + 1, *box.stop[1:]))


def _sections(
    segmentation: Volume, labels: Volume, box: Box
) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.uint64]]]:
    for z, section in enumerate(segmentation.sections()):
        yield z, section, labels.read(_slice(box, z))[0]


def _section(found: Survey, z: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    here = _slice(Box.of_shape(found.segmentation.size), z)
    return found.segmentation.read(here)[0], found.labels.read(_slice(found.box, z))[0]


def _worst(found: Survey, ids: NDArray[np.uint64], true: NDArray[np.uint64], n: int) -> tuple[WrongObject, ...]:
    """Return the objects with the largest errors in the section."""
    partners, pieces = found.partners, found.pieces
    split, merged = worst_objects(found.table, _EVERY).split, worst_objects(found.neurons, _EVERY).merged
    rows = []
    cost = _costs_here(found, ids, true, "split", split)
    for error in split:
        if error.id in cost:
            other = int(partners.segment_of[np.searchsorted(partners.truth, np.uint64(error.id)), 1])
            box, piece = found.truth[error.id], found.split[error.id]
            named = pieces.neuron(error.id), pieces.name(error.id)
            rows.append(WrongObject("split", error, cost[error.id], box, other, piece, *named))
    cost = _costs_here(found, ids, true, "merge", merged)
    for error in merged:
        if error.id in cost:
            other = int(partners.truth_of[np.searchsorted(partners.segments, np.uint64(error.id)), 1])
            box, piece = found.segments[error.id], found.merged[error.id]
            rows.append(WrongObject("merge", error, cost[error.id], box, other, piece))
    return tuple(sorted(rows, key=lambda row: -row.bits_here)[:n])


def _costs_here(
    found: Survey, ids: NDArray[np.uint64], true: NDArray[np.uint64], kind: ErrorKind, listed: tuple[ObjectError, ...]
) -> dict[int, float]:
    """Return each object's contribution to the volume's VOI from its erroneous voxels in a section, in bits."""
    bit = SPLIT if kind == "split" else MERGE
    neurons = found.pieces.whole(true)
    wrong = error_codes(ids, true, found.partners, neurons) & bit > 0
    own_labels, table = (true, found.table) if kind == "split" else (neurons, found.neurons)
    here, known = sum_pairs(own_labels[wrong], ids[wrong]), table.pairs()
    size, voxels = {error.id: error.voxels for error in listed}, int(known.count.sum())
    costs: dict[int, float] = {}
    for u, v, count in zip(here.u, here.v, here.count, strict=True):
        first, last = np.searchsorted(known.u, u), np.searchsorted(known.u, u, "right")
        shared = int(known.count[first + np.searchsorted(known.v[first:last], v)])
        own = int(u if kind == "split" else v)
        costs[own] = costs.get(own, 0.0) + int(count) * math.log2(size[own] / shared) / voxels
    return costs
