"""What a label says where it is no neuron's id, and where ground truth is known.

| meaning | int64, as in tensors | uint64, as in arrays |
| --- | --- | --- |
| background: known to be no neuron | 0 | 0 |
| UNKNOWN: nobody has looked; no loss and no score counts anything here | -1 | 2**64 - 1 |
| OTHER: none of the labelled neurons, but perhaps an unlabelled one | -2 | 2**64 - 2 |

Labels are int64 or uint64 with the same bits, so that one array is read both ways. An edge is known where both of its
ends are; an edge between a neuron and OTHER is known to be cut, one between two voxels of OTHER is not known. Instances
know no OTHER: there it counts as UNKNOWN.
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
    """Replace UNKNOWN and OTHER by 0, which no score of a segmentation counts.

    Args:
        labels: uint64, any shape.

    Returns:
        The same array where it holds neither, else a copy.
    """
    nothing = labels >= OTHER_ID
    return np.where(nothing, np.uint64(0), labels) if nothing.any() else labels


def as_id(value: int, dtype: np.dtype[Any]) -> int | None:
    """The number that an integer type stores for a value, bits alike: -1 is 2**64 - 1 in uint64.

    Args:
        value: an id as a user writes it, from -2**63 to 2**64 - 1.
        dtype: an integer type.

    Returns:
        None where the type does not hold the value.
    """
    info = np.iinfo(dtype)
    if not -(2 ** (info.bits - 1)) <= value < 2**info.bits:
        return None
    return value if info.min <= value <= info.max else value + (2**info.bits if value < 0 else -(2**info.bits))
