"""How a store of blocks comes into being, and how one is taken up again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.core.atomic import discard, new_folder, sweep_leftovers
from distill.core.errors import SourceError
from distill.core.hardware import Chosen
from distill.inference.aside import set_aside
from distill.inference.blockwise.options import merges_contacts
from distill.inference.blockwise.plan import Plan
from distill.inference.blockwise.tables import FOLDER, Head, read_head, table_path
from distill.inference.blockwise.worker import Work
from distill.inference.grey_values import grey_settings
from distill.inference.rescaling.voxel_size import record_of
from distill.inference.settings import check_settings, read_settings, settings_path
from distill.io.volume import Volume
from distill.io.writers.output import Frame
from distill.io.writers.store import write_json, writing

FORMAT = 1
# may differ when a segmentation is resumed
FREE = ("created", "source", "model", "fragments", "device", "hardware", "precision_by", "threshold")


def settings_of(work: Work, frame: Frame, volume: Volume, chosen: Chosen, created: str) -> dict[str, Any]:
    """Collect all settings that determine the contents of the store, and some that are recorded for reference."""
    plan = work.plan
    return {
        "format": FORMAT,
        "created": created,
        "source": work.source,
        "dtype": str(volume.dtype),
        "size": list(frame.shape),
        "first": frame.first,
        "resolution": list(frame.resolution),
        "offset": list(frame.offset),
        "rescaled": record_of(work.rescaling, frame.resolution),
        "model": work.weights,
        "model_sha256": work.weights_sha256,
        "network": work.network,
        "method": work.method,
        "threshold": work.threshold,
        "device": work.device,
        "hardware": chosen.device,
        "precision": work.precision,
        "precision_by": chosen.reason,
        "backend": work.backend,
        **({} if work.ranges is None else {"calibration": work.ranges.digest}),
        **({"fragments": work.fragments[0], "fragments_sha256": work.fragments[1]} if work.fragments else {}),
        **({"orientations": work.orientations} if work.network == "teacher" else {}),
        **grey_settings(work.normaliser),
        "on_bad": dict(work.policies),
        "depth": plan.depth,
        "rows": [[group.start, group.stop] for group in plan.rows],
        "columns": [[group.start, group.stop] for group in plan.columns],
        "first_section_sha256": _fingerprint(volume, frame.first),
    }


def is_blocks(store: Path) -> bool:
    """Return whether a folder is a store of `distill segment`, finished or not."""
    return settings_path(store, FOLDER).is_file()


def prepare(out: Path, work: Work, settings: dict[str, Any], frame: Frame, *, resume: bool) -> bool:
    """Create the store atomically, or check that an existing one has the same blocks.

    Returns:
        Whether it was made.

    Raises:
        SourceError: a setting differs, or the disk refuses.
    """
    if resume and os.path.lexists(out):
        free = FREE if merges_contacts(work.method) else tuple(key for key in FREE if key != "threshold")
        begun = read_settings(out, FOLDER, "segment")
        moved = ("backend",) if begun.get("device") != settings["device"] else ()  # follows from the device
        older = tuple(key for key in ("on_bad", "orientations") if key not in begun)  # of a store from before them
        check_settings(out, begun, settings, (*free, *moved, *older))
        return False
    with writing(out):
        sweep_leftovers(out)
        with new_folder(out, lambda: set_aside(out)) as made:
            write_json(made / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
            replace(work, store=str(made)).shelf.create(frame.resolution)
            for name in ("tables", "pairs"):
                (made / FOLDER / name).mkdir()
            write_json(settings_path(made, FOLDER), settings)
    return True


def undone_blocks(out: Path, work: Work, note: Callable[[str], None]) -> list[int]:
    """Return the numbers of unfinished blocks; a block whose table exists but whose voxels are missing is reported.

    Raises:
        SourceError: a table is of no block of the plan.
    """
    plan = work.plan
    there = sorted(int(path.stem) for path in (out / FOLDER / "tables").glob("*.npz"))
    if there and there[-1] >= plan.count:
        raise SourceError(f"{out}: found a table of block {there[-1]}, expected blocks 0 to {plan.count - 1}")
    good = set()
    for index in there:
        block, table = plan.block(index), read_head(table_path(out, index))
        if table.box != block.box:
            raise SourceError(
                f"{table_path(out, index)}: found a block of voxels {table.box.start} to {table.box.stop}, expected "
                f"{block.box.start} to {block.box.stop}: it would overlap others"
            )
        lost = [
            name
            for name, stored in zip(("affinity", "supervoxels"), table.stored, strict=True)
            if stored and not work.shelf.path(name, block).is_file()
        ]
        if lost:
            note(f"{out}: {block} has a table, but its voxels are missing ({', '.join(lost)}); it is done again")
            with writing(out):
                discard(table_path(out, index))
        else:
            good.add(index)
    return [index for index in range(plan.count) if index not in good]


def generations(out: Path, plan: Plan) -> list[str]:
    """Return the generations of all blocks, in order.

    Raises:
        SourceError: a table is missing or broken.
    """
    return [head.generation for head in heads(out, plan)]


def heads(out: Path, plan: Plan) -> list[Head]:
    """Return the completion records of all blocks, in order.

    Raises:
        SourceError: a table is missing or broken.
    """
    return [read_head(table_path(out, index)) for index in range(plan.count)]


def _fingerprint(volume: Volume, first: int) -> str:
    """Hash the first section, to distinguish another volume of the same size."""
    section = next(iter(volume.sections(first, first + 1)))
    return hashlib.sha256(section.tobytes()).hexdigest()
