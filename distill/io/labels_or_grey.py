"""Tell ids from grey values: one rule for every command.

Metadata decide, then names, then types; 8 and 16 bits may hold either, and there the numbers decide: ids are constant
over areas, grey values hardly ever repeat from one pixel to the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.notes import warn
from distill.io.readers.array import Reading, StoredArray

_ID_NAMES = re.compile(
    r"label|(^|[^a-z])ids?($|[^a-z])|seg|fragment|supervoxel|ground.?truth|(^|[^a-z])gt($|[^a-z])|neuron_ids"
)
_GREY_NAMES = re.compile(r"(^|[^a-z])(raw|image|images|em|grey|gray|volume)($|[^a-z])")
_SIDE = 1024  # pixels of a section that are looked at
_CONSTANT, _VARIED = 0.8, 0.5  # share of pixels that equal the next one, in ids at least and in grey values at most
_FEW_IDS = 4  # distinct numbers; so few may be a mask as well
_FEWEST = 200  # pixels; fewer allow no verdict


@dataclass(frozen=True)
class Verdict:
    """What an array holds.

    Attributes:
        ids: whether its numbers are ids.
        sure: whether metadata or the type decide; otherwise the name or the values do.
        why: in words.
    """

    ids: bool
    sure: bool
    why: str


def judge(stored: StoredArray) -> Verdict:
    """Tell what an array holds.

    Args:
        stored: with axes z, y, x or c, z, y, x.
    """
    if stored.dtype.kind not in "iuf":
        return Verdict(False, True, f"its type is {stored.dtype}")
    if stored.ids is not None:
        return Verdict(stored.ids, True, "its metadata declare it")
    if stored.dtype.kind == "f":
        return _judge_floats(stored)
    if len(stored.shape) == 4:
        return Verdict(False, True, "it has channels")
    if stored.dtype.itemsize >= 4:
        return Verdict(True, True, f"its type is {stored.dtype}")
    found = constancy(middle(stored))
    name = (stored.dataset or Path(stored.source).name).lower()
    if found is not None and found >= _CONSTANT:
        return Verdict(True, False, f"{100 * found:.0f} % of its pixels equal the next one")
    if found is not None and found <= _VARIED:
        return Verdict(False, False, f"only {100 * found:.0f} % of its pixels equal the next one")
    if _ID_NAMES.search(name) and not _GREY_NAMES.search(name):
        return Verdict(True, False, f"it is called {name}")
    return Verdict(False, False, f"its type is {stored.dtype}")


def _judge_floats(stored: StoredArray) -> Verdict:
    """Tell ids, which some programs save as floats: whole numbers of which hardly any differs from the next one."""
    section = middle(stored) if len(stored.shape) == 3 else np.zeros((0, 0), stored.dtype)
    whole = section.size > 0 and bool(np.isfinite(section).all() and (np.floor(section) == section).all())
    found = constancy(section) if whole and np.unique(section).size > _FEW_IDS else None
    if found is not None and found >= _CONSTANT:
        return Verdict(True, False, f"all are whole numbers and {100 * found:.0f} % equal the next one")
    return Verdict(False, True, f"its type is {stored.dtype}")


def warn_of_grey(stored: StoredArray) -> None:
    """Report an array that is opened as labels and looks like grey values.

    Args:
        stored: with axes z, y, x or c, z, y, x.
    """
    if stored.dtype.kind not in "iu" or len(stored.shape) != 3:
        return
    found = None if stored.ids is not None or stored.dtype.itemsize >= 8 else constancy(middle(stored))
    if stored.ids is False:
        warn(f"{stored.source}: is read as labels, but its metadata declare grey values")
    elif found is not None and found <= _VARIED:
        warn(
            f"{stored.source}: is read as labels but looks like grey values: only {100 * found:.0f} % of its pixels "
            "equal the next one"
        )


def warn_of_ids(stored: StoredArray) -> None:
    """Report an array that is opened as grey values and looks like ids.

    Args:
        stored: with axes z, y, x or c, z, y, x.
    """
    if stored.dtype.kind not in "iu" or len(stored.shape) != 3:
        return
    if stored.ids:
        warn(f"{stored.source}: is read as grey values, but its metadata declare ids")
        return
    section = middle(stored)
    found = constancy(section)
    if found is not None and found >= _CONSTANT and np.unique(section).size > _FEW_IDS:
        warn(
            f"{stored.source}: is read as grey values but looks like ids: {100 * found:.0f} % of its pixels equal the "
            "next one"
        )


def middle(stored: StoredArray) -> NDArray[Any]:
    """Return the part of the middle section as stored; empty where it cannot be read."""
    *front, depth, height, width = stored.shape
    if 0 in stored.shape:
        return np.zeros((0, 0), stored.dtype)
    index = [*(slice(0, 1) for _ in front), slice(depth // 2, depth // 2 + 1)]
    for extent in (height, width):
        first = max(0, (extent - _SIDE) // 2)
        index.append(slice(first, min(extent, first + _SIDE)))
    try:
        with stored.opener(Reading(grey=False, missing="zero")) as cut:
            found = np.asarray(cut(tuple(index)))
    except SourceError:
        return np.zeros((0, 0), stored.dtype)
    return found.reshape(found.shape[-2:])


def constancy(section: NDArray[Any]) -> float | None:
    """Share of pixels that equal the next one along x, those of the most frequent value left out.

    Args:
        section: (H, W).

    Returns:
        None where too few pixels are left to tell.
    """
    if section.size < _FEWEST or section.shape[1] < 2:
        return None
    values, counts = np.unique(section, return_counts=True)
    most = values[np.argmax(counts)]
    left = section[:, :-1] != most
    if np.count_nonzero(left) < _FEWEST:
        return None
    return float(np.mean((section[:, :-1] == section[:, 1:])[left]))
