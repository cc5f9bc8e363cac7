"""The commands as functions: what `distill stream`, `segment`, `evaluate`, `sweep`, `train` and `pca` do.

Sources are named as on the command line: a path, with `:dataset` inside containers. Results are written where `out`
says, and are the same as those of the command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.config import load_pair
from distill.core.affinity import NEAREST
from distill.core.choices import Method, Network, StoredEmbedding, StreamMethod
from distill.core.errors import DistillError
from distill.core.geometry import Nanometres, Triple
from distill.core.hardware import AUTO
from distill.evaluation.contingency import Scores
from distill.evaluation.metrics import score
from distill.evaluation.segmentation import evaluate as evaluate_sources
from distill.evaluation.sweep import TRIED, MethodCurve
from distill.evaluation.sweep import sweep as sweep_thresholds
from distill.inference.blockwise.options import Blocking
from distill.inference.blockwise.segment import Segmented
from distill.inference.blockwise.segment import segment as segment_blocks
from distill.inference.embeddings import Windows
from distill.inference.grey_values import GreyValues
from distill.inference.options import SILENT, Callbacks, Options
from distill.inference.streaming.options import Streaming
from distill.inference.streaming.stream import Streamed
from distill.inference.streaming.stream import stream as stream_sections
from distill.io.truth import EVERYWHERE, Known
from distill.models.load import pick_device
from distill.training.train import Progress as TrainingProgress
from distill.training.train import train as train_pair
from viz.embeddings.figure import Seams
from viz.embeddings.figure import pca as draw_pca
from viz.report.report import report_after_training

Where = str | Path
Progress = Callable[[int, int | None], None]  # sections, blocks or steps done, and their number if it is known


@dataclass(frozen=True)
class TrainedRun:
    """A finished training.

    Attributes:
        folder: run folder, which `load` opens.
        steps: number of steps.
        validated: VOI sum of the last validation, by network.
    """

    folder: Path
    steps: int
    validated: dict[str, float]


def stream(
    source: Where,
    model: Where,
    out: Where,
    *,
    method: StreamMethod | None = None,
    merge: float | None = None,
    segments: bool = True,
    offsets: Sequence[Triple] = (),
    embedding: StoredEmbedding = "none",
    on_bad: Sequence[str] = (),
    tile: int | None = None,
    sections: tuple[int, int | None] | None = None,
    resolution: Nanometres | None = None,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    device: str = "auto",
    precision: str = AUTO,
    backend: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Streamed:
    """Run the student over a stream of sections and write affinities and neurons to a Zarr store.

    Args:
        source: volume, folder or glob of section images.
        model: bundled model, run folder or weights file.
        out: store to write.
        method: `flood` or `query`; None = `flood`, or that of the store that is continued.
        merge: threshold; None = the model's own.
        segments: write neurons, not affinities alone.
        offsets: further affinities to write, (z, y, x) in voxels.
        embedding: also write the embedding in this type: `none`, `uint8` or `float16`.
        on_bad: policies for bad sections, `POLICY` or `KIND=POLICY` with `fail`, `skip` or `bridge`.
        tile: side of tiles in pixels, for sections that exceed the memory.
        sections: first section and one past the last.
        resolution: voxel size z, y, x in nm, for sources that do not state it.
        normalise: kind of normalisation instead of the model's own.
        invert: dark and bright are exchanged.
        rescale: compute at the pixel size of the model.
        device: `auto`, `cpu` or `cuda`.
        precision: see `distill.core.hardware`.
        backend: of the student: `auto`, `eager`, `compile`, `openvino` or `onnxruntime`.
        resume: continue the store.
        overwrite: replace the store.
        progress: called with the sections done and their number.

    Returns:
        Summary of the run; the results are in the store.

    Raises:
        DistillError: wrong options, bad input, a bad section under `fail`, or the disk refuses.
    """
    _one_of(resume, overwrite)
    options = Options(
        resolution=resolution,
        sections=sections,
        device=device,
        precision=precision,
        merge=_threshold(merge),
        overwrite=overwrite,
        backend=backend,
        grey=GreyValues(normalise, invert),
        rescale=rescale,
    )
    streaming = Streaming(
        segment=segments,
        method=method,
        offsets=(*NEAREST, *offsets),
        embedding=embedding,
        on_bad=tuple(on_bad),
        resume=resume,
        tile=tile,
    )
    return stream_sections(str(source), str(model), Path(out), options, streaming, _callbacks(progress))


def segment(
    source: Where,
    model: Where,
    out: Where,
    *,
    network: Network = "student",
    method: Method = "flood",
    merge: float | None = None,
    block: Triple | None = None,
    workers: int = 0,
    on_bad: Sequence[str] = (),
    orientations: int | None = None,
    sections: tuple[int, int | None] | None = None,
    resolution: Nanometres | None = None,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    device: str = "auto",
    precision: str = AUTO,
    backend: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Segmented:
    """Segment a volume of any size in blocks, and write neurons and affinities to a Zarr store.

    Arguments that are not listed are those of `stream`.

    Args:
        source: volume.
        model: bundled model, run folder or weights file.
        out: store to write.
        network: which of the model's two networks predicts affinities.
        method: `flood`, `query`, `waterz` or `mws`.
        merge: threshold; None = the model's own, or the method's default.
        block: largest block z, y, x in voxels; None = the decoder's depth, 1024 x 1024.
        workers: processes; 0 or 1 = this one. Scripts that ask for more need `if __name__ == "__main__":`.
        on_bad: policies for bad sections, with `fail`, `skip`, `bridge` or `use`.
        orientations: flips and transposes of a block whose affinities the teacher averages; None = as the model says.
        sections: first section and one past the last.
        resolution: voxel size in nm.
        normalise: kind of normalisation.
        invert: dark and bright are exchanged.
        rescale: compute at the pixel size of the model.
        device: where to compute.
        precision: of the networks.
        backend: of the student.
        resume: continue the store.
        overwrite: replace the store.
        progress: called with the blocks done and their number.

    Returns:
        Summary of the run; the results are in the store.

    Raises:
        DistillError: wrong options, bad input, a block that fails repeatedly, or the disk refuses.
    """
    _one_of(resume, overwrite)
    options = Options(
        resolution=resolution,
        sections=sections,
        device=device,
        precision=precision,
        merge=_threshold(merge),
        overwrite=overwrite,
        backend=backend,
        grey=GreyValues(normalise, invert),
        rescale=rescale,
    )
    blocking = Blocking(
        block=block,
        workers=workers,
        resume=resume,
        network=network,
        method=method,
        on_bad=tuple(on_bad),
        orientations=orientations,
    )
    return segment_blocks(str(source), str(model), Path(out), options, blocking, _callbacks(progress))


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
        ignore: label of voxels that are not counted, for sources.
        workers: processes that read sources.
        progress: called with the blocks of a source read, and their number.

    Returns:
        VOI in bits, ARAND and counts.

    Raises:
        DistillError: shapes or voxel sizes differ, or there is no ground truth to count.
    """
    if isinstance(segmentation, str | Path) != isinstance(labels, str | Path):
        raise DistillError("labels: found an array and a source, expected two arrays or two sources")
    if isinstance(segmentation, str | Path) and isinstance(labels, str | Path):
        on_block = (lambda done, total: None) if progress is None else progress
        known = EVERYWHERE if ignore is None else Known(ignore, None)
        return evaluate_sources(
            str(segmentation),
            str(labels),
            preset,
            resolution,
            0,
            known=known,
            workers=workers,
            on_block=on_block,
        ).scores
    truth = _ids(labels, "labels")
    counted = truth if ignore is None else np.where(truth == ignore, 0, truth)
    return score(_ids(segmentation, "segmentation"), counted, preset, resolution=resolution)


