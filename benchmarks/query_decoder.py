"""Where the time and memory of a block go: AGQ network, queries, decoder, instances; watershed + waterz beside them.

    python benchmarks/query_decoder.py --json benchmarks/results/query_decoder.json

Every stage is held against a floor measured in the same run: its operations at the best rate of a matrix product or a
convolution, or its input read and its output written once at the rate of a copy, whichever takes longer.

The network has random weights unless --model names some; without a prior (`--network published`) their masks are noise
of thousands of pieces. Seeds, prior and waterz work on the same affinities, never on those of random weights: the
student's (--student), else the labels' own with noise.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from block_stages import GROUPS, NETWORKS, Block, Rates, given_seeds, load_network, whole_block
from hardware import DTYPES, available_bytes, copy_rate, machine, peak_rate
from scenes import read_scene, seeds_of
from tables import milliseconds, provenance, table, write_json

from distill.core.errors import DistillError
from distill.core.geometry import Triple, parse_triple
from distill.core.hardware import FULL
from distill.inference.options import Runtime
from distill.models.load import pick_device

SIZES = ("9,129,129", "9,193,193", "17,257,257", "17,385,385")
COUNTS = (10, 50, 100, 200)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        result = run(options)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json is not None:
        write_json(options.json, {**provenance(Path(__file__).name, argv), **result})
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the options ask for, printed as it is measured.

    Raises:
        DistillError: weights or data that cannot be used, a block larger than the data.
    """
    runtime = Runtime(pick_device(options.device), options.precision)
    network = load_network(options.network, options.model, runtime.device)
    whole = read_scene(options.data, parse_triple(options.block, "--block"), options.student, runtime)
    seeds = [seeds_of(whole.half, count) for count in sorted(options.components)]  # before anything takes minutes
    wanted = {name: dtype for name, dtype in DTYPES.items() if name in (FULL, options.precision)}
    peaks = {precision: peak_rate(runtime.device, dtype) for precision, dtype in wanted.items()}
    rates = Rates(peaks[options.precision], copy_rate(runtime.device), copy_rate(torch.device("cpu")))
    about = machine(runtime.device)
    print(f"{about['gpu'] or about['cpu']}, {about['threads']} threads, torch {about['torch']}, {options.precision}")
    name = options.network if options.model is None else Path(options.model).name
    print(f"network: {name}")
    for precision, peak in peaks.items():
        print(f"peak {precision}: {peak.per_second / 1e9:.0f} G operations/s ({peak.by})")
    print(f"copy: {rates.copy / 1e9:.1f} GB/s read and written; on the CPU {rates.host_copy / 1e9:.1f} GB/s")

    blocks: list[Block] = []
    left_out: list[Triple] = []
    for size in sorted((parse_triple(text, "--sizes") for text in options.sizes), key=math.prod):
        scene = read_scene(options.data, size, options.student, runtime)
        try:
            _check_room(blocks, size, runtime.device)
            blocks.append(whole_block(network, scene, rates, runtime, options.repeat))
        except (MemoryError, torch.cuda.OutOfMemoryError) as error:
            left_out.append(size)
            print(f"\nblock {_by(size)}: left out, {str(error).splitlines()[0]}")
            continue
        print(f"\n{describe(blocks[-1])}")
    if len(blocks) > 1:
        print(f"\nLeast ms and how they grow with the block\n{growth(blocks, [_by(b.block) for b in blocks])}")
    given = [given_seeds(network, whole, some, rates, runtime, options.repeat) for some in seeds]
    if given:
        print(f"\nLeast ms, peak MB and how they grow with the number of given seeds, block {_by(whole.block)}")
        print(growth(given, [f"{block.seeds} seeds" for block in given], memory=True))
    return {
        "machine": about,
        "precision": options.precision,
        "network": name,
        "affinities": "labels with noise" if options.student is None else Path(options.student).name,
        "data": options.data.name,
        "repeat": options.repeat,
        "warm_up": 1,
        "memory": "torch's allocator" if runtime.device.type == "cuda" else "high-water mark of the resident set",
        "peaks": {precision: asdict(peak) for precision, peak in peaks.items()},
        "copy_bytes_per_second": rates.copy,
        "host_copy_bytes_per_second": rates.host_copy,
        "blocks": [asdict(block) for block in blocks],
        "left_out": left_out,
        "given_seeds": [asdict(block) for block in given],
    }


