"""Measure the speed of a student on sections: every backend and precision against the plain loop, on one machine.

    python benchmarks/stream.py --checkpoint AC34.ckpt --sections SECTIONS --labels VOLUME.h5 --json OUT.json

The plain loop is what the papers' code does: both sections of a pair are encoded each time, in float32,
contiguous, eager, affinities after that; its time is per section. Backends run as `distill stream` runs them, from a
section in memory to uint8 affinities in memory; building their functions is timed apart. Accuracy: affinities against
the plain loop's, and waterz segmentations of labelled sections (threshold of the CAD paper). With
--command, the whole of `distill stream --no-segment` is timed too, from the files to the store.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import DTYPES, Peak, copy_rate, machine, peak_rate
from numpy.typing import NDArray
from tables import milliseconds, provenance, table, write_json
from torch.utils.flop_counter import FlopCounterMode

from distill.config import StudentNetwork
from distill.core.affinity import pair_affinity
from distill.core.affinity_conventions import from_uint8
from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.core.hardware import AUTO, FULL, MIXED, has_bfloat16, resolved
from distill.data.crops import as_unit_range
from distill.evaluation.metrics import score
from distill.inference.options import WATERZ_THRESHOLD
from distill.io.volume import open_volume
from distill.models.build import build_student
from distill.models.checkpoint import load_module, read_published
from distill.models.load import load_student, pick_device
from distill.segmentation.agglomeration import waterz
from students.backends.functions import ExtraOutputs
from students.backends.openvino import OpenVINOBackend
from students.streaming.runner import SectionRunner
from students.student import Student

WAYS = (
    ("eager", "32-true"),
    ("eager", "bf16-mixed"),
    ("compile", "32-true"),
    ("compile", "bf16-mixed"),
    ("onnxruntime", "32-true"),
    ("openvino", "32-true"),
    ("openvino", "bf16-mixed"),
)
Sections = NDArray[np.uint8]


@dataclass(frozen=True)
class Way:
    """One backend in one precision, against the plain loop of the same student."""

    backend: str
    precision: str
    build_seconds: float  # the first section: functions are built
    seconds: float  # per section after that, least
    seconds_median: float
    speedup: float  # of the least, over the plain loop's least
    voxels_per_second: float
    operations_per_second: float
    of_peak: float  # of the best matrix product or convolution in the same precision
    largest_difference: float  # of affinities in [0, 1]
    difference_999: float  # 99.9th percentile
    mean_difference: float
    voi: float | None  # bits, split and merge together
    plain_voi: float | None


@dataclass(frozen=True)
class Command:
    """`distill stream --no-segment` as a command."""

    sections: int
    seconds: float
    speedup: float  # over the plain loop's least, which reads and writes nothing


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON."""
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
    """Run all requested measurements, and print them as they are made.

    Raises:
        DistillError: a file cannot be read, or a backend cannot be had.
    """
    device = pick_device(options.device)
    about = machine(device)
    if options.ways is None:
        kinds = (FULL, MIXED) if has_bfloat16(device) else (FULL,)
        options.ways = [f"{backend}:{precision}" for backend, precision in WAYS if precision in kinds]
    print(
        f"{about['gpu'] or about['cpu']}, {about['cores']} cores, torch {about['torch']}, {about['threads']} threads",
        flush=True,
    )
    peaks: dict[str, Peak] = {}
    for precision in (name for name in DTYPES if any(way.endswith(f":{name}") for way in options.ways)):
        peaks[precision] = peak_rate(device, DTYPES[precision])
        rate = peaks[precision].per_second / 1e9
        print(f"peak {precision}: {rate:.0f} G operations/s ({peaks[precision].by})", flush=True)
    copied = copy_rate(device)
    print(f"copy: {copied / 1e9:.1f} GB/s read and written", flush=True)
    volume = open_volume(options.sections, resolution=(30.0, 6.0, 6.0))
    size = volume.size
    sections: Sections = volume.read(Box((0, 0, 0), (min(options.count, size[0]), *size[1:])))
    student = make(options.preset, options.checkpoint, options.model)
    counted = operations(student, sections[:2])
    plain, wanted = plain_loop(student, sections[: options.plain], device)
    said = f"{milliseconds(min(plain))} ms a section, {counted / 1e9:.1f} G operations in the stream"
    print(f"plain loop: {said}", flush=True)
    labelled, labels = _labelled(options)
    exact = None if labelled is None else np.stack(plain_loop(student, labelled, device)[1], 1)
    plain_voi = None if exact is None or labels is None else voi(exact, labels)
    ways = []
    for backend, precision in WAYS:
        if f"{backend}:{precision}" not in options.ways:
            continue
        ways.append(
            measure(
                student,
                backend,
                precision,
                sections,
                device,
                plain,
                wanted,
                counted,
                peaks[precision].per_second,
                labelled,
                labels,
                plain_voi,
            )
        )
        print(f"  {backend} {precision}: {milliseconds(ways[-1].seconds)} ms, {ways[-1].speedup:.1f} times", flush=True)
    print(f"\n{_table(ways, min(plain))}")
    command = None if options.command is None else whole_command(options, min(plain))
    profile = layers(student, sections[:2], options.repeat) if options.profile else None
    return {
        "machine": about,
        "peaks": {name: asdict(peak) for name, peak in peaks.items()},
        "copy_bytes_per_second": copied,
        "preset": options.preset if options.model is None else None,
        "size": list(sections.shape[1:]),
        "sections": len(sections),
        "operations_per_section": counted,
        "plain_seconds": plain,
        "ways": [asdict(way) for way in ways],
        "stream_command": None if command is None else asdict(command),
        "profile": profile,
    }


