"""An array as a file holds it, and what its readers share: errors, attributes, units.

Axes are z, y, x (c, z, y, x with channels); resolution and offset are in nm.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.reasons import readable as readable
from distill.core.reasons import reason as reason
from distill.core.reasons import shown

Index = tuple[slice, ...]
Cut = Callable[[Index], NDArray[Any]]
Opener = Callable[[], AbstractContextManager[Cut]]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """How the numbers of a file are taken.

    Attributes:
        grey: as grey values, 0 = black, where the file stores something else (0 = white, entries of a palette, equal
            colours); else as they are stored, which is what ids are.
        missing: what to do about parts that are not stored: refuse them, read them as the fill value and report that,
            or read them as the fill value.
    """

    grey: bool = True
    missing: Literal["refuse", "report", "zero"] = "refuse"


StoredOpener = Callable[[Reading], AbstractContextManager[Cut]]

_NM_PER_UNIT = {"nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "mm": 1e6, "millimeter": 1e6, "angstrom": 0.1}
_NM_PER_UNIT |= dict.fromkeys(("um", "\u00b5m", "\u03bcm", "\\u00b5m", "micron", "micrometer", "micrometre"), 1e3)


@dataclass(frozen=True)
class StoredArray:
    """An array as a file holds it: of any rank, and placed only if the file says where.

    Attributes:
        source: `path[:dataset]`, the name used in messages.
        dataset: path inside the file; None for files that hold one array.
        kind: 'hdf5', 'tiff', 'images', 'npy', 'npz', 'zarr2', 'zarr3', 'n5' or 'precomputed'.
        shape: extent per axis in voxels.
        dtype: type in native byte order.
        resolution: nm per axis as the file gives it, unchecked; None where it gives none.
        offset: nm per axis; None where the file gives none.
        attributes: the file's attributes as plain Python values.
        opener: opens the file for a `Reading`; the function it gives cuts a part out.
        chunks: extent of what is read in one go; None where any part is as cheap.
        compression: codec; None where not compressed.
        axes: name of each axis, such as `c`, `z`, `y`, `x`, as the metadata say; None where they do not.
        ids: whether the metadata say that the numbers are ids; None where they do not.
        sparse: whether parts that are not stored are empty by the file's own word.
        grey_dtype: type of grey values where it differs from `dtype`.
        lost: what is known to be missing of it, in words; empty where nothing is.
        chunked: where its chunks lie (`distill.io.readers.chunks.Chunks`), where they are files.
    """

    source: str
    dataset: str | None
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    resolution: tuple[float, ...] | None
    offset: tuple[float, ...] | None
    attributes: Attributes
    opener: StoredOpener = field(repr=False)
    chunks: tuple[int, ...] | None = None
    compression: str | None = None
    axes: tuple[str, ...] | None = None
    ids: bool | None = None
    sparse: bool = False
    grey_dtype: np.dtype[Any] | None = None
    lost: str = ""
    chunked: Any = field(default=None, repr=False, compare=False)


def stored_type(name: str, given: Any) -> np.dtype[Any]:
    """Return the type that metadata name, in native byte order.

    Raises:
        SourceError: it is no type of numbers.
    """
    try:
        found = np.dtype(given) if isinstance(given, str) and "," not in given else None
    except TypeError:
        found = None
    if found is None or found.kind not in "biufc" or found.shape:
        raise SourceError(f"{name}: found type {shown(given)}, expected integer or floating-point numbers")
    return found.newbyteorder("=")


def missing_dataset(path: object, wanted: str, names: Sequence[str]) -> SourceError:
    """Build the error for a missing dataset, which names those that exist, the most similar first."""
    nearest = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, wanted, name).ratio())
    return SourceError(f"{path}: found no dataset {wanted!r}, expected one of: {listed(nearest)}")


def listed(names: Sequence[str]) -> str:
    """List names for a message, the first twelve of them."""
    shown = ", ".join(names[:12]) or "(it holds none)"
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def no_dataset(path: object, dataset: str | None) -> None:
    """Refuse a dataset after the colon where a file holds one array.

    Raises:
        SourceError: there is one.
    """
    if dataset is not None:
        raise SourceError(f"{path}: found dataset {dataset!r}, expected none: this file holds a single array")


def plain(value: Any) -> Any:
    """Convert a value to plain Python: NumPy arrays and tuples to lists, bytes to text."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def numbers(value: Any) -> tuple[float, ...] | None:
    """Return the floats of an attribute, or of its text; one NaN, which no check accepts, for anything else."""
    if value is None:
        return None
    if isinstance(value, str):
        value = value.strip(" []()").replace(",", " ").split()
    try:
        return tuple(float(number) for number in value)
    except (TypeError, ValueError):
        return (math.nan,)


def nm_per_unit(name: Any) -> float | None:
    """Return nanometres in a unit of length, by its name; None where unknown."""
    return _NM_PER_UNIT.get(name.strip().lower().removesuffix("s")) if isinstance(name, str) else None


def placement(attributes: Attributes) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return resolution and offset in nm from `resolution` or `voxel_size`, `offset` and `units` (nm where absent)."""
    units = attributes.get("units", "nm")
    scales = [nm_per_unit(name) for name in (units[-3:] if isinstance(units, list) else [units])]
    scale = scales[0] if scales and scales.count(scales[0]) == len(scales) else None
    if scale is None:
        return None, None
    found = (numbers(attributes.get("resolution", attributes.get("voxel_size"))), numbers(attributes.get("offset")))
    resolution, offset = (numbers and tuple(number * scale for number in numbers) for numbers in found)
    return resolution, offset


def axis_names(attributes: Attributes) -> tuple[str, ...] | None:
    """Return the names of an array's axes in its own order, from the attributes in use for them; None without any."""
    for key in ("axis_names", "axes", "_ARRAY_DIMENSIONS"):
        given = attributes.get(key)
        if isinstance(given, str):
            given = given.replace(" ", "").split(",") if "," in given else list(given.strip())
        if isinstance(given, list) and given:
            names = [one.get("name") if isinstance(one, dict) else one for one in given]
            if all(isinstance(name, str) and name for name in names):
                return tuple(map(str, names))
    return None
