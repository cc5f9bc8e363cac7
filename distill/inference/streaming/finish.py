"""Last pass over a stream's store: assign final ids 1..n, and combine the manifests.

The pass can run at any time and repeatedly, over the completed sections: supervoxels are kept, and the segmentation is
renamed into place once complete.

Memory: arrays of every supervoxel and contact (see docs/how-to/streaming.md), and one shard of voxels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.atomic import discard, put_in_place, sweep_leftovers, write_text
from distill.core.claim import claim
from distill.core.errors import SourceError
from distill.core.geometry import Box, grid
from distill.core.labels import Relabelling
from distill.core.version import VERSION
from distill.inference.aside import forget_replaced
from distill.inference.assembly import SupervoxelTables
from distill.inference.streaming.output.manifest import STREAM_FOLDER, Line, all_lines, method_of, read_job
from distill.inference.streaming.output.store import INNER, ome
from distill.inference.streaming.slabs import read_slab_table, seam
from distill.io.volume import open_volume
from distill.io.writers.pyramid import forget_levels
from distill.io.writers.store import create_zarr, write_group_attributes, writing

_SHARD = 1024
_NOT_READ = ("skip", "bridge")  # what was done about a section


@dataclass(frozen=True)
class Finished:
    """Summary of a finished store."""

    about: dict[str, Any]
    sections: int
    bad: list[Line]


def finish(out: Path, merge: float | None) -> Finished:
    """Assign final ids to the completed sections.

    Args:
        out: store of a stream, finished before or not.
        merge: merge objects whose contact has a mean affinity above this; None = the setting recorded at the start of
            the stream.

    Raises:
        SourceError: not the store of a stream, another process writes to it, nothing is done, ranges of it are missing,
            or the disk refuses.
    """
    read_job(out)  # nothing is locked that is no stream
    with claim(out):
        found = finish_claimed(out, merge)
        if found.sections == read_job(out)["sections"]:  # all of it, so that nothing else is waited for
            forget_replaced(out)
        return found


def finish_claimed(out: Path, merge: float | None) -> Finished:
    """See `finish`; the caller has claimed the store."""
    job, lines = read_job(out), all_lines(out)
    count = _contiguous(out, lines, job)
    _check_any_read(out, lines)
    threshold = job["merge_threshold"] if merge is None else merge
    about: dict[str, Any] = {
        "version": VERSION,
        "source": job["source"],
        "model": job["model"],
        "precision": job["precision"],
        "backend": job["backend"],
        "method": method_of(job) if job["segment"] else None,
        "merge_threshold": threshold,
        "offsets": job["offsets"],
        "rescaled": job.get("rescaled"),
        "sections": count,
        "bad_sections": {str(line.section): line.flaw for line in lines if line.flaw},
    }
    empty = [line.empty for line in lines if line.empty is not None]
    if len(empty) == len(lines):
        about["empty"] = round(sum(empty) / len(empty), 6)
    names = (
        ["affinity"] + ["embedding"] * (job["embedding"] != "none") + ["supervoxels", "segmentation"] * job["segment"]
    )
    metadata = ome(names, tuple(job["resolution"]), tuple(job["offset"]))
    forget_levels(out)
    if job["segment"]:
        mapping = final_ids(out, count, int(job["depth"]), threshold)
        about["made_from"] = digest_of(mapping)
        _write_segmentation(out, mapping, job, count, about["made_from"])
        about["objects"] = int(mapping.new.max(initial=0))
    _write_manifest(out, lines)
    write_group_attributes(out, {"made_by": about, "ome": metadata})
    return Finished(about, count, [line for line in lines if line.flaw])


def final_ids(out: Path, count: int, depth: int, threshold: float | None) -> Relabelling:
    """Compute final ids 1..n of the supervoxels that own a voxel from the tables of all slabs.

    Args:
        out: store of a stream.
        count: number of completed sections.
        depth: sections per layer.
        threshold: see `merge_contacts`; None = use shared voxels only.
    """
    return read_slab_tables(out, count, depth).by_contacts(threshold)


def read_slab_tables(out: Path, count: int, depth: int) -> SupervoxelTables:
    """Read the tables of all complete slabs, and compare neighbouring ones; arguments as for `final_ids`."""
    tables = SupervoxelTables()
    before: Path | None = None
    for path in sorted((out / STREAM_FOLDER / "slabs").glob("*.npz")):
        if int(path.stem) * depth >= count:  # of an incomplete layer
            continue
        table = read_slab_table(path, planes=False)
        if before is not None:
            tables.join(*seam(before, path))
        tables.add(table.ids, table.seen, table.shares, table.contacts)
        before = path
    return tables


def _contiguous(out: Path, lines: Sequence[Line], job: dict[str, Any]) -> int:
    """Return the number of completed sections without a gap from the first one."""
    numbers = [line.section for line in lines]
    if not numbers:
        raise SourceError(f"{out}: found no section that is done, expected at least one layer of {job['depth']}")
    if len(set(numbers)) != len(numbers):
        raise SourceError(f"{out}: found sections noted twice in {STREAM_FOLDER}/manifest-*.jsonl, expected each once")
    total = job["sections"]
    holes = sorted(set(range(total if total and job["parts"] > 1 else numbers[-1] + 1)) - set(numbers))
    if holes:
        raise SourceError(
            f"{out}: found {len(numbers)} sections done, but not {_spans(holes)}; expected all: run those "
            "ranges with --resume"
        )
    return len(numbers)


def _check_any_read(out: Path, lines: Sequence[Line]) -> None:
    """Refuse a result that no section went into.

    Raises:
        SourceError: every section was skipped or bridged.
    """
    if all(line.taken in _NOT_READ for line in lines):
        kinds = ", ".join(sorted({str(line.flaw) for line in lines}))
        raise SourceError(
            f"{out}: none of {len(lines)} sections was taken ({kinds}; first {lines[0].source}: {lines[0].why}), "
            "expected at least one; --overwrite begins again once they can be read"
        )


def _spans(numbers: Sequence[int]) -> str:
    """Format ranges of numbers for a message, such as 16 to 31, 64 to 79."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = ", ".join(f"{a} to {b}" for a, b in found[:6])
    return f"{shown} and others" if len(found) > 6 else shown


