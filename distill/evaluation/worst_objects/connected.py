"""Cut ground truth into connected pieces: parts of a neuron that meet outside the volume cannot be joined within it.

A list of worst objects over whole neurons begins with such neurons, although nothing in the volume is wrong. Over their
pieces it begins with errors, and what no segmentation could avoid is one number.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import cc3d
import numpy as np
from numpy.typing import NDArray

from distill.core.geometry import Box
from distill.core.labels import compact
from distill.evaluation.aligned import align, chunk_blocks, over_blocks
from distill.evaluation.contingency import Contingency
from distill.evaluation.metrics import ObjectError, WorstObjects, worst_objects
from distill.evaluation.segmentation import count_block, position_in_truth
from distill.io.volume import Volume, volume_from_array

_MOST = 2**28  # voxels of a region that is cut in memory; larger ones keep whole neurons
_LARGEST = 2**32  # voxels of the labels around it
_CONNECTIVITY = 26  # voxels that touch at a corner belong together


@dataclass(frozen=True)
class Pieces:
    """Ground truth whose every id is connected within a region.

    Attributes:
        labels: the largest piece of a neuron keeps its id, every other one has an id of its own. Outside the region 0.
        parts: neuron and number, from 2 on, of every piece with an id of its own.
        bound: VOI split, in bits, of the region's neurons in these pieces: the least that a segmentation of connected
            objects scores.
    """

    labels: Volume
    parts: dict[int, tuple[int, int]]
    bound: float

    @property
    def neurons(self) -> int:
        """Number of neurons in several pieces."""
        return len({neuron for neuron, _ in self.parts.values()})

    def name(self, number: int) -> str:
        """Return the id of a neuron, with the number of the piece where it is not the largest."""
        neuron, part = self.parts.get(number, (number, 1))
        return f"{neuron}" if part == 1 else f"{neuron} (piece {part})"

    def neuron(self, number: int) -> int:
        """Return the neuron that a piece belongs to."""
        return self.parts.get(number, (number, 1))[0]

    def whole(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return ids of neurons in place of those of their pieces."""
        if not self.parts:
            return ids
        first = min(self.parts)
        neurons = np.array([self.parts[first + k][0] for k in range(len(self.parts))], np.uint64)
        made = ids.copy()
        beyond = ids >= np.uint64(first)
        made[beyond] = neurons[ids[beyond] - np.uint64(first)]
        return made

    def named(self, error: ObjectError) -> ObjectError:
        """Return the error of a piece under the id of its neuron."""
        return replace(error, id=self.neuron(error.id))


def connected_pieces(labels: Volume, box: Box) -> Pieces:
    """Cut the ids of a region into connected pieces.

    Args:
        labels: ground truth.
        box: region, in voxels of the labels.

    Returns:
        The pieces; the labels as they are if all are connected, or if the region has more than 2^28 voxels.
    """
    whole = Pieces(labels, {}, 0.0)
    if int(np.prod(box.shape)) > _MOST or int(np.prod(labels.size)) > _LARGEST:
        return whole
    ids = labels.read(box).astype(np.uint64, copy=False)
    numbers = cc3d.connected_components(compact(ids).astype(np.uint32), connectivity=_CONNECTIVITY)
    numbers[ids == 0] = 0
    sizes = np.bincount(numbers.reshape(-1))
    owner = np.zeros(len(sizes), np.uint64)
    owner[numbers] = ids
    sizes[0] = 0
    named, parts, bound = _named(owner, sizes)
    if not parts:
        return whole
    cut = np.zeros(labels.size, np.uint64)  # pages outside the region are never touched
    cut[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))] = named[numbers]
    return Pieces(volume_from_array(cut, labels.resolution, labels.offset, labels.source), parts, bound)


def worst_pieces(
    segmentation: Volume, labels: Volume, preset: str, n: int, workers: int = 1
) -> tuple[WorstObjects, Pieces]:
    """Find the worst objects over the connected pieces of the ground truth.

    Args:
        segmentation: as it was evaluated.
        labels: ground truth on the same voxel grid, of the same size or larger.
        preset: see `distill.evaluation.contingency`.
        n: maximum number of objects per list.
        workers: reading processes, where all neurons are connected.

    Returns:
        Pieces with the largest split errors, under their own ids, and segments with the largest merge errors between
        whole neurons; and the pieces.
    """
    pieces = connected_pieces(labels, position_in_truth(segmentation, labels))
    both = align(segmentation, pieces.labels)
    table = Contingency(preset, resolution=both.truth.resolution)
    count = partial(count_block, both, preset)
    workers = 1 if pieces.parts else workers  # an array in memory is not sent to processes
    with closing(over_blocks(count, chunk_blocks(both.found), workers, lambda done, total: None)) as parts:
        for part in parts:
            table.update(part)
    split = worst_objects(table, n).split
    return WorstObjects(split, worst_objects(table.relabelled(pieces.neuron), n).merged), pieces


def _named(
    owner: NDArray[np.uint64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], dict[int, tuple[int, int]], float]:
    """Name connected components: (id of each, neuron and number of those beyond the largest, bits between them)."""
    order = np.lexsort((np.arange(len(sizes)), -sizes, owner))
    named, parts = owner.copy(), {}
    following, neuron, number = int(owner.max()) + 1, -1, 1
    for k in order.tolist():
        if sizes[k] == 0:
            continue
        number = number + 1 if int(owner[k]) == neuron else 1
        neuron = int(owner[k])
        if number > 1:
            named[k] = following
            parts[following] = (neuron, number)
            following += 1
    counted = sizes > 0
    neurons, which = np.unique(owner[counted], return_inverse=True)
    totals = np.bincount(which, weights=sizes[counted], minlength=len(neurons))[which] if len(neurons) else np.ones(0)
    share = sizes[counted] / max(1, sizes.sum())
    return named, parts, float((share * np.log2(totals / sizes[counted])).sum())
