"""Blocks of real tissue with affinities that mean something, and seeds in any number, for networks without training.

Legend: D H W = z y x, h w half resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from distill.core.affinity import affinity_targets, as_label_tensor, fill_frame, half_resolution
from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple
from distill.data.crops import as_unit_range
from distill.decoder.queries import SeedRule, Seeds, find_seeds
from distill.inference.in_memory import student_affinity
from distill.inference.options import Runtime
from distill.io.volume import open_labels, open_volume
from distill.models.load import load_student

_LOW, _HIGH = 0.05, 0.95  # what edges between and within neurons become
_NOISE = 0.6  # standard deviation, before the blur; gives about as many fragments as a published student does
_BLUR = (0.0, 0.0, 1.0, 1.0)  # voxels


@dataclass(frozen=True)
class Scene:
    """One block of tissue."""

    raw: Tensor  # (1, 1, D, H, W) in [0, 1]
    affinity: NDArray[np.float32]  # (3, D, H, W) in [0, 1]
    half: Tensor  # (1, 3, D, h, w): the same affinities at the decoder's resolution
    logits: Tensor  # (1, 3, D, h, w): the same as logits, a thousandth from certainty at most

    @property
    def block(self) -> Triple:
        """(D, H, W)."""
        _, z, y, x = self.affinity.shape
        return z, y, x


def read_scene(data: Path, block: Triple, student: str | None, runtime: Runtime) -> Scene:
    """The last sections of a volume, the middle of them in y and x.

    Args:
        data: a volume with its labels, e.g. CREMI HDF5.
        block: (D, H, W) in voxels.
        student: weights whose affinities to take; those of the labels, blurred and with noise, if None.
        runtime: where the tensors go, and how the student runs.

    Raises:
        DistillError: the volume is smaller than the block.
    """
    raw = open_volume(data)
    if any(b > n for b, n in zip(block, raw.size, strict=True)):
        raise DistillError(f"--sizes, --block: found {block}, expected at most {raw.size}, the size of {data.name}")
    depth, height, width = raw.size
    box = Box.of_shape(block).shift((depth - block[0], (height - block[1]) // 2, (width - block[2]) // 2))
    grey = raw.read(box)
    if student is None:
        affinity = noisy_truth(open_labels(data).read(box))
    else:
        affinity = student_affinity(load_student(student, runtime.device), grey, block, runtime)
    half = half_resolution(torch.from_numpy(affinity))[None].to(runtime.device)
    unit = torch.from_numpy(as_unit_range(grey))[None, None].to(runtime.device)
    return Scene(unit, affinity, half, torch.logit(half, 1e-3))


def noisy_truth(labels: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Affinities of a labelling with noise and blur, the same ones for the same labels.

    Args:
        labels: (D, H, W), 0 = background.

    Returns:
        (3, D, H, W) in [0, 1].
    """
    target = affinity_targets(as_label_tensor(labels)).target.numpy()
    noise = np.random.default_rng(0).normal(0, _NOISE, target.shape).astype(np.float32)
    affinity: NDArray[np.float32] = gaussian_filter(_LOW + (_HIGH - _LOW) * target + noise, _BLUR).clip(0, 1)
    fill_frame(affinity)
    return affinity


def seeds_of(affinity: Tensor, count: int) -> Seeds:
    """The `count` largest components of a block, or of its slabs: as thin ones as it takes to have so many.

    Args:
        affinity: (1, 3, D, h, w).
        count: at least 1.

    Raises:
        DistillError: there are not so many, even section by section.
    """
    depth = affinity.shape[2]
    rule = SeedRule("edges", (0.8, 0.8, 0.8), min_voxels=20, max_count=count)
    found = 0
    for thickness in sorted({-(-depth // parts) for parts in range(1, depth + 1)}, reverse=True):
        slabs, found = [], 0
        for slab in torch.split(affinity, thickness, 2):
            seeds = find_seeds(slab, rule, "size")
            slabs.append(torch.where(seeds.components > 0, seeds.components + found, 0))
            found += seeds.counts[0]
        if found >= count:
            components = torch.cat(slabs, 1)
            kept = components.flatten().bincount(minlength=found + 1)[1:].topk(count).indices + 1
            number = torch.zeros(found + 1, dtype=torch.int64, device=components.device)
            number[kept] = torch.arange(1, count + 1, device=components.device)
            return Seeds(number[components], (count,))
    raise DistillError(f"--components: found {found} in a block, expected at least {count}")