def digest_of(mapping: Relabelling) -> str:
    """Return the SHA-256 of final ids, which links a segmentation to its `made_by` metadata."""
    found = hashlib.sha256()
    for array in (mapping.old, mapping.new):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _write_segmentation(out: Path, mapping: Relabelling, job: dict[str, Any], count: int, made_from: str) -> None:
    """Write the first `count` sections with their final ids to an array that is renamed into place once complete."""
    made = out / STREAM_FOLDER / "finishing"
    with writing(out):
        discard(made)
        sweep_leftovers(made)
        sweep_leftovers(out / "segmentation")
    supervoxels = open_volume(f"{out}:supervoxels", missing="zero")
    depth, (_, height, width) = int(job["depth"]), supervoxels.size
    array = create_zarr(
        made,
        "segmentation",
        shape=(job["sections"] or count, height, width),
        dtype=np.uint64,
        resolution=supervoxels.resolution,
        offset=supervoxels.offset,
        chunks=(depth, INNER, INNER),
        shards=(depth, _SHARD, _SHARD),
        attributes={"made_from": made_from},
    )
    shard: tuple[int, int, int] = (array.chunks[0], array.chunks[1], array.chunks[2])
    for box in grid(Box.of_shape((count, height, width)), shard):
        ids: NDArray[np.uint64] = mapping.apply(supervoxels.read(box))
        array.write(box, ids)
    with writing(out):
        put_in_place(made / "segmentation", out / "segmentation")
        discard(made)


def _write_manifest(out: Path, lines: Sequence[Line]) -> None:
    path = out / "manifest.jsonl"
    text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
    write_text(path, text)
