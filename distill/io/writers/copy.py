"""Copy a volume to another format, locally or in a bucket (`distill copy`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from distill.core.claim import claim
from distill.core.errors import SourceError
from distill.core.geometry import Nanometres
from distill.core.notes import note
from distill.io.arrange import arrange
from distill.io.labels_or_grey import judge
from distill.io.selection import split_selection
from distill.io.source import find_array
from distill.io.volume import (
    LABELS_DATASET,
    RAW_DATASET,
    Volume,
    every_section,
    one_channel,
    open_labels,
    open_volume,
    some_sections,
)
from distill.io.writers.blocks import coarsen, copy_volume, count_blocks, open_levels
from distill.io.writers.datasource import add_layer, check_layer
from distill.io.writers.hdf5_tiff import write_hdf5, write_tiff
from distill.io.writers.label_group import as_label, is_label, list_label
from distill.io.writers.levels import plan_levels
from distill.io.writers.metadata import Format, Written, layout, voxel_offset
from distill.io.writers.target import Target, check_file, check_target, check_writable, parse_target, placing

_WIDE = 4  # bytes of a type of ids that is written as uint64
_OWN_TYPES = ("precomputed", "tiff")  # formats whose ids have a type of their own


@dataclass(frozen=True)
class Copying:
    """Options of a copy.

    Attributes:
        form: one of `distill.io.writers.target.FORMATS`; None = by the target's name.
        levels: number of pyramid levels including the finest; None = as many as are useful.
        labels: whether the values are ids; None = as metadata, type and values tell (`labels_or_grey.judge`).
        sections: first and one past the last; None = all.
        resolution: nm, overrides that of the source.
        offset: nm of the source's first voxel, overrides that of the source.
        overwrite: replace an existing target.
        every: take every n-th section only, which multiplies the section thickness.
        webknossos: list the copy as a layer in the store's `datasource-properties.json`.
    """

    form: str | None = None
    levels: int | None = 1
    labels: bool | None = None
    sections: tuple[int, int | None] | None = None
    resolution: Nanometres | None = None
    offset: Nanometres | None = None
    overwrite: bool = False
    every: int = 1
    webknossos: bool = False


@dataclass(frozen=True)
class Copied:
    """Description of a finished copy.

    Attributes:
        name: of the target, as a source.
        form: of the target.
        volume: the volume that was copied.
        labels: whether it was copied as ids.
        levels: extents z, y, x of the pyramid's levels.
    """

    name: str
    form: str
    volume: Volume
    labels: bool
    levels: tuple[tuple[int, int, int], ...]


def copy(source: str, target: str, how: Copying, on_part: Callable[[int, int], None]) -> Copied:
    """Copy a volume to another format.

    Args:
        source: see `open_volume`.
        target: path or address; `path:dataset` in Zarr, N5 and HDF5.
        how: options.
        on_part: called with the number of parts done and their total.

    Raises:
        DistillError: the source cannot be read, or the target exists, cannot be written or cannot store the values; an
            existing target is untouched.
    """
    to = parse_target(target, how.form)
    if not isinstance(to.place, Path):
        return _copy(source, to, how, on_part)
    check_writable(to.place)
    with claim(to.place):
        return _copy(source, to, how, on_part)


def _copy(source: str, to: Target, how: Copying, on_part: Callable[[int, int], None]) -> Copied:
    """See `copy`; the caller has claimed the target."""
    volume, labels = _open(source, how, to.form)
    if to.form in ("hdf5", "tiff"):
        if how.webknossos:
            raise SourceError(f"{to}: found {to.form}, expected Zarr v3 on this machine for --webknossos")
        return _copy_file(volume, to, labels, how, on_part)
    place = (
        voxel_offset(str(to), volume.resolution, volume.offset) if to.form == "precomputed" else None
    )  # the grids of all precomputed levels share a border
    levels = tuple(plan_levels(volume.size, volume.resolution, volume.offset, how.levels, place))
    written = Written(str(to), volume.channels, volume.dtype, labels, levels)
    plan = layout(cast(Format, to.form), written)
    check_target(to, how.overwrite)
    if how.webknossos:
        check_layer(to, written)
    label = labels and is_label(to)
    with placing(to, as_label(plan.documents, to.form) if label else plan.documents) as folder:
        opened = open_levels(folder, plan, written)
        total, done = count_blocks(opened, written), 0

        def step() -> None:
            nonlocal done
            done += 1
            on_part(done, total)

        copy_volume(volume, opened[0], written, step)
        coarsen(opened, written, step)
    if label:
        list_label(to)
    if how.webknossos:
        add_layer(to, written)
    return Copied(str(to), to.form, volume, labels, tuple(level.size for level in levels))


def _open(source: str, how: Copying, form: str) -> tuple[Volume, bool]:
    """Open the volume, its sections chosen, and return whether it holds ids."""
    labels = how.labels
    small = False  # ids of few bits keep their type
    if labels is None:
        stored = arrange(find_array(source, RAW_DATASET), split_selection(source)[1])
        verdict = judge(stored)
        labels = verdict.ids
        narrow = stored.dtype.kind in "iu" and stored.dtype.itemsize < _WIDE
        small = labels and narrow and form not in _OWN_TYPES
        if labels and not verdict.sure:
            note(f"{stored.source}: taken for ids, as {verdict.why}; --image takes it for grey values")
    volume = open_volume(
        source,
        resolution=how.resolution,
        offset=how.offset,
        grey=not labels,
        missing="report" if labels else None,
    )
    if labels and not small:
        volume = replace(open_labels(source, resolution=how.resolution), offset=volume.offset)
    if "polarity" not in volume.attributes:
        volume = one_channel(volume)
    if how.sections is not None:
        first, last = how.sections
        volume = some_sections(volume, first, volume.size[0] if last is None else last)
    return every_section(volume, how.every), labels


def _copy_file(volume: Volume, to: Target, labels: bool, how: Copying, on_part: Callable[[int, int], None]) -> Copied:
    if how.levels is not None and how.levels > 1:
        raise SourceError(f"{to}: found --levels {how.levels}, expected 1: {to.form} holds no pyramid")
    assert isinstance(to.place, Path)
    name = str(to)
    if to.form == "hdf5":
        dataset = to.dataset or (LABELS_DATASET if labels else RAW_DATASET)
        check_writable(to.place)
        write_hdf5(to.place, dataset, volume, labels, how.overwrite, on_part)
        name = f"{to.place}:{dataset}"
    else:
        check_file(to.place, how.overwrite)
        write_tiff(to.place, volume, labels, on_part)
        volume = replace(volume, dtype=np.dtype(np.uint16)) if labels else volume
    return Copied(name, to.form, volume, labels, (volume.size,))
