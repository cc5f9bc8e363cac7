"""Compare students after the same training time: slice loss only, one thread, waterz on unseen sections.

    python benchmarks/student_training.py --minutes 15 --student kind=smp encoder=resnet18 --out result.json

The cosine schedule runs on the clock, so a faster network takes more steps. Scores: preset `skimage`, averaged weights,
validation sections 64-79 of the AC4 quadrant, per-section watershed and waterz at 0.5 (published) and other thresholds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from distill.config import Pair
from distill.core.affinity import affinity_targets, as_label_tensor
from distill.core.hardware import AUTO, computing
from distill.data.crops import Crops
from distill.evaluation.affinities import affinity_scores
from distill.evaluation.metrics import score
from distill.inference.in_memory import student_affinity
from distill.inference.options import Runtime
from distill.models.load import TrainedStudent
from distill.segmentation.agglomeration import waterz
from distill.training.data import open_parts
from distill.training.loop.loop import make_optimizer
from distill.training.loop.state import Average
from distill.training.objective.objective import Joint

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


def configuration(
    network: dict[str, Any], data: Path, seed: int, learning_rate: float, augment: dict[str, Any] | None = None
) -> Pair:
    """Return the configuration of the student alone, trained as in configs/ac4_cpu; the teacher is never run."""
    teacher = {
        "filters": [8] * 5,
        "fused": 8,
        "branch_width": 8,
        "branch_depth": 0,
        "decoder": {"width": 8, "depth": 1, "learned": 1},
        "loss": {"multi_offset": 0.0, "affinity": 0.0},
        "queries": {"teacher": 0.0, "student": 0.0},
    }
    student = {
        **network,
        "loss": {"cross": 0.0, "graft": 0.0},
        "augment": augment or {},
        "data": {
            "raw": f"{data}:volumes/raw",
            "labels": f"{data}:volumes/labels/neuron_ids",
            "train": [0, 64],
            "validation": [64, 80],
        },
        "training": {
            "steps": 1_000_000,
            "crop": [6, 160, 160],
            "batch": 1,
            "lr": learning_rate,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "clip": 1.0,
            "ema": 0.995,
            "seed": seed,
        },
    }
    return Pair.model_validate({"teacher": teacher, "student": student})


def train(config: Pair, seconds: float, steps: int | None) -> tuple[Joint, int, float]:
    """Train for a wall time, or for steps if given; return averaged weights, number of steps, last losses."""
    training = config.student.training
    parts = open_parts(config)
    torch.manual_seed(training.seed)
    joint = Joint(config, parts.resolution)
    joint.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    crops = Crops.of(parts.training[0], training, config.student.augment)
    optimizer, average = make_optimizer(joint, training), Average(joint, training.ema)
    losses: list[float] = []
    begin, step = time.perf_counter(), 0
    while (share := step / steps if steps else (time.perf_counter() - begin) / seconds) < 1:
        rate = training.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        raw, labels = crops[step]
        with computing(torch.device("cpu"), AUTO):
            terms = joint((raw[None], labels[None]), step)
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(joint.parameters(), training.clip)
        optimizer.step()
        average.update(joint, step)
        losses.append(float(loss.detach()))
        step += 1
    joint.load_state_dict(average.values)
    return joint.eval(), step, float(np.mean(losses[-100:]))


def judge(joint: Joint, raw: NDArray[Any], labels: NDArray[np.uint64]) -> dict[str, Any]:
    """Score a labelled part."""
    student = TrainedStudent(joint.student, None, None, joint.config.teacher.decoder, {}, Path())
    depth, height, width = raw.shape
    affinity = student_affinity(student, iter(raw), (depth, height, width), Runtime(torch.device("cpu")))
    targets = affinity_targets(as_label_tensor(labels))
    edges = affinity_scores(affinity, targets.target.numpy(), targets.valid.numpy())
    found: dict[str, Any] = {"boundary_f1_zyx": [round(edge.boundary.f1, 4) for edge in edges]}
    for threshold, segmentation in waterz(affinity, list(THRESHOLDS)).items():
        scores = score(segmentation, labels)
        found[f"waterz_{threshold}"] = {
            "voi_split": round(scores.voi_split, 4),
            "voi_merge": round(scores.voi_merge, 4),
            "voi": round(scores.voi_sum, 4),
            "arand": round(scores.arand, 4),
        }
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--steps", type=int, help="so many steps instead of minutes, as another run of the same took")
    parser.add_argument("--student", nargs="*", default=[], metavar="KEY=VALUE", help="kind, width, encoder, depth ...")
    parser.add_argument("--augment", nargs="*", default=[], metavar="KEY=VALUE", help="rotate, elastic ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DISTILL_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", type=Path, help="keep the student's tensors here (torch file)")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    network, augment = (
        {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in texts)}
        for texts in (asked.student, asked.augment)
    )
    config = configuration(network, asked.data / "ac4_quadrant.h5", asked.seed, asked.lr, augment)
    joint, steps, loss = train(config, 60 * asked.minutes, asked.steps)
    if asked.weights:
        torch.save(joint.student.state_dict(), asked.weights)
    (part,) = open_parts(config).validation
    result = {
        "student": network,
        "augment": augment,
        "parameters": sum(p.numel() for p in joint.student.parameters()),
        "minutes": asked.minutes,
        "threads": asked.threads,
        "seed": asked.seed,
        "steps": steps,
        "last_losses": round(loss, 5),
        **judge(joint, part.raw, part.labels),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
