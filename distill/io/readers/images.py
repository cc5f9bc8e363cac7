"""TIFF stacks, and sections that lie in an image file each (TIFF or PNG)."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.geometry import Nanometres
from distill.io.readers.array import Cut, Index, StoredArray, nm_per_unit, no_dataset, plain, readable

if TYPE_CHECKING:
    import tifffile

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png")


@contextmanager
def _open_tiff(path: Path) -> Iterator[Cut]:
    import tifffile

    with readable(path), tifffile.TiffFile(path) as tif:
        stack = _tiff_stack(path, tif)
        if stack.mapped_at is not None:
            shape = (stack.shape[1], stack.shape[0], *stack.shape[2:]) if stack.interleaved else stack.shape
            mapped = np.memmap(path, stack.dtype.newbyteorder(tif.byteorder), "r", stack.mapped_at, shape)
            whole: NDArray[Any] = mapped.swapaxes(0, 1) if stack.interleaved else mapped
            yield lambda index: np.array(whole[index])
        elif stack.pages:
            yield partial(_cut_pages, stack)
        else:
            array = np.stack([_page_values(page) for page in tif.series[0].pages])
            loaded = array.reshape(tif.series[0].shape)
            whole = (loaded.swapaxes(0, 1) if stack.interleaved else loaded).reshape(stack.shape)
            yield lambda index: np.array(whole[index])


def _cut_pages(stack: _TiffStack, index: Index) -> NDArray[Any]:
    pages = np.arange(len(stack.pages))
    ordered = pages.reshape(stack.shape[-3::-1]).T if stack.interleaved else pages.reshape(stack.shape[:-2])
    chosen = ordered[index[:-2]]
    block = np.empty((chosen.size, *(part.stop - part.start for part in index[-2:])), stack.dtype)
    for at, page in enumerate(chosen.flat):
        block[at] = _page_values(stack.pages[int(page)])[index[-2:]]
    return block.reshape(*chosen.shape, *block.shape[-2:])


def _page_values(page: Any) -> NDArray[Any]:
    """What a TIFF page holds; a strip beyond the end of the file would read as zeros and is refused."""
    size = page.parent.filehandle.size
    if any(at + length > size for at, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise EOFError("the file is cut off")
    return np.asarray(page.asarray())


@dataclass(frozen=True)
class _TiffStack:
    """Where the sections of a TIFF file lie: memory-mapped from a byte, in a page each, or (neither) all in one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    interleaved: bool
    mapped_at: int | None
    pages: Sequence[Any]


def _tiff_stack(path: Path, tif: tifffile.TiffFile) -> _TiffStack:
    """The one greyscale stack of a TIFF file; pages written one by one count as a stack where they are alike."""
    _check_page_chain(path, tif)
    first = tif.series[0]
    kinds = list(dict.fromkeys((tuple(series.shape), str(series.dtype)) for series in tif.series))
    axes = first.axes if len(tif.series) == 1 else "Z" + first.axes
    shape = tuple(int(extent) for extent in first.shape)
    if "S" in axes:
        raise SourceError(f"{path}: found {shape[first.axes.index('S')]} channels per pixel, expected greyscale")
    if len(kinds) > 1:
        found = ", ".join(f"{shape} {dtype}" for shape, dtype in kinds[:3])
        raise SourceError(f"{path}: found pages of different size or type ({found}), expected one stack")
    if axes[-2:] != "YX" or len(axes) > 4:
        raise SourceError(f"{path}: found axes {axes} of shape {shape}, expected z, y, x or c, z, y, x")
    if len(tif.series) > 1:
        shape = (len(tif.series), *shape)
    pages = first.pages if len(tif.series) == 1 else [series.pages[0] for series in tif.series]
    mapped_at = first.dataoffset if len(tif.series) == 1 else None
    page = tuple(first.keyframe.shape)
    if mapped_at is None and (len(pages) * math.prod(page) != math.prod(shape) or None in pages):
        raise SourceError(f"{path}: cannot be read: found {len(pages)} pages of {page}, expected {shape} in all")
    paged = len(pages) == math.prod(shape[:-2]) and page == shape[-2:]
    shape = (1, *shape) if len(shape) == 2 else shape
    interleaved = axes == "ZCYX"
    if interleaved:
        shape = (shape[1], shape[0], *shape[2:])
    return _TiffStack(shape, first.dtype.newbyteorder("="), interleaved, mapped_at, pages if paged else ())


def _check_page_chain(path: Path, tif: tifffile.TiffFile) -> None:
    """Refuse a cut-off file: tifffile would take the pages before the cut for a whole, shorter stack."""
    count, pointer_at = len(tif.pages), tif.pages.next_page_offset
    if pointer_at is not None:
        tif.filehandle.seek(pointer_at)
        pointer = tif.filehandle.read(tif.tiff.offsetsize)
        if len(pointer) < tif.tiff.offsetsize or any(pointer):
            raise SourceError(f"{path}: cannot be read: found {count} pages, expected more: the file is cut off")


def white_is_zero(tif: tifffile.TiffFile) -> bool:
    """Whether a TIFF file says that grey values run from white to black."""
    return getattr(tif.pages[0].photometric, "name", "") == "MINISWHITE"


