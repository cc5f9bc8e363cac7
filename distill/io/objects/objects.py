"""Add surfaces and skeletons to a precomputed segmentation on this machine (`distill mesh`).

Blocks are cut first, each on disk when it is complete, so that a run that is repeated continues. Their parts are then
joined object by object in a hidden folder, which is renamed when all are there; `info` names it last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import new_folder, sweep_folder
from distill.core.claim import claim
from distill.core.errors import SourceError
from distill.core.geometry import Box, Triple
from distill.io.objects.fragments import Fragments, Part, block_boxes, joined, load, objects, save
from distill.io.objects.skeletons import INFO as SKELETONS
from distill.io.objects.skeletons import block_skeletons, finished, skeletoniser, write_skeleton
from distill.io.objects.surfaces import INFO as MESHES
from distill.io.objects.surfaces import block_surfaces, mesher, placed, simplified, write_surface
from distill.io.readers.precomputed import is_precomputed
from distill.io.volume import Volume, open_labels
from distill.io.writers.ours import check_only, is_object_file
from distill.io.writers.store import write_json, writing

Kind = Literal["mesh", "skeletons"]
OnPart = Callable[[int, int], None]
BLOCK: Triple = (64, 512, 512)


@dataclass(frozen=True)
class Objects:
    """What to make of a segmentation, and how.

    Attributes:
        kinds: `mesh`, `skeletons` or both.
        level: of the pyramid, 0 = full resolution.
        block: largest block z, y, x in voxels.
        error: by how many nm removed vertices may shift a surface; 0 = keep all.
        smallest: voxels below which a part of an object in a block has no skeleton.
        twig: nm below which branches of a skeleton are dropped.
        overwrite: replace what is there.
    """

    kinds: tuple[Kind, ...] = ("mesh",)
    level: int = 0
    block: Triple = BLOCK
    error: float = 40.0
    smallest: int = 1000
    twig: float = 900.0
    overwrite: bool = False


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        kind: `mesh` or `skeletons`.
        folder: that holds it.
        count: number of objects.
        points: number of vertices or nodes.
    """

    kind: Kind
    folder: Path
    count: int
    points: int


def write_objects(path: str | Path, how: Objects, on_part: OnPart) -> list[Made]:
    """Add surfaces, skeletons or both to a precomputed segmentation.

    Args:
        path: folder with `info`.
        how: options.
        on_part: called with the blocks and objects done and their number.

    Raises:
        DistillError: it is no segmentation in precomputed, a package is missing, something is there already, or the
            disk refuses; what was there is untouched.
    """
    folder = Path(path)
    info = _info(folder)
    volume = _level(folder, info, how.level)
    if min(how.block) < 2:
        raise SourceError(f"--block: found {how.block}, expected at least 2 voxels along every axis")
    for kind in how.kinds:
        mesher() if kind == "mesh" else skeletoniser()
        _check_free(folder, info, kind, how.overwrite)
    with claim(folder):
        sweep_folder(folder)
        boxes = block_boxes(volume.size, how.block)
        return [_make(folder, kind, volume, boxes, how, on_part) for kind in how.kinds]


def _info(folder: Path) -> dict[str, Any]:
    if not is_precomputed(folder):
        raise SourceError(
            f"{folder}: found no precomputed volume, expected one on this machine: distill copy SOURCE {folder}"
        )
    info: dict[str, Any] = json.loads((folder / "info").read_text(encoding="utf-8"))
    if info.get("type") != "segmentation":
        raise SourceError(
            f"{folder}: found type {info.get('type')!r}, expected a segmentation: distill copy SOURCE {folder} --labels"
        )
    return info


def _level(folder: Path, info: dict[str, Any], level: int) -> Volume:
    scales = info["scales"]
    if not 0 <= level < len(scales):
        raise SourceError(
            f"--level: found {level}, expected one of 0 to {len(scales) - 1} of {folder}; more levels: distill copy "
            f"SOURCE {folder} --levels N"
        )
    return open_labels(f"{folder}:{scales[level]['key']}")


def _check_free(folder: Path, info: dict[str, Any], kind: Kind, overwrite: bool) -> None:
    named = info.get(kind)
    if named is None:
        return
    if not overwrite:
        raise SourceError(f"{folder}: its info names {kind} {named!r} already, expected none, or --overwrite")
    if named == kind and (folder / kind).exists():
        check_only(folder / kind, folder / kind, is_object_file(kind))


def _make(folder: Path, kind: Kind, volume: Volume, boxes: list[Box], how: Objects, on_part: OnPart) -> Made:
    scratch = folder / f".{kind}.blocks"
    with writing(scratch):
        _begin(scratch, _settings(folder, kind, how))
        for done, box in enumerate(boxes):
            on_part(done, len(boxes))
            if not (scratch / str(done)).is_dir():
                save(scratch / str(done), _cut(kind, volume, box, how))
    tables = [load(scratch / str(number)) for number in range(len(boxes))]
    there = objects(tables)
    total, count, points = len(boxes) + len(there), 0, 0
    where = folder / kind
    with writing(where), new_folder(where, partial(_retire, folder, kind)) as made:
        write_json(made / "info", MESHES if kind == "mesh" else SKELETONS)
        for done, (one, places) in enumerate(there.items(), len(boxes)):
            on_part(done, total)
            written = _write(kind, made, one, joined([tables[table].part(at) for table, at in places]), volume, how)
            count, points = count + (written > 0), points + written
    on_part(total, total)
    write_json(folder / "info", {**_info(folder), kind: kind})
    shutil.rmtree(scratch, ignore_errors=True)
    return Made(kind, where, count, points)


def _retire(folder: Path, kind: Kind) -> None:
    """Take a name out of `info` and delete what it names."""
    info = _info(folder)
    if info.pop(kind, None) is not None:
        write_json(folder / "info", info)
    shutil.rmtree(folder / kind, ignore_errors=True)


def _settings(folder: Path, kind: Kind, how: Objects) -> dict[str, Any]:
    """Return what the blocks depend on."""
    scale = _info(folder)["scales"][how.level]
    smallest = how.smallest if kind == "skeletons" else 0
    shown = asdict(replace(how, kinds=(kind,), smallest=smallest, error=0.0, twig=0.0, overwrite=False))
    return {"how": shown, "scale": hashlib.sha256(json.dumps(scale, sort_keys=True).encode()).hexdigest()}


def _begin(scratch: Path, settings: dict[str, Any]) -> None:
    """Keep the blocks of an earlier run with the same settings, and no others."""
    file, text = scratch / "settings.json", json.loads(json.dumps(settings))
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == text:
        sweep_folder(scratch)
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    write_json(file, settings)


def _cut(kind: Kind, volume: Volume, box: Box, how: Objects) -> Fragments:
    labels: NDArray[np.uint64] = volume.read(box).astype(np.uint64, copy=False)
    if kind == "mesh":
        return block_surfaces(labels, box, volume.size)
    return block_skeletons(labels, box, volume.resolution, how.smallest)


def _write(kind: Kind, folder: Path, one: int, part: Part, volume: Volume, how: Objects) -> int:
    """Write one object and return the number of its points; 0 where nothing is left of it."""
    points, links, radii = placed(part.points, volume.resolution, volume.offset), part.links, part.radii
    if kind == "mesh":
        points, links = simplified(points, links, how.error)
        write_surface(folder, one, points, links)
        return len(points)
    first = points.min(axis=0)  # float32 keeps the places of small numbers exactly
    points, links, radii = finished(points - first, links, radii, how.twig)
    if len(links):
        write_skeleton(folder, one, points + first, links, radii)
    return len(points) if len(links) else 0
