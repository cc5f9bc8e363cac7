"""Find instances as clusters of voxel embeddings.

De Brabandere et al., "Semantic Instance Segmentation with a Discriminative Loss Function", 2017: mean shift with the
margin of the loss as bandwidth. It runs on a random subsample; every voxel then belongs to the nearest centre.

Legend: E embedding channels, D H W = z y x, P sampled voxels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError


def cluster_embedding(
    embedding: NDArray[np.float32], *, bandwidth: float, samples: int = 2000, seeds: int = 500, seed: int = 0
) -> NDArray[np.uint32]:
    """Assign every voxel to the nearest of the centres that mean shift finds among sampled voxels.

    Args:
        embedding: (E, D, H, W), not normalised.
        bandwidth: radius of the kernel, in units of the embedding.
        samples: voxels P that are clustered, drawn without replacement; all if there are no more.
        seeds: sampled voxels from which the search for centres starts.
        seed: of the draw.

    Returns:
        (D, H, W) clusters 1..n; a cluster may be unconnected.

    Raises:
        ShapeError: not four axes, or values that are not finite.
    """
    from sklearn.cluster import MeanShift
    from sklearn.metrics import pairwise_distances_argmin

    if embedding.ndim != 4:
        raise ShapeError(f"embedding: found shape {embedding.shape}, expected channels, z, y, x")
    points = np.ascontiguousarray(embedding.reshape(len(embedding), -1).T)
    if not np.isfinite(points).all():
        raise ShapeError("embedding: found values that are not finite, expected finite numbers")
    if not len(points):
        return np.zeros(embedding.shape[1:], np.uint32)
    drawn = points[np.random.default_rng(seed).permutation(len(points))[:samples]]
    centres = MeanShift(bandwidth=bandwidth, seeds=drawn[:seeds]).fit(drawn).cluster_centers_
    nearest = pairwise_distances_argmin(points, centres.astype(points.dtype))
    return (np.asarray(nearest) + 1).astype(np.uint32).reshape(embedding.shape[1:])
