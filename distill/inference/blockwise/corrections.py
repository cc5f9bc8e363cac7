"""Normalise blocks with the corrections of whole sections, computed once and independent of the division into blocks.

Workers compute the corrections of groups of sections; those of all sections are joined to one file before any block is
read.

Legend: S sections, n m tiles along y and x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from distill.inference.blockwise.bad_sections import Remaining, inspected, looks_for, read_bad, verdict, write_bad
from distill.inference.blockwise.tables import FOLDER
from distill.inference.streaming.sections.quality import Flaw
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
        corrections: one per section of the source that is used, bad ones included, or one for all.
        remaining: sections of the plan, where bad ones are left out.
    """

    volume: Volume
    first: int
    corrections: Sequence[Correction]
    remaining: Remaining | None = None

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box of the plan (d, h, w), normalised to [0, 1]."""
        return self._read(box, Box(box.start, box.start))[0]

    def read_counted(self, box: Box, own: Box) -> tuple[NDArray[np.float32], int]:
        """Read a box as `read` does, and count the voxels of value 0 of a box within it."""
        return self._read(box, own)

    def _read(self, box: Box, own: Box) -> tuple[NDArray[np.float32], int]:
        found, zeros = np.empty(box.shape, dtype=np.float32), 0
        numbers = range(box.start[0], box.stop[0])
        good = numbers if self.remaining is None else self.remaining.good[numbers.start : numbers.stop]
        _, rows, columns = own.relative_to(box.start).slices
        for run in consecutive(good):
            there = Box((good[run.start], *box.start[1:]), (good[run.stop - 1] + 1, *box.stop[1:]))
            raw = self.volume.read(there.shift((self.first, 0, 0)))
            for at in run:
                section, z = raw[at - run.start], numbers[at]
                correction = self.corrections[good[at] if len(self.corrections) > 1 else 0]
                found[at] = correction.apply(section, (box.start[1], box.start[2]))
                if own.start[0] <= z < own.stop[0]:
                    inside = section[rows, columns]
                    zeros += inside.size - int(np.count_nonzero(inside))
        return found, zeros

    def before(self, at: int) -> int:
        """Return how many sections before section `at` of the plan it can be paired with."""
        return at if self.remaining is None else at - self.remaining.start_of(at)


def consecutive(numbers: Sequence[int]) -> Iterator[range]:
    """Iterate over the places of runs of consecutive numbers in an ascending list."""
    first = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield range(first, at)
            first = at


def undone_groups(
    store: Path, normaliser: Normaliser, volume: Volume, depth: int, policies: Mapping[str, str]
) -> list[int]:
    """Return the groups of `GROUP` sections that are yet to be looked at.

    Args:
        store: of the blocks.
        normaliser: of the sections.
        volume: the source.
        depth: number of sections used.
        policies: for bad sections, see `distill.inference.blockwise.bad_sections`.
    """
    if read_bad(store) is not None or not (looks_for(policies) or _by_section(normaliser, volume)):
        return []
    if not looks_for(policies) and _path(store).is_file():  # of an earlier version
        return []
    return [number for number in range(-(-depth // GROUP)) if not _group_path(store, number).is_file()]


def write_group(
    store: Path,
    normaliser: Normaliser,
    volume: Volume,
    first: int,
    depth: int,
    number: int,
    policies: Mapping[str, str],
) -> None:
    """Compute the corrections of a group of sections, find those that are bad, and store both.

    Args:
        store: of the blocks.
        normaliser: of the sections.
        volume: the source.
        first: its first section used.
        depth: number of sections used.
        number: of the group.
        policies: for bad sections.

    Raises:
        SourceError: a section cannot be read, its grey values cannot be brought to the network's scale, or it is bad
            and the policy for it is `fail`.
    """
    start, stop = number * GROUP, min(depth, (number + 1) * GROUP)
    found, flaws = _of_group(normaliser, volume, first + start, first + stop, policies)
    middle, width = (np.array([getattr(one, name) for one in found]) for name in ("middle", "width"))
    arrays = {"middle": middle, "width": width, "target": np.array([one.target for one in found])}
    with writing(store):
        _group_path(store, number).parent.mkdir(exist_ok=True)
    arrays |= {"tile": np.array(found[0].tile), "bad": np.array(sorted(flaws), np.int64) - first}
    for name in ("kind", "why"):
        arrays[name] = np.array([getattr(flaws[z], name) for z in sorted(flaws)], np.str_)
    _write(_group_path(store, number), arrays)


def _of_group(
    normaliser: Normaliser, volume: Volume, start: int, stop: int, policies: Mapping[str, str]
) -> tuple[list[Correction], dict[int, Flaw]]:
    """Return the corrections of sections, of which those of bad ones mean nothing, and their defects by number."""
    found: list[Correction | None] = []
    flaws: dict[int, Flaw] = {}
    judged = normaliser.normalisation.kind != "none"
    for z, image, known, inspector in inspected(volume, start, stop, policies):
        flaw = known
        correction = None
        if looks_for(policies):
            correction = None if image is None else _if_finite(image, normaliser, volume, z)
            flaw = verdict(volume.source, z, image, known, correction if judged else None, inspector, policies)
        if z < start:
            continue
        if flaw is not None:
            flaws[z] = flaw
            found.append(None)
        else:
            assert image is not None, "an unreadable section is bad"
            found += corrections_of([image], normaliser, volume, z) if correction is None else [correction]
    usable = next((one for one in found if one is not None), None)
    if usable is None:
        usable = normaliser.of(np.zeros(volume.size[1:], volume.dtype))
    return [usable if one is None else one for one in found], flaws


def _if_finite(image: NDArray[Any], normaliser: Normaliser, volume: Volume, z: int) -> Correction | None:
    """Return the correction of a section; None if it holds values that are no numbers."""
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        return None
    return corrections_of([image], normaliser, volume, z)[0]


def join_groups(store: Path, normaliser: Normaliser, volume: Volume, depth: int, policies: Mapping[str, str]) -> None:
    """Write the corrections and bad sections of all groups to one file each, and remove those of the groups.

    Raises:
        SourceError: a group is missing or damaged, or all sections are bad.
    """
    if read_bad(store) is not None or not _group_path(store, 0).parent.is_dir():
        return
    parts = []
    flaws: dict[int, Flaw] = {}
    for number in range(-(-depth // GROUP)):
        with readable(_group_path(store, number)), np.load(_group_path(store, number), allow_pickle=False) as kept:
            parts.append({name: kept[name] for name in ("middle", "width", "target", "tile")})
            if "bad" in kept.files:  # not in those of earlier versions
                bad = zip(kept["bad"].tolist(), kept["kind"].tolist(), kept["why"].tolist(), strict=True)
                flaws |= {z: Flaw(kind, why) for z, kind, why in bad}
    if _by_section(normaliser, volume):
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("middle", "width", "target")}
        _write(_path(store), {**joined, "tile": parts[0]["tile"]})
    write_bad(store, depth, flaws, policies)
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
