"""Augment training volumes: geometry of raw and labels, grey values and section artefacts of raw.

Augmentation acts on the volume before slice pairs are extracted, so teacher and student see the same data. Random
parameters are drawn on the CPU from one generator (`draw_plan`). Their application (`apply`) is deterministic and runs
on any device, with the same result.

Legend: D H W = z y x of the result, h w = y x of the window from which it is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.config import AugmentConfig
from distill.core.geometry import Triple
from distill.data.augmentation.intensity import IntensityChanges, apply_look, draw_look
from distill.data.augmentation.warp import TwoInts, Warp, draw_warp, warp_margin, warp_volume

Raw = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AugmentationPlan:
    """Parameters of one augmentation: geometry and grey values."""

    warp: Warp
    look: IntensityChanges

    @property
    def margin(self) -> TwoInts:
        """Return the pixels y, x by which the window should extend beyond the result on either side (see `apply`)."""
        return warp_margin(self.warp)


def draw_plan(shape: Triple, config: AugmentConfig, rng: np.random.Generator) -> AugmentationPlan:
    """Draw the parameters of one augmentation.

    Args:
        shape: (D, H, W) of the result.
        config: which augmentations, their probabilities and strengths.
        rng: the only source of randomness.
    """
    return AugmentationPlan(draw_warp(shape, config, rng), draw_look(shape, config, rng))


def apply(raw: Tensor, labels: Tensor | None, plan: AugmentationPlan, origin: TwoInts) -> tuple[Tensor, Tensor | None]:
    """Apply an augmentation.

    Args:
        raw: window (D, h, w) float32 in [0, 1], on any device.
        labels: (D, h, w) of any integer type; None for a volume without labels.
        plan: from `draw_plan`.
        origin: position y, x of the unaugmented result in the window. Where the window extends less than `plan.margin`
            beyond the result, the missing part is mirrored, in raw and labels alike.

    Returns:
        Raw (D, H, W) in [0, 1] and labels, both on the device, sharing no memory with the input.
    """
    moved, known = warp_volume(raw, labels, plan.warp, origin)
    return apply_look(moved, plan.look), None if known is None else known.clone(memory_format=torch.contiguous_format)


def augment(
    raw: Raw, labels: Labels | None, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Raw, Labels | None]:
    """Apply one random augmentation to an entire array; data beyond its borders are mirrored.

    Args:
        raw: (D, H, W) in [0, 1].
        labels: (D, H, W); None for a volume without labels, for which raw is changed in the same way.
        config: which augmentations, and their probabilities.
        rng: the only source of randomness.

    Returns:
        Raw in [0, 1] and labels (None if there were none), same shapes; only square sections are transposed.
    """
    depth, height, width = raw.shape
    plan = draw_plan((depth, height, width), config, rng)
    known = None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))
    image, target = apply(torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32)), known, plan, (0, 0))
    return image.numpy(), None if target is None else target.numpy()
