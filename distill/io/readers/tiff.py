"""TIFF stacks: pages of grey values, of a palette or of equal colours, in any order of z, c and t."""

from __future__ import annotations

import logging
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

from distill.core.errors import DecoderError, SourceError
from distill.core.geometry import Nanometres
from distill.core.memory import check_memory
from distill.core.notes import note
from distill.io.readers.array import Cut, Index, Reading, StoredArray, nm_per_unit, no_dataset, plain, readable

if TYPE_CHECKING:
    import tifffile

SUFFIXES = (".tif", ".tiff")
_GREY, _WHITE_IS_ZERO, _PALETTE = "MINISBLACK", "MINISWHITE", "PALETTE"
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")


@dataclass(frozen=True)
class Stack:
    """Where the sections of a TIFF file lie: memory-mapped from a byte, in a page each, or (neither) all in one.

    Attributes:
        shape: in the file's order of axes, without colours.
        axes: their names; None where the file does not say.
        dtype: of what is stored.
        grey_dtype: of grey values.
        mapped_at: byte; None where the pixels cannot be mapped.
        pages: one for each section.
        keyframe: what the pages have in common.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...] | None
    dtype: np.dtype[Any]
    grey_dtype: np.dtype[Any]
    mapped_at: int | None
    pages: Sequence[Any]
    keyframe: Any


@contextmanager
def open_file(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file for itself: other files that its OME metadata name are not looked into."""
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it prints what the errors here say in full
    with readable(path):
        with tifffile.TiffFile(path) as file:
            several = bool(file.is_ome) and _names_others(file)
        with tifffile.TiffFile(path, **({"is_ome": False} if several else {})) as file:
            yield file


def _names_others(tif: tifffile.TiffFile) -> bool:
    own = Path(str(tif.filehandle.name)).name
    return any(name != own for name in re.findall(r'FileName="([^"]*)"', tif.pages[0].description or ""))


def load_tiff(path: Path, dataset: str | None) -> StoredArray:
    """Read the header of a TIFF file that holds one stack."""
    no_dataset(path, dataset)
    with open_file(path) as tif:
        stack = tiff_stack(path, tif)
        if _names_others(tif):
            note(
                f"{path}: is one of several files of an OME-TIFF; only what lies in it is read, the folder is the stack"
            )
        resolution = tiff_resolution(tif)
        codec = getattr(tif.pages[0].compression, "name", "unknown").lower()
        paged = (*(1 for _ in stack.shape[:-2]), *stack.shape[-2:])
        return StoredArray(
            str(path),
            None,
            "tiff",
            stack.shape,
            stack.dtype,
            resolution,
            _offset(tif, resolution),
            {key: plain(value) for key, value in (tif.imagej_metadata or {}).items()},
            partial(_open, path),
            (paged if stack.pages else stack.shape) if stack.mapped_at is None else None,
            None if codec == "none" else codec,
            stack.axes,
            grey_dtype=stack.grey_dtype,
        )


@contextmanager
def _open(path: Path, reading: Reading) -> Iterator[Cut]:
    with open_file(path) as tif:
        stack = tiff_stack(path, tif)
        if stack.mapped_at is not None:
            mapped = np.memmap(path, stack.dtype.newbyteorder(tif.byteorder), "r", stack.mapped_at, stack.shape)
            yield lambda index: _as_grey(path, stack.keyframe, np.array(mapped[index]), reading)
        elif stack.pages:
            yield partial(_cut_pages, path, stack, reading)
        else:
            check_memory(str(path), "the stack, which is packed in one piece,", stack.shape, stack.dtype)
            pages = [page_values(path, page, reading) for page in tif.series[0].pages]
            whole = np.stack(pages).reshape(stack.shape)
            yield lambda index: np.array(whole[index])


def _cut_pages(path: Path, stack: Stack, reading: Reading, index: Index) -> NDArray[Any]:
    chosen = np.arange(len(stack.pages)).reshape(stack.shape[:-2])[index[:-2]]
    dtype = stack.grey_dtype if reading.grey else stack.dtype
    block = np.empty((chosen.size, *(part.stop - part.start for part in index[-2:])), dtype)
    for at, page in enumerate(chosen.flat):
        block[at] = page_values(path, stack.pages[int(page)], reading)[index[-2:]]
    return block.reshape(*chosen.shape, *block.shape[-2:])


