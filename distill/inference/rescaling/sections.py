"""View of a volume that resamples sections to another pixel size as they are read.

Every pixel is a weighted mean of its surroundings, with weights that depend on its position in the whole section, so it
does not depend on which part of a section is read. The kernel is a triangle as wide as the larger of the two pixels:
linear interpolation to smaller pixels, and an anti-aliasing mean to larger ones.

Legend: H W = y x of the source, h w = y x on the model's grid; `...` any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.inference.rescaling.results import Rescaling
from distill.io.readers.array import Cut, Index, Opener
from distill.io.volume import Volume


def resampled(volume: Volume, rescaling: Rescaling) -> Volume:
    """Return a view of a volume on the model's grid; nothing is read.

    Args:
        volume: z, y, x, with or without channels, at the source's pixel size.
        rescaling: of its sections.
    """
    *before, depth, _, _ = volume.shape
    z, y, x = volume.resolution
    chunks = None if volume.chunks is None else (*volume.chunks[:-2], *rescaling.model)
    return replace(
        volume,
        shape=(*before, depth, *rescaling.model),
        resolution=(z, y * rescaling.factor[0], x * rescaling.factor[1]),
        chunks=chunks,
        _opener=partial(_open_resampled, volume._opener, rescaling),
    )


def resample_section(image: NDArray[Any], rescaling: Rescaling) -> NDArray[Any]:
    """Resample a whole section (H, W) to the model's grid, (h, w) of the same type."""
    y, x = (_weights(rescaling, axis, 0, rescaling.model[axis])[1] for axis in (0, 1))
    return _applied(image, y, x)


@contextmanager
def _open_resampled(opener: Opener, rescaling: Rescaling) -> Iterator[Cut]:
    with opener() as cut:

        def part(index: Index) -> NDArray[Any]:
            *before, z, rows, columns = index
            there_y, y = _weights(rescaling, 0, rows.start, rows.stop)
            there_x, x = _weights(rescaling, 1, columns.start, columns.stop)
            found = cut((*before, z, there_y, there_x))
            made = np.empty((*found.shape[:-2], y.shape[0], x.shape[0]), found.dtype)
            for place in np.ndindex(found.shape[:-2]):
                made[place] = _applied(found[place], y, x)
            return made

        yield part


def _weights(rescaling: Rescaling, axis: int, start: int, stop: int) -> tuple[slice, Any]:
    """Return the source pixels that contribute to a range of model pixels, and the weights, a sparse matrix (model,
    source).
    """
    import scipy.sparse

    size, factor = rescaling.recorded[axis], rescaling.factor[axis]
    reach = max(1.0, factor)
    centres = (np.arange(start, stop) + 0.5) * factor
    first = np.floor(centres - reach).astype(np.int64)
    places = first[:, None] + np.arange(math.ceil(2 * reach) + 1)
    weights = np.maximum(0, 1 - np.abs(places + 0.5 - centres[:, None]) / reach)
    weights[(places < 0) | (places >= size)] = 0
    weights /= weights.sum(1, keepdims=True)
    rows, taps = np.nonzero(weights)
    at = places[rows, taps]
    window = slice(int(at.min()), int(at.max()) + 1) if len(at) else slice(0, 0)
    shape = stop - start, window.stop - window.start
    return window, scipy.sparse.csr_array((weights[rows, taps], (rows, at - window.start)), shape)


def _applied(image: NDArray[Any], y: Any, x: Any) -> NDArray[Any]:
    """Apply weights to rows, then to columns; the result has the type of the image."""
    whole_numbers = image.dtype.kind in "iu"
    wide = np.float32 if whole_numbers and image.dtype.itemsize <= 2 else np.float64
    y, x = y.astype(wide), x.astype(wide)
    found = (x @ (y @ image.astype(wide)).T).T
    if whole_numbers:
        limits = np.iinfo(image.dtype)
        found = np.clip(np.rint(found), limits.min, limits.max)
    return np.ascontiguousarray(found, image.dtype)
