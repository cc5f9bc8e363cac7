"""Write HDF5 and TIFF files section by section under a temporary name, then rename them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError, SourceError
from distill.io.readers.array import readable
from distill.io.volume import Volume
from distill.io.writers.hdf5_file import written_hdf5
from distill.io.writers.store import replacing_file, writing

OnSection = Callable[[int, int], None]
_TIFF_TYPES = ("uint8", "uint16", "float32")
_TIFF_BYTES = 4 * 10**9 - 2**20  # file offsets are 32 bit
_LARGEST_ID = np.iinfo(np.uint16).max


def write_hdf5(path: Path, dataset: str, source: Volume, labels: bool, overwrite: bool, on_section: OnSection) -> None:
    """Write a dataset to a new file, or to a copy of an existing file that then replaces it.

    Args:
        path: the file.
        dataset: path inside it.
        source: volume to write, with resolution and offset in nm, z, y, x.
        labels: whether the values are ids, which use a more effective compression.
        overwrite: replace a dataset of that name.
        on_section: called with the number of sections done and their total.

    Raises:
        SourceError: the dataset exists, the file is not HDF5, or a section cannot be read or written; an existing file
            is untouched.
    """
    import h5py

    if path.exists():
        with readable(path), h5py.File(path, "r") as file:
            parts = dataset.split("/")
            for at in range(1, len(parts) + 1):
                found = file.get("/".join(parts[:at]))
                if isinstance(found, h5py.Dataset) and at < len(parts):
                    raise SourceError(f"{path}:{dataset}: found a dataset at {'/'.join(parts[:at])}, expected a group")
            if isinstance(found, h5py.Group):
                raise SourceError(f"{path}:{dataset}: found a group, expected a dataset or nothing")
            if found is not None and not overwrite:
                raise SourceError(f"{path}:{dataset}: exists already; expected a new name, or --overwrite")
    with writing(path), replacing_file(path) as temporary:
        if path.exists():
            shutil.copyfile(path, temporary)
        with written_hdf5(temporary, "a") as (file, check):
            if "file_format" not in file.attrs:
                file.attrs["file_format"] = "0.2"
            if dataset in file:
                del file[dataset]
            *channels, depth, height, width = source.shape
            stored = file.create_dataset(
                dataset,
                source.shape,
                source.dtype,
                chunks=(*(1 for _ in channels), 1, min(512, height), min(512, width)),
                compression="gzip",
                compression_opts=4,
                shuffle=labels,
            )
            stored.attrs["resolution"] = source.resolution
            if any(source.offset):
                stored.attrs["offset"] = source.offset
            for z, section in enumerate(source.sections()):
                stored[..., z, :, :] = section
                check()
                on_section(z + 1, depth)


def write_tiff(path: Path, source: Volume, labels: bool, on_section: OnSection) -> None:
    """Write a stack that ImageJ opens with its voxel size and origin, replacing a file of that name.

    Args:
        path: the file.
        source: uint8, uint16 or float32; for labels, ids up to 65,535, which are written as uint16.
        labels: whether the values are ids.
        on_section: called with the number of sections done and their total.

    Raises:
        ShapeError: a type, size or id that TIFF cannot store.
        SourceError: a section cannot be read or written; an existing file is untouched.
    """
    import tifffile

    dtype = np.dtype(np.uint16) if labels else source.dtype
    if dtype.name not in _TIFF_TYPES:
        raise ShapeError(f"{path}: found type {dtype}, expected one of {', '.join(_TIFF_TYPES)} for ImageJ's TIFF")
    if min(source.size[1:]) == 1 or (source.channels is not None and min(source.shape[:2]) == 1):
        raise ShapeError(f"{path}: found shape {source.shape}, expected no axis of length 1 but z for ImageJ's TIFF")
    size = int(np.prod(source.shape)) * dtype.itemsize
    if size > _TIFF_BYTES:
        raise ShapeError(f"{path}: found {size:,} bytes, expected at most {_TIFF_BYTES:,} for ImageJ's TIFF")
    shape = source.shape if source.channels is None else (source.shape[1], source.shape[0], *source.shape[2:])
    z, y, x = source.resolution
    metadata: dict[str, Any] = {"axes": "ZYX" if source.channels is None else "ZCYX", "unit": "nm", "spacing": z}
    # ImageJ's origin is the pixel index of position 0.
    origin = [-o / r for o, r in zip(source.offset, source.resolution, strict=True)]
    metadata |= {f"{axis}origin": n for axis, n in zip("zyx", origin, strict=True) if n}
    with writing(path), replacing_file(path) as temporary:
        tifffile.imwrite(
            temporary,
            _pages(path, source, dtype, labels, on_section),
            imagej=True,
            shape=shape,
            dtype=dtype,
            resolution=(1 / x, 1 / y),
            metadata=metadata,
        )


def _pages(
    path: Path, source: Volume, dtype: np.dtype[Any], labels: bool, on_section: OnSection
) -> Iterator[NDArray[Any]]:
    """Iterate over the pages: sections, with their channels one after another."""
    depth = source.size[0]
    for z, section in enumerate(source.sections()):
        if labels and section.max() > _LARGEST_ID:
            raise ShapeError(
                f"{path}: found id {section.max()} in section {z} of {source.source}, expected at most {_LARGEST_ID} "
                "for TIFF; other formats hold 64 bits"
            )
        yield from section.astype(dtype)[None] if source.channels is None else section.astype(dtype)
        on_section(z + 1, depth)
