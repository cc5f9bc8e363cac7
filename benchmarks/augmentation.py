"""Measure the time of an augmented crop on one thread, key by key, and of the same warp in other libraries.

    python benchmarks/augmentation.py --out result.json

Crops of sections 0-63 of the AC4 quadrant; each key of `student.augment` alone and for certain, all off, and the
defaults. Everything from cutting the window to widened borders counts. Medians of the calls; the defaults as a mean,
because their cost depends on the draw.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import machine
from scipy import ndimage
from tables import provenance, table, write_json

from distill.config import AUGMENTATIONS, AugmentConfig, TrainingConfig
from distill.data.augmentation.warp import draw_warp, warp_margin, warp_volume
from distill.data.crops import Crops
from distill.io.volume import open_labels, open_volume

CROPS = ((18, 160, 160), (6, 160, 160))


def milliseconds(calls: list[Callable[[], object]], repeats: int = 1) -> list[float]:
    """Time each call, excluding the first one as warm-up."""
    calls[0]()
    found = []
    for call in calls * repeats:
        began = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - began))
    return found


def per_key(raw: Any, labels: Any, crop: tuple[int, int, int], count: int) -> dict[str, float]:
    """Measure the milliseconds of one crop for each key."""

    def crops(config: AugmentConfig) -> Crops:
        return Crops(raw, labels, TrainingConfig(crop=crop, steps=4 * count), config)

    def indexed(config: AugmentConfig, number: int) -> list[float]:
        items = crops(config)
        return milliseconds([lambda n=n: items[n] for n in range(number)])  # type: ignore[misc]

    default = AugmentConfig()
    found = {name: statistics.median(indexed(default.only(name), count)) for name in AUGMENTATIONS}
    return {
        "all off": statistics.median(indexed(default.only(), count)),
        **found,
        "defaults, mean": statistics.mean(indexed(default, 4 * count)),
    }


def rivals(crop: tuple[int, int, int], count: int) -> dict[str, float]:
    """Measure the same elastic warp of raw and labels in other libraries, or the closest equivalent."""
    import monai.transforms as monai

    config, rng = AugmentConfig(), np.random.default_rng(0)
    warp = draw_warp(crop, config.only("rotate", "elastic"), rng)
    y, x = warp_margin(warp)
    size = (crop[0], crop[1] + 2 * y, crop[2] + 2 * x)
    raw = torch.rand(size)
    labels = torch.randint(0, 10**6, size)
    places = torch.rand(3, *crop) * (torch.tensor(size) - 1).view(3, 1, 1, 1)
    places[0] = torch.arange(crop[0]).view(-1, 1, 1)
    at = places.numpy()

    def scipy() -> None:
        for z in range(crop[0]):
            ndimage.map_coordinates(raw[z].numpy(), at[1:, z], order=1, mode="mirror")
            ndimage.map_coordinates(labels[z].numpy(), at[1:, z], order=0, mode="mirror")

    both: dict[str, Any] = {"keys": ["raw", "labels"], "prob": 1.0, "spatial_size": crop, "padding_mode": "border"}
    both |= {"mode": ["bilinear", "nearest"], "rotate_range": (1.0, 0, 0)}
    affine = monai.RandAffined(**both)
    elastic = monai.Rand3DElasticd(**both, sigma_range=(8, 8), magnitude_range=(100, 100))
    given = {"raw": raw[None], "labels": labels[None]}
    return {
        "distill.data.augmentation.warp (torch), rotation + elastic": statistics.median(
            milliseconds([lambda: warp_volume(raw, labels, warp, (y, x))], count)
        ),
        "scipy.ndimage, places given": statistics.median(milliseconds([scipy], count)),
        "monai RandAffined, rotation": statistics.median(milliseconds([lambda: affine(given)], count)),
        "monai Rand3DElasticd, rotation + elastic": statistics.median(milliseconds([lambda: elastic(given)], 3)),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="calls of every key")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DISTILL_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = asked.data / "ac4_quadrant.h5"
    raw = open_volume(f"{source}:volumes/raw").read()[:64]
    labels = open_labels(f"{source}:volumes/labels/neuron_ids").read()[:64]
    found = {" x ".join(map(str, crop)): per_key(raw, labels, crop, asked.count) for crop in CROPS}
    rows = [[name, *(f"{values[name]:.1f}" for values in found.values())] for name in next(iter(found.values()))]
    print(table(["ms a crop", *found], rows))
    others = rivals(CROPS[0], asked.count)
    print(table(["warp of raw and labels", "ms"], [[name, f"{value:.1f}"] for name, value in others.items()]))
    result = {
        **provenance("augmentation.py", [str(a) for a in (arguments or sys.argv[1:])]),
        "machine": machine(torch.device("cpu")),
        "milliseconds": found,
        "warps": others,
    }
    if asked.out:
        write_json(asked.out, result)
    return result


if __name__ == "__main__":
    main()
