"""Local shape descriptors: statistics of the object around each voxel, as targets of an auxiliary task.

Sheridan et al., "Local shape descriptors for neuron segmentation", Nature Methods 2023.

Legend: B batch, D H W = z y x.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter
from torch import Tensor

from distill.core.geometry import Nanometres

_REACH = 3.0  # standard deviations of the Gaussian that count
_LEAST_VARIANCE = 1e-3  # nm^2
_COORDINATES = list(combinations(range(3), 2))


def local_shape_descriptors(labels: NDArray[np.int64], *, sigma: float, resolution: Nanometres) -> NDArray[np.float32]:
    """Compute ten descriptors of every object voxel from the object's own voxels, weighted by a Gaussian around it.

    Channels 0-2: offset z, y, x to the weighted centre of the object, relative to sigma; 3-5: variances z, y, x,
    relative to sigma squared; 6-8: correlations z-y, z-x, y-x; 9: weighted size. Offsets and correlations are mapped
    from [-1, 1] to [0, 1]. Voxels outside the block do not count as part of the object.

    Args:
        labels: (D, H, W); objects are the values above 0.
        sigma: standard deviation in nm.
        resolution: voxel size in nm.

    Returns:
        (10, D, H, W) in [0, 1], 0 outside objects.
    """
    found = np.zeros((10, *labels.shape), np.float32)
    ids, compact = np.unique(np.where(labels > 0, labels, 0), return_inverse=True)
    compact = compact.reshape(labels.shape) + int(ids[0] != 0)
    for number, box in enumerate(find_objects(compact), start=1):
        if box is None:
            continue
        mask = compact[box] == number
        found[(slice(None), *box)] = np.where(mask, _of_object(mask, sigma, resolution), found[(slice(None), *box)])
    return found


def _of_object(mask: NDArray[np.bool_], sigma: float, resolution: Nanometres) -> NDArray[np.float32]:
    """Compute the descriptors of one object in its bounding box (D, H, W); values outside the mask have no meaning."""
    widths = [sigma / size for size in resolution]

    def weighted(values: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth: NDArray[np.float64] = gaussian_filter(values * mask, widths, mode="constant", truncate=_REACH)
        return smooth

    grid = np.meshgrid(*(np.arange(n) * size for n, size in zip(mask.shape, resolution, strict=True)), indexing="ij")
    place = [axis - axis.mean() for axis in grid]  # from the middle of the box, for precision
    size = weighted(np.ones(mask.shape))
    total = np.where(size > 0, size, 1)
    centre = [weighted(axis) / total for axis in place]
    variance = [weighted(axis**2) / total - middle**2 for axis, middle in zip(place, centre, strict=True)]
    variance = [np.maximum(one, _LEAST_VARIANCE) for one in variance]
    correlation = [
        (weighted(place[a] * place[b]) / total - centre[a] * centre[b]) / np.sqrt(variance[a] * variance[b])
        for a, b in _COORDINATES
    ]
    offsets = [(middle - axis) / sigma for middle, axis in zip(centre, place, strict=True)]
    channels = [
        *(offset * 0.5 + 0.5 for offset in offsets),
        *(one / sigma**2 for one in variance),
        *(one * 0.5 + 0.5 for one in correlation),
        size,
    ]
    found: NDArray[np.float32] = np.clip(np.stack(channels), 0, 1).astype(np.float32)
    return found


def descriptor_loss(descriptors: Tensor, labels: Tensor, *, sigma: float, resolution: Nanometres) -> Tensor:
    """Compute the mean squared error of descriptors over the voxels of objects; 0 without objects.

    Args:
        descriptors: (B, 10, D, H, W) in [0, 1].
        labels: (B, D, H, W) int64; the targets are computed on the CPU.
        sigma: see `local_shape_descriptors`.
        resolution: voxel size in nm.
    """
    wanted = [local_shape_descriptors(block, sigma=sigma, resolution=resolution) for block in labels.cpu().numpy()]
    target = torch.from_numpy(np.stack(wanted)).to(descriptors.device)
    inside = (labels > 0).unsqueeze(1)
    error = torch.where(inside, (descriptors.float() - target).square(), 0.0)
    return error.sum() / (descriptors.shape[1] * inside.sum()).clamp(min=1)
