"""Score one trained teacher on held-out sections and print JSON: `python poster_row.py RUN`; see poster_table.py.

Thresholds are chosen on the run's validation part, scores are those of its test part (preset `skimage`, which ignores
background of the ground truth).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from distill.config import TeacherConfig, load_pair
from distill.core.geometry import Triple
from distill.core.hardware import resolved
from distill.core.normalisation import UNCHANGED
from distill.evaluation.contingency import Scores
from distill.evaluation.metrics import score
from distill.evaluation.sweep import TRIED
from distill.inference.in_memory import SegmentedVolume, teacher_clusters, teacher_volume
from distill.inference.options import Runtime
from distill.models.build import build_teacher
from distill.models.load import TrainedTeacher, load_teacher
from distill.segmentation.agglomeration import fragments, merged_above, waterz
from distill.segmentation.supervoxels import supervoxels
from distill.training.data import LabelledPart, open_data, read_part
from distill.training.validation import MERGE_THRESHOLDS
from teachers.sliding_window import run_teacher, sliding_windows
from teachers.teacher import Teacher

Affinity = NDArray[np.float32]
Ids = NDArray[np.uint64]
OWN: dict[str, str] = {"agq": "queries", "ml-de": "clusters"}  # other rows: watershed and waterz, as on the poster


@dataclass(frozen=True)
class Segmented:
    """Segmentations of a part by one method.

    Attributes:
        ids: by threshold.
        watershed: seconds until there are fragments.
        agglomeration: seconds for all thresholds.
    """

    ids: Mapping[float | None, Ids]
    watershed: float
    agglomeration: float


def main() -> None:
    """Score the run and print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of a teacher that was trained alone")
    parser.add_argument("--seed", type=int, default=0, help="of the voxels that are clustered")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the run's parts")
    asked = parser.parse_args()
    config = load_pair(asked.run / "teacher.yaml", asked.run / "student.yaml", asked.set)
    device = torch.device("cpu")
    runtime = Runtime(device, resolved("auto", device))
    model = load_teacher(str(asked.run), device)
    opened = open_data(config)[0]
    validation, test = (read_part(opened, name, model.normaliser) for name in ("validation", "test"))
    model = replace(model, normaliser=UNCHANGED)  # parts are normalised by statistics of whole sections
    row = scored(model, validation, test, runtime, seed=asked.seed)
    row["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, one in (("", model.config), ("_published", published(model.config))):
        network = build_teacher(one).eval()
        row[f"parameters{name}"] = sum(p.numel() for p in network.parameters())
        row[f"operations_per_voxel{name}"] = operations(network, config.student.training.crop)
    row["step"] = model.notes.get("step")
    print(json.dumps(row))


def scored(
    model: TrainedTeacher, validation: LabelledPart, test: LabelledPart, runtime: Runtime, *, seed: int
) -> dict[str, Any]:
    """Choose thresholds on one part, segment another one, score it.

    Returns:
        `methods`: by name, scores, threshold and seconds of watershed (or clustering) and agglomeration;
        `seconds_model`: of the network in its windows over the test part, with the query decoder of AGQ.
    """
    own = OWN.get(model.config.kind)
    ways = {"waterz": _waterz, "flood": _flood}
    found: dict[str, Any] = {}
    seen = {name: _run(model, part, runtime, own, seed) for name, part in (("validation", validation), ("test", test))}
    for method, segment in ways.items():
        tried = segment(seen["validation"].affinity, TRIED[method])  # type: ignore[index]
        best = _best(tried.ids, validation)
        found[method] = _row(segment(seen["test"].affinity, [best]), best, test)
    if own is not None:
        merged = {t: seen["validation"].blocks.labels(t) for t in (None, *MERGE_THRESHOLDS)}
        best = _best(merged, validation)
        began = time.perf_counter()
        ids = seen["test"].blocks.labels(best)
        found[own] = _row(Segmented({best: ids}, seen["test"].clustering, time.perf_counter() - began), best, test)
    return {
        "methods": found,
        "method": own or "waterz",
        "seconds_model": seen["test"].seconds,
        "voxels": int(test.raw.size),
        "neurons": int(np.count_nonzero(np.unique(test.counted))),
    }


@dataclass(frozen=True)
class _Seen:
    affinity: Affinity
    blocks: Any  # SegmentedVolume of the own method
    seconds: float  # of everything that is not clustering
    clustering: float = 0.0


def _run(model: TrainedTeacher, part: LabelledPart, runtime: Runtime, own: str | None, seed: int) -> _Seen:
    """Run the network over a part; with a method of its own also decode its blocks."""
    began = time.perf_counter()
    if own is None:
        block, overlap = model.config.decoder.block, model.config.decoder.overlap
        shape: Triple = part.raw.shape[0], part.raw.shape[1], part.raw.shape[2]
        affinity = run_teacher(
            model.teacher,
            part.raw,
            sliding_windows(shape, block, overlap),
            device=runtime.device,
            precision=runtime.precision,
        ).affinity
        return _Seen(affinity, None, time.perf_counter() - began)
    if own == "queries":
        decoded: SegmentedVolume = teacher_volume(model, part.raw, runtime)
        return _Seen(decoded.affinity, decoded, time.perf_counter() - began)
    spent = _Spent()
    timed = replace(model, teacher=spent.watching(model.teacher))
    clustered = teacher_clusters(timed, part.raw, runtime, bandwidth=model.config.mlde.push, seed=seed)
    spent.remove()
    return _Seen(clustered.affinity, clustered, spent.seconds, time.perf_counter() - began - spent.seconds)


class _Spent:
    """Add up the seconds that a network runs."""

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0
        self._hooks: list[Any] = []

    def watching(self, network: Teacher) -> Teacher:
        """Begin to add up."""

        def begin(*_: Any) -> None:
            self._began = time.perf_counter()

        def end(*_: Any) -> None:
            self.seconds += time.perf_counter() - self._began

        self._hooks = [network.register_forward_pre_hook(begin), network.register_forward_hook(end)]
        return network

    def remove(self) -> None:
        """Stop."""
        for hook in self._hooks:
            hook.remove()


def _waterz(affinity: Affinity, thresholds: Sequence[float]) -> Segmented:
    began = time.perf_counter()
    pieces = fragments(affinity)
    middle = time.perf_counter()
    ids = waterz(affinity, thresholds, fragments=pieces)
    return Segmented(dict(ids), middle - began, time.perf_counter() - middle)


def _flood(affinity: Affinity, thresholds: Sequence[float]) -> Segmented:
    began = time.perf_counter()
    pieces = supervoxels(affinity)
    middle = time.perf_counter()
    ids = merged_above(pieces, affinity, thresholds)
    return Segmented(dict(ids), middle - began, time.perf_counter() - middle)


def _best(ids: Mapping[Any, Ids], part: LabelledPart) -> Any:
    """Return the threshold with the lowest VOI sum."""
    scores = {threshold: score(found, part.counted) for threshold, found in ids.items()}
    return min(scores, key=lambda threshold: scores[threshold].voi_sum)


def _row(found: Segmented, threshold: float | None, part: LabelledPart) -> dict[str, Any]:
    scores: Scores = score(found.ids[threshold], part.counted)
    return {
        "voi_split": scores.voi_split,
        "voi_merge": scores.voi_merge,
        "voi": scores.voi_sum,
        "arand": scores.arand,
        "threshold": threshold,
        "seconds_watershed": found.watershed,
        "seconds_agglomeration": found.agglomeration,
    }


def operations(network: Teacher, crop: Triple) -> float:
    """Return floating-point operations a voxel of the network for one crop, two for a multiplication and addition."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network(torch.zeros(1, 1, *crop))
    return float(counter.get_total_flops()) / float(np.prod(crop))


def published(config: TeacherConfig) -> TeacherConfig:
    """Return the configuration of the same kind and heads at its published width."""
    loss = config.loss.model_dump(include=set(type(config.loss).model_fields) - {"own"})
    return TeacherConfig.model_validate({"kind": config.kind, "embedding": config.embedding, "loss": loss})


if __name__ == "__main__":
    main()
