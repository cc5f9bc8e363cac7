"""Normalise blocks with the corrections of whole sections, computed once and independent of the division into blocks.

Workers compute the corrections of groups of sections; those of all sections are joined to one file before any block is
read.

Legend: S sections, n m tiles along y and x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import discard, replacing
from distill.core.errors import SourceError
from distill.core.geometry import Box
from distill.core.normalisation import Correction, Normaliser
from distill.data.crop_source import corrections_of
from distill.inference.blockwise.tables import FOLDER
from distill.io.readers.array import readable
from distill.io.volume import Volume
from distill.io.writers.store import writing

GROUP = 32  # sections of a task


@dataclass(frozen=True, eq=False)
class Sections:
    """Sections of a plan, normalised as they are read.

    Attributes:
        volume: the source.
        first: first section of the plan in the source.
        corrections: one per section of the plan, or one for all.
    """

    volume: Volume
    first: int
    corrections: Sequence[Correction]

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box of the plan (d, h, w), normalised to [0, 1]."""
        return self._normalised(self._raw(box), box)

    def read_counted(self, box: Box, own: Box) -> tuple[NDArray[np.float32], int]:
        """Read a box as `read` does, and count the voxels of value 0 of a box within it."""
        raw = self._raw(box)
        inside = raw[own.relative_to(box.start).slices]
        return self._normalised(raw, box), inside.size - int(np.count_nonzero(inside))

    def _raw(self, box: Box) -> NDArray[Any]:
        return self.volume.read(box.shift((self.first, 0, 0)))

    def _normalised(self, raw: NDArray[Any], box: Box) -> NDArray[np.float32]:
        found = np.empty(raw.shape, dtype=np.float32)
        for at, z in enumerate(range(box.start[0], box.stop[0])):
            correction = self.corrections[z if len(self.corrections) > 1 else 0]
            found[at] = correction.apply(raw[at], (box.start[1], box.start[2]))
        return found


def undone_groups(store: Path, normaliser: Normaliser, volume: Volume, depth: int) -> list[int]:
    """Return the groups of `GROUP` sections whose corrections are yet to be computed.

    Args:
        store: of the blocks.
        normaliser: of the sections.
        volume: the source.
        depth: number of sections used.
    """
    if not _by_section(normaliser, volume) or _path(store).is_file():
        return []
    return [number for number in range(-(-depth // GROUP)) if not _group_path(store, number).is_file()]


def write_group(store: Path, normaliser: Normaliser, volume: Volume, first: int, depth: int, number: int) -> None:
    """Compute the corrections of a group of sections and store them.

    Args:
        store: of the blocks.
        normaliser: of the sections.
        volume: the source.
        first: its first section used.
        depth: number of sections used.
        number: of the group.

    Raises:
        SourceError: a section cannot be read, or its grey values cannot be brought to the network's scale.
    """
    start, stop = number * GROUP, min(depth, (number + 1) * GROUP)
    found = corrections_of(volume.sections(first + start, first + stop), normaliser, volume, first + start)
    middle, width = (np.array([getattr(one, name) for one in found]) for name in ("middle", "width"))
    arrays = {"middle": middle, "width": width, "target": np.array([one.target for one in found])}
    with writing(store):
        _group_path(store, number).parent.mkdir(exist_ok=True)
    _write(_group_path(store, number), {**arrays, "tile": np.array(found[0].tile)})


def join_groups(store: Path, normaliser: Normaliser, volume: Volume, depth: int) -> None:
    """Write the corrections of all groups to one file, and remove those of the groups.

    Raises:
        SourceError: a group is missing or damaged.
    """
    if not _by_section(normaliser, volume) or _path(store).is_file():
        return
    parts = []
    for number in range(-(-depth // GROUP)):
        with readable(_group_path(store, number)), np.load(_group_path(store, number), allow_pickle=False) as kept:
            parts.append({name: kept[name] for name in ("middle", "width", "target", "tile")})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("middle", "width", "target")}
    _write(_path(store), {**joined, "tile": parts[0]["tile"]})
    with writing(store):
        discard(_group_path(store, 0).parent)


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    # two workers may process the same group if one was presumed dead: each has its own temporary file
    with writing(path), replacing(path, alone=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_corrections(store: Path, normaliser: Normaliser, volume: Volume) -> list[Correction]:
    """Read the corrections of a store: one per section, or one for all if they do not depend on the section.

    Raises:
        SourceError: they do not exist.
    """
    if not _by_section(normaliser, volume):
        return [normaliser.of(np.zeros((1, 1), volume.dtype))]
    path = _path(store)
    if not path.is_file():
        raise SourceError(f"{path}: found no corrections of grey values, expected those of distill segment")
    with readable(path), np.load(path) as kept:
        numbers, tile = zip(kept["middle"], kept["width"], kept["target"], strict=True), int(kept["tile"])
        unit = normaliser.normalisation.kind == "none"
        return [Correction(middle, width, float(target), tile, unit) for middle, width, target in numbers]


def _by_section(normaliser: Normaliser, volume: Volume) -> bool:
    """Return whether normalisation depends on each section: on its statistics, or on the value range of floats."""
    return normaliser.normalisation.kind != "none" or volume.dtype.kind == "f"


def _path(store: Path) -> Path:
    return store / FOLDER / "grey.npz"


def _group_path(store: Path, number: int) -> Path:
    return store / FOLDER / "grey" / f"{number:08d}.npz"
