"""Grey-value augmentation: contrast, noise, blur, and artefacts of serial sections.

Random parameters are drawn first (`draw_look`) and applied later on any device (`apply_look`), in the order in which
they arise in a microscope: optics, detector, noise, lost tissue. Labels are unchanged: a network has to bridge a lost
section from its neighbours.

Legend: D H W = z y x, K = side of a kernel, Y X = control points along y and x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distill.config import AugmentConfig
from distill.core.devices import to_device
from distill.core.geometry import Triple
from distill.data.augmentation.warp import splines

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Tone:
    """Contrast about 0.5, brightness and gamma: one value for all sections, one per section, or the values of one
    section.
    """

    contrast: Floats  # (1,) or (D,)
    brightness: Floats
    gamma: Floats
    section: int | None = None


@dataclass(frozen=True, eq=False)
class Shading:
    """Contrast about 0.5 and brightness that vary smoothly within each section, by cubic B-splines.

    Attributes:
        contrast: (D, Y, X), log2 of the contrast factor at the control points.
        brightness: (D, Y, X), value added at the control points. No pixel changes by more than the largest control
            value of its section.
        spacing: pixels between control points in y and x.
    """

    contrast: Floats
    brightness: Floats
    spacing: int


@dataclass(frozen=True, eq=False)
class Optics:
    """Convolution of one section with a kernel (K, K), K odd, of sum 1."""

    section: int
    kernel: Floats


@dataclass(frozen=True, eq=False)
class Blank:
    """One grey value for a section, or for its part where `mask` (H, W) is set; None is the volume's mean."""

    section: int
    value: float | None
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class IntensityChanges:
    """All grey-value changes of one crop; the defaults change nothing."""

    optics: tuple[Optics, ...] = ()
    blur: Floats | None = None  # (K,) along y and x of every section
    tones: tuple[Tone, ...] = ()
    shading: Shading | None = None
    noise: Floats | None = None  # (D, H, W), additive
    blanks: tuple[Blank, ...] = ()


def draw_look(shape: Triple, config: AugmentConfig, rng: np.random.Generator) -> IntensityChanges:
    """Draw the grey-value changes of a crop.

    Args:
        shape: (D, H, W).
        config: which changes, their probabilities and strengths.
        rng: the only source of randomness.
    """
    depth, height, width = shape
    optics, tones, blanks = [], [], []
    if rng.random() < config.out_of_focus:
        radius = config.out_of_focus_pixels * rng.uniform(0.5, 1)
        optics.append(Optics(int(rng.integers(depth)), disc(radius)))
    if rng.random() < config.motion_blur:
        length = config.motion_blur_pixels * rng.uniform(0.5, 1)
        optics.append(Optics(int(rng.integers(depth)), line(length, rng.uniform(0, math.pi))))
    blur = gaussian(config.blur_sigma * rng.uniform(0.3, 1)) if rng.random() < config.blur else None
    if rng.random() < config.grey:
        tones.append(_draw_tone(1, config.grey_strength, rng))
    if rng.random() < config.grey_section:
        tones.append(_draw_tone(depth, config.grey_section_strength, rng))
    if rng.random() < config.contrast_jump:
        tones.append(_draw_jump(int(rng.integers(depth)), config.contrast_jump_strength, rng))
    noise = None
    if rng.random() < config.noise:
        sigma = np.float32(config.noise_sigma * rng.uniform(0.15, 1))
        noise = sigma * rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < config.missing_part:
        mask = _draw_part(height, width, config.missing_part_share, rng)
        blanks.append(Blank(int(rng.integers(depth)), _draw_blank(rng), mask))
    if rng.random() < config.missing:
        blanks.append(Blank(int(rng.integers(depth)), _draw_blank(rng)))
    shading = None
    # Last, and without random draws if it is off, so that configurations without this key keep their crops bit for bit.
    if config.local_contrast and rng.random() < config.local_contrast:
        shading = _draw_shading(shape, config.local_contrast_strength, config.local_contrast_pixels, rng)
    return IntensityChanges(tuple(optics), blur, tuple(tones), shading, noise, tuple(blanks))


def _draw_tone(count: int, strength: float, rng: np.random.Generator) -> Tone:
    """Draw a tone. Strength 1: contrast changes by up to 30 %, brightness by 0.15, gamma by a factor of up to 1.5."""
    return _tone(rng.uniform(-strength, strength, (3, count)), None)


def _draw_jump(section: int, strength: float, rng: np.random.Generator) -> Tone:
    """Draw a tone of at least half of the maximum strength, so that the section stands out."""
    return _tone(strength * rng.uniform(0.5, 1, (3, 1)) * rng.choice([-1, 1], (3, 1)), section)


def _tone(drawn: NDArray[np.float64], section: int | None) -> Tone:
    contrast, brightness, gamma = drawn
    return Tone(
        np.maximum(0, 1 + 0.3 * contrast).astype(np.float32),
        (0.15 * brightness).astype(np.float32),
        (2.0 ** (0.6 * gamma)).astype(np.float32),
        section,
    )


