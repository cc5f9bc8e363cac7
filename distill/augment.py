"""Augmentation of training volumes: geometry on raw and labels alike, grey values and section defects on raw.

Everything acts on the volume before slice pairs are cut, so that teacher and student see the same. The defects are
those of serial sections: contrast that changes from section to section, a missing section, a misalignment.

Legend: D H W = z y x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.config import AugmentConfig

Raw = NDArray[np.float32]
Labels = NDArray[np.int64]


def augment(
    raw: Raw, labels: Labels | None, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Raw, Labels | None]:
    """One random augmentation.

    Args:
        raw: (D, H, W) in [0, 1].
        labels: (D, H, W); None for a volume without labels, which draws the same changes of raw.
        config: which ones, how often.
        rng: all randomness comes from here.

    Returns:
        Raw in [0, 1] and labels (None if there were none), same shapes; only square sections are transposed.
    """
    if config.flips:
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        raw, labels = np.flip(raw, axes), None if labels is None else np.flip(labels, axes)
    if config.transposes and rng.random() < 0.5 and raw.shape[1] == raw.shape[2]:
        raw, labels = raw.transpose(0, 2, 1), None if labels is None else labels.transpose(0, 2, 1)
    raw = np.array(raw, dtype=np.float32)  # own copy from here on
    labels = None if labels is None else np.ascontiguousarray(labels)
    if rng.random() < config.grey:
        raw = grey_values(raw, rng, strength=1.0)
    if rng.random() < config.grey_section:
        raw = np.stack([grey_values(section, rng, strength=0.5) for section in raw])
    if rng.random() < config.blur:
        raw = ndimage.gaussian_filter(raw, sigma=(0, *[rng.uniform(0.3, 1.0)] * 2))
    if rng.random() < config.noise:
        raw = raw + rng.normal(0, rng.uniform(0.01, 0.06), raw.shape).astype(np.float32)
    if rng.random() < config.missing:
        raw[rng.integers(len(raw))] = rng.choice([0.0, 1.0, float(raw.mean())])
    return np.clip(raw, 0, 1, out=raw), labels


def grey_values(raw: Raw, rng: np.random.Generator, strength: float) -> Raw:
    """Contrast, brightness and gamma changed by up to 30 % (times `strength`)."""
    contrast = 1 + strength * rng.uniform(-0.3, 0.3)
    brightness = strength * rng.uniform(-0.15, 0.15)
    gamma = 2.0 ** (strength * rng.uniform(-0.6, 0.6))
    changed = np.clip((raw - 0.5) * contrast + 0.5 + brightness, 0, 1)
    adjusted: Raw = (changed**gamma).astype(np.float32)
    return adjusted


def misaligned_crop(
    raw: Raw, labels: Labels | None, margin: int, rng: np.random.Generator, probability: float
) -> tuple[Raw, Labels | None]:
    """Cut a margin off in y and x; sometimes at another place from one section on (translation) or in one (slip).

    Args:
        raw: (D, H + 2 margin, W + 2 margin).
        labels: same shape, or None.
        margin: largest shift in pixels.
        rng: randomness.
        probability: of a misalignment.

    Returns:
        (D, H, W) each, moved alike.
    """
    depth = len(raw)
    shift = np.zeros((depth, 2), dtype=np.int64)
    if margin and depth > 1 and rng.random() < probability:
        first = int(rng.integers(1, depth))
        last = depth if rng.random() < 0.5 else first + 1
        shift[first:last] = rng.integers(-margin, margin + 1, 2)
    return _shifted(raw, shift, margin), None if labels is None else _shifted(labels, shift, margin)


def _shifted(volume: NDArray[Any], shift: NDArray[np.int64], margin: int) -> NDArray[Any]:
    _, height, width = volume.shape
    rows = [
        section[margin + dy : height - margin + dy, margin + dx : width - margin + dx]
        for section, (dy, dx) in zip(volume, shift, strict=True)
    ]
    return np.stack(rows)