def sweep(
    affinity: Where,
    labels: Where,
    out: Where,
    *,
    methods: Sequence[Literal["flood", "waterz", "mws"]] = ("flood", "waterz", "mws"),
    thresholds: Sequence[float] | None = None,
    preset: str = "skimage",
    progress: Progress | None = None,
) -> tuple[MethodCurve, ...]:
    """Score segmentation methods at every threshold on labelled validation data, and choose the lowest VOI.

    Args:
        affinity: source of affinities, such as `OUT.zarr:affinity`.
        labels: ground truth that was not used for training.
        out: folder for sweep.json and thresholds.yaml.
        methods: to try.
        thresholds: for every method; None = those that the command tries.
        preset: see `evaluate`.
        progress: called with the methods done and their number.

    Returns:
        A curve of scores for each method.

    Raises:
        DistillError: a method that cannot run here, or sources that do not fit.
    """
    tried: dict[Method, Sequence[float]] = {one: tuple(thresholds or TRIED[one]) for one in methods}
    on_step = (lambda done, total: None) if progress is None else progress
    return sweep_thresholds(str(affinity), str(labels), Path(out), tried, preset=preset, network=None, on_step=on_step)


def train(
    teacher: Where,
    student: Where,
    out: Where,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> TrainedRun:
    """Train a 3D teacher, a 2D student and the query decoder that they share.

    Args:
        teacher: teacher.yaml.
        student: student.yaml.
        out: run folder.
        overrides: `KEY=VALUE` texts, such as `student.training.steps=2000`.
        resume: continue the run in `out`, if there is one.
        device: `auto`, `cpu` or `cuda`.
        progress: called with the steps done and their number.

    Raises:
        DistillError: bad input, or another process trains into the folder.
    """
    pair = load_pair(Path(teacher), Path(student), list(overrides))
    pick_device(device)
    steps = 0
    scores: dict[str, float] = {}

    def on_start(done: int, total: int) -> None:
        nonlocal steps
        steps = done
        if progress is not None:
            progress(done, total)

    def on_step(report: Any, total: int, left: float | None) -> None:
        on_start(report.step, total)

    def on_validation(step: int, judged: Any, seconds: float) -> None:
        scores.update({name: float(found.scores.voi_sum) for name, found in judged.items()})

    told = TrainingProgress(on_start, on_step, on_validation, lambda line: None, report_after_training)
    train_pair(pair, Path(out), resume=resume, device=device, progress=told, command=list(sys.argv))
    return TrainedRun(Path(out), steps, scores)


def pca(
    source: Where,
    student: Where,
    out: Where,
    *,
    teacher: Where | None = None,
    section: int = 1,
    window: Triple | None = None,
    overlap: Triple = (0, 0, 0),
    blend: bool = True,
    resolution: Nanometres | None = None,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    device: str = "auto",
    precision: str = AUTO,
) -> Seams:
    """Draw the embeddings of teacher and student as colours, and score the seams that sliding windows leave.

    Args:
        source: volume.
        student: bundled model, run folder or weights file.
        out: figure, .png, .svg or .pdf.
        teacher: model whose teacher is shown beside; None = the student alone, without scores.
        section: number of the section, 1 at least.
        window: of the teacher, z, y, x in voxels; None = its decoder's block.
        overlap: of neighbouring windows.
        blend: weight windows down towards their borders.
        resolution: voxel size z, y, x in nm, for sources that do not state it.
        normalise: kind of normalisation instead of the models' own.
        invert: dark and bright are exchanged.
        rescale: compute at the pixel size of the student.
        device: `auto`, `cpu` or `cuda`.
        precision: see `distill.core.hardware`.

    Returns:
        Seam scores.

    Raises:
        DistillError: bad input, or no such section.
    """
    return draw_pca(
        str(source),
        None if teacher is None else str(teacher),
        str(student),
        section,
        Path(out),
        Windows(window, overlap, blend),
        device=device,
        precision=precision,
        resolution=resolution,
        grey=GreyValues(normalise, invert),
        rescale=rescale,
    )


def _one_of(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise DistillError("resume: found overwrite as well, expected one of them")


def _threshold(merge: float | None) -> float | None:
    if merge is not None and not 0 <= merge <= 1:
        raise DistillError(f"merge: found {merge}, expected 0 to 1")
    return merge


def _callbacks(progress: Progress | None) -> Callbacks:
    return SILENT if progress is None else Callbacks(on_progress=lambda done, total, rate: progress(done, total))


def _ids(values: ArrayLike | Where, name: str) -> NDArray[Any]:
    found: NDArray[Any] = np.asarray(values)
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise DistillError(f"{name}: found shape {found.shape} of {found.dtype}, expected integer ids (z, y, x)")
    return found
