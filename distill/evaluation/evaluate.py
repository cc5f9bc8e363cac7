"""All that `distill evaluate` says about a result: volume scores, worst objects, run length, affinities."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.core.choices import SkeletonUnits
from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple
from distill.core.notes import warn
from distill.evaluation.affinities import AffinityScores, evaluate_affinity
from distill.evaluation.aligned import OnBlock, overlapping
from distill.evaluation.metrics import WorstObjects
from distill.evaluation.run_length.evaluate_skeletons import evaluate_run_length, open_skeletons, skeletonize
from distill.evaluation.run_length.scores import RunLength
from distill.evaluation.segmentation import Evaluation, evaluate
from distill.evaluation.worst_objects.connected import Pieces, worst_pieces
from distill.evaluation.worst_objects.error_list import check_list, error_rows, write_list
from distill.evaluation.worst_objects.locate import Spot, find_spots
from distill.io.arrange import arrange
from distill.io.selection import split_selection
from distill.io.source import find_array, is_result
from distill.io.truth import EVERYWHERE, Known, open_known
from distill.io.volume import LABELS_DATASET, Volume, open_labels, voxel_shift


@dataclass(frozen=True)
class EvaluationOptions:
    """What to score, and how.

    Attributes:
        preset: of the volume scores.
        resolution: for files without one.
        known: where the ground truth counts.
        worst: objects of each kind to list and to look up; 0 spares the second reading.
        listing: file to write them to.
        blocks: also score blocks of this extent.
        workers: processes that read.
        affinity: source of affinities to score too.
        labelled_only: leave out edges with an end in ground-truth 0.
        skeletons: SWC file or folder.
        units: of its coordinates.
        skeletonize: make skeletons from the labels.
        merge_nodes: see `distill.evaluation.run_length.scores`.
    """

    preset: str = "skimage"
    resolution: Nanometres | None = None
    known: Known = EVERYWHERE
    worst: int = 5
    listing: Path | None = None
    blocks: Triple | None = None
    workers: int = 1
    affinity: str | None = None
    labelled_only: bool = False
    skeletons: Path | None = None
    units: SkeletonUnits = "nm"
    skeletonize: bool = False
    merge_nodes: int = 1


@dataclass(frozen=True)
class Scorecard:
    """What was found; None for what was not asked for.

    Attributes:
        segmentation: as it was scored.
        evaluation: volume scores.
        spots: where the worst objects lie, the most expensive first.
        run_length: of the segmentation.
        affinity: scores of its channels.
        pieces: connected pieces of the ground truth, over which the worst objects were found.
    """

    segmentation: Volume | None = None
    evaluation: Evaluation | None = None
    spots: tuple[Spot, ...] = ()
    run_length: RunLength | None = None
    affinity: AffinityScores | None = None
    pieces: Pieces | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers by name, ready for JSON; volume scores are at the top level."""
        found: dict[str, Any] = {}
        if self.evaluation is not None and self.segmentation is not None:
            one = self.evaluation
            found |= {**one.scores.to_dict(), "worst": asdict(one.worst), "box": asdict(one.box)}
            found |= {"errors": error_rows(self.spots, self.segmentation)}
            found |= {"blocks": one.blocks.to_dict() if one.blocks else None}
            if self.pieces is not None:
                found["disconnected"] = {"neurons": self.pieces.neurons, "voi_split_bound": self.pieces.bound}
        found["run_length"] = self.run_length.to_dict() if self.run_length else None
        found["affinity"] = self.affinity.to_dict() if self.affinity else None
        return found


def holds_affinities(source: str) -> bool:
    """Return whether a source has channels, from its header."""
    stored = arrange(find_array(source, LABELS_DATASET), split_selection(source)[1])
    return len(stored.shape) == 4 and (stored.shape[0] > 1 or "polarity" in stored.attributes)


def evaluate_all(source: str, labels: str | None, wanted: EvaluationOptions, on_block: OnBlock) -> Scorecard:
    """Score a segmentation, affinities, or both.

    Args:
        source: segmentation, or affinities (four axes).
        labels: ground truth; a segmentation with skeletons does without.
        wanted: what to score.
        on_block: called with blocks read and their number, from 0 for every reading.

    Raises:
        DistillError: bad input, or options that do not go together.
    """
    _check(wanted)
    if holds_affinities(source):
        return _affinity_alone(source, labels, wanted, on_block)
    if labels is None and wanted.skeletons is None:
        raise DistillError("LABELS: found none, expected ground truth, or --skeletons")
    if labels is None and (
        wanted.affinity or wanted.blocks or wanted.listing or wanted.skeletonize or wanted.known != EVERYWHERE
    ):
        raise DistillError(
            "LABELS: found none, expected ground truth for --affinity, --blocks, --list, --skeletonize, --ignore, "
            "--mask"
        )
    segmentation = open_labels(source, resolution=wanted.resolution)
    evaluation: Evaluation | None = None
    spots: tuple[Spot, ...] = ()
    pieces: Pieces | None = None
    if labels is not None:
        if is_result(labels) and not is_result(source):
            warn(
                f"{labels}: is a segmentation that distill made, given as ground truth; expected the segmentation "
                "first: distill evaluate SEGMENTATION LABELS"
            )
        evaluation, spots, pieces = _volume_scores(source, labels, segmentation, wanted, on_block)
    run = _run_length(source, labels, segmentation, wanted, on_block)
    affinity = None
    if wanted.affinity is not None and labels is not None:
        affinity = _affinity(wanted.affinity, labels, wanted, on_block)
    return Scorecard(segmentation, evaluation, spots, run, affinity, pieces)


