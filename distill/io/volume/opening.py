"""Open volumes: HDF5, TIFF stacks, section images, NumPy files, Zarr, N5 and precomputed.

A source is `path[:dataset]`. Opening one reads its header only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from distill.core.errors import SourceError
from distill.core.geometry import Nanometres
from distill.core.known import as_id
from distill.core.notes import note
from distill.io.arrange import arrange
from distill.io.labels_or_grey import warn_of_grey, warn_of_ids
from distill.io.readers.array import Reading, StoredArray
from distill.io.readers.chunks import missing_chunks
from distill.io.selection import Selection, split_selection
from distill.io.source import find_array
from distill.io.volume.ids import open_ids
from distill.io.volume.parts import one_channel, part
from distill.io.volume.volume import Volume, placed

RAW_DATASET = "volumes/raw"
LABELS_DATASET = "volumes/labels/neuron_ids"
MissingParts = Literal["refuse", "report", "zero"]

_QUICK = 100_000  # chunks that are looked for when a volume is opened


def open_volume(
    source: str | Path,
    *,
    resolution: Nanometres | None = None,
    offset: Nanometres | None = None,
    missing: MissingParts | None = None,
    grey: bool = True,
) -> Volume:
    """Open a volume for lazy reading.

    Args:
        source: `path[:dataset]`, a folder or a glob of section images, with what `distill.io.selection` adds. A file of
            many arrays without a dataset gives `volumes/raw`, else its only 3D (else only 4D) array.
        resolution: voxel size z, y, x in nm; wins over what the file says.
        offset: position of voxel (0, 0, 0) in nm; wins over what the file says, which wins over zero.
        missing: what to do about parts that are not stored; by default they are refused.
        grey: whether numbers are read as grey values, 0 = black, where the file stores something else (see `Reading`).

    Raises:
        SourceError: the source is missing, unreadable, ambiguous, not numeric, not 3D or 4D, has no resolution, or
            lacks parts.
    """
    return _open_volume(source, resolution, offset, Reading(grey, missing or "refuse"))[0]


def open_grey(source: str | Path, *, resolution: Nanometres | None = None, offset: Nanometres | None = None) -> Volume:
    """Open sections for a network or a figure: one grey value a voxel.

    Args:
        source: as for `open_volume`.
        resolution: likewise.
        offset: likewise.

    Raises:
        SourceError: as `open_volume`, or more than one channel.
    """
    opened, stored = _open_volume(source, resolution, offset, Reading())
    volume = one_channel(opened)
    if volume.channels is not None:
        raise SourceError(
            f"{volume.source}: found {volume.channels} channels, expected one grey value a voxel; --channel 0 to "
            f"{volume.channels - 1} takes one"
        )
    if volume.dtype.kind not in "iuf":
        raise SourceError(f"{volume.source}: found type {volume.dtype}, expected grey values: integers or floats")
    warn_of_ids(stored)
    return volume


def _open_volume(
    source: str | Path, resolution: Nanometres | None, offset: Nanometres | None, reading: Reading
) -> tuple[Volume, StoredArray]:
    """Open a volume; return it and the array that it is made of."""
    chosen = split_selection(str(source))[1]
    stored = arrange(find_array(source, RAW_DATASET), chosen)
    return _opened(stored, chosen, resolution, offset, reading), stored


def open_labels(source: str | Path, *, resolution: Nanometres | None = None, ignore: int | None = None) -> Volume:
    """Open a label volume; it reads as uint64 with 0 as background.

    Negative ids, and the four highest ids of 32 and 64 bits, are marks of what is outside, transparent or unknown
    (CREMI, BigCAT, Paintera): they read as 0, and how many voxels hold them is reported. Floats are taken where every
    one is a whole number. A file of many arrays without a dataset gives `volumes/labels/neuron_ids`.

    Args:
        source: as for `open_volume`.
        resolution: voxel size z, y, x in nm; wins over what the file says.
        ignore: stored value of voxels that read as UNKNOWN (see `distill.core.known`); -1 is 2**64 - 1 in unsigned
            files.

    Raises:
        SourceError: as `open_volume`, or the numbers are no ids or cannot be `ignore`, or the array has several
            channels.
    """
    chosen = split_selection(str(source))[1]
    stored = arrange(find_array(source, LABELS_DATASET), chosen)
    warn_of_grey(stored)
    volume = one_channel(_opened(stored, chosen, resolution, None, Reading(grey=False, missing="report")))
    if volume.channels is not None:
        raise SourceError(
            f"labels must be 3D (z, y, x): found shape {volume.shape} in {volume.source}; --channel takes one channel"
        )
    value = None
    if volume.dtype.kind in "iu":
        value = None if ignore is None else as_id(ignore, volume.dtype)
        if ignore is not None and value is None:
            raise SourceError(f"{volume.source}: found labels of {volume.dtype}, which hold no {ignore} to ignore")
    else:
        value = ignore
    opener = partial(open_ids, volume._opener, value, volume.source)
    return replace(volume, dtype=np.dtype(np.uint64), _opener=opener)


def _opened(
    stored: StoredArray, chosen: Selection, resolution: Nanometres | None, offset: Nanometres | None, reading: Reading
) -> Volume:
    """Return the volume; what the user states overrides metadata, and missing data are refused or reported."""
    missing = chosen.missing or ("report" if stored.sparse and reading.missing == "refuse" else reading.missing)
    reading = replace(reading, missing=missing)
    _check_missing(stored, reading)
    for name, mine, own in (("resolution", resolution, stored.resolution), ("offset", offset, stored.offset)):
        _say_other(stored.source, name, getattr(chosen, name) or mine, own)
    volume = placed(stored, chosen.resolution or resolution, chosen.offset or offset, reading)
    if chosen.box is not None:
        volume = part(volume, chosen.box)
    text = str(chosen)
    return replace(volume, source=f"{volume.source}{text}") if text else volume


def _say_other(source: str, name: str, mine: Nanometres | None, own: Sequence[float] | None) -> None:
    """Report that the user's placement is another than the file's."""
    if mine is None or own is None:
        return
    there = tuple(own)[-3:]
    if len(there) == 3 and not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(mine, there, strict=True)):
        found, wanted = (",".join(f"{n:.6g}" for n in values) for values in (there, mine))
        note(f"{source}: --{name} {wanted} is used, the file says {found}")


def _check_missing(stored: StoredArray, reading: Reading) -> None:
    """Look for chunks that are not there before long work begins, where that is quick."""
    where = stored.chunked
    if where is None or stored.sparse or reading.missing == "zero" or math.prod(where.counts) > _QUICK:
        return
    found = missing_chunks(where)
    if not found or not found[0]:
        return
    text = f"{stored.source}: {found[0]:,} of {found[1]:,} chunks are missing"
    if reading.missing == "refuse":
        raise SourceError(f"{text}; expected a whole copy, or --missing zero to read them as empty")
    note(f"{text} and read as background")
