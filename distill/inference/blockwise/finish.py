"""The last pass: voxels go from the shelf to the arrays that users see, and supervoxels get their final ids.

Every worker writes whole shards, so that none is shared; the arrays take their names when they are whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import attributes
from distill.core.atomic import discard, flush, new_folder, put_in_place
from distill.core.errors import SourceError
from distill.core.geometry import Box, Nanometres, Triple
from distill.core.timing import StageTimer
from distill.inference.blockwise.merge import open_mapping
from distill.inference.blockwise.scratch import INNER
from distill.inference.blockwise.tables import FOLDER
from distill.inference.blockwise.worker import TaskReport, Work, task_report
from distill.io.readers.zarr import zarr_node
from distill.io.volume import open_volume
from distill.io.writers.store import create_zarr, open_zarr_for_writing, writing

NAMES = ("affinity", "supervoxels", "segmentation")
_SHARD = 1024
_DEPTH = 16  # sections of a chunk: 16 x 128 x 128 voxels are as many as 64 x 64 x 64


def part_count(shape: Triple) -> int:
    """Return the number of shards of final arrays of a shape (D, H, W)."""
    return math.prod(_counts(shape))


def part(shape: Triple, number: int) -> Box:
    """Return the box of a part: one shard of the arrays."""
    sides, (_, rows, columns) = _shard(shape), _counts(shape)
    place = number // (rows * columns), number // columns % rows, number % columns
    z, y, x = (n * side for n, side in zip(place, sides, strict=True))
    return Box((z, y, x), (z + sides[0], y + sides[1], x + sides[2])).intersect(Box.of_shape(shape))


def begin(
    store: Path, digest: str, shape: Triple, names: Sequence[str], resolution: Nanometres, offset: Nanometres
) -> None:
    """Make final arrays, none of their voxels written, in a folder that is named after what they are made from.

    Args:
        store: of the blocks.
        digest: of the final ids, see `distill.inference.blockwise.merge.merge_digest`.
        shape: (D, H, W).
        names: of the arrays.
        resolution: nm.
        offset: nm.
    """
    folder = folder_of(store, digest)
    depth = _shard(shape)[0]

    def make_room() -> None:
        for other in (store / FOLDER).glob("finishing*"):  # half in place, it would be taken for the whole
            discard(other)

    with writing(store), new_folder(folder, make_room) as made:
        for name in names:
            channels = (len(NEAREST),) if name == "affinity" else ()
            own = {"affinity": attributes(NEAREST), "segmentation": {"made_from": digest}}
            create_zarr(
                made,
                name,
                shape=(*channels, *shape),
                dtype=np.uint8 if name == "affinity" else np.uint64,
                resolution=resolution,
                offset=offset,
                chunks=(*(1 for _ in channels), depth, INNER, INNER),
                shards=(*channels, *_shard(shape)),
                attributes=own.get(name),
            )
        (made / "done").mkdir()


def undone(store: Path, digest: str, shape: Triple) -> list[int]:
    """Return the numbers of the unfinished parts of the last pass."""
    there = {path.name for path in (folder_of(store, digest) / "done").iterdir()}
    return [number for number in range(part_count(shape)) if str(number) not in there]


def begun(store: Path, digest: str) -> bool:
    """Return whether a last pass with these final ids was started and is not finished."""
    return (folder_of(store, digest) / "done").is_dir()


def lay_part(work: Work, digest: str, number: int) -> TaskReport:
    """Write one shard of every array, and record that it is on disk."""
    timer, store = StageTimer(), Path(work.store)
    box, made = part(work.shape, number), folder_of(store, digest)
    with timer.timed("ids"):
        arrays: dict[str, NDArray[Any]] = {}
        if (made / "supervoxels").is_dir():
            arrays |= _shelved(work, box)
            supervoxels = arrays["supervoxels"]
        else:  # merged again with another threshold
            supervoxels = open_volume(f"{store}:supervoxels", missing="zero").read(box)
        arrays["segmentation"] = open_mapping(store, digest).apply(supervoxels)
        for name, array in arrays.items():
            target = open_zarr_for_writing(made, name)
            target.write(box, array)
            chunk = [a // b for a, b in zip(box.start, target.chunks[-3:], strict=True)]
            file = (made / name / "c").joinpath(*(["0"] if array.ndim == 4 else []), *map(str, chunk))
            with writing(made):
                for at in (file, *(folder for folder in file.parents if made in folder.parents)):
                    if at.exists():
                        flush(at)
        with writing(made):
            (made / "done" / str(number)).touch()
            flush(made / "done")
    return task_report(number, timer)


def _shelved(work: Work, box: Box) -> dict[str, NDArray[Any]]:
    """Read affinities and supervoxels of a box of the result from the scratch arrays; bad sections are 0."""
    if work.remaining is None:
        return _shelved_sections(work, box)
    there, at = work.remaining.within(box)
    arrays: dict[str, NDArray[Any]] = {
        "affinity": np.zeros((len(NEAREST), *box.shape), np.uint8),
        "supervoxels": np.zeros(box.shape, np.uint64),
    }
    if len(at):
        for name, found in _shelved_sections(work, there).items():
            arrays[name][..., at, :, :] = found
    return arrays


def _shelved_sections(work: Work, box: Box) -> dict[str, NDArray[Any]]:
    """Read affinities and supervoxels of a box of the plan's sections."""
    names, rescaling = ("affinity", "supervoxels"), work.rescaling
    if rescaling is None:
        return {name: work.shelf.read(name, box) for name in names}
    within = rescaling.model_box(box)
    affinity, ids = (work.shelf.read(name, within) for name in names)
    return {
        "affinity": rescaling.affinity(affinity, NEAREST, box, within),
        "supervoxels": rescaling.nearest(ids, box, within),
    }


def put_all_in_place(store: Path, digest: str) -> None:
    """Give the arrays their names, the segmentation last; may be broken off and called again.

    Raises:
        SourceError: the disk refuses, or the segmentation in place is of other final ids.
    """
    made = folder_of(store, digest)
    with writing(store):
        for name in NAMES:
            if (made / name).is_dir():
                put_in_place(made / name, store / name)
        flush(store)
        if laid(store) != digest:
            raise SourceError(f"{store}:segmentation: found one of other final ids; replace it with --overwrite")
        discard(made)


def laid(store: Path) -> str | None:
    """Return the digest that the segmentation in place was made from; None without one."""
    node = zarr_node(store / "segmentation")
    found = None if node is None else node[1].get("made_from")
    return found if isinstance(found, str) else None


def _counts(shape: Triple) -> Triple:
    z, y, x = (-(-n // side) for n, side in zip(shape, _shard(shape), strict=True))
    return z, y, x


def _shard(shape: Triple) -> Triple:
    return min(_DEPTH, shape[0]), min(_SHARD, _whole(shape[1])), min(_SHARD, _whole(shape[2]))


def _whole(side: int) -> int:
    return side if side <= INNER else -(-side // INNER) * INNER


def folder_of(store: Path, digest: str) -> Path:
    """Return where the arrays of final ids are written until they are whole."""
    return store / FOLDER / f"finishing-{digest[:16]}"
