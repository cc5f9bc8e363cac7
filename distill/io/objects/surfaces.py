"""Surfaces of objects by zmesh (marching cubes), and Neuroglancer's single-resolution mesh format ("legacy mesh").

A surface passes halfway between the centres of voxels of different objects and is closed where an object meets the
border of the array.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres, Triple
from distill.io.objects.fragments import Fragments, Part, pack

INFO = {"@type": "neuroglancer_legacy_mesh"}
_WIDEST = 2**20  # nm; zmesh simplifies nothing wider
_NO_RADII = np.zeros(0, np.float32)


def mesher() -> Any:
    """Import zmesh.

    Raises:
        DistillError: it is not installed.
    """
    try:
        import zmesh
    except ImportError:
        raise DistillError(
            "zmesh is not installed, expected the extra: pip install 'affinity-distill[meshes]' (zmesh's licence is "
            "the LGPL)"
        ) from None
    return zmesh


def block_surfaces(labels: NDArray[np.uint64], box: Box, size: Triple) -> Fragments:
    """Find the surfaces of all objects in a block.

    Args:
        labels: (D, H, W) of the block.
        box: of the block; neighbouring blocks share a layer of voxels.
        size: of the whole array; surfaces are closed at its border.
    """
    low = [int(start == 0) for start in box.start]
    high = [int(stop == n) for stop, n in zip(box.stop, size, strict=True)]
    padded = np.pad(labels, list(zip(low, high, strict=True)))
    made = mesher().Mesher((1, 1, 1))
    made.mesh(padded.T, close=False)  # x, y, z
    shift = [2 * (start - by) + 1 for start, by in zip(box.start, low, strict=True)][::-1]
    parts = {}
    for one in made.ids():
        found = made.get(one, normals=False, reduction_factor=0, max_error=0)
        made.erase(one)
        points = np.rint(2.0 * np.asarray(found.vertices, np.float64)) + shift
        parts[int(one)] = Part(points, np.asarray(found.faces, np.uint32), _NO_RADII)
    return pack(parts, 3)


def placed(points: NDArray[np.float64], resolution: Nanometres, offset: Nanometres) -> NDArray[np.float64]:
    """Convert half voxels x, y, z to nm x, y, z.

    Args:
        points: (N, 3).
        resolution: voxel size z, y, x.
        offset: position of the corner of voxel (0, 0, 0), z, y, x.
    """
    nm: NDArray[np.float64] = points / 2 * np.array(resolution[::-1]) + np.array(offset[::-1])
    return nm


def simplified(
    points: NDArray[np.float64], faces: NDArray[np.uint32], error: float
) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Remove vertices of a surface, which shifts it by at most `error` nm; one wider than 1 mm is kept as it is."""
    first = points.min(axis=0)
    if error <= 0 or (points.max(axis=0) - first).max() >= _WIDEST:
        return points, faces
    zmesh = mesher()
    given = zmesh.Mesh((points - first).astype(np.float32), faces, None)
    found = zmesh.Mesher((1, 1, 1)).simplify(given, reduction_factor=100, max_error=error)
    if not len(found.faces):
        return points, faces
    return np.asarray(found.vertices, np.float64) + first, np.asarray(found.faces, np.uint32)


def write_surface(folder: Path, one: int, points: NDArray[np.float64], faces: NDArray[np.uint32]) -> None:
    """Write the surface of an object, and the manifest that names it.

    Args:
        folder: of the meshes.
        one: id.
        points: (N, 3) x, y, z in nm.
        faces: (M, 3).
    """
    count = np.array([len(points)], "<u4").tobytes()
    content = count + points.astype("<f4").tobytes() + faces.astype("<u4").tobytes()
    name = f"{one}:0:1"
    (folder / name).write_bytes(content)
    (folder / f"{one}:0").write_text(json.dumps({"fragments": [name]}), encoding="utf-8")
