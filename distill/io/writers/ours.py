"""Check, before a result is replaced, that nothing is deleted with it that this program did not create."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from distill.core.errors import SourceError

_JUNK = re.compile(
    r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\.nfs[0-9a-f]+|\.lock|.*\.writing|\..*\.(?:lock|new|old|partial)"
)
_SHOWN = 4
_OBJECTS = {"mesh": r"info|\d+:0(?::1)?", "skeletons": r"info|\d+"}


def check_only(name: object, folder: Path, ours: Callable[[str], bool]) -> None:
    """Look for files of others in a folder that is to be deleted.

    Args:
        name: of what is to be replaced, for messages.
        folder: that would be deleted; a link is not followed.
        ours: whether a file, by its path below the folder, is part of the result.

    Raises:
        SourceError: there are other files.
    """
    others: list[str] = []
    for path, folders, files in os.walk(folder):
        way = "" if path == str(folder) else os.path.relpath(path, folder) + "/"
        links = [one for one in folders if os.path.islink(os.path.join(path, one))]
        others += [way + one for one in (*files, *links) if not _JUNK.fullmatch(one) and not ours(way + one)]
        if len(others) > _SHOWN:
            break
    if others:
        more = " and more" if len(others) > _SHOWN else ""
        raise SourceError(
            f"{name}: holds {', '.join(sorted(others)[:_SHOWN])}{more}, which would be lost; expected another name, or "
            "these files moved away"
        )


def is_zarr_file(arrays: set[str]) -> Callable[[str], bool]:
    """Return a test for files of a Zarr hierarchy, version 2 or 3.

    Args:
        arrays: paths of its arrays below the folder; `.` for the folder itself.
    """
    inside = {"" if name == "." else f"{name}/" for name in arrays}
    groups = {"", *(f"{'/'.join(name.split('/')[:k])}/" for name in arrays for k in range(1, name.count("/") + 1))}
    about = re.compile(r"(.*/)?(?:zarr\.json|\.z(?:array|attrs|group|metadata))")
    chunk = re.compile(r"c(?:[./]\d+)*|\d+(?:[./]\d+)*")

    def ours(file: str) -> bool:
        if (found := about.fullmatch(file)) is not None:
            return (found[1] or "") in inside | groups
        return any(file.startswith(way) and chunk.fullmatch(file[len(way) :]) for way in inside)

    return ours


def is_n5_file(file: str) -> bool:
    """Return whether a file may be part of an N5 dataset, or of a group of its levels s0, s1, ..."""
    return re.fullmatch(r"(?:s\d+/)?(?:attributes\.json|\d+(?:/\d+)*)", file) is not None


def is_precomputed_file(keys: set[str]) -> Callable[[str], bool]:
    """Return a test for files of a precomputed volume.

    Args:
        keys: of its scales.
    """
    span = r"-?\d+--?\d+"
    chunk = re.compile(rf"(?:{span}_{span}_{span}|[0-9a-f]+\.(?:shard|index|data))(?:\.(?:gz|br))?")

    def ours(file: str) -> bool:
        folder, _, name = file.rpartition("/")
        if file.startswith((".mesh.blocks/", ".skeletons.blocks/")):  # of a run of distill mesh that was stopped
            return True
        return file in ("info", "provenance") or (folder in keys and chunk.fullmatch(name) is not None)

    return ours


def is_object_file(kind: str) -> Callable[[str], bool]:
    """Return a test for files that `distill mesh` makes, by their names in its folder.

    Args:
        kind: `mesh` or `skeletons`.
    """
    return lambda file: re.fullmatch(_OBJECTS[kind], file) is not None


def is_store_file(file: str) -> bool:
    """Return whether a file is part of a store that `distill stream` or `distill segment` makes."""
    return file.split("/")[0] in _STORE


_STORE = (
    *("zarr.json", "manifest.jsonl", "levels", "stream", "blocks"),
    *("affinity", "embedding", "supervoxels", "segmentation"),
)
