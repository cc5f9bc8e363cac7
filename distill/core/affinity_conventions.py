"""Convert affinities to and from the conventions of files and of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import NEAREST, edge_slices
from distill.core.errors import DistillError
from distill.core.geometry import Triple


def to_uint8(affinity: Tensor) -> Tensor:
    """Convert [0, 1] to 0..255, rounded to nearest."""
    return (affinity.float().clamp(0, 1) * 255).round().to(torch.uint8)


def from_uint8(affinity: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert 0..255 to [0, 1], float32."""
    return np.asarray(affinity, dtype=np.float32) / np.float32(255)


def attributes(offsets: Sequence[Triple], dtype: str = "uint8") -> dict[str, Any]:
    """Return the attributes of a stored affinity array: offsets (under two names), polarity, scale."""
    listed = [list(o) for o in offsets]
    return {
        "offsets": listed,
        "neighborhood": listed,
        "polarity": "1 = same object",
        "scale": 255 if dtype == "uint8" else 1,
    }


def stored_offsets(found: Mapping[str, Any], source: str) -> tuple[Triple, ...]:
    """Read offsets from the attributes of a stored array.

    Raises:
        DistillError: neither `offsets` nor `neighborhood` is present.
    """
    listed = found.get("offsets", found.get("neighborhood"))
    if listed is None:
        raise DistillError(f"{source}: no attribute 'offsets' or 'neighborhood', expected one offset per channel")
    return tuple((int(z), int(y), int(x)) for z, y, x in listed)


def to_waterz(affinity: NDArray[np.float32], offsets: Sequence[Triple] = NEAREST) -> NDArray[np.float32]:
    """Convert to waterz: float32 [3][z][y][x], contiguous, offsets -1 in the order z, y, x, 1 = same.

    Raises:
        DistillError: one of the three nearest offsets is missing.
    """
    rows = []
    for wanted in NEAREST:
        if wanted not in offsets:
            raise DistillError(f"waterz: offset {wanted} is missing, found {list(offsets)}")
        rows.append(affinity[list(offsets).index(wanted)])
    return np.ascontiguousarray(np.stack(rows), dtype=np.float32)


def to_mwatershed(affinity: NDArray[np.float32], bias: float = 0.5) -> NDArray[np.float64]:
    """Convert to mwatershed: signed, positive = attractive: affinity - bias."""
    return np.asarray(affinity, dtype=np.float64) - bias


def from_mwatershed(signed: NDArray[np.float64], bias: float = 0.5) -> NDArray[np.float32]:
    """Invert `to_mwatershed`."""
    return (np.asarray(signed, dtype=np.float64) + bias).astype(np.float32)


def to_torch_em(affinity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert to torch-em: 1 = repulsive (a boundary), same offsets and voxel."""
    return np.float32(1) - np.asarray(affinity, dtype=np.float32)


def from_torch_em(boundary: NDArray[np.float32]) -> NDArray[np.float32]:
    """Invert `to_torch_em`."""
    return np.float32(1) - np.asarray(boundary, dtype=np.float32)


def reversed_offsets(
    affinity: NDArray[np.float32], offsets: Sequence[Triple]
) -> tuple[NDArray[np.float32], tuple[Triple, ...]]:
    """Store the same edges at their other end, for tools with positive offsets.

    Returns:
        (K, D, H, W) where channel k at p is the edge (p, p - o_k), and the negated offsets. Edges that leave the
        volume are 0. Applying it twice restores every valid edge.
    """
    turned = np.zeros_like(affinity)
    for k, offset in enumerate(offsets):
        at, partner = edge_slices(offset, affinity.shape[1:])
        turned[k][partner] = affinity[k][at]
    return turned, tuple((-z, -y, -x) for z, y, x in offsets)
