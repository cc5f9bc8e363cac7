"""Watershed + waterz over thresholds, on stored affinities against ground truth.

    distill convert AC34.ckpt --out ac34.safetensors
    distill stream ac4_quadrant.h5:volumes/raw --sections 64:80 --model ac34.safetensors --no-segment --out ac34.zarr
    python benchmarks/waterz_sweep.py ac34.zarr:affinity ac4_quadrant.h5:volumes/labels/neuron_ids

Preset `skimage`; the affinities' own resolution and offset say which part of the ground truth they cover.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from distill.core.affinity import from_uint8
from distill.core.geometry import Box
from distill.evaluation.metrics import score
from distill.io.volume import open_labels, open_volume
from distill.segmentation.agglomeration import waterz


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print a table; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("affinity")
    parser.add_argument("labels")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[round(0.1 * n, 1) for n in range(1, 10)])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    affinities, truth = open_volume(asked.affinity), open_labels(asked.labels)
    first = tuple(
        round((own - theirs) / step)
        for own, theirs, step in zip(affinities.offset, truth.offset, truth.resolution, strict=True)
    )
    z, y, x = first
    box = Box((z, y, x), (z + affinities.size[0], y + affinities.size[1], x + affinities.size[2]))
    labels = truth.read(box).astype(np.uint64)
    edges = from_uint8(affinities.read()[:3])
    rows = []
    print("threshold  split  merge    sum  ARAND  objects   (VOI in bits)")
    for threshold, segmentation in waterz(edges, asked.thresholds).items():
        found = score(segmentation, labels)
        values = (found.voi_split, found.voi_merge, found.voi_sum, found.arand)
        print(f"{threshold:9.1f}  {'  '.join(f'{v:5.3f}' for v in values)}  {int(segmentation.max()):7d}")
        rows.append(
            {
                "method": "watershed + waterz",
                "threshold": threshold,
                "split": found.voi_split,
                "merge": found.voi_merge,
                "arand": found.arand,
            }
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
