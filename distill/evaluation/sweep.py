"""Compare segmentation methods over a range of thresholds, on labelled sections (`distill sweep`).

Scores and thresholds are those of the sections that they were chosen on: they rank thresholds, and say too much good
of every method on other sections.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.core.affinity_conventions import from_uint8, stored_offsets, to_waterz
from distill.core.atomic import write_text
from distill.core.choices import Method
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box, Triple
from distill.core.labels import compact
from distill.evaluation.aligned import overlapping
from distill.evaluation.contingency import Scores
from distill.evaluation.metrics import score
from distill.evaluation.segmentation import position_in_truth
from distill.inference.blockwise.bad_sections import read_bad
from distill.inference.blockwise.begin import is_blocks
from distill.inference.fragments import given_file, segment_fragments
from distill.inference.grey_values import AS_RECORDED, GreyValues, check_grey, normaliser_of
from distill.inference.in_memory import student_volume
from distill.inference.options import Runtime
from distill.inference.origin import model_of_store
from distill.inference.rescaling.sections import resampled
from distill.inference.rescaling.voxel_size import grid_for
from distill.inference.streaming.finish import final_ids
from distill.inference.streaming.output.manifest import all_lines, is_stream, method_of, read_job
from distill.inference.thresholds import ChosenThreshold, Provenance, edge_of, write_thresholds
from distill.io.selection import split_selection
from distill.io.volume import Volume, open_grey, open_labels, open_volume, voxel_shift
from distill.io.writers.output import check_folder
from distill.io.writers.store import writing
from distill.models.fragment_file import FragmentModel, check_model, load_fragments
from distill.models.load import load_student
from distill.segmentation.agglomeration import merged_above, waterz
from distill.segmentation.mutex_watershed import mutex_watershed
from distill.segmentation.supervoxels import supervoxels

Labels = NDArray[np.uint64]
Affinity = NDArray[np.float32]
_CPU = torch.device("cpu")
OnStep = Callable[[int, int], None]

TRIED: dict[Method, tuple[float, ...]] = {
    "flood": tuple(round(0.02 * n, 2) for n in range(3, 46)),
    "query": tuple(round(0.05 * n, 2) for n in range(1, 21)),  # to 1: nothing merged
    "waterz": tuple(round(0.05 * n, 2) for n in range(1, 20)),
    "mws": (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9),
    "fragments": tuple(round(0.02 * n, 2) for n in range(1, 50)),
}


@dataclass(frozen=True)
class ScoredThreshold:
    """One threshold of one method.

    Attributes:
        threshold: see `thresholds.ChosenThreshold`.
        scores: against the labels.
        objects: segments.
        seconds: from affinities to segments at this threshold; None where all thresholds are one run.
    """

    threshold: float
    scores: Scores
    objects: int
    seconds: float | None


@dataclass(frozen=True)
class MethodCurve:
    """A method over its thresholds, ascending.

    Attributes:
        method: its name.
        tried: one at least.
        seconds: of all thresholds, scores not counted.
        alone: seconds from affinities to segments at the chosen threshold alone, run again. The query decoder's masks
            are not in it: its supervoxels were there before, and only contacts are merged.
        voxels: of the volume.
    """

    method: Method
    tried: tuple[ScoredThreshold, ...]
    seconds: float
    alone: float
    voxels: int

    @property
    def best(self) -> ScoredThreshold:
        """Return the threshold with the lowest VOI sum, on ties the lowest threshold."""
        return min(self.tried, key=lambda one: one.scores.voi_sum)

    def chosen(self) -> ChosenThreshold:
        """Return the entry of the thresholds file."""
        best = self.best
        edge = edge_of(best.threshold, [one.threshold for one in self.tried])
        return ChosenThreshold(best.threshold, edge, best.scores.voi_split, best.scores.voi_merge, best.scores.arand)

    def to_dict(self) -> dict[str, Any]:
        """Return the document of sweep.json."""
        rows = [
            {
                "threshold": one.threshold,
                "voi_split": one.scores.voi_split,
                "voi_merge": one.scores.voi_merge,
                "voi": one.scores.voi_sum,
                "arand": one.scores.arand,
                "objects": one.objects,
                "seconds": one.seconds,
            }
            for one in self.tried
        ]
        return {
            "chosen": asdict(self.chosen()),
            "seconds": self.seconds,
            "seconds_alone": self.alone,
            "seconds_per_megavoxel": self.alone / self.voxels * 1e6,
            "thresholds": rows,
        }


@dataclass(frozen=True)
class SupervoxelModel:
    """A model to make supervoxels with, where the store holds none."""

    model: str
    source: str
    runtime: Runtime
    grey: GreyValues = AS_RECORDED
    rescale: bool = False  # see `distill.inference.rescaling.results`


@dataclass(frozen=True)
class Inputs:
    """Affinities in memory and the labels where they lie."""

    affinity: Affinity  # (K, D, H, W)
    offsets: tuple[Triple, ...]
    labels: Labels  # (D, H, W)
    volume: Volume  # the affinities' own
    good: NDArray[np.bool_]  # (D,) sections that were there; a stream leaves the places of bad ones empty


def sweep(
    affinity: str,
    labels: str,
    out: Path,
    tried: Mapping[Method, Sequence[float]],
    *,
    preset: str,
    network: SupervoxelModel | None,
    fragments: Path | None = None,
    on_step: OnStep,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[MethodCurve, ...]:
    """Score every method at every threshold, choose the least VOI sum, and write sweep.json and thresholds.yaml.

    Args:
        affinity: source of stored affinities, K of them, on whose voxels the labels lie; read whole.
        labels: source of the ground truth, of the same size or larger.
        out: folder to make, or one that holds an earlier sweep: sweep.json, thresholds.yaml.
        tried: thresholds by method.
        preset: see `distill.evaluation.metrics`.
        network: for `query`; None takes supervoxels and contacts of the store of a stream that holds the affinities.
        fragments: file of the transformer for `fragments`.
        on_step: called with methods done and their number.
        note: called with lines that the user should see.

    Raises:
        DistillError: a method that cannot run here, or a source that does not fit.
    """
    check_folder(out)
    scorer = _scorer(fragments, affinity) if "fragments" in tried else None
    given = read_inputs(affinity, labels)
    prepare: dict[Method, Callable[[], Callable[[Sequence[float]], dict[float, Labels]]]] = {
        "query": lambda: _query(given, affinity, network, note),
        "flood": lambda: partial(_without_gaps, given, _flood),
        "waterz": lambda: partial(_without_gaps, given, lambda one, t: waterz(to_waterz(one.affinity, one.offsets), t)),
        "mws": lambda: partial(_without_gaps, given, _mutex),
        "fragments": lambda: partial(_without_gaps, given, lambda one, t: _scored(one, t, scorer)),
    }
    curves = []
    for done, (method, thresholds) in enumerate(tried.items()):
        on_step(done, len(tried))
        curves.append(_curve(method, prepare[method](), sorted(set(thresholds)), given, preset))
    on_step(len(tried), len(tried))
    _write(out, tuple(curves), Provenance(affinity, labels, preset, _made_by(given.volume)))
    return tuple(curves)


def read_inputs(affinity: str, labels: str) -> Inputs:
    """Read affinities as float in [0, 1], and the labels of their voxels.

    Raises:
        SourceError: not affinities.
        ShapeError: they do not lie inside the labels, or on other voxels.
    """
    volume, truth = open_volume(affinity), open_labels(labels)
    if volume.channels is None:
        raise SourceError(
            f"{affinity}: found one volume z, y, x, expected affinities with channels, such as OUT.zarr:affinity"
        )
    offsets = stored_offsets(volume.attributes, volume.source)
    if len(offsets) != volume.channels:
        raise SourceError(
            f"{affinity}: found {len(offsets)} offsets, expected one for each of {volume.channels} channels"
        )
    volume, truth = overlapping(volume, truth)
    box = position_in_truth(volume, truth)
    stored = volume.read()
    values = from_uint8(stored) if stored.dtype == np.uint8 else np.asarray(stored, np.float32)
    return Inputs(values, offsets, truth.read(box).astype(np.uint64), volume, _good(affinity, volume))


def _good(affinity: str, volume: Volume) -> NDArray[np.bool_]:
    """Return whether each section of a part of the affinities was segmented; True for sections of other stores."""
    depth, store = volume.size[0], _store(affinity)
    good = np.ones(depth, bool)
    bad: list[int] = []
    if is_stream(store):
        bad = [line.section for line in all_lines(store) if line.flaw]
    elif is_blocks(store):
        bad = [one.section for one in read_bad(store) or []]
    if bad:
        first = voxel_shift(volume, open_volume(f"{store}:affinity", missing="zero"))[0]
        good[[section - first for section in bad if first <= section < first + depth]] = False
    return good


def _store(affinity: str) -> Path:
    """Return the store of affinities, whatever part of them is read."""
    text, _ = split_selection(affinity)
    return Path(text.rpartition(":")[0] or text)


def _without_gaps(
    given: Inputs, run: Callable[[Inputs, Sequence[float]], dict[float, Labels]], thresholds: Sequence[float]
) -> dict[float, Labels]:
    """Segment the sections that are there as neighbours: what a stream has bridged is joined over the gap.

    The affinity of a section after a gap is that to the section before it, or 0 where they were not paired. Other steps
    along z do not survive that a section is taken out: with them nothing is.
    """
    if given.good.all() or any(abs(offset[0]) > 1 for offset in given.offsets):
        return run(given, thresholds)
    there = replace(given, affinity=given.affinity[:, given.good], labels=given.labels[given.good])
    found = {}
    for threshold, labels in run(there, thresholds).items():
        found[threshold] = np.zeros(given.labels.shape, np.uint64)
        found[threshold][given.good] = labels
    return found


def _flood(given: Inputs, thresholds: Sequence[float]) -> dict[float, Labels]:
    affinity = to_waterz(given.affinity, given.offsets)
    return merged_above(supervoxels(affinity), affinity, thresholds)


def _mutex(given: Inputs, thresholds: Sequence[float]) -> dict[float, Labels]:
    return {bias: mutex_watershed(given.affinity, given.offsets, bias=bias) for bias in thresholds}


def _scorer(file: Path | None, affinity: str) -> FragmentModel:
    """Load the transformer of the method `fragments`, trained on affinities of the same model."""
    found = load_fragments(given_file(file))
    name, digest = model_of_store(_store(affinity))
    check_model(found, digest, name or affinity)
    return found


def _scored(given: Inputs, thresholds: Sequence[float], scorer: FragmentModel | None) -> dict[float, Labels]:
    assert scorer is not None, "loaded before the first method"
    return segment_fragments(to_waterz(given.affinity, given.offsets), scorer, thresholds, _CPU)


def _curve(
    method: Method,
    run: Callable[[Sequence[float]], dict[float, Labels]],
    thresholds: Sequence[float],
    given: Inputs,
    preset: str,
) -> MethodCurve:
    """Score a method at every threshold: in one run where the method allows it, otherwise one run per threshold."""
    together = method in ("flood", "waterz", "fragments")
    groups = [thresholds] if together else [[one] for one in thresholds]
    tried, whole = [], 0.0
    for group in groups:
        began = time.perf_counter()
        found = run(group)
        took = time.perf_counter() - began
        whole += took
        for threshold, segmentation in found.items():
            scores = score(segmentation, given.labels, preset, resolution=given.volume.resolution)
            alone = None if together else took
            tried.append(ScoredThreshold(threshold, scores, int(segmentation.max(initial=0)), alone))
    best = min(tried, key=lambda one: one.scores.voi_sum)
    took_best = best.seconds
    if took_best is None:
        began = time.perf_counter()
        run([best.threshold])
        took_best = time.perf_counter() - began
    return MethodCurve(method, tuple(tried), whole, took_best, given.labels.size)


def _query(
    given: Inputs, affinity: str, network: SupervoxelModel | None, note: Callable[[str], None]
) -> Callable[[Sequence[float]], dict[float, Labels]]:
    """Return a function that merges supervoxels by contact, above each threshold."""
    if network is not None:
        student = load_student(network.model, network.runtime.device)
        if student.decoder is None:
            raise DistillError(
                f"{student.path}: has no query decoder, expected --methods flood,waterz,mws for this model"
            )
        raw = open_grey(network.source)
        student = replace(student, normaliser=normaliser_of(student, network.grey))
        check_grey(student.normaliser, raw.dtype, raw.source, lambda text: None)
        first = voxel_shift(given.volume, raw)
        if first[1:] != (0, 0) or raw.size[1:] != given.volume.size[1:]:
            raise SourceError(f"{network.source}: found sections of {raw.size[1:]}, expected those of {affinity}")
        rescaling = grid_for(
            student.path,
            student.notes,
            network.source,
            raw.size[1:],
            raw.resolution,
            rescale=network.rescale,
            note=note,
        )
        seen, size = raw, given.volume.size
        if rescaling is not None:
            seen, size = resampled(raw, rescaling), (size[0], *rescaling.model)
        sections = seen.sections(first[0], first[0] + size[0])
        segmented = student_volume(student, sections, size, network.runtime)
        box, within = Box.of_shape(given.volume.size), Box.of_shape(size)

        def labels(threshold: float) -> Labels:
            found = segmented.labels(threshold)
            return compact(found if rescaling is None else rescaling.nearest(found, box, within))

        return lambda thresholds: {t: labels(t) for t in thresholds}
    store = _store(affinity)
    if not is_stream(store) or not read_job(store)["segment"] or method_of(read_job(store)) != "query":
        raise SourceError(
            f"{store}: found no supervoxels of the query decoder, expected a store of distill stream --method query, "
            "--model and --source, or --methods flood,waterz,mws"
        )
    count, depth = len(all_lines(store)), int(read_job(store)["depth"])
    whole = open_volume(f"{store}:supervoxels", missing="zero")
    if count != whole.size[0]:
        raise SourceError(f"{store}: found {count} sections done of {whole.size[0]}, expected a whole stream")
    supervoxels = whole.read(given.volume.box.shift(voxel_shift(given.volume, whole)))
    return lambda thresholds: {t: final_ids(store, count, depth, t).apply(supervoxels) for t in thresholds}


def _made_by(volume: Volume) -> dict[str, Any]:
    """Return model and source of the affinities, if their store names them."""
    record = _store(volume.source) / "zarr.json"
    try:
        about = json.loads(record.read_text(encoding="utf-8"))["attributes"]["made_by"]
        return {key: about[key] for key in ("model", "source", "precision") if key in about}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(out: Path, curves: tuple[MethodCurve, ...], of: Provenance) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    document = {**asdict(of), "methods": {curve.method: curve.to_dict() for curve in curves}}
    path = out / "sweep.json"
    write_text(path, json.dumps(document, indent=2) + "\n")
    write_thresholds(out / "thresholds.yaml", {curve.method: curve.chosen() for curve in curves}, of)