def make(preset: str, checkpoint: Path | None, model: str | None = None) -> Student:
    """Build the published network, the default student (both with random weights by default), or a trained one."""
    if model is not None:
        return load_student(model, torch.device("cpu")).student
    torch.manual_seed(0)
    student = build_student(StudentNetwork(kind="cad") if preset == "cad" else StudentNetwork())
    if preset == "cad" and checkpoint is not None:
        tensors = read_published(checkpoint).tensors
        load_module(student, {k.removeprefix("student."): v for k, v in tensors.items()}, str(checkpoint))
    return student.eval().requires_grad_(False)


def operations(student: Student, pair: Sections) -> int:
    """Count the operations per section of a stream: one encode, one decode with the previous section (a multiply-add is
    two).
    """
    grey = torch.from_numpy(as_unit_range(pair))[:, None]
    with torch.inference_mode():
        before = student.encode(grey[:1])
        with FlopCounterMode(display=False) as counter:
            student.decode(before, student.encode(grey[1:]))
    return int(counter.get_total_flops())


def plain_loop(
    student: Student, sections: Sections, device: torch.device
) -> tuple[list[float], list[NDArray[np.float32]]]:
    """Return seconds and affinities (3, H, W) of every section from the second on; the first is paired with itself."""
    student = student.to(device).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    seconds, found = [], []
    for z in range(len(sections)):
        began = time.perf_counter()
        before, now = (torch.from_numpy(as_unit_range(sections[n])).to(device)[None, None] for n in (max(0, z - 1), z))
        with torch.inference_mode():
            pair = student(before, now)
            affinity = pair_affinity(pair.previous, pair.current)[0]
        found.append(affinity.cpu().numpy())
        seconds.append(time.perf_counter() - began)
        if z == 0:
            found[0][0] = 0
    return (seconds[1:] or seconds), found


def measure(
    student: Student,
    backend: str,
    precision: str,
    sections: Sections,
    device: torch.device,
    plain: Sequence[float],
    wanted: Sequence[NDArray[np.float32]],
    counted: int,
    peak: float,
    labelled: Sections | None,
    labels: NDArray[np.uint64] | None,
    plain_voi: float | None,
) -> Way:
    """Time one configuration, and compare its output."""
    runner = SectionRunner(student, None, device=device, precision=precision, backend=backend)
    began = time.perf_counter()
    first = runner.push(sections[:1])
    build = time.perf_counter() - began
    seconds, found = [], [first[0].affinity]
    for start in range(1, len(sections), runner.batch):
        group = sections[start : start + runner.batch]
        began = time.perf_counter()
        outputs = runner.push(group)
        seconds.append((time.perf_counter() - began) / len(group))
        found += [output.affinity for output in outputs]
    apart = [np.abs(from_uint8(a) - b) for a, b in zip(found, wanted, strict=False)]
    scored = None
    if labelled is not None and labels is not None:
        runner.reset()
        runner = SectionRunner(student, None, device=device, precision=precision, backend=backend)
        scored = voi(np.stack([from_uint8(o.affinity) for o in runner.push(labelled)], 1), labels)
    least = min(seconds)
    return Way(
        backend,
        precision,
        build,
        least,
        float(np.median(seconds)),
        min(plain) / least,
        sections[0].size / least,
        counted / least,
        counted / least / peak,
        float(max(a.max() for a in apart)),
        float(np.quantile(np.concatenate([a.ravel() for a in apart]), 0.999)),
        float(np.mean([a.mean() for a in apart])),
        scored,
        plain_voi,
    )


def voi(affinity: NDArray[np.float32], labels: NDArray[np.uint64]) -> float:
    """Return the VOI in bits of the waterz segmentation at the CAD paper's threshold, preset `skimage`."""
    return score(waterz(affinity, [WATERZ_THRESHOLD])[WATERZ_THRESHOLD], labels, "skimage").voi_sum


