"""What bfloat16 and AVX-512 are worth on a CPU: one training step, one section, one decoder block, in four ways.

    python benchmarks/precision.py --json OUT.json

Each of float32 and bfloat16 is measured with all instruction sets of the CPU, and with AVX-512, AMX and bfloat16
switched off: `ONEDNN_MAX_CPU_ISA=AVX2` for oneDNN in PyTorch and OpenVINO, `ATEN_CPU_CAPABILITY=avx2` for PyTorch's own
kernels. Each runs in processes of one thread. All data come from the sample of mouse cortex in the package.
Times are processor times, the least of --repeat runs after one that is not counted, so that other work on the machine
matters little. Training does not use AMX.

- step: `configs/ac4_cpu` on crops of 6 x 160 x 160: a step of the student alone, and one with the teacher
- section: the student `ac4` on sections of 512 x 512, from grey values to affinities, per section
- block: the query decoder of `ac4` on 16 x 272 x 272 voxels: the network, and the instances from its masks
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import machine
from numpy.typing import NDArray
from tables import provenance, table, write_json
from training_step import Variant

from distill.config import load_pair
from distill.core.allocator import keep_freed_memory
from distill.core.hardware import AUTO, FULL, MIXED, choose, computing
from distill.data.sample import write_sample
from distill.decoder.instances import block_instances
from distill.inference.in_memory import student_sections
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models.build import seed_rule
from distill.models.load import load_student
from distill.training.data import open_parts
from students.streaming.runner import SectionRunner

CPU = torch.device("cpu")
WITHOUT = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PAIR = Path(__file__).resolve().parents[1] / "configs" / "ac4_cpu"
ROWS = ("step", "step with teacher", "section eager", "section openvino", "block network", "block instances")
_SIDE, _DEPTH, _BLOCK = 512, 6, (16, 272, 272)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in processes of their own, print a table, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=("step", "section", "block"), default=["step", "section", "block"])
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--precision", choices=(FULL, MIXED), help=argparse.SUPPRESS)  # of a measuring process
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.precision:
        keep_freed_memory()
        print(json.dumps(measure(options.precision, options.rows, options.repeat)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    for sets, variables in (("all instruction sets", {}), ("AVX2 only", WITHOUT)):
        for precision in (FULL, MIXED):
            one = found[f"{sets}, {precision}"] = {}
            for row in options.rows:  # each in a process of its own: training avoids AMX for the whole process
                words = [__file__, "--precision", precision, "--repeat", str(options.repeat), "--rows", row]
                said = subprocess.run(
                    [sys.executable, *words],
                    env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                one.update(json.loads(said.stdout.splitlines()[-1]))
            print(f"{sets}, {precision}: {one}", file=sys.stderr, flush=True)
    lines = [[row, *(f"{one[row]:.3g}" for one in found.values())] for row in ROWS if row in next(iter(found.values()))]
    lines.append(["`auto` takes", *(one["auto"] for one in found.values())])
    print(table(["processor seconds", *found], lines))
    if options.json is not None:
        write_json(options.json, {**provenance(Path(__file__).name, argv), "machine": machine(CPU), "found": found})
    return 0


def measure(precision: str, rows: Sequence[str], repeat: int) -> dict[str, Any]:
    """Processor seconds in this process's instruction sets.

    Args:
        precision: `FULL` or `MIXED`.
        rows: some of step, section, block.
        repeat: counted runs.
    """
    chosen = choose(AUTO, CPU)
    found: dict[str, Any] = {"device": chosen.device, "auto": chosen.precision}
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.h5"
        write_sample(sample)
        if "step" in rows:
            found.update(steps(sample, precision, repeat))
        raw = read_sample(sample)
        if "section" in rows:
            for backend in ("eager", "openvino"):
                found[f"section {backend}"] = section(raw, precision, backend, repeat)
        if "block" in rows:
            found.update(block(raw, precision, repeat))
    return found


def read_sample(path: Path) -> NDArray[np.uint8]:
    """Grey values of the sample."""
    found: NDArray[np.uint8] = open_volume(f"{path}:volumes/raw").read()
    return found


class Stamps(list[Any]):
    """Reports of steps, each with the processor time at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.at = [time.process_time()]

    def append(self, report: Any) -> None:
        """Note the time."""
        super().append(report)
        self.at.append(time.process_time())


def steps(sample: Path, precision: str, repeat: int) -> dict[str, float]:
    """A training step of the student alone, and one with the teacher; crops are made between the steps."""
    config = load_pair(
        PAIR / "teacher.yaml",
        PAIR / "student.yaml",
        [
            *(f"student.data.raw={sample}:volumes/raw", f"student.data.labels={sample}:volumes/labels/neuron_ids"),
            *(
                "student.data.train=[0,16]",
                "student.data.validation=[16,20]",
                f"student.training.precision={precision}",
            ),
        ],
    )
    variant = Variant("student+teacher", config, open_parts(config), "cpu")
    cycle = config.student.training.teacher_every
    variant.run(cycle, measured=False)
    stamps = variant.reports = Stamps()
    variant.run(cycle * repeat, measured=True)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for report, began, ended in zip(stamps, stamps.at, stamps.at[1:], strict=False):
        seconds[(report.step - 1) % cycle == 0].append(ended - began)
    return {"step": min(seconds[False]), "step with teacher": min(seconds[True])}


def section(raw: NDArray[np.uint8], precision: str, backend: str, repeat: int) -> float:
    """A section through the student, both of its functions."""
    model = load_student("ac4", CPU)
    runner = SectionRunner(model.student, None, device=CPU, precision=precision, backend=backend)
    wide = [(0, 0), (0, _SIDE - raw.shape[1]), (0, _SIDE - raw.shape[2])]
    sections = np.pad(raw[:_DEPTH], wide, mode="reflect")
    runner.push(sections[:2])
    return least(lambda: runner.push(sections[2:3]), repeat)


def block(raw: NDArray[np.uint8], precision: str, repeat: int) -> dict[str, float]:
    """A block through the decoder, as it is computed for segmenting."""
    runtime, model = Runtime(CPU, precision), load_student("ac4", CPU)
    assert model.slab is not None
    assert model.decoder is not None
    decoder, config = model.decoder, model.decoding
    grey = raw[tuple(slice(length) for length in _BLOCK)]
    sections = list(student_sections(model, grey, runtime, with_slab=True))
    joined = torch.stack([one.joined for one in sections if one.joined is not None])
    logits = torch.stack([one.logits for one in sections if one.logits is not None], 1)
    with torch.inference_mode(), computing(CPU, precision):
        rule = seed_rule(config)

        def network() -> Any:
            assert model.slab is not None
            given = model.slab.slab(model.slab.mix(joined).transpose(0, 1)[None], logits[None])
            return decoder.last(given, rule=rule, background=not config.fill)

        output = network()
        return {
            "block network": least(network, repeat),
            "block instances": least(
                lambda: block_instances(
                    output,
                    0,
                    _BLOCK[1:],
                    min_voxels=config.min_instance,
                    min_piece=config.min_piece,
                    fill=config.fill,
                ),
                repeat,
            ),
        }


def least(run: Callable[[], object], repeat: int) -> float:
    """Least processor seconds of some runs after one that is not counted."""
    run()
    taken = []
    for _ in range(repeat):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)


if __name__ == "__main__":
    sys.exit(main())
