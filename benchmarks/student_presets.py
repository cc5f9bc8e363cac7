"""Measure the cost of a student per section of a stream: parameters, multiply-adds, time on a CPU or a GPU.

    python benchmarks/student_presets.py --json benchmarks/results/student_presets.json

A section is encoded once and decoded with the one before it, whose encoding is at hand; affinities and queries are not
included. Time is held against the multiply-adds at the best rate of a matrix product or a convolution with as many
threads and the same precision, measured in the same run. Weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hardware import DTYPES, Peak, machine, peak_rate
from measure import Cost, Timeline, costs, nbytes
from tables import milliseconds, provenance, table, write_json

from distill.config import StudentNetwork
from distill.core.errors import DistillError
from distill.models.build import build_student
from distill.models.load import pick_device
from students.streaming.receptive_field import receptive_field
from students.student import Student

PRESETS = {
    "cad": StudentNetwork(kind="cad"),  # published
    "smp-resnet10t": StudentNetwork(),
    "smp-regnetx_002": StudentNetwork(encoder="tu-regnetx_002", width=16),
    "smp-resnet18": StudentNetwork(encoder="resnet18", width=16),
    "smp-mobilenetv3": StudentNetwork(encoder="tu-mobilenetv3_large_100", width=16),
    "smp-efficientnet-b0": StudentNetwork(encoder="efficientnet-b0", width=16),
    "smp-mit_b0": StudentNetwork(encoder="mit_b0", width=16),
}


@dataclass(frozen=True)
class Timing:
    """One way to run a preset; seconds per section."""

    threads: int
    precision: str
    channels_last: bool
    encode: float  # least
    decode: float  # least
    seconds_min: float  # both
    seconds_median: float
    floor: float  # operations at the peak rate
    ratio: float  # least time over floor
    peak_bytes: int | None  # beyond weights, input and the previous section's encoding


@dataclass(frozen=True)
class Measured:
    """Everything about a preset."""

    preset: str
    parameters: int
    encode_multiply_adds: int  # per section
    decode_multiply_adds: int
    receptive_field: tuple[int, int] | None  # y, x sides in pixels; None: the whole section
    kept_bytes: int  # a section's encoding in float32: the state of a stream
    timings: list[Timing]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(argv)
    before = torch.get_num_threads()
    try:
        result = run(options)
    except DistillError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(before)
    if options.json is not None:
        write_json(options.json, {**provenance(Path(__file__).name, argv), **result})
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all requested measurements, and print them as they are made.

    Raises:
        DistillError: no such device, or an encoder that the library lacks.
    """
    device = pick_device(options.device)
    about = machine(device)
    print(f"{about['gpu'] or about['cpu']}, {about['cores']} cores, torch {about['torch']}")
    peaks: dict[tuple[int, str], Peak] = {}
    for threads, precision in itertools.product(options.threads, DTYPES):
        torch.set_num_threads(threads)
        peaks[threads, precision] = peak = peak_rate(device, DTYPES[precision])
        print(f"peak {precision}, {threads} threads: {peak.per_second / 1e9:.0f} G operations/s ({peak.by})")
    found = []
    for name in options.presets:
        found.append(measure(name, options.size, device, peaks, options.repeat))
        print(f"\n{times(found[-1], options.size)}")
    print(f"\nper section of {options.size} x {options.size} pixels\n{sizes(found)}")
    return {
        "machine": {**about, "threads": options.threads},
        "size": options.size,
        "repeat": options.repeat,
        "warm_up": 1,
        "peaks": [{"threads": t, "precision": p, **asdict(peak)} for (t, p), peak in peaks.items()],
        "presets": [asdict(one) for one in found],
    }


def make(preset: str) -> Student:
    """Build a student with random weights in evaluation mode."""
    torch.manual_seed(0)
    return build_student(PRESETS[preset]).eval().requires_grad_(False)


