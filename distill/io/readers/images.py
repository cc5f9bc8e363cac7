"""Sections that lie in an image file each: TIFF, PNG, JPEG or BMP."""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import SourceError
from distill.core.geometry import Nanometres
from distill.core.memory import check_memory
from distill.core.notes import warn
from distill.io.readers.array import Cut, Index, Reading, StoredArray, no_dataset, readable
from distill.io.readers.section_names import in_places, natural_order
from distill.io.readers.tiff import SUFFIXES as TIFF_SUFFIXES
from distill.io.readers.tiff import equal_colours, grey_of_palette, open_file, page_values, tiff_resolution, tiff_stack

IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg", ".bmp")
_WANTED = f"expected a section image {' '.join(IMAGE_SUFFIXES)}"
_TRIED = 16  # files whose headers tell what all have in common
_MODES = ("1", "L", "I", "I;16", "I;16B", "F", "P", "PA", "LA", "RGB", "RGBA")
_GREY = Reading()


@dataclass(frozen=True)
class Header:
    """Size and type of a section image."""

    size: tuple[int, int]  # (H, W)
    dtype: np.dtype[Any]
    grey_dtype: np.dtype[Any]


def read_section(path: Path, reading: Reading = _GREY) -> NDArray[Any]:
    """Read one section image (y, x), 0 = black.

    Args:
        path: of the image.
        reading: how its numbers are taken.

    Raises:
        DecoderError: the package that unpacks it is missing.
        SourceError: the file is missing, cut off or otherwise unreadable, or holds something else.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        with open_file(path) as tif:
            stack = tiff_stack(path, tif)
            if math.prod(stack.shape[:-2]) != 1:
                raise SourceError(f"{path}: found {len(tif.pages)} pages, expected one section per file")
            return page_values(path, tif.pages[0], reading).reshape(stack.shape[-2:])
    with _picture(path) as image:
        return _pixels(path, image, reading)


def section_header(path: Path) -> Header:
    """Return size and type of a section image, without unpacking it.

    Raises:
        SourceError: as `read_section`, as far as a header tells.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        with open_file(path) as tif:
            stack = tiff_stack(path, tif)
            if math.prod(stack.shape[:-2]) != 1:
                raise SourceError(f"{path}: found {len(tif.pages)} pages, expected one section per file")
            height, width = stack.shape[-2:]
            return Header((height, width), stack.dtype, stack.grey_dtype)
    with _picture(path) as image:
        types = {"1": "?", "I": "<i4", "F": "<f4", "I;16": "<u2", "I;16B": "<u2"}
        dtype = np.dtype(types.get(image.mode, "u1"))
        return Header((image.height, image.width), dtype, dtype)


@contextmanager
def _picture(path: Path) -> Iterator[Any]:
    """Open an image; Image.open would refuse sections above 179 megapixels as decompression bombs."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    plugins: dict[str, Any] = {".png": PngImagePlugin.PngImageFile, ".bmp": BmpImagePlugin.BmpImageFile}
    with readable(path), plugins.get(path.suffix.lower(), JpegImagePlugin.JpegImageFile)(path) as image:
        if image.mode not in _MODES:
            raise SourceError(f"{path}: found {len(image.getbands())} channels ({image.mode}), expected greyscale")
        if any(isinstance(part.args, str) and part.args in ("RGB;16B", "RGBA;16B", "LA;16B") for part in image.tile):
            raise SourceError(
                f"{path}: found {len(image.getbands())} channels of 16 bits, expected one: save it as grey"
            )
        check_memory(str(path), "the image", (len(image.getbands()), image.height, image.width), np.dtype(np.uint8))
        yield image


def _pixels(path: Path, image: Any, reading: Reading) -> NDArray[Any]:
    if image.mode in ("P", "PA"):
        pixels = np.asarray(image)
        pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
        if not reading.grey:
            return pixels
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return grey_of_palette(path, palette, pixels, 0)
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = equal_colours(path, pixels, image.mode in ("LA", "RGBA"))
    return pixels


@contextmanager
def _open_images(paths: tuple[Path | None, ...], header: Header, reading: Reading) -> Iterator[Cut]:
    dtype = header.grey_dtype if reading.grey else header.dtype

    def cut(index: Index) -> NDArray[Any]:
        z, y, x = index
        block = np.zeros((z.stop - z.start, y.stop - y.start, x.stop - x.start), dtype)
        for at, path in enumerate(paths[z]):
            if path is None:
                continue  # only where missing sections are to read as zeros
            section = read_section(path, reading)
            if section.shape != header.size or section.dtype.newbyteorder("=") != dtype:
                first = next(one for one in paths if one is not None)
                raise SourceError(
                    f"{path}: found {section.shape} {section.dtype}, expected {header.size} {dtype} as in {first}"
                )
            block[at] = section[y, x]
        return block

    if None in paths and reading.missing == "refuse":
        at = paths.index(None)
        before = next((str(path) for path in reversed(paths[:at]) if path is not None), "the first")
        raise SourceError(
            f"{before}: {paths.count(None)} of {len(paths)} sections are missing, the first after this one; expected a "
            "file for every number, --missing zero for empty sections, or distill stream with --on-bad"
        )
    yield cut


def load_images(path: Path, dataset: str | None) -> StoredArray:
    """Read the header of a stack whose sections are files: a folder, a glob or one image."""
    no_dataset(path, dataset)
    places = in_places(str(path), section_paths(path))
    paths = [one for one in places if one is not None]
    header = common_header(paths)
    resolution = next((nm for nm in map(section_resolution, paths[:1]) if nm is not None), None)
    opener = partial(_open_images, tuple(places), header)
    shape = (len(places), *header.size)
    return StoredArray(
        str(path),
        None,
        "images",
        shape,
        header.dtype,
        resolution,
        None,
        {},
        opener,
        (1, *header.size),
        axes=("z", "y", "x"),
        grey_dtype=header.grey_dtype,
        lost=f"{places.count(None)} of {len(places)} sections are missing" if None in places else "",
    )


def common_header(paths: Sequence[Path]) -> Header:
    """Return what most of the first files state of size and type; unreadable ones do not count.

    Raises:
        SourceError: none of them can be read.
    """
    found: Counter[Header] = Counter()
    failed: SourceError | None = None
    for path in paths[:_TRIED]:
        try:
            found[section_header(path)] += 1
        except SourceError as error:
            failed = failed or error
    if not found:
        raise failed or SourceError("found no section images, expected at least one")
    return found.most_common(1)[0][0]


def section_resolution(path: Path) -> Nanometres | None:
    """Return voxel size in nm that a section image gives; None where it gives none."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with open_file(path) as tif:
        return tiff_resolution(tif)


def section_paths(path: Path) -> tuple[Path, ...]:
    """Return the images of a folder, of a glob or of one file, in natural order: s2 before s10."""
    if path.is_dir():
        found = [item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.name[0] != "."]
        for item in [item for item in found if not item.exists()]:
            warn(f"{item}: is a link to a file that does not exist, and left out")
            found.remove(item)
        if not found:
            raise SourceError(
                f"{path}: found no section images in this folder, expected {' '.join(IMAGE_SUFFIXES)} files"
            )
    else:
        found = [path] if path.exists() else [Path(item) for item in glob.glob(str(path))]
        if not found:
            raise SourceError(f"{path}: no file matches")
        for item in found:
            if item.suffix.lower() not in IMAGE_SUFFIXES:
                raise SourceError(f"{item}: found extension {item.suffix!r}, {_WANTED}")
    return tuple(sorted(found, key=natural_order))