def _check(wanted: EvaluationOptions) -> None:
    if wanted.listing is not None:
        check_list(wanted.listing)
    if wanted.skeletonize and wanted.skeletons is not None:
        raise DistillError("--skeletonize: found --skeletons as well, expected one of them")


def _affinity_alone(source: str, labels: str | None, wanted: EvaluationOptions, on_block: OnBlock) -> Scorecard:
    given = {
        "--affinity": wanted.affinity,
        "--list": wanted.listing,
        "--blocks": wanted.blocks,
        "--skeletons": wanted.skeletons,
        "--skeletonize": wanted.skeletonize,
    }
    if unfit := [name for name, value in given.items() if value]:
        raise DistillError(f"{source}: found affinities (four axes), expected a segmentation for {', '.join(unfit)}")
    if labels is None:
        raise DistillError("LABELS: found none, expected ground truth")
    return Scorecard(affinity=_affinity(source, labels, wanted, on_block))


def _affinity(source: str, labels: str, wanted: EvaluationOptions, on_block: OnBlock) -> AffinityScores:
    return evaluate_affinity(
        source,
        labels,
        wanted.resolution,
        labelled_only=wanted.labelled_only,
        known=wanted.known,
        workers=wanted.workers,
        on_block=on_block,
    )


def _volume_scores(
    source: str, labels: str, segmentation: Volume, wanted: EvaluationOptions, on_block: OnBlock
) -> tuple[Evaluation, tuple[Spot, ...], Pieces | None]:
    evaluation = evaluate(
        source,
        labels,
        wanted.preset,
        wanted.resolution,
        0,
        blocks=wanted.blocks,
        known=wanted.known,
        workers=wanted.workers,
        on_block=on_block,
    )
    found, truth = overlapping(segmentation, open_known(labels, wanted.known, resolution=wanted.resolution))
    if wanted.worst == 0:
        if wanted.listing is not None:
            write_list(wanted.listing, (), segmentation)
        return evaluation, (), None
    worst, here, pieces = find_worst(found, truth, wanted.preset, wanted.worst, on_block, wanted.workers)
    spots = tuple(one.moved(voxel_shift(found, segmentation)) for one in here)
    if wanted.listing is not None:
        write_list(wanted.listing, spots, segmentation)
    return replace(evaluation, worst=worst), spots, pieces


def find_worst(
    segmentation: Volume,
    labels: Volume,
    preset: str,
    n: int,
    on_block: OnBlock = lambda done, total: None,
    workers: int = 1,
) -> tuple[WorstObjects, list[Spot], Pieces]:
    """Find and locate the worst objects: split errors of connected pieces, merge errors between whole neurons.

    Args:
        segmentation: as it was evaluated.
        labels: ground truth on the same voxel grid, of the same size or larger.
        preset: see `distill.evaluation.contingency`.
        n: number of objects of each kind.
        on_block: called with blocks read and their number.
        workers: reading processes.

    Returns:
        The objects, under the ids of their neurons; where they lie, largest error first; and the pieces.
    """
    worst, pieces = worst_pieces(segmentation, labels, preset, n, workers)
    split = find_spots(segmentation, pieces.labels, replace(worst, merged=()), on_block, 1 if pieces.parts else workers)
    merged = find_spots(segmentation, labels, replace(worst, split=()), on_block, workers)
    both = sorted([*split, *merged], key=lambda spot: -spot.error.bits)
    named = replace(worst, split=tuple(map(pieces.named, worst.split)))
    return named, [one.of_piece(pieces) for one in both], pieces


def _run_length(
    source: str, labels: str | None, segmentation: Volume, wanted: EvaluationOptions, on_block: OnBlock
) -> RunLength | None:
    if wanted.skeletons is not None:
        skeletons = open_skeletons(wanted.skeletons, wanted.units, segmentation)
    elif wanted.skeletonize and labels is not None:
        skeletons = skeletonize(source, labels, wanted.resolution, wanted.known)
    else:
        return None
    try:
        return evaluate_run_length(
            source, skeletons, wanted.resolution, wanted.merge_nodes, workers=wanted.workers, on_block=on_block
        )
    except DistillError as error:
        if str(error).startswith("skeletons: ") and wanted.skeletons is not None:
            raise DistillError(f"{wanted.skeletons}: {str(error).removeprefix('skeletons: ')}") from None
        raise
