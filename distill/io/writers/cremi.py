"""Write CREMI files (HDF5) section by section under a temporary name, then rename them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError, SourceError
from distill.core.geometry import Nanometres
from distill.io.source import HDF5_SUFFIXES
from distill.io.volume import (
    LABELS_DATASET,
    RAW_DATASET,
    Volume,
    checked_offset,
    checked_resolution,
    volume_from_array,
)
from distill.io.writers.hdf5_file import written_hdf5
from distill.io.writers.store import replacing_file, writing


def check_cremi_name(path: Path) -> None:
    """Check that a file will be taken for HDF5 by its name.

    Raises:
        SourceError: it has another extension.
    """
    if path.suffix.lower() not in HDF5_SUFFIXES:
        raise SourceError(
            f"{path}: found extension {path.suffix!r}, expected {' '.join(HDF5_SUFFIXES)}: it will be an HDF5 file"
        )


def write_cremi(
    path: str | Path,
    *,
    raw: Volume | NDArray[Any] | None = None,
    labels: Volume | NDArray[Any] | None = None,
    resolution: Nanometres,
    offset: Nanometres = (0.0, 0.0, 0.0),
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a CREMI file section by section, atomically.

    Args:
        path: target; parent folders are created, and an existing file is replaced once the new one is complete.
        raw: image (z, y, x) uint8, written to `/volumes/raw`.
        labels: ids (z, y, x) of any integer type without negatives, written as uint64 to `/volumes/labels/neuron_ids`.
        resolution: voxel size z, y, x in nm.
        offset: position of voxel (0, 0, 0) in nm; written if it is not zero.
        attributes: further attributes of the file itself.

    Raises:
        ShapeError: nothing to write, or an array of the wrong shape or type.
        SourceError: a section cannot be read, or the target cannot be written; an existing file is untouched.
    """
    target = Path(path)
    place = checked_resolution(str(path), resolution), checked_offset(str(path), offset)
    parts = {
        name: volume if isinstance(volume, Volume) else volume_from_array(volume, *place, source=name)
        for name, volume in ((RAW_DATASET, raw), (LABELS_DATASET, labels))
        if volume is not None
    }
    _check_cremi(target, parts)
    with writing(target), replacing_file(target) as temporary, written_hdf5(temporary, "w") as (file, check):
        file.attrs["file_format"] = "0.2"
        for key, value in (attributes or {}).items():
            file.attrs[key] = value
        for name, volume in parts.items():
            _write_cremi_part(file, name, volume, *place, check)


def _check_cremi(target: Path, parts: Mapping[str, Volume]) -> None:
    if not parts:
        raise ShapeError(f"{target}: found neither raw nor labels, expected at least one to write")
    sizes = {volume.size for volume in parts.values()}
    for name, volume in parts.items():
        found = f"{target}:{name}: found {volume.shape} {volume.dtype} from {volume.source}"
        if volume.channels is not None:
            raise ShapeError(f"{found}, expected 3 axes (z, y, x)")
        if name == RAW_DATASET and volume.dtype != np.uint8:
            raise ShapeError(f"{found}, expected uint8")
        if name == LABELS_DATASET and volume.dtype.kind not in "iu":
            raise ShapeError(f"{found}, expected integers")
    if len(sizes) > 1:
        raise ShapeError(
            f"{target}: found raw {parts[RAW_DATASET].size} and labels {parts[LABELS_DATASET].size}, expected one size"
        )


def _write_cremi_part(
    file: Any, name: str, volume: Volume, resolution: Nanometres, offset: Nanometres, check: Callable[[], None]
) -> None:
    depth, height, width = volume.size
    labels = name == LABELS_DATASET
    stored = file.create_dataset(
        name,
        (depth, height, width),
        np.uint64 if labels else np.uint8,
        chunks=(1, min(512, height), min(512, width)),
        compression="gzip",
        compression_opts=4,
        shuffle=labels,
    )
    stored.attrs["resolution"] = resolution
    if any(offset):
        stored.attrs["offset"] = offset
    for z, section in enumerate(volume.sections()):
        if labels and section.dtype.kind == "i" and section.min() < 0:
            raise ShapeError(f"{name}: found id {section.min()} in section {z} of {volume.source}, expected ids from 0")
        stored[z] = section
        check()
