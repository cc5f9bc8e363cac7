"""`distill evaluate` on affinities: every channel against the edges of the ground truth, block by block."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import affinity_targets, as_label_tensor, attributes, stored_offsets
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Nanometres, Triple
from distill.evaluation.aligned import Aligned, OnBlock, align, chunk_blocks, over_blocks
from distill.evaluation.edge_scores import EdgeHistogram, EdgeScores
from distill.io.truth import EVERYWHERE, Known, open_known
from distill.io.volume import open_volume


@dataclass(frozen=True)
class ChannelScores:
    """Scores of one channel.

    Attributes:
        offset: z, y, x in voxels from an edge's own voxel to its partner.
        histogram: its edges by target and affinity.
        threshold: affinity from which on an edge is taken for connected.
    """

    offset: Triple
    histogram: EdgeHistogram
    threshold: float = 0.5

    @property
    def scores(self) -> EdgeScores:
        """Precision, recall and F1 at the threshold."""
        return self.histogram.scores(self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, ready for JSON."""
        found = self.histogram
        return {
            "offset_zyx": list(self.offset),
            "threshold": self.threshold,
            **asdict(self.scores),
            "roc_auc": found.roc_auc,
            "boundary_average_precision": found.boundary_average_precision,
            "connected_average_precision": found.connected_average_precision,
        }


@dataclass(frozen=True)
class AffinityScores:
    """Scores of affinities.

    Attributes:
        source: of the affinities.
        channels: in the order of the file.
        labelled_only: whether edges with an end in ground-truth 0 were left out instead of counted as boundaries.
        exact: whether the histograms are; floating-point affinities went to the nearest 1/255.
    """

    source: str
    channels: tuple[ChannelScores, ...]
    labelled_only: bool
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, ready for JSON."""
        return {
            "source": self.source,
            "edges": "labelled" if self.labelled_only else "all",
            "exact": self.exact,
            "channels": [one.to_dict() for one in self.channels],
        }


def evaluate_affinity(
    affinity: str,
    labels: str,
    resolution: Nanometres | None = None,
    *,
    labelled_only: bool = False,
    known: Known = EVERYWHERE,
    workers: int = 1,
    on_block: OnBlock = lambda done, total: None,
) -> AffinityScores:
    """Score affinities where they lie inside the labelled volume.

    An edge is counted where both ends lie inside the affinities' volume. Its target is 1 where both ends carry the same
    non-zero label.

    Args:
        affinity: source of (K, Z, Y, X), uint8 or floating-point, with an attribute that names the offsets.
        labels: source of the ground truth, the same size or larger.
        resolution: for files without one.
        labelled_only: leave out edges with an end in ground-truth 0; otherwise these must be cut, as in training.
        known: where the ground truth counts; edges with another end are left out.
        workers: processes that read and count; the result does not depend on it.
        on_block: called with blocks read and their number.

    Raises:
        ShapeError: other voxels, affinities that reach beyond the labels, or that are no affinities.
        DistillError: bad input, no offsets, another polarity, or no edge to count.
    """
    found = open_volume(affinity, resolution=resolution)
    if found.channels is None:
        raise ShapeError(f"{found.source}: found shape {found.shape}, expected affinities: channels, z, y, x")
    if found.dtype != np.uint8 and found.dtype.kind != "f":
        raise ShapeError(f"{found.source}: found {found.dtype}, expected affinities as uint8 or floating-point numbers")
    offsets = stored_offsets(found.attributes, found.source)
    if len(offsets) != found.channels:
        raise ShapeError(
            f"{found.source}: found {found.channels} channels and {len(offsets)} offsets, expected one each"
        )
    ours = attributes(offsets)["polarity"]
    if found.attributes.get("polarity", ours) != ours:
        raise DistillError(
            f"{found.source}: found polarity {found.attributes['polarity']!r}, expected {ours!r}; invert them first"
        )
    both = align(found, open_known(labels, known, resolution=resolution, edges=True))
    histograms = [EdgeHistogram() for _ in offsets]
    work = partial(count_edges, both, offsets, labelled_only)
    for part in over_blocks(work, chunk_blocks(found), workers, on_block):
        for histogram, more in zip(histograms, part, strict=True):
            histogram.update(more)
    if not any(histogram.counts.any() for histogram in histograms):
        raise DistillError(f"{both.truth.source}: found no edge to count where {found.source} lies, expected some")
    channels = tuple(map(ChannelScores, offsets, histograms))
    return AffinityScores(found.source, channels, labelled_only, found.dtype == np.uint8)


def count_edges(both: Aligned, offsets: tuple[Triple, ...], labelled_only: bool, box: Box) -> list[EdgeHistogram]:
    """Histograms of the edges whose own voxel lies in one block; those of all blocks add up to the volume's.

    Args:
        both: affinities and ground truth.
        offsets: of the channels.
        labelled_only: see `evaluate_affinity`.
        box: voxels of the affinities.
    """
    values = both.found.read(box)
    reach = tuple(max(abs(offset[axis]) for offset in offsets) for axis in range(3))
    wide = box.grow((reach[0], reach[1], reach[2]), both.found.box)
    labels = both.labels(wide)
    own = box.relative_to(wide.start).slices
    histograms = []
    for channel, offset in zip(values, offsets, strict=True):
        target, valid = _edges(labels, offset, own)
        if labelled_only:
            valid &= _edges((labels != 0).astype(np.uint8), offset, own)[0]
        histogram = EdgeHistogram()
        try:
            histogram.add(channel[valid], target[valid])
        except ShapeError as error:
            raise ShapeError(f"{both.found.source}: {error}") from None
        histograms.append(histogram)
    return histograms


def _edges(
    labels: NDArray[Any], offset: Triple, own: tuple[slice, slice, slice]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which edges of a part of some labels are connected, and which have both ends inside the labels."""
    found = affinity_targets(as_label_tensor(labels), [offset])
    return found.target[0].numpy()[own] > 0.5, found.valid[0].numpy()[own]
