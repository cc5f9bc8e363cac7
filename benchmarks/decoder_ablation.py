"""Run the ablations of the query decoder on real blocks: every variant trained alike on the features of one frozen
student.

    python benchmarks/decoder_ablation.py --student runs/ac4_cpu --steps 300 --seeds 3 --out ablation.json

Training: crops of sections 0-63 of the AC4 quadrant, no augmentation, the query losses of Chen et al., ICLR 2025.
Scores: preset `skimage`, mean over the eight blocks of 9 (8) x 256 x 256 in sections 64-79, every voxel given to a
query, pieces below 100 voxels absorbed. `merged`: objects whose contact has a mean affinity above a threshold
become one; the threshold that is best on the blocks of one slab is applied to those of the other. `watershed + waterz`,
on the same affinities and blocks, at the published 0.5 and with its threshold chosen in the same way.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.config import PUBLISHED_DECODER, DecoderConfig
from distill.core.affinity import as_label_tensor, pair_affinity
from distill.core.geometry import Box
from distill.core.hardware import AUTO, computing
from distill.data.crops import as_unit_range
from distill.decoder.decoder import DecoderInput
from distill.decoder.instances import block_instances
from distill.decoder.matching import match
from distill.evaluation.metrics import score
from distill.io.volume import open_labels, open_volume
from distill.models.build import build_decoder
from distill.models.load import TrainedStudent, load_student
from distill.segmentation.agglomeration import merge_by_mean_affinity, waterz
from distill.training.loop.state import Average
from distill.training.objective.losses import instance_discrimination, instance_targets, mask_cross_entropy, mask_dice
from distill.training.objective.query_terms import split_instances
from students.slab_adapter import SlabAdapter

FUSED = 32
TRAIN, TEST = (0, 64), (64, 80)
SLABS = ((0, 9), (8, 16))  # of the test sections; the second shares one with the first, as in a stream
TILE = 256
MERGE = (0.3, 0.4, 0.5, 0.6, 0.7)
WATERZ = (0.3, 0.4, 0.5, 0.6, 0.7)
SMALL: dict[str, Any] = {"width": 32, "depth": 2, "learned": 20, "norm_momentum": 0.1}
EDGES: dict[str, Any] = {"kind": "edges", "thresholds": (0.8, 0.9, 0.9), "min_voxels": 10, "max_count": 150}

VARIANTS: dict[str, dict[str, Any]] = {
    "learned queries": {"queries": "learned"},
    "double learned": {"queries": "double-learned"},
    "guided": {"queries": "guided", "learned": 0},
    "guided + learned (published)": {},
    "affinity concatenated": {"cues": "affinity"},
    "segmentation concatenated": {"cues": "segmentation"},
    "transformer": {"refine": "transformer"},
    "K-Net": {"refine": "knet"},
    "edge seeds": {"seeds": EDGES},
    "edge seeds, distance prior": {"seeds": EDGES, "prior": "distance"},
    "edge seeds, flood prior": {"seeds": EDGES, "prior": "flood"},
    "edge seeds, flood prior, guided": {"seeds": EDGES, "prior": "flood", "queries": "guided", "learned": 0},
}


@dataclass(frozen=True)
class Part:
    """Sections with what the frozen student says of them, N sections."""

    half: Tensor  # (N, C, H/2, W/2) bfloat16
    full: Tensor  # (N, C, H, W) bfloat16
    affinity: Tensor  # (N, 3, H, W) float32
    labels: NDArray[np.uint64]  # (N, H, W)

    def cut(self, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """Rows for the slab adapter of a block that begins at even y and x."""
        z, y, x = box.slices
        half = (z, slice(None), *(slice(s.start // 2, -(-s.stop // 2)) for s in (y, x)))
        return self.half[half].float(), self.full[z, :, y, x].float(), self.affinity[z, :, y, x]


def look(model: TrainedStudent, raw: NDArray[Any], labels: NDArray[np.uint64]) -> Part:
    """Run the student over sections."""
    halves, fulls, affinities, previous = [], [], [], None
    with torch.inference_mode(), computing(torch.device("cpu"), AUTO):
        for section in raw:
            current = model.student.encode(torch.from_numpy(as_unit_range(section))[None, None])
            pair = model.student.decode(previous or current, current)
            affinity = pair_affinity(pair.previous.float(), pair.current.float())
            if previous is None:
                affinity[:, 0] = 0
            halves.append(pair.half.bfloat16())
            fulls.append(pair.full.bfloat16())
            affinities.append(affinity)
            previous = current
    return Part(torch.cat(halves), torch.cat(fulls), torch.cat(affinities), labels)


def train(
    config: DecoderConfig, part: Part, *, steps: int, seed: int, crop: tuple[int, int, int], rate: float
) -> tuple[SlabAdapter, nn.Module, float]:
    """Train slab adapter and decoder for a number of steps; return averaged weights and seconds per step."""
    torch.manual_seed(seed)
    slab = SlabAdapter(half=part.half.shape[1], full=part.full.shape[1], features=FUSED)
    decoder = build_decoder(config, FUSED, (30.0, 12.0, 12.0))
    both = nn.ModuleList([slab, decoder])
    optimizer, average = torch.optim.AdamW(both.parameters(), lr=rate, weight_decay=0.01), Average(both, 0.98)
    shape, begin = part.labels.shape, time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = np.random.default_rng((seed, step))
        start = [int(rng.integers(0, n - c + 1)) for n, c in zip(shape, crop, strict=True)]
        start[0] = max(1, start[0])  # the first section has no previous one
        z, y, x = start[0], start[1] // 2 * 2, start[2] // 2 * 2
        box = Box((z, y, x), (min(z + crop[0], shape[0]), y + crop[1], x + crop[2]))
        instances = split_instances(instance_targets(as_label_tensor(part.labels[box.slices])[None]))
        with computing(torch.device("cpu"), AUTO):
            given = slab(*part.cut(box), box.shape[0])
            guide = DecoderInput(given.features, given.affinity_logits.detach())
            decoded = decoder(guide, order="random", rng=rng)
        pairs = match(decoded.masks[0], instances)
        loss = 0.1 * instance_discrimination(decoded.mask_features, instances, samples=2048)
        for masks in decoded.masks:
            loss = loss + 0.3 * mask_cross_entropy(masks, instances, pairs) + 3 * mask_dice(masks, instances, pairs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update(both, step)
    took = (time.perf_counter() - begin) / max(1, steps)
    both.load_state_dict(average.values)
    both.eval()
    return slab, decoder, took


def blocks(part: Part) -> Iterator[tuple[int, Box]]:
    """Return slab number and box of every block."""
    _, height, width = part.labels.shape
    for number, (first, stop) in enumerate(SLABS):
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                yield number, Box((first, y, x), (stop, min(y + TILE, height), min(x + TILE, width)))


def decode_all(slab: SlabAdapter, decoder: nn.Module, part: Part) -> list[NDArray[np.uint64]]:
    """Decode the instances of every block."""
    found = []
    with torch.inference_mode(), computing(torch.device("cpu"), AUTO):
        for _, box in blocks(part):
            given = slab(*part.cut(box), box.shape[0])
            found.append(block_instances(decoder(given), 0, box.shape[1:], min_voxels=40, min_piece=100, fill=True))
    return found


def rate_all(
    part: Part, segment: Callable[[int, Box, float], NDArray[np.uint64]], thresholds: Sequence[float]
) -> dict[float, NDArray[np.float64]]:
    """Score all blocks at every threshold: (blocks, 4) VOI split, merge, sum and ARAND."""
    found = {}
    for threshold in thresholds:
        rows = []
        for number, (_, box) in enumerate(blocks(part)):
            scores = score(segment(number, box, threshold), part.labels[box.slices])
            rows.append((scores.voi_split, scores.voi_merge, scores.voi_sum, scores.arand))
        found[threshold] = np.array(rows)
    return found


def crossed(rated: dict[float, NDArray[np.float64]], slab_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (4,) scores with the threshold of each slab selected on the other one."""
    rows = []
    for slab in np.unique(slab_of):
        chosen = min(rated, key=lambda t: rated[t][slab_of != slab, 2].mean())
        rows.append(rated[chosen][slab_of == slab])
    found: NDArray[np.float64] = np.concatenate(rows).mean(0)
    return found