def whole_command(options: argparse.Namespace, plain: float) -> Command:
    """Time `distill stream --no-segment` over all sections of the source, including the start of Python and building.

    Raises:
        DistillError: it fails.
    """
    count = open_volume(options.sections, resolution=(30.0, 6.0, 6.0)).size[0]
    with tempfile.TemporaryDirectory() as folder:
        given = [options.sections, "--model", options.command, "--out", f"{folder}/out.zarr", "--no-segment"]
        command = [sys.executable, "-m", "distill", "stream", *given, "--resolution", "30,6,6"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise DistillError(f"distill stream: {done.stderr.strip()}")
    found = Command(count, seconds, plain * count / seconds)
    print(f"distill stream: {count} sections in {seconds:.1f} s, {found.speedup:.1f} times the plain loop")
    return found


class _Profiled(OpenVINOBackend):
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "PERF_COUNT": True}


def layers(student: Student, pair: Sections, repeat: int) -> dict[str, dict[str, float]]:
    """Return the seconds per section by kind of layer, OpenVINO, minimum of several runs."""
    backend = _Profiled(student, None, ExtraOutputs(), precision=resolved(AUTO, torch.device("cpu")))
    grey = torch.from_numpy(as_unit_range(pair))[:, None]
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeat + 1):
        before = backend.encode(grey[:1])
        now = backend.encode(grey[1:])
        backend.decode(before, now, torch.ones(1, 1, 1, 1), (pair.shape[1], pair.shape[2]))
        for name, nodes in backend.profile().items():
            kinds: dict[str, float] = {}
            for kind, seconds in nodes:
                kinds[kind] = kinds.get(kind, 0.0) + seconds
            if name not in best or sum(kinds.values()) < sum(best[name].values()):
                best[name] = kinds
    for name, kinds in best.items():
        total = sum(kinds.values())
        print(
            f"{name}: {milliseconds(total)} ms; "
            + ", ".join(
                f"{kind} {100 * s / total:.0f} %" for kind, s in sorted(kinds.items(), key=lambda item: -item[1])[:7]
            )
        )
    return best


def _labelled(options: argparse.Namespace) -> tuple[Sections | None, NDArray[np.uint64] | None]:
    if options.labels is None:
        return None, None
    raw, labels = (open_volume(f"{options.labels}:{name}", resolution=(30.0, 6.0, 6.0)) for name in options.datasets)
    box = Box((0, 0, 0), (options.labelled, *raw.size[1:]))
    return raw.read(box), labels.read(box)


def _table(ways: Sequence[Way], plain: float) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    exact = ways[0].plain_voi if ways else None
    rows = [["plain loop", "32-true", "", milliseconds(plain), "1.0", "", "", "", "", "", number(exact)]]
    rows += [
        [
            way.backend,
            way.precision,
            f"{way.build_seconds:.1f}",
            milliseconds(way.seconds),
            f"{way.speedup:.1f}",
            f"{way.voxels_per_second / 1e6:.2f}",
            f"{way.operations_per_second / 1e9:.0f} ({100 * way.of_peak:.0f} %)",
            f"{way.largest_difference:.4f}",
            f"{way.difference_999:.4f}",
            f"{way.mean_difference:.5f}",
            number(way.voi),
        ]
        for way in ways
    ]
    header = ["backend", "precision", "first s", "ms a section", "times", "Mvoxel/s", "G operations/s (of peak)"]
    return table([*header, "largest", "99.9 %", "mean difference", "VOI"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sections", required=True, help="SOURCE of unlabelled sections")
    parser.add_argument("--count", type=int, default=6, help="sections to run")
    parser.add_argument("--plain", type=int, default=4, help="sections of the plain loop")
    parser.add_argument("--preset", choices=["cad", "smp"], default="cad")
    parser.add_argument("--checkpoint", type=Path, help="published weights of preset cad")
    parser.add_argument("--model", help="run folder or weights file of a trained student, instead of a preset")
    parser.add_argument("--command", metavar="MODEL", help="also time `distill stream` with this model")
    parser.add_argument("--labels", type=Path, metavar="FILE.h5", help="labelled volume, for waterz")
    parser.add_argument("--datasets", nargs=2, default=["volumes/raw", "volumes/labels/neuron_ids"])
    parser.add_argument("--labelled", type=int, default=16, help="sections of it")
    every = [f"{backend}:{precision}" for backend, precision in WAYS]
    parser.add_argument(
        "--ways",
        nargs="*",
        choices=every,
        metavar="BACKEND:PRECISION",
        help="default: all in float32, and in bfloat16 where the device has it",
    )
    parser.add_argument("--profile", action="store_true", help="time by kind of layer, OpenVINO")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3, help="runs of the profile")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
