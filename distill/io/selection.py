"""What a source's text says beyond its path: `PATH[:DATASET][#KEY=VALUE]...`.

| key | value | meaning |
| --- | --- | --- |
| axes | zyxc, or z,y,x,c | what the axes are, in the array's own order |
| channel | number from 0 | the only channel to read |
| time | number from 0 | the only point in time to read |
| box | Z,Y,X:Z,Y,X | voxels from the first to before the second |
| resolution | Z,Y,X | nm per voxel |
| offset | Z,Y,X | nm of voxel 0, 0, 0 |
| missing | refuse or zero | parts that the file should hold and does not |
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from distill.core.choices import MissingData
from distill.core.errors import SourceError
from distill.core.geometry import Box, Nanometres, parse_numbers, parse_triple

KEYS = ("axes", "channel", "time", "box", "resolution", "offset", "missing")
_PART = re.compile(rf"#({'|'.join(KEYS)})=([^#]*)$")


@dataclass(frozen=True)
class Selection:
    """Which part of an array is read, and how; every value is the user's and wins over metadata.

    Attributes:
        axes: names in the array's own order.
        channel: the only one to read.
        time: the only point in time to read.
        box: voxels z, y, x.
        resolution: nm.
        offset: nm.
        missing: what to do about parts that are not stored; None leaves it to the reader.
    """

    axes: str | None = None
    channel: int | None = None
    time: int | None = None
    box: Box | None = None
    resolution: Nanometres | None = None
    offset: Nanometres | None = None
    missing: MissingData | None = None

    def __str__(self) -> str:
        """Write it as the end of a source."""
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Box):
                value = ":".join(",".join(map(str, corner)) for corner in (value.start, value.stop))
            elif isinstance(value, tuple):
                value = ",".join(f"{number:.10g}" for number in value)
            if value is not None:
                found.append(f"#{field.name}={value}")
        return "".join(found)


NOTHING = Selection()


def split_selection(text: str) -> tuple[str, Selection]:
    """Separate what is selected from a source.

    A path that exists as it is written is left alone, whatever it looks like.

    Raises:
        SourceError: a value that is not understood.
    """
    found = NOTHING
    while not os.path.lexists(text) and (part := _PART.search(text)):
        text, key = text[: part.start()], part[1]
        if getattr(found, key) is None:  # the last one wins
            changed: dict[str, Any] = {key: _value(text, key, part[2])}
            found = replace(found, **changed)
    return text, found


def with_selection(source: str, **chosen: str | int | None) -> str:
    """Add values from the command line to a source; None adds nothing.

    Raises:
        SourceError: a value that is not understood.
    """
    more = "".join(f"#{key}={value}" for key, value in chosen.items() if value is not None)
    if not more:
        return source
    for key, value in chosen.items():
        if value is not None:
            _value(f"--{key}", key, str(value))
    return source + more


def parse_box(text: str, name: str) -> Box:
    """Parse a box from `Z,Y,X:Z,Y,X`.

    Raises:
        SourceError: anything else, or a box without a voxel.
    """
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise SourceError("no colon")
        start, stop = parse_triple(first, name), parse_triple(last, name)
    except ValueError:
        raise SourceError(
            f"{name}: found box {text!r}, expected Z,Y,X:Z,Y,X such as 0,0,0:16,256,256, the first voxel and one past "
            "the last"
        ) from None
    if min(start) < 0 or any(b <= a for a, b in zip(start, stop, strict=True)):
        raise SourceError(f"{name}: found box {text!r}, expected a voxel from 0,0,0 and one past it on every axis")
    return Box(start, stop)


def _value(name: str, key: str, text: str) -> object:
    if key == "box":
        return parse_box(text, name)
    if key in ("resolution", "offset"):
        return parse_numbers(text, f"{name}: {key}")
    if key == "missing":
        if text not in ("refuse", "zero"):
            raise SourceError(f"{name}: found missing={text!r}, expected refuse or zero")
        return text
    if key == "axes":
        axes = text.replace(",", "").replace(" ", "").lower()
        if len(set(axes)) != len(axes) or set(axes) - set("tczyx") or not {"y", "x"} <= set(axes):
            raise SourceError(f"{name}: found axes {text!r}, expected an order of z, y, x and c or t, such as zyxc")
        return axes
    if not text.isdecimal() or len(text) > 9:
        raise SourceError(f"{name}: found {key} {text!r}, expected a number from 0")
    return int(text)