def describe(block: Block) -> str:
    """A block's stages as a table, with the sum of each group below it."""
    stages = {stage.stage: stage for stage in block.stages}
    rows = []
    for group, titles in GROUPS.items():
        there = [stages[name] for name in titles if name in stages]
        rows += [
            [
                titles[s.stage],
                milliseconds(s.seconds_min),
                milliseconds(s.seconds_median),
                f"{s.operations / 1e9:.1f}",
                f"{s.bytes / 1e6:.1f}",
                milliseconds(s.floor),
                s.bound,
                f"{s.ratio:.1f}",
                "?" if s.peak_bytes is None else f"{s.peak_bytes / 1e6:.0f}",
            ]
            for s in there
        ]
        if there:
            least, median, floor = (
                sum(getattr(s, n) for s in there) for n in ("seconds_min", "seconds_median", "floor")
            )
            sums = (f"{sum(s.operations for s in there) / 1e9:.1f}", f"{sum(s.bytes for s in there) / 1e6:.1f}")
            ratio = f"{least / floor:.1f}"
            rows.append(
                [f"= {group}", milliseconds(least), milliseconds(median), *sums, milliseconds(floor), "", ratio, ""]
            )
    found = f"{block.seeds} seeds, {block.queries} queries, {block.instances} instances"
    if block.fragments is not None:
        found += f"; watershed: {block.fragments} fragments, waterz: {block.segments} segments"
    header = ["stage", "least ms", "median ms", "G operations", "least MB moved", "floor ms", "floor from"]
    return f"block {_by(block.block)}: {found}\n" + table([*header, "time / floor", "peak MB"], rows)


def growth(blocks: Sequence[Block], names: Sequence[str], *, memory: bool = False) -> str:
    """Stages of several blocks side by side; `memory` adds their peaks."""
    rows = []
    for titles in GROUPS.values():
        for stage, title in titles.items():
            found = [{s.stage: s for s in block.stages}.get(stage) for block in blocks]
            if any(found):
                cells = [milliseconds(s.seconds_min) if s else "" for s in found]
                if memory:
                    cells += [f"{s.peak_bytes / 1e6:.0f}" if s and s.peak_bytes is not None else "?" for s in found]
                rows.append([title, *cells])
    units = [f"{name}, ms" for name in names] + ([f"{name}, MB" for name in names] if memory else [])
    return table(["stage", *units], rows)


def _check_room(measured: Sequence[Block], size: Triple, device: torch.device) -> None:
    """The largest stage of the block before, scaled to this size, and as much again for what is held meanwhile."""
    free = available_bytes()
    if not measured or free is None or device.type == "cuda":
        return
    last = measured[-1]
    needed = 2 * max(s.peak_bytes or 0 for s in last.stages) * math.prod(size) / math.prod(last.block)
    if needed > free:
        raise MemoryError(f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _by(size: Triple) -> str:
    return " x ".join(map(str, size))


def _parser() -> argparse.ArgumentParser:
    default = Path(os.environ.get("DISTILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="Z,Y,X", help="blocks, voxels")
    parser.add_argument("--block", default="17,257,257", metavar="Z,Y,X", help="block for --components, voxels")
    parser.add_argument("--components", nargs="*", type=int, default=COUNTS, metavar="N", help="numbers of given seeds")
    parser.add_argument("--network", choices=list(NETWORKS), default="published", help="size, with random weights")
    parser.add_argument("--model", help="run folder or weights file of a teacher instead of random weights")
    parser.add_argument("--student", help="run folder or weights file whose affinities give seeds and go to waterz")
    parser.add_argument(
        "--data", type=Path, default=default / "ac4_quadrant.h5", help="labelled volume; default from DISTILL_DATA"
    )
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=list(DTYPES), default="32-true")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of every block")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
