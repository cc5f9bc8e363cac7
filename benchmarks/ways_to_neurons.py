"""Ways from the same affinities to neurons: thresholds chosen on validation boxes, scored on test boxes.

    distill stream ac4.h5:volumes/raw --model MODEL --no-segment --out all.zarr
    python benchmarks/ways_to_neurons.py all.zarr:affinity ac4.h5:volumes/labels/neuron_ids \\
        --choose 60:80,512:1024,0:512 --test 80:100,512:1024,0:512 80:100,0:512,512:1024 --json RESULT.json

Boxes are Z,Y,X ranges in voxels of the affinities. Scores: preset `skimage`, means over boxes. For each way: at the
threshold chosen on the validation boxes, 20 % below and above it, and at its best on the test boxes. Oracle rows: the
supervoxels of `flood` merged by the ground truth, and the ground truth's own connected pieces merged by the rule of
`flood`: what supervoxels and merging cost, each with the other one perfect. benchmarks/methods_speed.py measures
times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box
from distill.core.labels import Integers, sum_pairs
from distill.evaluation.metrics import score
from distill.io.volume import open_labels, open_volume
from distill.segmentation.agglomeration import merged_above, merges_above, region_graph, waterz
from distill.segmentation.mutex_watershed import mutex_watershed
from distill.segmentation.supervoxels import GrowingRule, spanning_forest, supervoxels

Ids = NDArray[np.integer[Any]]
Affinity = NDArray[np.float32]
Score = tuple[float, float, float, float]  # VOI split, merge, sum, ARAND

RULES = {"flood": GrowingRule(), "strict": GrowingRule((0.95, 0.97, 0.97), late=2.0, min_voxels=41, large=2**31)}
TRIED = {
    "flood": tuple(round(0.02 * n, 2) for n in range(5, 31)),
    "strict": tuple(round(0.02 * n, 2) for n in range(5, 31)),
    "waterz": tuple(round(0.05 * n, 2) for n in range(7, 15)),
    "mws": (0.5, 0.6, 0.7),
}


def segment(way: str, affinity: Affinity, thresholds: Sequence[float]) -> dict[float, Ids]:
    """From affinities to ids."""
    if way in RULES:
        return dict(merged_above(supervoxels(affinity, RULES[way]), affinity, thresholds))
    if way == "waterz":
        return dict(waterz(affinity, thresholds))
    return {t: mutex_watershed(affinity, NEAREST, bias=t) for t in thresholds}


def swept(way: str, affinity: Affinity, truth: Ids) -> dict[float, Score]:
    """Scores at every threshold; ways of supervoxels are scored by their overlaps with the truth."""
    if way not in RULES:
        return {t: scored(ids, truth) for t, ids in segment(way, affinity, TRIED[way]).items()}
    pieces = supervoxels(affinity, RULES[way])
    merges = merges_above(region_graph(pieces, affinity), min(TRIED[way]))
    overlaps = sum_pairs(pieces[truth != 0], truth[truth != 0])
    found = {}
    for threshold in TRIED[way]:
        roots = np.arange(int(pieces.max()) + 1, dtype=np.uint64)
        merged = merges.above(threshold)
        roots[merged.old.astype(np.intp)] = merged.new
        joint = sum_pairs(roots[overlaps.u.astype(np.intp)], overlaps.v, count=overlaps.count)
        found[threshold] = of_counts(joint.u, joint.v, joint.count)
    return found


def of_counts(u: Integers, v: Integers, count: NDArray[np.int64]) -> Score:
    """VOI split, merge, sum and ARAND of overlaps of segments and neurons."""
    share = count / count.sum()
    sides = [np.bincount(np.unique(ids, return_inverse=True)[1], weights=share) for ids in (u, v)]
    joint, segments, neurons = (float(-(p * np.log2(p)).sum()) for p in (share, *sides))
    pairs = 1 / float(count.sum())  # a voxel is no pair with itself
    squares, *each = (float((p**2).sum()) - pairs for p in (share, *sides))
    return joint - neurons, joint - segments, 2 * joint - neurons - segments, 1 - 2 * squares / sum(each)


def scored(ids: Ids, truth: Ids) -> Score:
    """VOI split, merge, sum and ARAND."""
    found = score(ids, truth)
    return found.voi_split, found.voi_merge, found.voi_sum, found.arand


def oracles(affinity: Affinity, truth: Ids, threshold: float) -> dict[str, Score]:
    """Supervoxels merged by the truth, true pieces merged by the rule."""
    pieces = supervoxels(affinity)
    overlaps = sum_pairs(pieces[truth != 0], truth[truth != 0])
    best = np.zeros(int(pieces.max()) + 1, np.uint64)
    order = np.argsort(overlaps.count)
    best[overlaps.u[order].astype(np.intp)] = overlaps.v[order]  # the largest overlap is the last one written
    true = spanning_forest(cc3d.connected_components(truth, connectivity=6).astype(np.int64), affinity)
    joint = sum_pairs(best[overlaps.u.astype(np.intp)], overlaps.v, count=overlaps.count)
    return {
        "supervoxels merged by the truth": of_counts(joint.u, joint.v, joint.count),
        "true pieces merged by flood": scored(merged_above(true, affinity, [threshold])[threshold], truth),
    }


def compare(way: str, boxes: dict[str, list[tuple[Affinity, Ids]]]) -> dict[str, Any]:
    """Choose on validation, and score on test."""
    tried = TRIED[way]
    each = {part: [swept(way, *box) for box in boxes[part]] for part in boxes}
    mean = {part: {t: np.mean([one[t] for one in found], 0) for t in tried} for part, found in each.items()}
    chosen = min(tried, key=lambda t: mean["choose"][t][2])
    best = min(tried, key=lambda t: mean["test"][t][2])
    nearby = [min(tried, key=lambda t, wanted=chosen * factor: abs(t - wanted)) for factor in (0.8, 1.2)]  # type: ignore[misc]
    return {
        "way": way,
        "threshold": chosen,
        "scores": mean["test"][chosen].tolist(),
        "each": [list(one[chosen]) for one in each["test"]],
        "nearby": {str(t): float(mean["test"][t][2]) for t in nearby},
        "best": best,
        "best_voi": float(mean["test"][best][2]),
    }


def read(affinity: str, labels: str, text: str) -> tuple[Affinity, Ids]:
    """Affinities and ground truth of a box."""
    (z, z_stop), (y, y_stop), (x, x_stop) = (tuple(map(int, part.split(":"))) for part in text.split(","))
    box = Box((z, y, x), (z_stop, y_stop, x_stop))
    edges = from_uint8(np.ascontiguousarray(open_volume(affinity).read(box)[:3]))
    return edges, open_labels(labels).read(box).astype(np.uint32)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print a line for each way; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("affinity")
    parser.add_argument("labels")
    parser.add_argument("--choose", nargs="+", required=True, metavar="Z:Z,Y:Y,X:X")
    parser.add_argument("--test", nargs="+", required=True, metavar="Z:Z,Y:Y,X:X")
    parser.add_argument("--ways", nargs="+", choices=TRIED, default=list(TRIED))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    boxes = {part: [read(asked.affinity, asked.labels, t) for t in getattr(asked, part)] for part in ("choose", "test")}
    rows = []
    for way in asked.ways:
        rows.append(compare(way, boxes))
        print(json.dumps(rows[-1]), flush=True)
        if way == "flood":
            found = [oracles(affinity, truth, rows[-1]["threshold"]) for affinity, truth in boxes["test"]]
            for name in found[0]:
                rows.append({"way": name, "scores": np.mean([one[name] for one in found], 0).tolist()})
                print(json.dumps(rows[-1]), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"choose": asked.choose, "test": asked.test, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
