"""Compare a student in int8 with the same in float32: processor time of a section, and difference of affinities.

    OMP_NUM_THREADS=1 python benchmarks/int8.py 'ac4.h5:volumes/raw#box=80,512,512:100,1024,1024' --json OUT.json

Both precisions compute every section in turns on OpenVINO, so that other load on the machine hits both alike. The first
section of each, which builds the models, is left out. Ranges come from windows of the same source.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hardware import machine
from tables import provenance, table, write_json

from distill.core.hardware import FULL, INT8
from distill.inference.calibration import from_volume
from distill.io.volume import open_grey
from distill.models.load import load_student
from students.streaming.runner import SectionRunner

CPU = torch.device("cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="grey-value volume")
    parser.add_argument("--model", default="ac4")
    parser.add_argument("--sections", type=int, help="number of sections; default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    volume, trained = open_grey(options.source), load_student(options.model, CPU)
    depth = min(volume.size[0], options.sections or volume.size[0])
    calibration = from_volume(volume, 0, volume.size[0], trained.normaliser, trained.form.stride)
    runners = {
        precision: SectionRunner(
            trained.network,
            None,
            device=CPU,
            precision=precision,
            backend="openvino",
            normaliser=trained.normaliser,
            calibration=calibration if precision == INT8 else None,
        )
        for precision in (FULL, INT8)
    }
    seconds: dict[str, list[float]] = {precision: [] for precision in runners}
    apart, largest, above = [], 0, []
    for number, section in enumerate(volume.sections(0, depth)):
        found = {}
        for precision, runner in runners.items():
            began = time.process_time()
            found[precision] = runner.push(section[None])[0].affinity.astype(np.int16)
            if number:
                seconds[precision].append(time.process_time() - began)
        if number:
            difference = np.abs(found[FULL] - found[INT8])
            apart.append(difference.mean((1, 2)) / 255)
            above.append(float((difference > 25).mean()))
            largest = max(largest, int(difference.max()))
    z, y, x = np.mean(apart, axis=0)
    rows = [
        (name, f"{min(times):.3f}", f"{statistics.median(times):.3f}", f"{max(times):.3f}")
        for name, times in seconds.items()
    ]
    print(table(("processor seconds of a section", "least", "median", "most"), rows))
    print(f"mean difference of affinities: {np.mean(apart):.5f} (z {z:.5f}, y {y:.5f}, x {x:.5f})")
    print(f"above 0.1: {100 * statistics.mean(above):.2f} %; largest: {largest / 255:.2f}")
    if options.json is not None:
        measured = {
            "seconds": seconds,
            "difference": [float(v) for v in (z, y, x)],
            "above_0.1": statistics.mean(above),
        }
        write_json(options.json, {**provenance(Path(__file__).name, argv), "machine": machine(CPU), **measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
