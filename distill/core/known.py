"""Labels that are not neuron ids, and the definition of known ground truth.

| meaning | int64, as in tensors | uint64, as in arrays |
| --- | --- | --- |
| background: known to be no neuron | 0 | 0 |
| UNKNOWN: not annotated; ignored by all losses and scores | -1 | 2**64 - 1 |
| OTHER: none of the labelled neurons, but possibly an unlabelled one | -2 | 2**64 - 2 |

Labels are int64 or uint64 with the same bits, so an array can be read as either. An edge is known if both of its ends
are known. An edge between a neuron and OTHER is a known boundary; an edge between two voxels of OTHER is unknown.
Instances do not distinguish OTHER, which counts as UNKNOWN there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1
OTHER = -2
UNKNOWN_ID = np.uint64(2**64 + UNKNOWN)
OTHER_ID = np.uint64(2**64 + OTHER)


def counted_truth(labels: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace UNKNOWN and OTHER by 0, which is ignored by all segmentation scores.

    Args:
        labels: uint64, any shape.

    Returns:
        The same array if it contains neither, otherwise a copy.
    """
    nothing = labels >= OTHER_ID
    return np.where(nothing, np.uint64(0), labels) if nothing.any() else labels


def as_id(value: int, dtype: np.dtype[Any]) -> int | None:
    """Convert a value to the number that an integer type stores with the same bits: -1 is 2**64 - 1 in uint64.

    Args:
        value: an id as written by a user, from -2**63 to 2**64 - 1.
        dtype: an integer type.

    Returns:
        None if the type cannot store the value.
    """
    info = np.iinfo(dtype)
    if not -(2 ** (info.bits - 1)) <= value < 2**info.bits:
        return None
    return value if info.min <= value <= info.max else value + (2**info.bits if value < 0 else -(2**info.bits))
