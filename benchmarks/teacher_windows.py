"""Compare a 3D teacher by sliding window with the student's stream, on the same sections and machine.

    python benchmarks/teacher_windows.py --sections SECTIONS --student MODEL --teacher MODEL --json OUT.json

Windows are those of the CAD paper: 18 x 160 x 160, with overlap every 10 x 80 x 80. --windows of them are timed and
scaled to the number that covers all sections; both networks in the precision that the device computes fast. --kind
takes a teacher with its default widths and random weights instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hardware import machine
from tables import provenance, write_json

from distill.config import TeacherConfig, TeacherLoss
from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.core.hardware import AUTO
from distill.data.crops import as_unit_range
from distill.io.volume import open_volume
from distill.models.build import build_teacher
from distill.models.load import load_student, load_teacher, pick_device
from students.streaming.runner import SectionRunner
from teachers.sliding_window import run_teacher, sliding_windows
from teachers.teacher import Teacher

WINDOW, STRIDE = (18, 160, 160), (10, 80, 80)


@dataclass(frozen=True)
class Measured:
    """One teacher, one way to lay its windows."""

    teacher: str
    parameters: int
    overlap: bool
    windows: int
    timed: int
    seconds: float  # of all windows, scaled
    ratio: float  # over the student's


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    try:
        result = run(options)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json is not None:
        write_json(options.json, {**provenance(Path(__file__).name, argv), **result})
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Time the student on some sections, and each teacher on some windows.

    Raises:
        DistillError: a file cannot be read.
    """
    device = pick_device(options.device)
    volume = open_volume(options.sections, resolution=(30.0, 6.0, 6.0))
    depth, height, width = volume.size
    part = volume.read(Box((0, 0, 0), (min(WINDOW[0], depth), height, width)))
    runner = SectionRunner(load_student(options.student, device).student, None, device=device, precision=AUTO)
    runner.push(part[: runner.batch])
    began = time.perf_counter()
    runner.push(part[runner.batch : runner.batch + options.count])
    student = (time.perf_counter() - began) / options.count * depth
    print(f"student ({runner.backend}): {student:.2f} s for {depth} sections of {height} x {width}", flush=True)
    teachers: list[tuple[str, Teacher]] = []
    if options.teacher is not None:
        teachers.append((Path(options.teacher).name, load_teacher(options.teacher, device).teacher))
    for kind in options.kind:
        torch.manual_seed(0)
        config = TeacherConfig(kind=kind, loss=TeacherLoss(multi_offset=0))  # no training, and AGQ has no embedding
        teachers.append((f"{kind}, default widths", build_teacher(config).eval().to(device)))
    raw, found = as_unit_range(part), []
    for name, teacher in teachers:
        fit = sliding_windows((WINDOW[0], height, width), WINDOW, (0, 0, 0))[: options.windows + 1]
        run_teacher(teacher, raw, fit[:1], device=device, precision=AUTO)
        began = time.perf_counter()
        run_teacher(teacher, raw, fit[1:], device=device, precision=AUTO)
        each = (time.perf_counter() - began) / len(fit[1:])
        for overlap in (True, False):
            shared = tuple(w - s if overlap else 0 for w, s in zip(WINDOW, STRIDE, strict=True))
            count = len(sliding_windows((depth, height, width), WINDOW, (shared[0], shared[1], shared[2])))
            parameters = sum(p.numel() for p in teacher.parameters())
            one = Measured(name, parameters, overlap, count, len(fit[1:]), each * count, each * count / student)
            found.append(one)
            print(
                f"{name} ({parameters:,} parameters), {'with' if overlap else 'without'} overlap: {count} windows "
                f"({one.timed} timed, {each:.2f} s each), {one.seconds:.0f} s: {one.ratio:.1f} times the student's",
                flush=True,
            )
    return {
        "machine": machine(device),
        "volume": [depth, height, width],
        "student_backend": runner.backend,
        "student_seconds": student,
        "teachers": [asdict(one) for one in found],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sections", required=True, help="SOURCE of unlabelled sections")
    parser.add_argument("--student", required=True, help="MODEL of a trained student")
    parser.add_argument("--teacher", help="MODEL of a trained teacher")
    parser.add_argument("--kind", nargs="*", default=[], choices=["superhuman", "agq"], help="with random weights")
    parser.add_argument("--windows", type=int, default=3, help="windows to time")
    parser.add_argument("--count", type=int, default=5, help="sections of the student to time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
