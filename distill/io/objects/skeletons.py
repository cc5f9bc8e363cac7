"""Skeletons of objects by kimimaro (TEASAR), and Neuroglancer's skeleton format, one file per object.

Nodes lie at the centres of voxels. Skeletons of neighbouring blocks meet in the layer of voxels that the blocks share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres
from distill.io.objects.fragments import Fragments, Part, pack

INFO = {
    "@type": "neuroglancer_skeletons",
    "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
    "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}],
}


def skeletoniser() -> Any:
    """Import kimimaro.

    Raises:
        DistillError: it is not installed.
    """
    try:
        import kimimaro
    except ImportError:
        raise DistillError(
            "kimimaro is not installed, expected the extra: pip install 'affinity-distill[skeletons]' (kimimaro's "
            "licence is the GPL)"
        ) from None
    return kimimaro


def block_skeletons(labels: NDArray[np.uint64], box: Box, resolution: Nanometres, smallest: int) -> Fragments:
    """Find the skeletons of all objects in a block.

    Args:
        labels: (D, H, W) of the block.
        box: of the block; neighbouring blocks share a layer of voxels.
        resolution: voxel size z, y, x in nm.
        smallest: voxels below which a part of an object in the block has no skeleton.
    """
    nm = np.array(resolution[::-1])
    found = skeletoniser().skeletonize(
        labels.T, anisotropy=tuple(nm), dust_threshold=smallest, fix_borders=True, progress=False, parallel=1
    )
    shift = 2 * np.array(box.start[::-1]) + 1
    parts = {
        int(one): Part(
            np.rint(np.asarray(skeleton.vertices, np.float64) / nm) * 2 + shift,
            np.asarray(skeleton.edges, np.uint32),
            np.asarray(skeleton.radius, np.float32),
        )
        for one, skeleton in found.items()
    }
    return pack(parts, 2)


def finished(
    points: NDArray[np.float64], edges: NDArray[np.uint32], radii: NDArray[np.float32], shortest: float
) -> tuple[NDArray[np.float64], NDArray[np.uint32], NDArray[np.float32]]:
    """Make one tree per connected object of the joined skeletons, and drop twigs shorter than `shortest` nm."""
    from osteoid import Skeleton

    given = Skeleton(points.astype(np.float32), edges, radii)
    found = skeletoniser().postprocess(given, dust_threshold=0, tick_threshold=shortest)
    return (
        np.asarray(found.vertices, np.float64),
        np.asarray(found.edges, np.uint32),
        np.asarray(found.radius, np.float32),
    )


def write_skeleton(
    folder: Path, one: int, points: NDArray[np.float64], edges: NDArray[np.uint32], radii: NDArray[np.float32]
) -> None:
    """Write the skeleton of an object.

    Args:
        folder: of the skeletons.
        one: id.
        points: (N, 3) x, y, z in nm.
        edges: (M, 2).
        radii: (N,) nm.
    """
    counts = np.array([len(points), len(edges)], "<u4").tobytes()
    content = counts + points.astype("<f4").tobytes() + edges.astype("<u4").tobytes() + radii.astype("<f4").tobytes()
    (folder / str(one)).write_bytes(content)
