"""The last pass: voxels go from the shelf to the arrays that users see, and supervoxels get their final ids.

Every worker writes whole shards, so that none is shared; the arrays take their names when they are whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import attributes
from distill.core.atomic import flush
from distill.core.geometry import Box, Nanometres, Triple, grid
from distill.inference.blockwise.merge import open_mapping
from distill.inference.blockwise.scratch import INNER
from distill.inference.blockwise.tables import FOLDER
from distill.inference.blockwise.worker import Done, Work, finished
from distill.io.volume import open_volume
from distill.io.writers.store import create_zarr, open_zarr_for_writing, put_in_place, writing

NAMES = ("affinity", "supervoxels", "segmentation")
_SHARD = 1024
_DEPTH = 16  # sections of a chunk: 16 x 128 x 128 voxels are as many as 64 x 64 x 64


def parts(shape: Triple) -> list[Box]:
    """Shards of the final arrays, of a shape (D, H, W)."""
    return grid(Box.of_shape(shape), _shard(shape))


def begin(store: Path, shape: Triple, names: Sequence[str], resolution: Nanometres, offset: Nanometres) -> None:
    """Make final arrays under a temporary name, none of their voxels written."""
    made = _folder(store)
    with writing(store):
        shutil.rmtree(made, ignore_errors=True)
    depth = _shard(shape)[0]
    for name in names:
        channels = (len(NEAREST),) if name == "affinity" else ()
        create_zarr(
            made,
            name,
            shape=(*channels, *shape),
            dtype=np.uint8 if name == "affinity" else np.uint64,
            resolution=resolution,
            offset=offset,
            chunks=(*(1 for _ in channels), depth, INNER, INNER),
            shards=(*channels, *_shard(shape)),
            attributes=attributes(NEAREST) if name == "affinity" else None,
        )
    (made / "done").mkdir()


def undone(store: Path, shape: Triple) -> list[int]:
    """Numbers of the parts that are yet to be laid."""
    there = {path.name for path in (_folder(store) / "done").iterdir()}
    return [number for number in range(len(parts(shape))) if str(number) not in there]


def begun(store: Path) -> bool:
    """Whether a pass was begun and is not over."""
    return (_folder(store) / "done").is_dir()


def lay_part(work: Work, number: int) -> Done:
    """Write one shard of every array and note that it is on disk."""
    done, store = Done(number), Path(work.store)
    box, made = parts(work.shape)[number], _folder(store)
    with done.timed("ids"):
        arrays: dict[str, NDArray[Any]] = {}
        if (made / "supervoxels").is_dir():
            arrays |= _shelved(work, box)
            supervoxels = arrays["supervoxels"]
        else:  # merged again with another threshold
            supervoxels = open_volume(f"{store}:supervoxels").read(box)
        arrays["segmentation"] = open_mapping(store).apply(supervoxels)
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
    return finished(done)


def _shelved(work: Work, box: Box) -> dict[str, NDArray[Any]]:
    """Affinities and supervoxels of a box of the result."""
    names, rescaling = ("affinity", "supervoxels"), work.rescaling
    if rescaling is None:
        return {name: work.shelf.read(name, box) for name in names}
    within = rescaling.model_box(box)
    affinity, ids = (work.shelf.read(name, within) for name in names)
    return {
        "affinity": rescaling.affinity(affinity, NEAREST, box, within),
        "supervoxels": rescaling.nearest(ids, box, within),
    }


def put_all_in_place(store: Path) -> None:
    """Give the arrays their names; may be broken off and called again."""
    made = _folder(store)
    with writing(store):
        for name in NAMES:
            if (made / name).is_dir():
                put_in_place(made / name, store / name)
        flush(store)
        over = made.with_name("finished")  # at once, so that half of a pass is never taken for one that goes on
        shutil.rmtree(over, ignore_errors=True)
        made.rename(over)
        shutil.rmtree(over, ignore_errors=True)


def _shard(shape: Triple) -> Triple:
    return min(_DEPTH, shape[0]), min(_SHARD, _whole(shape[1])), min(_SHARD, _whole(shape[2]))


def _whole(side: int) -> int:
    return side if side <= INNER else -(-side // INNER) * INNER


def _folder(store: Path) -> Path:
    return store / FOLDER / "finishing"
