"""Add coarser levels to an existing array, so that a viewer need not load all of it (`distill pyramid`)."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill.core.atomic import discard, hidden, put_in_place, sweep_leftovers
from distill.core.claim import claim
from distill.core.errors import SourceError
from distill.core.notes import note
from distill.io.arrange import arrange
from distill.io.labels_or_grey import judge
from distill.io.readers.names import inner_path
from distill.io.readers.zarr import open_tensorstore, zarr_node
from distill.io.selection import split_selection
from distill.io.source import find_array
from distill.io.volume import RAW_DATASET, open_volume
from distill.io.writers.blocks import coarsen, count_blocks, open_levels, reopen_level
from distill.io.writers.levels import Level, ome_image, plan_levels
from distill.io.writers.metadata import Written, layout
from distill.io.writers.store import write_group_attributes, write_json, writing

LEVELS = "levels"  # group with the levels of arrays that are not numbered


def add_levels(
    source: str, count: int | None, labels: bool | None, overwrite: bool, on_part: Callable[[int, int], None]
) -> list[Level]:
    """Add coarser levels to an array of a local Zarr v3 store, and list them in its group's `multiscales`.

    The levels of an array `0` are stored next to it as `1`, `2`, ...; those of any other array NAME in `levels/NAME/1`
    and so on.

    Args:
        source: `STORE:ARRAY`, or the folder of an OME-Zarr image.
        count: levels, the finest included; None for as many as it takes until a section has at most 256 pixels along
            y and x.
        labels: whether the values are ids; None = as metadata, type and values tell (`labels_or_grey.judge`).
        overwrite: replace existing levels.
        on_part: called with the number of parts done and their total.

    Returns:
        The levels, the finest first.

    Raises:
        SourceError: the source is not such an array, it already has levels, or they cannot be written; the array itself
            is never modified.
    """
    folder = _folder(find_array(source, RAW_DATASET).source)
    with claim(_store_of(folder)):
        return _add_levels(source, folder, count, labels, overwrite, on_part)


def _store_of(folder: Path) -> Path:
    """Return the outermost Zarr group around an array."""
    store = folder
    for above in folder.absolute().parents:
        if zarr_node(above) is None:
            break
        store = above
    return store


def _add_levels(
    source: str,
    folder: Path,
    count: int | None,
    labels: bool | None,
    overwrite: bool,
    on_part: Callable[[int, int], None],
) -> list[Level]:
    """See `add_levels`; the caller has claimed the store."""
    volume = open_volume(source, missing="zero")
    group, name = folder.parent, folder.name
    node = zarr_node(group)
    if volume.kind != "zarr3" or node is None or node[0] != "group3":
        raise SourceError(f"{source}: found {volume.kind}, expected an array in a Zarr v3 group of this machine")
    if labels is None:
        verdict = judge(arrange(find_array(source, RAW_DATASET), split_selection(source)[1]))
        labels = verdict.ids
        if labels and not verdict.sure:
            note(f"{source}: taken for ids, as {verdict.why}; --image takes it for grey values")
    levels = plan_levels(volume.size, volume.resolution, volume.offset, count)
    written = Written(str(folder), volume.channels, volume.dtype, labels, tuple(levels))
    plan = layout("zarr3", written)
    places = [str(k) if name == "0" else f"{LEVELS}/{name}/{k}" for k in range(1, len(levels))]
    images = list(node[1].get("ome", {}).get("multiscales") or [])
    known = _known_levels(group, name, images)
    _check(group, known, places, overwrite)
    work = hidden(folder, "partial")
    try:
        opened = [reopen_level(open_tensorstore(folder, "zarr3")), *open_levels(work, plan, written, 1)]
        total, done = count_blocks(opened[1:], written), 0

        def step() -> None:
            nonlocal done
            done += 1
            on_part(done, total)

        coarsen(opened, written, step)
        with writing(folder):
            for k in range(1, len(levels)):
                write_json(work / str(k) / "zarr.json", plan.documents[f"{k}/zarr.json"])
            channels = volume.channels is not None
            _name_levels(group, images, ome_image(name, [name], levels[:1], channels))
            for path in known:
                shutil.rmtree(group / path, ignore_errors=True)
            for k, place in enumerate(places, 1):
                _make_groups(group, group / place)
                put_in_place(work / str(k), group / place)
            _name_levels(group, images, ome_image(name, [name, *places], levels, channels))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return levels


def forget_levels(group: Path) -> None:
    """Remove the coarser levels of all arrays of a store, before one of the arrays is replaced.

    The metadata name them no more before the first one goes.

    Args:
        group: the store.

    Raises:
        SourceError: the disk refuses.
    """
    node = zarr_node(group)
    found = node[1].get("ome") if node else None
    images = found.get("multiscales") if isinstance(found, dict) else None
    with writing(group):
        if found and isinstance(images, list) and any(len(image["datasets"]) > 1 for image in images):
            finest = [image | {"datasets": image["datasets"][:1]} for image in images]
            write_group_attributes(group, {"ome": found | {"multiscales": finest}})
        discard(group / LEVELS)
        sweep_leftovers(group / LEVELS)


def _folder(source: str) -> Path:
    """Return the folder of a local Zarr array."""
    store, _, dataset = source.rpartition(":")
    return Path(store, dataset) if store and os.path.isdir(store) else Path(source)


def _known_levels(group: Path, name: str, images: Sequence[dict[str, Any]]) -> list[str]:
    """Return levels of an array that the metadata name, all of them where this program puts levels.

    Raises:
        SourceError: one lies elsewhere, or is a link: it is not this program's to replace.
    """
    known = [
        inner_path(group, one["path"])
        for image in images
        if image["datasets"][0]["path"] == name
        for one in image["datasets"][1:]
    ]
    ours = re.compile(r"[1-9]\d*" if name == "0" else rf"{LEVELS}/{re.escape(name)}/[1-9]\d*")
    for path in known:
        if not ours.fullmatch(path) or os.path.realpath(group / path) != str(Path(os.path.realpath(group)) / path):
            raise SourceError(f"{group}: names a level {path!r} that this program did not make; it is not replaced")
    return known


def _check(group: Path, known: Sequence[str], places: Sequence[str], overwrite: bool) -> None:
    if known and not overwrite:
        raise SourceError(f"{group}: has levels already, {', '.join(known)}; expected none, or --overwrite")
    for place in places:
        ours = place in known or place.startswith(f"{LEVELS}/")
        if (group / place).exists() and not ours:
            raise SourceError(f"{group / place}: exists already and is no level; expected nothing there")


def _name_levels(group: Path, images: Sequence[dict[str, Any]], image: dict[str, Any]) -> None:
    """Write the group's `multiscales`, adding or replacing the entry of one array."""
    first = image["datasets"][0]["path"]
    kept = list(images)
    at = next((k for k, one in enumerate(kept) if one["datasets"][0]["path"] == first), len(kept))
    kept[at : at + 1] = [image | {"name": kept[at].get("name", first) if at < len(kept) else first}]
    node = zarr_node(group)
    others = node[1].get("ome", {}) if node else {}
    write_group_attributes(group, {"ome": {**others, "version": "0.5", "multiscales": kept}})


def _make_groups(group: Path, place: Path) -> None:
    for above in reversed([above for above in place.parents if group in above.parents]):
        above.mkdir(exist_ok=True)
        if not (above / "zarr.json").exists():
            write_json(above / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
