"""Files that hold one ramp of grey values, and what opening one must give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import tifffile
import zarr
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from distill.core.geometry import Box
from distill.io.volume import Volume

RESOLUTION = (40.0, 4.0, 5.0)


def ramp(*shape: int, dtype: str = "u1") -> NDArray[Any]:
    """An array whose values tell neighbouring voxels and sections apart."""
    return (np.arange(np.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)


def save_tiff(path: Path, array: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, array, photometric="minisblack", **options)
    return path


def save_sections(folder: Path, array: NDArray[Any], suffix: str = "png") -> Path:
    folder.mkdir()
    for z, section in enumerate(array):
        iio.imwrite(folder / f"s{z}.{suffix}", section)
    return folder


def save_zarr(path: Path, array: NDArray[Any], chunks: tuple[int, ...], version: int, **attributes: Any) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
    with zarr.config.set({"array.write_empty_chunks": True}):  # what is not stored is refused as missing
        stored = group.create_array("a/b", shape=array.shape, dtype=array.dtype, chunks=chunks)
        stored[...] = array
    stored.attrs.update(attributes)
    return path


def assert_reads(volume: Volume, array: NDArray[Any]) -> None:
    """Whole, part and sections all agree with `array`, in native order."""
    assert volume.shape == array.shape
    assert volume.dtype == array.dtype.newbyteorder("=")
    assert volume.size == array.shape[-3:]
    assert volume.channels == (array.shape[0] if array.ndim == 4 else None)
    whole = volume.read()
    assert whole.dtype.isnative
    np.testing.assert_array_equal(whole, array)
    z, y, x = volume.size
    part = Box((z // 2, y // 3, x // 2), (z, y, x - x // 4))
    np.testing.assert_array_equal(volume.read(part), array[(..., *part.slices)])
    assert volume.read(Box((0, 0, 0), (0, y, x))).shape == (*array.shape[:-3], 0, y, x)
    sections = list(volume.sections())
    assert len(sections) == z
    np.testing.assert_array_equal(np.stack(sections, axis=-3), array)
    tail = [section.tolist() for section in volume.sections(z // 2, z)]
    assert tail == [array[..., at, :, :].tolist() for at in range(z // 2, z)]


def arrays(types: list[str], ranks: tuple[int, int] = (3, 4)) -> st.SearchStrategy[NDArray[Any]]:
    shapes = hnp.array_shapes(min_dims=ranks[0], max_dims=ranks[1], min_side=1, max_side=6)
    elements = {"allow_nan": False}
    return st.sampled_from(types).flatmap(
        lambda name: hnp.arrays(name, shapes, elements=elements if "f" in name else None)
    )
