"""Normalise blocks with the corrections of whole sections, computed once and independent of the division into blocks.

Legend: S sections, n m tiles along y and x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import replacing
from distill.core.errors import SourceError
from distill.core.geometry import Box
from distill.core.normalisation import Correction, Normaliser
from distill.data.crop_source import corrections_of
from distill.inference.blockwise.tables import FOLDER
from distill.io.readers.array import readable
from distill.io.volume import Volume
from distill.io.writers.store import writing


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
        raw = self.volume.read(box.shift((self.first, 0, 0)))
        found = np.empty(raw.shape, dtype=np.float32)
        for at, z in enumerate(range(box.start[0], box.stop[0])):
            correction = self.corrections[z if len(self.corrections) > 1 else 0]
            found[at] = correction.apply(raw[at], (box.start[1], box.start[2]))
        return found


def write_corrections(store: Path, normaliser: Normaliser, volume: Volume, first: int, depth: int) -> None:
    """Compute the corrections of all sections and store them; existing ones are kept.

    Args:
        store: of the blocks.
        normaliser: of the sections.
        volume: the source.
        first: its first section used.
        depth: number of sections used.

    Raises:
        SourceError: a section cannot be read, or its grey values cannot be brought to the network's scale.
    """
    path = _path(store)
    if not _by_section(normaliser, volume) or path.is_file():
        return
    found = corrections_of(volume.sections(first, first + depth), normaliser, volume, first)
    with writing(path), replacing(path) as temporary, temporary.open("wb") as file:
        middle, width = ([getattr(one, name) for one in found] for name in ("middle", "width"))
        np.savez(file, middle=middle, width=width, target=[one.target for one in found], tile=found[0].tile)


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
    """Whether sections are looked at: where statistics decide, and floats, whose range only the values tell."""
    return normaliser.normalisation.kind != "none" or volume.dtype.kind == "f"


def _path(store: Path) -> Path:
    return store / FOLDER / "grey.npz"
