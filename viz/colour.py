"""Stable colours for labels.

Colours are laid out in OKLCH (B. Ottosson, "A perceptual color space for image processing", 2020), where equal steps of
hue look equally large; a label's hue and lightness are multiplicative (Fibonacci) hashes of its id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError, ShapeError

# Odd 64-bit multipliers. The first is 2^64 divided by the golden ratio: consecutive ids lie 137 degrees of hue apart.
# The second keeps ids of close hue (a Fibonacci number apart: 8, 13, 21, ...) on different lightness.
_HUE_STEP = np.uint64(0x9E3779B97F4A7C15)
_LIGHTNESS_STEP = np.uint64(0x9A544E4C70A3B001)
_LIGHTNESS = (0.54, 0.86)
_CHROMA = 0.135

_OKLAB_TO_CONE = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
)
_CONE_TO_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def label_colours(ids: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """One colour per label, the same for an id in every section, run and machine.

    Args:
        ids: (N,) label ids of any integer type, 0 = background.

    Returns:
        (N, 3) uint8 sRGB; 0 is black, every other id is lighter than black and coloured.

    Raises:
        DistillError: the ids are not whole numbers, or one is negative.
    """
    flat = _as_ids(np.asarray(ids)).reshape(-1)
    unit = 2.0**-64
    hue = 2 * np.pi * unit * (flat * _HUE_STEP)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * unit * (flat * _LIGHTNESS_STEP)
    lab = np.stack([lightness, _CHROMA * np.cos(hue), _CHROMA * np.sin(hue)], axis=-1)
    linear = np.clip(((lab @ _OKLAB_TO_CONE.T) ** 3) @ _CONE_TO_SRGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    srgb[flat == 0] = 0
    colours: npt.NDArray[np.uint8] = np.rint(255 * srgb).astype(np.uint8)
    return colours


def overlay(raw_YX: npt.NDArray[np.uint8], labels_YX: npt.NDArray[Any], alpha: float = 0.45) -> npt.NDArray[np.uint8]:
    """Grey section with its labels painted over it.

    Args:
        raw_YX: (Y, X) uint8 section.
        labels_YX: (Y, X) labels of any integer type; 0 stays the plain section.
        alpha: weight of the label's colour, 0..1.

    Returns:
        (Y, X, 3) uint8.

    Raises:
        DistillError: raw is not (Y, X) uint8, the shapes differ, the labels are not ids, or alpha lies outside 0..1.
    """
    if raw_YX.ndim != 2 or raw_YX.dtype != np.uint8 or labels_YX.shape != raw_YX.shape:
        raise ShapeError(
            f"overlay: found raw {raw_YX.shape} {raw_YX.dtype} and labels {labels_YX.shape}, "
            "expected a (Y, X) uint8 section and labels of the same shape"
        )
    if not 0 <= alpha <= 1:
        raise DistillError(f"alpha: found {alpha}, expected 0..1")
    ids, inverse = np.unique(_as_ids(labels_YX), return_inverse=True)
    weight = np.where(ids == 0, 0, alpha).astype(np.float32)
    paint = (weight[:, None] * label_colours(ids)).astype(np.float32)
    where = inverse.reshape(raw_YX.shape)
    blend = raw_YX[..., None] * (1 - weight)[where][..., None] + paint[where]
    painted: npt.NDArray[np.uint8] = np.rint(blend).astype(np.uint8)
    return painted


def _as_ids(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    if ids.dtype.kind not in "ui":
        raise DistillError(f"labels: found {ids.dtype}, expected whole numbers")
    if ids.dtype.kind == "i" and ids.size and int(ids.min()) < 0:
        raise DistillError(f"labels: found the id {int(ids.min())}, expected ids of 0 and above")
    return ids.astype(np.uint64)