def page_values(path: Path, page: Any, reading: Reading) -> NDArray[Any]:
    """Read the pixels of a page; a strip beyond the end of the file would read as zeros and is refused.

    Raises:
        DecoderError: the package that unpacks it is missing.
        SourceError: colours that are no greys.
    """
    size = page.parent.filehandle.size
    if any(at + length > size for at, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise EOFError("the file is cut off")
    _check_page(path, page)
    if reading.missing == "refuse" and not all(page.databytecounts):
        raise SourceError(f"{path}: some strips or tiles are missing; expected a whole copy, or --missing zero")
    return _as_grey(path, page, np.asarray(page.asarray()), reading)


def _check_page(path: Path, page: Any) -> None:
    import tifffile

    page = page.keyframe
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        if page.predictor and page.predictor != 1:
            tifffile.TIFF.UNPREDICTORS[page.predictor]
    except (KeyError, ValueError, ImportError):
        codec = getattr(page.compression, "name", page.compression)
        raise DecoderError(
            f"{path}: is packed with {codec}, which is not read here; expected the package that unpacks it, "
            "pip install imagecodecs, or the file saved without compression"
        ) from None
    check_memory(str(path), "a page", page.shape, np.dtype(page.dtype or np.uint8))


def _as_grey(path: Path, page: Any, pixels: NDArray[Any], reading: Reading) -> NDArray[Any]:
    """Return grey values with 0 = black, or what is stored, of the pixels of a page or of pages like it."""
    page = page.keyframe
    if _samples(page) > 1:
        axis = page.axes.index("S") if pixels.ndim == len(page.axes) else -1
        pixels = equal_colours(path, np.moveaxis(pixels, axis, -1), bool(page.extrasamples))
    if not reading.grey:
        return pixels
    kind = _photometric(page)
    if kind == _PALETTE:
        return grey_of_palette(path, np.asarray(page.colormap).T, pixels, 8)
    return white_to_black(pixels, int(page.bitspersample)) if kind == _WHITE_IS_ZERO else pixels


def equal_colours(path: Path, pixels: NDArray[Any], alpha: bool) -> NDArray[Any]:
    """Return the one channel of pixels (..., colours) whose colours are equal; a last one of opacity is left out.

    Raises:
        SourceError: they differ.
    """
    colours = pixels.shape[-1] - (1 if alpha or pixels.shape[-1] in (2, 4) else 0)
    found: NDArray[Any] = pixels[..., 0]
    if any(not np.array_equal(found, pixels[..., k]) for k in range(1, colours)):
        raise SourceError(
            f"{path}: found {pixels.shape[-1]} channels per pixel that differ, expected greyscale: save it with one "
            "channel"
        )
    return found


def grey_of_palette(path: Path, palette: NDArray[Any], pixels: NDArray[Any], shift: int) -> NDArray[Any]:
    """Convert entries of a palette to grey values.

    Args:
        path: for messages.
        palette: (entries, 3).
        pixels: numbers of entries.
        shift: bits by which the palette is finer than 8 bits.

    Raises:
        SourceError: entries in use are no greys.
    """
    used = np.unique(pixels)
    if used.size and int(used[-1]) >= len(palette):
        raise SourceError(f"{path}: found entry {used[-1]} of a palette of {len(palette)}")
    if (palette[used] != palette[used, :1]).any():
        raise SourceError(
            f"{path}: found a palette of colours, expected greyscale; colours may stand for ids, which are read as "
            "labels"
        )
    grey: NDArray[Any] = (palette[:, 0] >> shift).astype(np.uint8)[pixels]
    return grey


def white_to_black(pixels: NDArray[Any], bits: int) -> NDArray[Any]:
    """Convert pixels whose 0 is white to grey values; what is exchanged twice is as it was."""
    if pixels.dtype.kind == "u":
        full = pixels.dtype.type(2 ** min(bits, 8 * pixels.dtype.itemsize) - 1)
        return np.asarray(full - np.minimum(pixels, full))
    return np.asarray(~pixels if pixels.dtype.kind in "bi" else -pixels)


def _samples(page: Any) -> int:
    return int(page.samplesperpixel)


def _photometric(page: Any) -> str:
    return str(getattr(page.photometric, "name", page.photometric))


def tiff_stack(path: Path, tif: tifffile.TiffFile) -> Stack:
    """Find the one greyscale stack of a TIFF file; pages written one by one count as a stack where they are alike."""
    _check_page_chain(path, tif)
    if not tif.series:
        raise SourceError(f"{path}: found no page, expected at least one")
    first = tif.series[0]
    axes, shape = _without_colours(first.axes, tuple(int(extent) for extent in first.shape))
    kinds = list(dict.fromkeys((tuple(page.shape), str(page.dtype)) for page in _keyframes(tif)))
    if len(kinds) > 1:
        found = ", ".join(f"{shape} {dtype}" for shape, dtype in kinds[:3])
        raise SourceError(f"{path}: found pages of different size or type ({found}), expected one stack")
    keyframe = first.keyframe
    if first.dtype is None:
        raise SourceError(f"{path}: found pixels of {keyframe.bitspersample} bits, expected 8, 16, 32 or 64")
    pages: Sequence[Any] = first.pages
    mapped_at = first.dataoffset if len(tif.series) == 1 and _samples(keyframe) == 1 else None
    if _photometric(keyframe) == _PALETTE:
        mapped_at = None
    if len(tif.series) > 1:  # pages that differ in what their numbers mean, or in how they are packed
        pages = sorted((page for series in tif.series for page in series.pages), key=lambda page: page.index)
        axes, shape = "ZYX", (len(pages), *shape[-2:])
    if axes[-2:] != "YX":
        raise SourceError(f"{path}: found axes {axes} of shape {shape}, expected z, y, x or c, z, y, x")
    page = _without_colours(keyframe.axes, tuple(keyframe.shape))[1]
    if mapped_at is None and (len(pages) * math.prod(page) != math.prod(shape) or any(one is None for one in pages)):
        raise SourceError(f"{path}: cannot be read: found {len(pages)} pages of {page}, expected {shape} in all")
    paged = len(pages) == math.prod(shape[:-2]) and page == shape[-2:]
    if len(shape) == 2:
        axes, shape = f"Z{axes}", (1, *shape)
    dtype = first.dtype.newbyteorder("=")
    grey = np.dtype(np.uint8) if _photometric(keyframe) == _PALETTE else dtype
    return Stack(shape, _names(axes), dtype, grey, mapped_at, pages if paged else (), keyframe)


def _keyframes(tif: tifffile.TiffFile) -> list[Any]:
    return [series.keyframe for series in tif.series]


def _without_colours(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    if "S" not in axes:
        return axes, shape
    at = axes.index("S")
    return axes[:at] + axes[at + 1 :], shape[:at] + shape[at + 1 :]


def _names(axes: str) -> tuple[str, ...] | None:
    """Return the names as readers give them; None where the file only counts its pages."""
    front = axes[:-2]
    unknown = [letter for letter in front if letter not in "ZCT"]
    if not unknown:
        return tuple(axes.lower())
    if len(front) == 1:
        return ("z", "y", "x")
    if len(unknown) == len(front):
        return None
    if len(unknown) == 1 and "Z" not in front:
        return tuple("z" if letter in unknown else letter.lower() for letter in axes)
    return tuple(letter.lower() for letter in axes)


def _check_page_chain(path: Path, tif: tifffile.TiffFile) -> None:
    """Refuse a cut-off file: tifffile would take the pages before the cut for a whole, shorter stack."""
    count, pointer_at = len(tif.pages), tif.pages.next_page_offset
    if pointer_at is not None:
        tif.filehandle.seek(pointer_at)
        pointer = tif.filehandle.read(tif.tiff.offsetsize)
        if len(pointer) < tif.tiff.offsetsize or any(pointer):
            raise SourceError(f"{path}: cannot be read: found {count} pages, expected more: the file is cut off")


def tiff_resolution(tif: tifffile.TiffFile) -> Nanometres | None:
    """Return the voxel size of OME's or ImageJ's metadata; resolution tags have no z, and mostly mean 72 dpi."""
    if (found := _ome_resolution(tif.pages[0].description or "")) is not None:
        return found
    metadata = tif.imagej_metadata or {}
    tags = tif.pages[0].tags
    unit, spacing = nm_per_unit(metadata.get("unit")), metadata.get("spacing")
    per_unit = [tags[name].value for name in ("YResolution", "XResolution") if name in tags]
    if unit is None or not isinstance(spacing, int | float) or len(per_unit) != 2:
        return None
    if any(not isinstance(ratio, tuple) or len(ratio) != 2 or 0 in ratio for ratio in per_unit):
        return None
    (y_pixels, y_units), (x_pixels, x_units) = per_unit
    return float(spacing) * unit, y_units / y_pixels * unit, x_units / x_pixels * unit


def _ome_resolution(description: str) -> Nanometres | None:
    """Return PhysicalSize of OME-XML, micrometres where it gives no unit."""
    tag = _PIXELS.search(description) if "<OME" in description or ":OME" in description else None
    if tag is None:
        return None
    found = []
    for axis in "ZYX":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', tag[0])
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', tag[0])
        scale = nm_per_unit(unit[1] if unit else "um")
        try:
            found.append(float(size[1]) * scale if size and scale else math.nan)
        except ValueError:
            found.append(math.nan)
    z, y, x = found
    return (z, y, x) if all(math.isfinite(n) and n > 0 for n in found) else None


def _offset(tif: tifffile.TiffFile, resolution: Nanometres | None) -> Nanometres | None:
    """Position of the first voxel from ImageJ's origin, the pixel that lies at 0."""
    metadata = tif.imagej_metadata or {}
    origin = [metadata.get(f"{axis}origin", 0) for axis in "zyx"]
    if resolution is None or not any(origin) or not all(isinstance(n, int | float) for n in origin):
        return None
    z, y, x = (-n * r + 0.0 for n, r in zip(origin, resolution, strict=True))
    return z, y, x