def _draw_shading(shape: Triple, strength: float, spacing: int, rng: np.random.Generator) -> Shading:
    """Draw a shading. Strength 1: contrast by a factor of up to 2 up or down, brightness by 0.3; at least a third of
    that.
    """
    depth, *sides = shape
    reach = strength * rng.uniform(0.3, 1)
    controls = (depth, *((side - 1) // spacing + 4 for side in sides))
    contrast, brightness = reach * rng.uniform(-1, 1, (2, *controls))
    return Shading(contrast.astype(np.float32), (0.3 * brightness).astype(np.float32), spacing)


def _draw_blank(rng: np.random.Generator) -> float | None:
    """Draw black, white or the mean."""
    return (0.0, 1.0, None)[rng.integers(3)]


def _draw_part(height: int, width: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a region around a random pixel: a wavy disc (a hole, a stain) or a polygon (a tear, a fold of the
    support).
    """
    radius = share * min(height, width) * rng.uniform(0.4, 1)
    turn, flat = rng.uniform(0, math.pi), rng.uniform(0.4, 1)
    y, x = np.ogrid[:height, :width]
    y, x = y - rng.integers(height), x - rng.integers(width)
    along, across = math.cos(turn) * y + math.sin(turn) * x, (math.cos(turn) * x - math.sin(turn) * y) / flat
    if rng.random() < 0.5:
        angle, edge = np.arctan2(across, along), np.ones((height, width))
        for k in range(2, 6):
            edge = edge + rng.uniform(0, 0.4) / k * np.cos(k * angle + rng.uniform(0, 2 * math.pi))
        part: NDArray[np.bool_] = np.hypot(along, across) <= radius * edge
        return part
    corners = int(rng.integers(3, 7))
    inside = np.ones((height, width), dtype=bool)
    for k in range(corners):
        turned = 2 * math.pi * (k + rng.uniform(-0.3, 0.3)) / corners
        inside &= along * math.cos(turned) + across * math.sin(turned) <= radius * rng.uniform(0.5, 1)
    return inside


def gaussian(sigma: float) -> Floats:
    """Return Gaussian weights (K,), truncated at three sigma."""
    reach = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return _of_sum_one(weights)


def disc(radius: float) -> Floats:
    """Return the kernel (K, K) of an out-of-focus point: a disc with a soft edge of one pixel."""
    reach = math.ceil(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    weights = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    return _of_sum_one(weights)


def line(length: float, angle: float) -> Floats:
    """Return the kernel of a point in uniform motion along a line of `length` pixels; the angle is in radians from x to
    y.
    """
    reach = math.ceil(length / 2)
    weights = np.zeros((2 * reach + 2, 2 * reach + 2))
    steps = np.linspace(-length / 2, length / 2, 8 * reach + 1)
    y, x = steps * math.sin(angle) + reach, steps * math.cos(angle) + reach
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    for dy in (0, 1):
        for dx in (0, 1):
            share = (1 - np.abs(y - top - dy)) * (1 - np.abs(x - left - dx))
            np.add.at(weights, (top + dy, left + dx), share)
    weights = weights[:-1, :-1]  # the last row and column have weight 0 only
    return _of_sum_one(weights)


def _of_sum_one(weights: NDArray[np.float64]) -> Floats:
    scaled: Floats = (weights / weights.sum()).astype(np.float32)
    return scaled


def apply_look(raw: Tensor, look: IntensityChanges) -> Tensor:
    """Apply grey-value changes.

    Args:
        raw: (D, H, W) float32 in [0, 1], on any device; not modified.
        look: the changes.

    Returns:
        (D, H, W) in [0, 1], a new tensor. An artefact in one section leaves all others unchanged, bit for bit.
    """
    raw = raw.clone(memory_format=torch.contiguous_format)
    for one in look.optics:
        kernel = to_device(one.kernel, raw.device).double()  # TF32 would give other results on a GPU
        padded = functional.pad(raw[None, one.section, None], [len(kernel) // 2] * 4, mode="replicate").double()
        raw[one.section] = functional.conv2d(padded, kernel[None, None])[0, 0].float()
    if look.blur is not None:
        raw = _blurred(raw, look.blur)
    for tone in look.tones:
        if tone.section is None:
            raw = _toned(raw, tone)
        else:
            raw[tone.section] = _toned(raw[tone.section : tone.section + 1], tone)[0]
    if look.shading is not None:
        raw = _shaded(raw, look.shading)
    if look.noise is not None:
        raw += to_device(look.noise, raw.device)
    raw.clamp_(0, 1)
    for blank in look.blanks:
        value = raw.mean() if blank.value is None else torch.full((), blank.value, device=raw.device)
        if blank.mask is None:
            raw[blank.section] = value
        else:
            mask = to_device(blank.mask, raw.device)
            raw[blank.section] = torch.where(mask, value, raw[blank.section])
    return raw


def _blurred(raw: Tensor, weights: Floats) -> Tensor:
    """Blur within the sections, first along y, then along x. Sums of shifted copies are faster than a convolution for
    these sizes.
    """
    reach = len(weights) // 2
    padded = functional.pad(raw[None], [reach] * 4, mode="replicate")[0]
    for axis in (1, 2):
        shifted = (padded.narrow(axis, k, raw.shape[axis]) * float(weight) for k, weight in enumerate(weights))
        total = next(shifted)
        for one in shifted:
            total += one
        padded = total
    return padded


def _toned(raw: Tensor, tone: Tone) -> Tensor:
    contrast, brightness, gamma = (
        to_device(value, raw.device).view(-1, 1, 1) for value in (tone.contrast, tone.brightness, tone.gamma)
    )
    return (raw * contrast + (0.5 + brightness - 0.5 * contrast)).clamp_(0, 1).pow_(gamma)


def _shaded(raw: Tensor, shading: Shading) -> Tensor:
    y, x = (to_device(splines(side, shading.spacing), raw.device) for side in raw.shape[1:])
    contrast, brightness = (
        y @ to_device(values, raw.device) @ x.T for values in (shading.contrast, shading.brightness)
    )
    return ((raw - 0.5) * contrast.exp2() + (0.5 + brightness)).clamp_(0, 1)
