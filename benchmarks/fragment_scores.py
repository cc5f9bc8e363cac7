"""Scores and seconds of the method `fragments` next to waterz and flood, on the same stored affinities.

    python benchmarks/fragment_scores.py OUT.zarr:affinity LABELS --out FOLDER --train A=0,0,0:60,512,512 \
        --train B=60,0,0:70,512,512 --validation 70,0,0:80,512,512 --test 80,0,0:100,512,512 --seeds 0 1 2

Every threshold is chosen by the least VOI sum on the validation part, and so is the step of each training; scores are
those of the test part (preset `skimage`). Seconds are processor time of the test part on one thread. Rows that are
there are kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from hardware import machine
from rows import Rows
from tables import provenance, write_json

from distill.core.affinity_conventions import to_waterz
from distill.evaluation.metrics import score
from distill.evaluation.sweep import TRIED, read_inputs
from distill.inference.fragments import contact_scores
from distill.io.selection import with_selection
from distill.models.fragment_file import FragmentArchitecture, FragmentModel, load_fragments, save_fragments
from distill.segmentation.agglomeration import fragments, merged_above, waterz
from distill.segmentation.fragment_features import fragment_graph, merged_by_scores
from distill.segmentation.supervoxels import supervoxels
from distill.training.fragments import FragmentTraining, train_fragments

CPU = torch.device("cpu")
Parts = tuple[Any, Any]  # affinities and labels of the validation and of the test part


def main() -> None:
    """Make the rows that are missing, and write fragments.json."""
    asked = _asked()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(asked.out, {key: str(getattr(asked, key)) for key in ("train", "validation", "test", "steps")})
    parts = [_part(asked, box) for box in (asked.validation, asked.test)]
    names = ["waterz", "mean affinity of the same fragments", "flood"]
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "waterz": lambda: _swept(parts, fragments, _waterz, TRIED["waterz"]),
        "mean affinity of the same fragments": lambda: _swept(parts, fragments, _mean, TRIED["flood"]),
        "flood": lambda: _swept(parts, supervoxels, _mean, TRIED["flood"]),
    }
    for seed in asked.seeds:
        for name, box in (text.split("=") for text in reversed(asked.train)):
            names.append(f"fragments {name} seed {seed}")
            made[names[-1]] = lambda name=name, box=box, seed=seed: _trained(asked, name, box, seed, parts)  # type: ignore[misc]
    for name in names:
        if name not in rows:
            rows.keep(name, made[name]())
            print(name, rows.get(name), flush=True)
    found = {name: rows.get(name) for name in names}
    about = {**provenance("fragment_scores.py", sys.argv[1:]), "machine": machine(CPU), "voxels": parts[1][1].size}
    write_json(asked.out / "fragments.json", {**about, "rows": found})


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("affinity")
    parser.add_argument("labels")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--train", required=True, action="append", metavar="NAME=BOX")
    parser.add_argument("--validation", required=True, metavar="BOX")
    parser.add_argument("--test", required=True, metavar="BOX")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=FragmentTraining.steps)
    return parser.parse_args()


def _part(asked: argparse.Namespace, box: str) -> Parts:
    given = read_inputs(with_selection(asked.affinity, box=box), asked.labels)
    return to_waterz(given.affinity, given.offsets), given.labels


def _waterz(pieces: Any, affinity: Any, thresholds: Sequence[float]) -> dict[float, Any]:
    return waterz(affinity, thresholds, fragments=pieces)


def _mean(pieces: Any, affinity: Any, thresholds: Sequence[float]) -> dict[float, Any]:
    return merged_above(pieces, affinity, thresholds)


def _swept(
    parts: Sequence[Parts],
    cut: Callable[[Any], Any],
    merge: Callable[[Any, Any, Sequence[float]], dict[float, Any]],
    tried: Sequence[float],
) -> dict[str, Any]:
    """Choose the threshold on the first part, score the second one."""
    affinity, labels = parts[0]
    voi = {t: score(ids, labels).voi_sum for t, ids in merge(cut(affinity), affinity, tried).items()}
    best = min(voi, key=lambda t: voi[t])
    affinity, labels = parts[1]
    began = time.process_time()
    pieces = cut(affinity)
    middle = time.process_time()
    found = merge(pieces, affinity, [best])[best]
    seconds = {"cut": middle - began, "merge": time.process_time() - middle}
    return {"threshold": best, "validation": voi[best], **_scores(found, labels), "seconds": seconds}


def _trained(asked: argparse.Namespace, name: str, box: str, seed: int, parts: Sequence[Parts]) -> dict[str, Any]:
    """Train on a part, and score the test part."""
    began = time.process_time()
    first, second = (with_selection(asked.affinity, box=one) for one in (box, asked.validation))
    settings = FragmentTraining(steps=asked.steps, seed=seed)
    model = train_fragments(first, asked.labels, second, FragmentArchitecture(), settings)
    trained = time.process_time() - began
    file = asked.out / f"{name}-s{seed}.safetensors"
    save_fragments(file, model)
    return {**scored(load_fragments(file), *parts[1]), "trained": trained, "step": model.notes["step"]}


def scored(model: FragmentModel, affinity: Any, labels: Any) -> dict[str, Any]:
    """Segment with a trained transformer, with the seconds of its stages."""
    times = [time.process_time()]
    pieces = fragments(affinity)
    times.append(time.process_time())
    graph = fragment_graph(pieces, affinity, model.architecture.neighbours)
    times.append(time.process_time())
    merge = contact_scores(model.network, graph, CPU)
    times.append(time.process_time())
    found = merged_by_scores(pieces, graph, merge, model.threshold)
    times.append(time.process_time())
    names = ("cut", "features", "network", "merge")
    seconds = {name: after - before for name, (before, after) in zip(names, pairwise(times), strict=True)}
    validation = model.notes["validation"]["voi"]
    size = {"fragments": len(graph.ids), "contacts": len(graph.u)}
    return {
        **{"threshold": model.threshold, "validation": validation, **_scores(found, labels), "seconds": seconds},
        **size,
    }


def _scores(found: Any, labels: Any) -> dict[str, float]:
    one = score(found, labels)
    return {"voi_split": one.voi_split, "voi_merge": one.voi_merge, "voi": one.voi_sum, "arand": one.arand}


if __name__ == "__main__":
    main()
