"""One decoder tile of a trained student: the rounds over whole maps against the rounds in pieces, processor time.

    python benchmarks/decode_tile.py ac4_quadrant.h5:volumes/raw --model ac4 --first 64 --json OUT.json

The tile is the first of the slab that begins with section --first. Both ways take the same affinities and features; the
least of --repeat runs counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hardware import machine
from tables import provenance, write_json

from distill.core.allocator import keep_freed_memory
from distill.core.geometry import Box
from distill.core.hardware import AUTO, PRECISIONS, choose, computing
from distill.decoder.instances import block_instances
from distill.inference.in_memory import student_sections
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models.build import seed_rule
from distill.models.load import load_student


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="volume")
    parser.add_argument("--model", default="ac4")
    parser.add_argument("--first", type=int, default=0, help="section that the slab begins with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default=AUTO)
    parser.add_argument("--keep", action="store_true", help="keep freed memory, as the distill command does")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.keep:
        keep_freed_memory()
    found = measure(options)
    for name in ("whole maps", "pieces", "instances"):
        print(f"{name}: {found[name]:.2f} s of processor time")
    print(f"tile {found['tile']}, {found['queries']} queries of which {found['seeds']} seeds")
    if options.json is not None:
        write_json(
            options.json, {**provenance(Path(__file__).name, argv), "machine": machine(torch.device("cpu")), **found}
        )
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of the rounds, both ways, and of what makes instances of their masks."""
    device = torch.device("cpu")
    print(choose(options.precision, device).line, flush=True)
    runtime = Runtime(device, options.precision)
    model, volume = load_student(options.model, runtime.device), open_volume(options.source)
    assert model.slab is not None
    assert model.decoder is not None
    decoder, config = model.decoder, model.decoding
    depth, height, width = (min(a, b) for a, b in zip(config.block, volume.size, strict=True))
    depth = min(depth, volume.size[0] - options.first)
    grey = volume.read(Box((options.first, 0, 0), (options.first + depth, height, width)))
    sections = list(student_sections(model, grey, runtime, with_slab=True))
    joined = torch.stack([s.joined for s in sections if s.joined is not None])
    logits = torch.stack([s.logits for s in sections if s.logits is not None], 1)
    with torch.inference_mode(), computing(device, runtime.precision):
        given = model.slab.slab(model.slab.mix(joined).transpose(0, 1)[None], logits[None])
        rule = seed_rule(config)
        whole = least(lambda: decoder(given, rule=rule), options.repeat)
        pieces = least(lambda: decoder.last(given, rule=rule, background=not config.fill), options.repeat)
        output = decoder.last(given, rule=rule, background=not config.fill)
        instances = least(
            lambda: block_instances(
                output,
                0,
                (height, width),
                min_voxels=config.min_instance,
                min_piece=config.min_piece,
                fill=config.fill,
            ),
            options.repeat,
        )
    return {
        "precision": runtime.precision,
        "tile": [depth, height, width],
        "queries": output.valid.shape[1],
        "seeds": output.seeds.counts[0],
        "whole maps": whole,
        "pieces": pieces,
        "instances": instances,
        "kept": options.keep,
    }


def least(run: Callable[[], object], repeat: int) -> float:
    """Least processor seconds of some runs after a first one."""
    run()
    times = []
    for _ in range(repeat):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