def measure(preset: str, size: int, device: torch.device, peaks: dict[tuple[int, str], Peak], repeat: int) -> Measured:
    """Measure the cost of a preset in every execution mode with a known peak rate.

    Args:
        preset: one of `PRESETS`.
        size: height and width of a section.
        device: where to run.
        peaks: by threads and precision.
        repeat: timed runs of each way.
    """
    student = make(preset).to(device)
    timings = []
    for ((threads, precision), peak), channels_last in itertools.product(peaks.items(), (False, True)):
        torch.set_num_threads(threads)
        found, kept = stream(student, size, device, precision, channels_last, repeat)
        encode, decode = found["encode"], found["decode"]
        both = [a + b for a, b in zip(encode.seconds, decode.seconds, strict=True)]
        floor = (encode.operations + decode.operations) / peak.per_second
        most = [
            0 if cost.peak_bytes is None else held + cost.peak_bytes for held, cost in ((0, encode), (kept, decode))
        ]
        timings.append(
            Timing(
                threads=threads,
                precision=precision,
                channels_last=channels_last,
                encode=encode.best,
                decode=decode.best,
                seconds_min=min(both),
                seconds_median=statistics.median(both),
                floor=floor,
                ratio=min(both) / floor,
                peak_bytes=max(most) or None,
            )
        )
    with torch.inference_mode():
        state = student.encode(torch.zeros(1, 1, size, size, device=device))
    return Measured(
        preset=preset,
        parameters=sum(p.numel() for p in student.parameters()),
        encode_multiply_adds=encode.operations // 2,
        decode_multiply_adds=decode.operations // 2,
        receptive_field=receptive_field(student).extent,
        kept_bytes=nbytes(*state.maps),
        timings=timings,
    )


def stream(
    student: Student, size: int, device: torch.device, precision: str, channels_last: bool, repeat: int
) -> tuple[dict[str, Cost], int]:
    """Measure the costs of `encode` and `decode` for one section of a stream, and the bytes of its encoding."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student.to(memory_format=layout)  # type: ignore[call-overload]
    grey = torch.rand(2, 1, 1, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    before, now = (section.contiguous(memory_format=layout) for section in grey)

    def computing() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, precision == "bf16-mixed")

    with torch.inference_mode(), computing():
        previous = student.encode(before)

    def push(line: Timeline) -> int:
        with torch.inference_mode(), computing():
            current = student.encode(now)
            line.mark("encode")
            student.decode(previous, current)
            line.mark("decode")
        return nbytes(*current.maps)

    return costs(push, device, repeat)


def sizes(found: Sequence[Measured]) -> str:
    """Compare presets by quantities that do not depend on the execution mode."""
    rows = [
        [
            one.preset,
            f"{one.parameters:,}",
            f"{one.encode_multiply_adds / 1e9:.1f}",
            f"{one.decode_multiply_adds / 1e9:.1f}",
            f"{(one.encode_multiply_adds + one.decode_multiply_adds) / 1e9:.1f}",
            f"{one.kept_bytes / 1e6:.0f}",
            "all" if one.receptive_field is None else " x ".join(map(str, one.receptive_field)),
            milliseconds(min(t.seconds_min for t in one.timings)),
        ]
        for one in found
    ]
    header = ["preset", "parameters", "G multiply-adds: encode", "decode", "both", "state MB", "receptive field px"]
    return table([*header, "least ms"], rows)


def times(one: Measured, size: int) -> str:
    """Compare every execution mode of a preset."""
    rows = [
        [
            f"{t.threads} thread{'s' if t.threads > 1 else ''}, {t.precision}",
            "yes" if t.channels_last else "no",
            milliseconds(t.encode),
            milliseconds(t.decode),
            milliseconds(t.seconds_min),
            milliseconds(t.seconds_median),
            f"{size**2 / t.seconds_min / 1e6:.2f}",
            milliseconds(t.floor),
            f"{t.ratio:.1f}",
            "?" if t.peak_bytes is None else f"{t.peak_bytes / 1e6:.0f}",
        ]
        for t in one.timings
    ]
    header = [one.preset, "channels last", "encode ms", "decode ms", "least ms", "median ms", "Mpixel/s", "floor ms"]
    return table([*header, "time / floor", "peak MB"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--size", type=int, default=1024, help="height and width of a section, pixels")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of every way")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
