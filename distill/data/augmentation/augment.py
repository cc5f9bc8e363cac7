"""Augmentation of training volumes: geometry on raw and labels alike, grey values and section defects on raw.

Everything acts on the volume before slice pairs are cut, so that teacher and student see the same. What is random is
drawn on the CPU from one generator (`draw`); carrying it out (`apply`) draws nothing and runs on any device, with the
same result.

Legend: D H W = z y x of the result, h w = y x of the window that it is cut from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.config import AugmentConfig
from distill.core.geometry import Triple
from distill.data.augmentation.intensity import Look, apply_look, draw_look
from distill.data.augmentation.warp import Pair, Warp, draw_warp, warp_margin, warp_volume

Raw = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """One drawn augmentation: what happens to places, and what to grey values."""

    warp: Warp
    look: Look

    @property
    def margin(self) -> Pair:
        """Pixels y, x that the window should have beyond the result on either side (see `apply`)."""
        return warp_margin(self.warp)


def draw(shape: Triple, config: AugmentConfig, rng: np.random.Generator) -> Plan:
    """Draw one augmentation.

    Args:
        shape: (D, H, W) of the result.
        config: which changes, how often, how strong.
        rng: all randomness comes from here.
    """
    return Plan(draw_warp(shape, config, rng), draw_look(shape, config, rng))


def apply(raw: Tensor, labels: Tensor | None, plan: Plan, origin: Pair) -> tuple[Tensor, Tensor | None]:
    """Carry an augmentation out.

    Args:
        raw: window (D, h, w) float32 in [0, 1], on any device.
        labels: (D, h, w) of any integer type; None for a volume without labels.
        plan: from `draw`.
        origin: where the unchanged result would begin in the window, y and x. Where the window has less than
            `plan.margin` on some side, what is missing is mirrored, in raw and labels alike.

    Returns:
        Raw (D, H, W) in [0, 1] and labels, both on the device and with memory of their own.
    """
    moved, known = warp_volume(raw, labels, plan.warp, origin)
    return apply_look(moved, plan.look), None if known is None else known.clone(memory_format=torch.contiguous_format)


def augment(
    raw: Raw, labels: Labels | None, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Raw, Labels | None]:
    """One random augmentation of a whole array; what would come from beyond it is mirrored.

    Args:
        raw: (D, H, W) in [0, 1].
        labels: (D, H, W); None for a volume without labels, which draws the same changes of raw.
        config: which ones, how often.
        rng: all randomness comes from here.

    Returns:
        Raw in [0, 1] and labels (None if there were none), same shapes; only square sections are transposed.
    """
    depth, height, width = raw.shape
    plan = draw((depth, height, width), config, rng)
    known = None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))
    image, target = apply(torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32)), known, plan, (0, 0))
    return image.numpy(), None if target is None else target.numpy()
