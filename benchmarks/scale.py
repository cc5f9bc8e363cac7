"""What volumes from 1 Gvoxel to 1 Pvoxel cost, from rates measured on small ones: the tables of docs/results/scale.md.

    python benchmarks/scale.py --results benchmarks/results

A volume is a cube in nm at voxels of 30 x 6 x 6 nm. Counts are exact: they come from the plan of blocks that `distill
segment` uses and from the layout of the stores. Everything else is a measured rate times a count:

- `block_contents_*.json`: supervoxels, contacts, bytes and processor seconds of the blocks of 24 x 1024 x 1024 voxels;
- `agglomeration_parts_*.json`: seconds and memory of a merge in one process, by contacts;
- `stream_smp_epyc.json`: operations and seconds of a section of the student.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler_simulation import DECODER

from distill.core.geometry import Triple
from distill.inference.blockwise.finish import NAMES, part_count
from distill.inference.blockwise.plan import Plan, make_plan
from distill.inference.streaming.slabs import most_sections
from distill.segmentation.stitching import MOST_BLOCKS

VOXELS = tuple(10**n for n in range(9, 16))
RATIO = 5  # pixels of 6 nm per section of 30 nm
HALO = 112  # pixels, of the bundled student
DEPTH = DECODER.block[0] - 1  # sections of a layer of a stream
SHARD = 1024


def cube(voxels: int) -> Triple:
    """Return (D, H, W) of a cube in nm of about so many voxels."""
    depth = round((voxels / RATIO**2) ** (1 / 3))
    return depth, RATIO * depth, RATIO * depth


@dataclass(frozen=True)
class Counts:
    """What a segmentation of a volume consists of; exact.

    Attributes:
        shape: (D, H, W).
        blocks: of the default size.
        pairs: of blocks with a common face.
        faces: voxels of these faces.
        tiles: of the decoder, each with a number of its own.
        computed: voxels that the decoder computes.
        network: voxels that the network reads and computes, with the halo.
        shards: of each of the arrays.
    """

    shape: Triple
    blocks: int
    pairs: int
    faces: int
    tiles: int
    computed: int
    network: int
    shards: int

    @classmethod
    def of(cls, shape: Triple) -> Counts:
        """Count without a list of blocks."""
        plan = make_plan(shape, DECODER, None)
        z, y, x = plan.grid
        depths = shape[0] + plan.slabs - 1  # neighbouring slabs share a section
        return cls(
            shape,
            plan.count,
            (z - 1) * y * x + z * (y - 1) * x + z * y * (x - 1),
            (z - 1) * shape[1] * shape[2] + shape[0] * ((y - 1) * shape[2] + (x - 1) * shape[1]),
            plan.slabs * plan.tiles,
            depths * _side(plan, 0, 0) * _side(plan, 1, 0),
            depths * _side(plan, 0, HALO) * _side(plan, 1, HALO),
            part_count(shape),
        )

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def files(self) -> int:
        """Files at the end of the last pass, when scratch and final arrays are both there."""
        return 3 * self.blocks + self.pairs + (len(NAMES) + 1) * self.shards  # table and two of scratch; a mark

    @property
    def in_one_folder(self) -> int:
        """Files of the largest folder."""
        return max(self.blocks, self.pairs, self.shards)


def _side(plan: Plan, axis: int, halo: int) -> int:
    groups = (plan.rows, plan.columns)[axis]
    return sum(one.stop - one.start + (2 * halo if len(groups) > 1 else 0) for one in groups)


@dataclass(frozen=True)
class Rates:
    """Measured rates of a method; bytes are compressed.

    Attributes:
        block: processor seconds per voxel computed.
        pair: processor seconds per voxel of a face.
        shard: processor seconds per voxel.
        supervoxels: per voxel.
        contacts: per voxel, within blocks and across.
        arrays: bytes of affinities, supervoxels and segmentation per voxel.
        scratch: bytes of affinities and supervoxels per voxel.
        tables: bytes without faces per voxel.
        faces: bytes of faces and pairs per voxel of a face.
        operations: of the network per voxel.
        merge_seconds: processor seconds per contact of the volume, in one process.
        merge_bytes: peak memory of that process per contact.
        last_bytes: peak memory of the last part per contact of the volume, where contacts are merged in parts.
    """

    block: float
    pair: float
    shard: float
    supervoxels: float
    contacts: float
    arrays: float
    scratch: float
    tables: float
    faces: float
    operations: float
    merge_seconds: float
    merge_bytes: float
    last_bytes: float

    @classmethod
    def read(cls, results: Path, method: str) -> Rates:
        """Read the latest results in a folder."""
        (row,) = (one for one in _latest(results, "block_contents_*.json")["rows"] if one["method"] == method)
        merges = _latest(results, "agglomeration_parts_*.json")["rows"]
        contacts = max(one["contacts"] for one in merges)
        steps = {one["step"]: one for one in merges if one["contacts"] == contacts}
        last = max(step for step in steps if step.isdigit())
        section = _latest(results, "stream_smp_epyc.json")
        seconds, voxels, faces = row["task_seconds"], row["voxels"], row["face_voxels"]
        scratch = row["affinity_bytes"] + row["supervoxels_bytes"]
        return cls(
            block=sum(row["seconds_per_million"]) / len(row["seconds_per_million"]) / 1e6,
            pair=sum(seconds["solve_pair"]) / faces,
            shard=sum(seconds["lay_part"]) / voxels,
            supervoxels=row["supervoxels"] / voxels,
            contacts=(row["contacts_inside"] + row["contacts_across"]) / voxels,
            arrays=(scratch + row["segmentation_bytes"]) / voxels,
            scratch=scratch / voxels,
            tables=(row["table_bytes"] - row["face_bytes"]) / voxels,
            faces=(row["face_bytes"] + row["pair_bytes"]) / faces,
            operations=section["operations_per_section"] / (section["size"][0] * section["size"][1]),
            merge_seconds=steps["whole"]["processor_seconds"] / contacts,
            merge_bytes=1e9 * steps["whole"]["peak_gb"] / contacts,
            last_bytes=1e9 * steps[last]["peak_gb"] / contacts,
        )


def _latest(results: Path, pattern: str) -> Any:
    return json.loads(sorted(results.glob(pattern))[-1].read_text())


def tables(rates: Rates) -> list[str]:
    """Return the tables of docs/results/scale.md, one by one, in Markdown."""
    counts = [Counts.of(cube(voxels)) for voxels in VOXELS]
    names = [_amount(voxels, "voxel") for voxels in VOXELS]

    def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    first = markdown(
        ["", "D x H x W", "blocks", "pairs", "ids used", "files", "largest folder"],
        [
            [
                name,
                " x ".join(f"{n:,}" for n in one.shape),
                f"{one.blocks:,}",
                f"{one.pairs:,}",
                _percent(one.tiles / MOST_BLOCKS),
                _amount(one.files),
                _amount(one.in_one_folder),
            ]
            for name, one in zip(names, counts, strict=True)
        ],
    )
    second = markdown(
        ["", "operations", "read", "scratch", "arrays", "tables", "supervoxels", "contacts"],
        [
            [
                name,
                _amount(one.network * rates.operations),
                _amount(one.network, "B"),
                _amount(one.voxels * rates.scratch, "B"),
                _amount(one.voxels * rates.arrays, "B"),
                _amount(one.voxels * rates.tables + one.faces * rates.faces, "B"),
                _amount(one.voxels * rates.supervoxels),
                _amount(one.voxels * rates.contacts),
            ]
            for name, one in zip(names, counts, strict=True)
        ],
    )
    third = markdown(
        ["", "blocks", "pairs", "shards", "merge at once", "its memory", "memory of the last part"],
        [
            [
                name,
                _hours(one.computed * rates.block),
                _hours(one.faces * rates.pair),
                _hours(one.voxels * rates.shard),
                _hours(one.voxels * rates.contacts * rates.merge_seconds),
                _amount(one.voxels * rates.contacts * rates.merge_bytes, "B"),
                _amount(one.voxels * rates.contacts * rates.last_bytes, "B"),
            ]
            for name, one in zip(names, counts, strict=True)
        ],
    )
    fourth = markdown(
        ["", "manifest lines", "slab tables", "shards of an array", "ids used", "a layer in memory, at least"],
        [
            [
                name,
                f"{one.shape[0]:,}",
                f"{-(-one.shape[0] // DEPTH):,}",
                f"{-(-one.shape[0] // DEPTH) * (-(-one.shape[1] // SHARD)) ** 2:,}",
                _percent(one.shape[0] / most_sections(one.shape[1:], DECODER, DEPTH)),
                _amount(DEPTH * (3 + 8) * one.shape[1] * one.shape[2], "B"),
            ]
            for name, one in zip(names, counts, strict=True)
        ],
    )
    return [first, second, third, fourth]


def _amount(number: float, unit: str = "") -> str:
    """Format a number with two digits and a prefix."""
    power = 0
    while number >= 999.5 and power < 7:
        number, power = number / 1000, power + 1
    prefix = ("", "k", "M", "G", "T", "P", "E", "Z")[power]
    return f"{number:.{1 if number < 9.95 and power else 0}f} {prefix}{unit}".strip()


def _percent(share: float) -> str:
    """Format a share in percent."""
    return "below 0.01 %" if share < 1e-4 else f"{100 * share:.{0 if share > 0.0995 else 2}f} %"


def _hours(seconds: float) -> str:
    """Format a time in seconds, hours or years."""
    for unit, length in (("years", 365.25 * 24 * 3600), ("h", 3600.0)):
        if seconds >= length:
            return f"{seconds / length:,.{1 if seconds < 9.95 * length else 0}f} {unit}"
    return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--method", default="flood")
    asked = parser.parse_args(argv)
    print("\n\n".join(tables(Rates.read(asked.results, asked.method))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
