"""Bring an array into the order z, y, x or c, z, y, x, by what its metadata or the user say of its axes.

Names decide. Where there are none, three axes are z, y, x and four are c, z, y, x; shapes that contradict that are
refused or reported, never guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from distill.core.errors import SourceError
from distill.core.notes import note
from distill.io.readers.array import Cut, Index, Reading, StoredArray, StoredOpener
from distill.io.selection import Selection

_ALIASES = {"channel": "c", "channels": "c", "ch": "c", "time": "t", "frame": "t", "c^": "c", "k": "c"}
_PLACEHOLDERS = ("dim_", "phony_dim_", "axis_", "axis-", "dim")
_COLOURS = 4  # at most
_SIDE = 32  # pixels; narrower arrays say nothing about which axis is which


@dataclass(frozen=True)
class _Way:
    """From a stored array to one in order: the stored axis of each axis, None for one that is not stored."""

    axes: tuple[int | None, ...]
    fixed: dict[int, int]  # stored axis: the one position that is read


def arrange(stored: StoredArray, chosen: Selection) -> StoredArray:
    """Turn an array's axes to z, y, x or c, z, y, x.

    Args:
        stored: as its reader found it.
        chosen: what the user says of axes, channel and time.

    Returns:
        The array with three or four axes; resolution and offset z, y, x where they are known.

    Raises:
        SourceError: axes that are not known, more than one point in time, or a channel or time that is not there.
    """
    names = _names(stored, chosen)
    wanted = [name for name in "czyx" if name in names or name != "c"]
    fixed = {at: 0 for at, name in enumerate(names) if name not in wanted}
    for key, letter in (("time", "t"), ("channel", "c")):
        number = getattr(chosen, key)
        if letter not in names:
            if number:
                raise SourceError(f"{stored.source}: found no axis of {key}s, expected --{key} 0 or none")
            continue
        at = names.index(letter)
        extent = stored.shape[at]
        if number is not None and number >= extent:
            raise SourceError(f"{stored.source}: found {extent} {key}s, expected --{key} from 0 to {extent - 1}")
        if number is not None:
            fixed[at] = number
        elif letter == "t" and at in fixed and extent != 1:
            raise SourceError(
                f"{stored.source}: found {extent} points in time, expected one of them as --time 0 to {extent - 1}"
            )
    way = _Way(tuple(names.index(name) if name in names else None for name in wanted), fixed)
    if "c" in wanted and names.index("c") in fixed:
        way = replace(way, axes=way.axes[1:])
    return _through(stored, names, way)


def _names(stored: StoredArray, chosen: Selection) -> list[str]:
    """Return a name for every axis; `-` for one that is left out."""
    shape = stored.shape
    if chosen.axes is not None:
        if len(chosen.axes) != len(shape):
            raise SourceError(
                f"{stored.source}: found axes={chosen.axes}, expected a name for each of {len(shape)} axes {shape}"
            )
        if stored.axes is not None and tuple(chosen.axes) != stored.axes:
            note(f"{stored.source}: axes are taken as {chosen.axes}, the file says {','.join(stored.axes)}")
        return list(chosen.axes)
    said = _known(stored)
    return _guessed(stored) if said is None else said


def _known(stored: StoredArray) -> list[str] | None:
    """Return the names by the metadata; None where these give none."""
    if stored.axes is None or all(str(name).startswith(_PLACEHOLDERS) for name in stored.axes):
        return None
    if len(stored.axes) != len(stored.shape):
        note(f"{stored.source}: names {len(stored.axes)} axes of {len(stored.shape)}; the names are not used")
        return None
    names = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in stored.axes]
    names = [
        "-" if name not in tuple("tczyx") and n == 1 else name for name, n in zip(names, stored.shape, strict=True)
    ]
    unknown = [name for name in names if name not in tuple("tczyx-")]
    twice = {name for name in names if name != "-" and names.count(name) > 1}
    if unknown or twice or not {"y", "x"} <= set(names):
        raise SourceError(
            f"{stored.source}: found axes {', '.join(stored.axes)} of shape {stored.shape}, expected z, y, x, and c or "
            "t; name them in the array's own order as #axes=zyx after the source"
        )
    if "z" not in names and "t" in names and stored.shape[names.index("t")] > 1:
        names[names.index("t")] = "z"
        note(f"{stored.source}: found axes {', '.join(stored.axes)}, points in time are taken as sections")
    return names


def _guessed(stored: StoredArray) -> list[str]:
    shape = stored.shape
    if len(shape) == 3:
        if shape[0] >= _SIDE and shape[1] >= _SIDE and 2 * shape[2] < min(shape[:2]):
            note(
                f"{stored.source}: names no axes; {shape} is taken as z, y, x; if it is x, y, z: #axes=xyz after the "
                "source"
            )
        return list("zyx")
    if len(shape) == 4 and min(shape[1:3]) >= _SIDE and shape[3] <= _COLOURS:
        if shape[3] == 1:
            note(f"{stored.source}: names no axes; {shape} is taken as z, y, x and one channel")
            return list("zyxc")
        raise SourceError(
            f"{stored.source}: found shape {shape} without names of axes, which may be z, y, x, c or c, z, y, x; "
            "expected one of these as #axes=zyxc or #axes=czyx after the source"
        )
    if len(shape) == 4:
        return list("czyx")
    front = len(shape) - 4
    if front > 0 and all(n == 1 for n in shape[:front]):
        return ["-"] * front + list("czyx")
    raise SourceError(
        f"{stored.source}: found shape {shape}, expected 3 axes (z, y, x) or 4 axes (c, z, y, x); name others as "
        "#axes=tczyx after the source"
    )


def _through(stored: StoredArray, names: Sequence[str], way: _Way) -> StoredArray:
    spatial = way.axes[-3:]
    ordered = tuple("czyx"[-len(way.axes) :])
    if way.axes == tuple(range(len(stored.shape))):
        return replace(stored, axes=ordered)
    chunks = stored.chunks
    return replace(
        stored,
        shape=tuple(1 if at is None else stored.shape[at] for at in way.axes),
        resolution=_placed(stored.resolution, names, spatial),
        offset=_placed(stored.offset, names, spatial),
        opener=partial(_open_arranged, stored.opener, way, len(stored.shape)),
        chunks=chunks and tuple(1 if at is None else chunks[at] for at in way.axes),
        axes=ordered,
    )


def _placed(
    values: tuple[float, ...] | None, names: Sequence[str], spatial: Sequence[int | None]
) -> tuple[float, ...] | None:
    """Return values z, y, x of ones by stored axis, or by stored axis of space."""
    if values is None or None in spatial:
        return None
    if len(values) == len(names):
        return tuple(values[at] for at in spatial if at is not None)
    in_space = [at for at, name in enumerate(names) if name in ("z", "y", "x")]
    if len(values) == len(in_space):
        return tuple(values[in_space.index(at)] for at in spatial if at is not None)
    return values


@contextmanager
def _open_arranged(opener: StoredOpener, way: _Way, rank: int, reading: Reading) -> Iterator[Cut]:
    with opener(reading) as cut:

        def turned(index: Index) -> Any:
            stored: list[slice] = [slice(0, 1)] * rank
            for at, position in way.fixed.items():
                stored[at] = slice(position, position + 1)
            for source, part in zip(way.axes, index, strict=True):
                if source is not None:
                    stored[source] = part
            block = cut(tuple(stored))
            block = block[tuple(0 if at in way.fixed else slice(None) for at in range(rank))]
            left = [at for at in range(rank) if at not in way.fixed]
            block = block.transpose([left.index(at) for at in way.axes if at is not None])
            for at, axis in enumerate(way.axes):
                block = np.expand_dims(block, at) if axis is None else block
            # An axis that is not stored has extent 1, and may be cut to nothing.
            return block[
                tuple(part if axis is None else slice(None) for axis, part in zip(way.axes, index, strict=True))
            ]

        yield turned
