"""Image crops of the worst objects of an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.core.geometry import Box, Triple
from distill.core.normalisation import as_picture
from distill.evaluation.worst_objects.locate import Spot
from distill.io.volume import Volume, voxel_shift
from viz.style import overlay

_SIDE = (128, 320)  # pixels of a crop
_PAINT = 0.5  # opacity of the colour over the section


@dataclass(frozen=True)
class Crop:
    """A spot as three square images (Y, X, 3) uint8: the section, and the segmentation and ground truth overlaid on it.

    Only the erroneous object and its main fragments are coloured, the object in the colour of its largest fragment. A
    ring marks the voxel of the spot.
    """

    section: NDArray[np.uint8]
    segmentation: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def crop(spot: Spot, segmentation: Volume, labels: Volume, raw: Volume | None) -> Crop:
    """Crop a spot from its volumes.

    Args:
        spot: from `find_spots`.
        segmentation: the volume in which it was found.
        labels: the ground truth, as for `find_spots`.
        raw: image on the same voxel grid; otherwise, or where the image does not extend, the section is grey.
    """
    window = _window(spot, segmentation.size)
    found, truth = segmentation.read(window)[0], labels.read(window.shift(voxel_shift(segmentation, labels)))[0]
    grey = np.full(found.shape, 128, np.uint8)
    in_raw = None if raw is None else _inside(raw, segmentation, window)
    if raw is not None and in_raw is not None:
        grey = as_picture(raw.read(in_raw)[0])
    own, other = (truth, found) if spot.kind == "split" else (found, truth)
    pieces = np.zeros(other.shape, np.uint64)
    for rank, piece in enumerate(spot.pieces, 1):
        at = other == piece
        pieces[at & (own == spot.error.id) if piece == 0 else at] = rank
    whole = (own == spot.error.id).astype(np.uint64)
    painted = (pieces, whole) if spot.kind == "split" else (whole, pieces)
    images = [np.repeat(grey[..., None], 3, -1), *(overlay(grey, part, _PAINT) for part in painted)]
    at = spot.voxel[1] - window.start[1], spot.voxel[2] - window.start[2]
    return Crop(*(_ringed(image, at) for image in images))


def _inside(raw: Volume, segmentation: Volume, window: Box) -> Box | None:
    """Convert a window of the segmentation to voxels of the image; None if it lies outside."""
    try:
        here = window.shift(voxel_shift(segmentation, raw))
    except ShapeError:
        return None
    return here if raw.box.contains(here) else None


def _ringed(image: NDArray[np.uint8], at: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw a white ring with black margins around a pixel."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    away = np.hypot(y - at[0], x - at[1])
    width = max(1.0, max(image.shape) / 160)
    image[np.abs(away - 6 * width) < 1.6 * width] = 0
    image[np.abs(away - 6 * width) < 0.8 * width] = 255
    return image


def _window(spot: Spot, size: Triple) -> Box:
    """Return a square around both fragments, or around the voxel if they do not fit."""
    _, tall, wide = spot.extent.shape
    side = min(max(math.ceil(1.2 * max(tall, wide)), _SIDE[0]), _SIDE[1])
    start, stop = [spot.voxel[0]], [spot.voxel[0] + 1]
    for axis in (1, 2):
        fits = spot.extent.shape[axis] <= side
        centre = (spot.extent.start[axis] + spot.extent.stop[axis]) // 2 if fits else spot.voxel[axis]
        extent = min(side, size[axis])
        first = min(max(0, centre - extent // 2), size[axis] - extent)
        start.append(first)
        stop.append(first + extent)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