def _tiff_resolution(tif: tifffile.TiffFile) -> Nanometres | None:
    """Voxel size from ImageJ's metadata; resolution tags alone know no z and mostly mean 72 dots per inch."""
    metadata = tif.imagej_metadata or {}
    tags = tif.pages[0].tags
    unit, spacing = nm_per_unit(metadata.get("unit")), metadata.get("spacing")
    per_unit = [tags[name].value for name in ("YResolution", "XResolution") if name in tags]
    if unit is None or spacing is None or len(per_unit) != 2 or any(0 in ratio for ratio in per_unit):
        return None
    (y_pixels, y_units), (x_pixels, x_units) = per_unit
    return float(spacing) * unit, y_units / y_pixels * unit, x_units / x_pixels * unit


def _tiff_offset(tif: tifffile.TiffFile, resolution: Nanometres | None) -> Nanometres | None:
    """Position of the first voxel from ImageJ's origin, the pixel that lies at 0."""
    metadata = tif.imagej_metadata or {}
    origin = [metadata.get(f"{axis}origin", 0) for axis in "zyx"]
    if resolution is None or not any(origin) or not all(isinstance(n, int | float) for n in origin):
        return None
    z, y, x = (-n * r + 0.0 for n, r in zip(origin, resolution, strict=True))
    return z, y, x


def load_tiff(path: Path, dataset: str | None) -> StoredArray:
    """The header of a TIFF file that holds one stack."""
    import tifffile

    no_dataset(path, dataset)
    with readable(path), tifffile.TiffFile(path) as tif:
        stack = _tiff_stack(path, tif)
        chunks = (*(1 for _ in stack.shape[:-2]), *stack.shape[-2:]) if stack.pages else stack.shape
        resolution = _tiff_resolution(tif)
        codec = getattr(tif.pages[0].compression, "name", "unknown").lower()
        return StoredArray(
            str(path),
            None,
            "tiff",
            stack.shape,
            stack.dtype,
            resolution,
            _tiff_offset(tif, resolution),
            {key: plain(value) for key, value in (tif.imagej_metadata or {}).items()},
            partial(_open_tiff, path),
            chunks if stack.mapped_at is None else None,
            None if codec == "none" else codec,
            white_is_zero(tif),
        )


def read_section(path: Path) -> NDArray[Any]:
    """One greyscale section image (y, x).

    Raises:
        SourceError: the file is missing, cut off or otherwise unreadable, or holds something else.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        import tifffile

        with readable(path), tifffile.TiffFile(path) as tif:
            shape = _tiff_stack(path, tif).shape
            if math.prod(shape[:-2]) != 1:
                raise SourceError(f"{path}: found {len(tif.pages)} pages, expected one section per file")
            return _page_values(tif.pages[0]).reshape(shape[-2:])
    # Image.open would refuse sections above 179 megapixels as decompression bombs; the plugin itself does not.
    from PIL.PngImagePlugin import PngImageFile

    with readable(path), PngImageFile(path) as image:
        if image.mode not in ("1", "L", "I", "I;16", "I;16B"):
            found = 3 if image.mode == "P" else len(image.getbands())
            raise SourceError(f"{path}: found {found} channels ({image.mode}), expected greyscale")
        return np.asarray(image)


@contextmanager
def _open_images(paths: tuple[Path, ...], shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[Cut]:
    def cut(index: Index) -> NDArray[Any]:
        z, y, x = index
        block = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), dtype)
        for at, path in enumerate(paths[z]):
            section = read_section(path)
            if section.shape != shape or section.dtype.newbyteorder("=") != dtype:
                raise SourceError(
                    f"{path}: found {section.shape} {section.dtype}, expected {shape} {dtype} as in {paths[0]}"
                )
            block[at] = section[y, x]
        return block

    yield cut


def load_images(path: Path, dataset: str | None) -> StoredArray:
    """The header of a stack whose sections are files: a folder, a glob or one image."""
    no_dataset(path, dataset)
    paths = section_paths(path)
    first = read_section(paths[0])
    height, width = first.shape
    dtype = first.dtype.newbyteorder("=")
    resolution = section_resolution(paths[0])
    opener = partial(_open_images, paths, (height, width), dtype)
    shape = (len(paths), height, width)
    chunks, inverted = (1, height, width), section_inverted(paths[0])
    return StoredArray(str(path), None, "images", shape, dtype, resolution, None, {}, opener, chunks, inverted=inverted)


def section_resolution(path: Path) -> Nanometres | None:
    """Voxel size in nm that a section image gives; None where it gives none."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    import tifffile

    with readable(path), tifffile.TiffFile(path) as tif:
        return _tiff_resolution(tif)


def section_inverted(path: Path) -> bool:
    """Whether a section image says that 0 is white."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    import tifffile

    with readable(path), tifffile.TiffFile(path) as tif:
        return white_is_zero(tif)


def section_paths(path: Path) -> tuple[Path, ...]:
    """The images of a folder, of a glob or of one file, in natural order: s2 before s10."""
    if path.is_dir():
        found = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.name[0] != "."]
        if not found:
            raise SourceError(f"{path}: found no section images in this folder, expected .tif, .tiff or .png files")
    else:
        found = [path] if path.exists() else [Path(item) for item in glob.glob(str(path))]
        if not found:
            raise SourceError(f"{path}: no file matches")
        for item in found:
            if item.suffix.lower() not in IMAGE_SUFFIXES:
                raise SourceError(
                    f"{item}: found extension {item.suffix!r}, expected a section image .tif, .tiff or .png"
                )
    return tuple(sorted(found, key=natural_order))


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """Key that sorts s2 before s10."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if at % 2 else part.lower() for at, part in enumerate(parts)], str(path)