def named(values: NDArray[np.float64]) -> dict[str, float]:
    """Name the scores."""
    return dict(zip(("voi_split", "voi_merge", "voi", "arand"), (round(float(v), 4) for v in values), strict=True))


def judge(part: Part, labels: list[NDArray[np.uint64]], affinity: NDArray[np.float32]) -> dict[str, Any]:
    """Score decoded blocks, without merging and merged."""
    slab_of = np.array([number for number, _ in blocks(part)])

    def merged(number: int, box: Box, threshold: float) -> NDArray[np.uint64]:
        here = np.ascontiguousarray(affinity[(slice(None), *box.slices)])
        return labels[number] if threshold == 1 else merge_by_mean_affinity(labels[number], here, threshold)

    rated = rate_all(part, merged, (*MERGE, 1.0))
    return {"plain": named(rated[1.0].mean(0)), "merged": named(crossed(rated, slab_of))}


def baseline(part: Part, affinity: NDArray[np.float32]) -> dict[str, Any]:
    """Score watershed + waterz on the same blocks."""
    slab_of = np.array([number for number, _ in blocks(part)])
    made = [waterz(np.ascontiguousarray(affinity[(slice(None), *box.slices)]), list(WATERZ)) for _, box in blocks(part)]
    rated = rate_all(part, lambda number, _, threshold: made[number][threshold], WATERZ)
    return {"at_0.5": named(rated[0.5].mean(0)), "chosen": named(crossed(rated, slab_of))}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train and score every variant, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="run folder or weights file of a student")
    parser.add_argument("--steps", type=int, default=300, help="0: the decoder as it is initialised")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crop", type=int, nargs=3, default=(9, 128, 128), metavar=("Z", "Y", "X"))
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DISTILL_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    model = load_student(asked.student, torch.device("cpu"))
    raw = open_volume(f"{asked.data / 'ac4_quadrant.h5'}:volumes/raw")
    labels = open_labels(f"{asked.data / 'ac4_quadrant.h5'}:volumes/labels/neuron_ids")
    _, height, width = raw.size
    trained, test = (
        look(model, raw.read(box), labels.read(box).astype(np.uint64))
        for box in (Box((first, 0, 0), (last, height, width)) for first, last in (TRAIN, TEST))
    )
    affinity = test.affinity.transpose(0, 1).contiguous().numpy()
    found: dict[str, Any] = {
        "steps": asked.steps,
        "crop": list(asked.crop),
        "watershed + waterz": baseline(test, affinity),
        "variants": {},
    }
    print(f"watershed + waterz: {found['watershed + waterz']}", flush=True)
    for name in asked.variants:
        config = DecoderConfig.model_validate({**PUBLISHED_DECODER, **SMALL, **VARIANTS[name]})
        runs = []
        for seed in range(asked.seeds):
            slab, decoder, took = train(
                config, trained, steps=asked.steps, seed=seed, crop=tuple(asked.crop), rate=asked.lr
            )
            runs.append({"seconds_a_step": round(took, 3), **judge(test, decode_all(slab, decoder, test), affinity)})
        found["variants"][name] = {
            "parameters": sum(p.numel() for p in decoder.parameters()),
            "runs": runs,
        }
        plain, merged = ([run[kind]["voi"] for run in runs] for kind in ("plain", "merged"))
        print(
            f"{name:34s} VOI {np.mean(plain):.3f} ({min(plain):.3f}-{max(plain):.3f}), "
            f"merged {np.mean(merged):.3f} ({min(merged):.3f}-{max(merged):.3f}), {runs[0]['seconds_a_step']} s a step",
            flush=True,
        )
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
