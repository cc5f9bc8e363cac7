"""Parts of volumes, and volumes on the voxel grid of another one; nothing is read until a part is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import ShapeError
from distill.core.geometry import Box, Triple, whole_voxels
from distill.io.readers.array import Cut, Index, Opener
from distill.io.volume.volume import Volume

_SAME_GRID = 1e-3  # relative difference of resolutions


def one_channel(volume: Volume) -> Volume:
    """Remove a volume's axis of channels where that has one entry."""
    if volume.channels != 1:
        return volume
    chunks = volume.chunks and volume.chunks[-3:]
    return replace(volume, shape=volume.shape[1:], chunks=chunks, _opener=partial(_open_one_channel, volume._opener))


def every_section(volume: Volume, step: int) -> Volume:
    """Select every `step`-th section of a volume, the first one included; nothing is read.

    Isotropic volumes become anisotropic ones that way, as serial sections are: the voxels get `step` times as thick.

    Args:
        volume: z, y, x, with or without channels.
        step: at least 1.

    Raises:
        ShapeError: a step below 1.
    """
    if step < 1:
        raise ShapeError(f"{volume.source}: found a step of {step} sections, expected at least 1")
    if step == 1:
        return volume
    *before, depth, height, width = volume.shape
    z, y, x = volume.resolution
    return replace(
        volume,
        shape=(*before, -(-depth // step), height, width),
        resolution=(z * step, y, x),
        chunks=None,
        _opener=partial(_open_every, volume._opener, step),
    )


def some_sections(volume: Volume, first: int, stop: int) -> Volume:
    """Select consecutive sections of a volume, in their place; nothing is read.

    Args:
        volume: z, y, x, with or without channels.
        first: first section.
        stop: one past the last.

    Raises:
        ShapeError: the sections are not there, or there are none.
    """
    depth, height, width = volume.size
    if not 0 <= first < stop <= depth:
        raise ShapeError(f"{volume.source}: found sections {first}:{stop}, expected a range within 0:{depth}")
    return part(volume, Box((first, 0, 0), (stop, height, width)))


def part(volume: Volume, box: Box) -> Volume:
    """Cut a box out of a volume, in its place; nothing is read.

    Raises:
        ShapeError: the box holds no voxel or leaves the volume.
    """
    if not box.voxels or not volume.box.contains(box):
        raise ShapeError(
            f"{volume.source}: found box {box.start} to {box.stop}, expected one within (0, 0, 0) to {volume.size}"
        )
    if box == volume.box:
        return volume
    z, y, x = (o + n * r for o, n, r in zip(volume.offset, box.start, volume.resolution, strict=True))
    return replace(
        volume,
        shape=(*volume.shape[:-3], *box.shape),
        offset=(z, y, x),
        _opener=partial(_open_part, volume._opener, box.start),
    )


def on_grid(volume: Volume, other: Volume) -> Volume:
    """Resample a volume to the voxel grid of another one: each voxel takes the value at its centre.

    Args:
        volume: of voxels of any size; those of the other one whose centre lies in it are given.
        other: gives the grid.

    Returns:
        The volume itself where the voxels are of the same size.

    Raises:
        ShapeError: no voxel of the other one has its centre in the volume.
    """
    if all(math.isclose(a, b, rel_tol=_SAME_GRID) for a, b in zip(volume.resolution, other.resolution, strict=True)):
        return volume
    first, stop = [], []
    for n, r, o, wide, start in zip(
        volume.size, volume.resolution, volume.offset, other.resolution, other.offset, strict=True
    ):
        low, high = (o - start) / wide, (o + n * r - start) / wide
        first.append(math.ceil(low - 0.5 - _SAME_GRID))
        stop.append(math.ceil(high - 0.5 - _SAME_GRID))
    if any(b <= a for a, b in zip(first, stop, strict=True)):
        raise ShapeError(f"{volume.source}: has no voxel on the grid of {other.source}, of {other.resolution} nm")
    offset = tuple(o + a * r for o, a, r in zip(other.offset, first, other.resolution, strict=True))
    indices = []
    for axis in range(3):
        centres = offset[axis] + (np.arange(stop[axis] - first[axis]) + 0.5) * other.resolution[axis]
        at = np.floor((centres - volume.offset[axis]) / volume.resolution[axis] + _SAME_GRID)
        indices.append(np.clip(at, 0, volume.size[axis] - 1).astype(np.intp))
    z, y, x = offset
    return replace(
        volume,
        shape=(*volume.shape[:-3], *(len(at) for at in indices)),
        resolution=other.resolution,
        offset=(z, y, x),
        chunks=None,
        _opener=partial(_open_on_grid, volume._opener, tuple(indices)),
    )


def check_pair(raw: Volume, labels: Volume) -> None:
    """Check that an image and its labels cover the same voxels.

    Raises:
        ShapeError: their sizes differ, or their resolutions differ by more than 0.1 %.
    """
    if raw.size != labels.size:
        raise ShapeError(f"{labels.source}: found size {labels.size}, expected {raw.size} (z, y, x) as in {raw.source}")
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(raw.resolution, labels.resolution, strict=True)):
        raise ShapeError(
            f"{labels.source}: found resolution {labels.resolution} nm, expected {raw.resolution} nm as in {raw.source}"
        )


def voxel_shift(inner: Volume, outer: Volume) -> Triple:
    """Return the voxel of `outer` at which voxel (0, 0, 0) of `inner` lies.

    Raises:
        ShapeError: they do not share a voxel grid: their resolutions differ by more than 0.1 %, or their offsets by
            part of a voxel.
    """
    if any(abs(a - b) > _SAME_GRID * b for a, b in zip(inner.resolution, outer.resolution, strict=True)):
        raise ShapeError(
            f"{inner.source}: voxels of {inner.resolution} nm, expected those of {outer.source}, {outer.resolution} nm"
        )
    exact = [(a - b) / r for a, b, r in zip(inner.offset, outer.offset, outer.resolution, strict=True)]
    voxels = whole_voxels(exact)
    if voxels is None:
        by = ", ".join(f"{e:.4g}" for e in exact)
        raise ShapeError(
            f"{inner.source}: lies {by} voxels (z, y, x) into {outer.source}, expected whole voxels; its place "
            "in nm is given as #offset=Z,Y,X after the source"
        )
    return voxels


@contextmanager
def _open_every(opener: Opener, step: int) -> Iterator[Cut]:
    with opener() as cut:

        def thinned(index: Index) -> NDArray[Any]:
            *channels, z, y, x = index
            sections = range(z.start * step, z.stop * step, step)
            parts = [cut((*channels, slice(there, there + 1), y, x)) for there in sections]
            return np.concatenate(parts, axis=-3)

        yield thinned


@contextmanager
def _open_part(opener: Opener, start: Triple) -> Iterator[Cut]:
    with opener() as cut:

        def moved(index: Index) -> NDArray[Any]:
            inside = (slice(at.start + by, at.stop + by) for at, by in zip(index[-3:], start, strict=True))
            return cut((*index[:-3], *inside))

        yield moved


@contextmanager
def _open_one_channel(opener: Opener) -> Iterator[Cut]:
    with opener() as cut:
        yield lambda index: cut((slice(0, 1), *index))[0]


@contextmanager
def _open_on_grid(opener: Opener, indices: tuple[NDArray[np.intp], ...]) -> Iterator[Cut]:
    with opener() as cut:

        def nearest(index: Index) -> NDArray[Any]:
            wanted = [at[span] for at, span in zip(indices, index[-3:], strict=True)]
            if any(not len(at) for at in wanted):
                return cut((*index[:-3], *(slice(0, len(at)) for at in wanted)))
            spans = [slice(int(at[0]), int(at[-1]) + 1) for at in wanted]
            block = cut((*index[:-3], *spans))
            return np.asarray(block[(..., *np.ix_(*(at - at[0] for at in wanted)))])

        yield nearest
