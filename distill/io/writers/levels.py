"""Plan image pyramids and their OME-Zarr metadata.

Every level is computed from the previous one by halving the axes with short voxels. Labels take the most frequent id,
so no new ids arise; all other types take the mean. Axes are z, y, x; resolution and offset are in nm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.core.geometry import Nanometres, Triple

_ALIKE = 1.5  # axes with a voxel size below this multiple of the shortest one are halved
_SMALL = 256  # pixels along y and x of the coarsest level


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes:
        step: voxels of the previous level per voxel of this one, for each axis.
        factor: voxels of the finest level per voxel of this one, for each axis.
        start: first voxel in the level's own grid, which has a border at position 0.
        size: extent in voxels.
        resolution: voxel size in nm.
        offset: position of the first voxel's corner in nm.
    """

    step: Triple
    factor: Triple
    start: Triple
    size: Triple
    resolution: Nanometres
    offset: Nanometres


def plan_levels(
    size: Triple, resolution: Nanometres, offset: Nanometres, count: int | None, start: Triple | None = None
) -> list[Level]:
    """Plan the levels of a pyramid, finest first.

    Args:
        size: extent of the finest level in voxels.
        resolution: its voxel size in nm.
        offset: position of its first voxel in nm.
        count: number of levels including the finest; None = until a section has at most 256 pixels along y and x. Fewer
            if no axis can be halved further.
        start: first voxel of the finest level, if the grids of all levels have a border at position 0; by default the
            grids begin with the volume.
    """
    levels = [Level((1, 1, 1), (1, 1, 1), start or (0, 0, 0), size, resolution, offset)]
    while count is None or len(levels) < count:
        last = levels[-1]
        step = _step(last)
        if step == (1, 1, 1) or (count is None and max(last.size[1:]) <= _SMALL):
            break
        first = _each(lambda a, f: a // f, last.start, step)
        stop = _each(lambda b, f: -(-b // f), _each(int.__add__, last.start, last.size), step)
        nm = last.resolution
        coarse = nm[0] * step[0], nm[1] * step[1], nm[2] * step[2]
        place = [first[a] * coarse[a] for a in range(3)] if start else list(offset)
        factor = _each(int.__mul__, last.factor, step)
        extent = _each(int.__sub__, stop, first)
        levels.append(Level(step, factor, first, extent, coarse, (place[0], place[1], place[2])))
    return levels


def ome_image(name: str, paths: Sequence[str], levels: Sequence[Level], channels: bool) -> dict[str, Any]:
    """Return one entry of `multiscales` (OME-Zarr 0.4 and 0.5), in nm.

    OME-Zarr gives positions of voxel centres: the centre of the first voxel of a coarser level is shifted by half of
    the increase in voxel size.

    Args:
        name: of the image.
        paths: of the levels' arrays, relative to the group.
        levels: finest first.
        channels: whether there is an axis c before z, y, x.
    """
    front = [1.0] if channels else []
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channels else []
    axes += [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    fine = levels[0].resolution
    datasets = []
    for path, level in zip(paths, levels, strict=True):
        gained = [(r - f) / 2 for r, f in zip(level.resolution, fine, strict=True)]
        centre = [o + g for o, g in zip(level.offset, gained, strict=True)]
        scale = {"type": "scale", "scale": [*front, *level.resolution]}
        translation = {"type": "translation", "translation": [0.0] * len(front) + centre}
        datasets.append({"path": path, "coordinateTransformations": [scale, translation]})
    return {"name": name, "axes": axes, "datasets": datasets}


def _step(level: Level) -> Triple:
    """Return the factors of the next halving: 2 along axes with short voxels that are longer than one voxel."""
    shortest = min((r for r, n in zip(level.resolution, level.size, strict=True) if n > 1), default=0.0)
    z, y, x = (2 if r < _ALIKE * shortest and n > 1 else 1 for r, n in zip(level.resolution, level.size, strict=True))
    return z, y, x


def _each(how: Any, a: Triple, b: Triple) -> Triple:
    return how(a[0], b[0]), how(a[1], b[1]), how(a[2], b[2])
