"""`evaluate`, `scorecard` and `sweep`: scores of results against ground truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.core.choices import METHODS, Method, SkeletonUnits
from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple
from distill.core.hardware import AUTO
from distill.python.running import Progress, Where

if TYPE_CHECKING:
    from distill.evaluation.contingency import Scores
    from distill.evaluation.evaluate import Scorecard
    from distill.evaluation.sweep import MethodCurve, SupervoxelModel


def evaluate(
    segmentation: ArrayLike | Where,
    labels: ArrayLike | Where,
    *,
    preset: str = "skimage",
    resolution: Nanometres | None = None,
    ignore: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Scores:
    """Score a segmentation against ground truth.

    Args:
        segmentation: (D, H, W) ids, or a source, positioned by its offset.
        labels: ground truth of the same kind; as a source it may be larger.
        preset: what is counted: `skimage`, `cremi`, `cad` or `agq`.
        resolution: voxel size z, y, x in nm, for files without one and for the preset `cremi`.
        ignore: label of voxels that are not counted.
        workers: processes that read sources.
        progress: called with the blocks of a source read, and their number.

    Returns:
        VOI in bits, ARAND and counts.

    Raises:
        DistillError: shapes or voxel sizes differ, or there is no ground truth to count.

    Example:
        >>> truth = np.array([[[1, 1, 2, 2]]])
        >>> distill.evaluate(np.array([[[7, 7, 7, 7]]]), truth).voi_merge
        1.0
    """
    if isinstance(segmentation, str | Path) != isinstance(labels, str | Path):
        raise DistillError("labels: found an array and a source, expected two arrays or two sources")
    if isinstance(segmentation, str | Path) and isinstance(labels, str | Path):
        card = scorecard(
            segmentation,
            labels,
            preset=preset,
            resolution=resolution,
            ignore=ignore,
            worst=0,
            workers=workers,
            progress=progress,
        )
        if card.evaluation is None:
            raise DistillError(f"{segmentation}: found affinities, expected ids; scorecard scores affinities")
        return card.evaluation.scores
    from distill.evaluation.metrics import score

    truth = _ids(labels, "labels")
    counted = truth if ignore is None else np.where(truth == ignore, 0, truth)
    return score(_ids(segmentation, "segmentation"), counted, preset, resolution=resolution)


def scorecard(
    segmentation: Where,
    labels: Where | None,
    *,
    preset: str = "skimage",
    resolution: Nanometres | None = None,
    ignore: int | None = None,
    mask: Where | None = None,
    worst: int = 5,
    listing: Where | None = None,
    blocks: Triple | None = None,
    affinity: Where | None = None,
    labelled_only: bool = False,
    skeletons: Where | None = None,
    skeleton_units: SkeletonUnits = "nm",
    skeletonize: bool = False,
    merge_nodes: int = 1,
    plot: Where | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Scorecard:
    """Score a stored segmentation, or affinities, with everything that `distill evaluate` prints.

    Args:
        segmentation: source of ids, or of affinities.
        labels: ground truth; None with `skeletons` alone.
        preset: see `evaluate`.
        resolution: see `evaluate`.
        ignore: label of voxels that are not counted.
        mask: volume that is not 0 where voxels are counted.
        worst: objects of each kind to list; 0 reads the volume only once.
        listing: .csv or .json of the worst objects to write.
        blocks: also average scores over blocks of this size z, y, x.
        affinity: source of affinities to score as well.
        labelled_only: exclude edges with an end in ground-truth label 0.
        skeletons: SWC file or folder, for the expected run length.
        skeleton_units: unit of their coordinates.
        skeletonize: compute skeletons from `labels`.
        merge_nodes: nodes of each of two skeletons that make a segment a merger.
        plot: figure to write, .png, .svg or .pdf.
        workers: processes that read.
        progress: called with the blocks read and their number, from the start for each reading.

    Returns:
        Scores, worst objects and their places; None for what was not asked for.

    Raises:
        DistillError: bad input, or options that do not go together.

    Example:
        >>> labels = "sample.h5:volumes/labels/neuron_ids"
        >>> card = distill.scorecard(labels, labels, worst=1)
        >>> card.evaluation.scores.voi_sum
        0.0
    """
    from distill.evaluation.evaluate import EvaluationOptions, evaluate_all
    from distill.io.truth import Known

    if plot is not None:
        from viz.style import check_figure

        check_figure(Path(plot))
    wanted = EvaluationOptions(
        preset=preset,
        resolution=resolution,
        known=Known(ignore, None if mask is None else str(mask)),
        worst=worst,
        listing=None if listing is None else Path(listing),
        blocks=blocks,
        workers=workers,
        affinity=None if affinity is None else str(affinity),
        labelled_only=labelled_only,
        skeletons=None if skeletons is None else Path(skeletons),
        units=skeleton_units,
        skeletonize=skeletonize,
        merge_nodes=merge_nodes,
    )
    truth = None if labels is None else str(labels)
    found = evaluate_all(str(segmentation), truth, wanted, progress or (lambda done, total: None))
    if plot is not None:
        from viz.scores import draw_scorecard

        draw_scorecard(found, Path(plot))
    return found


def sweep(
    affinity: Where,
    labels: Where,
    out: Where,
    *,
    methods: Sequence[Method] = ("flood", "waterz", "mws"),
    thresholds: Sequence[float] | Mapping[Method, Sequence[float]] | None = None,
    preset: str = "skimage",
    model: Where | None = None,
    source: Where | None = None,
    fragments: Where | None = None,
    device: str = "auto",
    precision: str = AUTO,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[MethodCurve, ...]:
    """Score segmentation methods at every threshold on labelled validation data, and choose the lowest VOI.

    Args:
        affinity: source of affinities, such as `OUT.zarr:affinity`.
        labels: ground truth that was not used for training.
        out: folder for sweep.json, thresholds.yaml and sweep.png.
        methods: to try.
        thresholds: for every method, or by method; None = those that the command tries.
        preset: see `evaluate`.
        model: for `query`, predicts supervoxels; None = those in the stream's store.
        source: for `query`, sections for `model`.
        fragments: for `fragments`, the file of `distill fragments`.
        device: of the model.
        precision: of the model.
        normalise: see `stream`.
        invert: see `stream`.
        rescale: see `stream`.
        progress: called with the methods done and their number.
        note: called with lines for the user.

    Returns:
        A curve of scores for each method.

    Raises:
        DistillError: a method that cannot run here, or sources that do not fit.
    """
    from distill.evaluation.sweep import TRIED
    from distill.evaluation.sweep import sweep as run
    from viz.charts.sweep import draw_sweep

    for name in methods:
        if name not in METHODS:
            raise DistillError(f"methods: found {name!r}, expected some of {', '.join(METHODS)}")
    given: Mapping[Method, Sequence[float]]
    given = thresholds if isinstance(thresholds, Mapping) else dict.fromkeys(methods, thresholds or ())
    tried: dict[Method, Sequence[float]] = {name: tuple(given.get(name) or TRIED[name]) for name in methods}
    network = None
    if model is not None and source is not None:
        network = _supervoxel_model(model, source, device, precision, normalise, invert, rescale)
    on_step = (lambda done, total: None) if progress is None else progress
    curves = run(
        str(affinity),
        str(labels),
        Path(out),
        tried,
        preset=preset,
        network=network,
        fragments=None if fragments is None else Path(fragments),
        on_step=on_step,
        note=note,
    )
    draw_sweep(curves, Path(out) / "sweep.png")
    return curves


def _supervoxel_model(
    model: Where, source: Where, device: str, precision: str, normalise: str | None, invert: bool, rescale: bool
) -> SupervoxelModel:
    from distill.core.hardware import choose
    from distill.evaluation.sweep import SupervoxelModel
    from distill.inference.grey_values import GreyValues
    from distill.inference.options import Runtime
    from distill.models.load import pick_device

    where = pick_device(device)
    runtime = Runtime(where, choose(precision, where).precision)
    return SupervoxelModel(str(model), str(source), runtime, GreyValues(normalise, invert), rescale)


def _ids(values: ArrayLike | Where, name: str) -> NDArray[Any]:
    found: NDArray[Any] = np.asarray(values)
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise DistillError(f"{name}: found shape {found.shape} of {found.dtype}, expected integer ids (z, y, x)")
    return found
