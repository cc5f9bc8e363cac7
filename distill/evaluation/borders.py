"""Mask of label borders within sections, as defined by CREMI's protocol (cremi.org)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.core.errors import ShapeError
from distill.core.geometry import Nanometres
from distill.core.labels import Integers


def border_mask(labels: Integers, resolution: Nanometres, distance_nm: float = 25.0) -> NDArray[np.bool_]:
    """Mask voxels close to a border between labels of their own section (CREMI's protocol).

    A border voxel has one of its four in-section neighbours under another id. Distances are measured to the nearest
    border voxel, so border voxels have distance 0.

    Args:
        labels: (Z, Y, X) ids; 0 counts as an id.
        resolution: z, y, x in nm.
        distance_nm: largest distance that is masked, in nm.

    Returns:
        (Z, Y, X) bool.

    Raises:
        ShapeError: `labels` does not have three axes.
    """
    if labels.ndim != 3:
        raise ShapeError(f"labels: found shape {labels.shape}, expected z, y, x for a border mask")
    border = np.zeros(labels.shape, bool)
    differs_y = labels[:, 1:] != labels[:, :-1]
    differs_x = labels[:, :, 1:] != labels[:, :, :-1]
    border[:, 1:] |= differs_y
    border[:, :-1] |= differs_y
    border[:, :, 1:] |= differs_x
    border[:, :, :-1] |= differs_x
    for section in border:
        if section.any():
            section[...] = ndimage.distance_transform_edt(~section, sampling=resolution[1:]) <= distance_nm
    return border


def border_reach(resolution: Nanometres, distance_nm: float = 25.0) -> tuple[int, int]:
    """Return the margin in rows and columns on which the mask of a block depends.

    `border_mask` of the block with this margin on every side equals the mask of the whole section inside the block.

    Args:
        resolution: z, y, x in nm.
        distance_nm: as for `border_mask`.
    """
    _, y, x = resolution
    return int(distance_nm // y) + 1, int(distance_nm // x) + 1
