r"""Measure the parts of a training step, and the effect of memory layout, precision and compilation.

    python benchmarks/training_step.py configs/ac4_cpu/teacher.yaml configs/ac4_cpu/student.yaml \
        --variants student student+teacher student+teacher+decoder --out result.json
    python benchmarks/training_step.py configs/ac4_cpu/teacher.yaml configs/ac4_cpu/student.yaml \
        teacher.queries.student=0 student.training.teacher_every=1 --networks student teacher joint --processor-time \
        --out result.json

`--networks` trains the student alone, the teacher alone, or both (`joint`: as configured). A variant names, joined by
+, the networks whose convolutions are channels-last (`none` for none of them), `compile` and `float32`. The variants
take turns, so that what slows the machine down slows them all. Steps come from behind the warm-up, from the loop and
data of `distill train`; those with the teacher are also listed by themselves. Crops are made between the steps, so
`data` is what they cost, not what a run with workers waits.

The floor is the time of all convolutions of the same steps, forward and backward, on random values of the same shapes
and memory formats, measured in turns with the steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from convolution_floor import Call, Convolutions, floor
from hardware import machine
from tables import provenance, table, write_json

from distill.config import Pair, load_pair
from distill.data.loading import batches
from distill.training.data import TrainingParts, open_parts, training_crops
from distill.training.launch import compile_networks, launch, lay_out
from distill.training.loop.loop import StepReport, fit, make_optimizer
from distill.training.loop.state import Average, State
from distill.training.loop.step_times import PARTS, StepClock, StepTimes
from distill.training.objective.objective import Joint
from distill.training.ranks import Ranks

WORDS = ("none", "teacher", "student", "decoder", "compile", "float32")
_NO_QUERIES = ("teacher.queries.student=0", "teacher.queries.teacher=0", "student.loss.masks=0")
_NO_DISTILLATION = ("student.loss.cross=0", "student.loss.graft=0", *_NO_QUERIES)
NETWORKS = {
    "student": (*_NO_DISTILLATION, "teacher.loss.multi_offset=0", "teacher.loss.affinity=0"),
    "teacher": (*_NO_DISTILLATION, "student.loss.slice=0", "student.training.teacher_every=1"),
    "joint": (),
}


@dataclass
class Variant:
    """A way to train, and the steps that were measured of it."""

    name: str
    networks: str
    config: Pair
    parts: TrainingParts
    device: str
    reports: list[StepReport] = field(default_factory=list)
    floors: list[tuple[float, float]] = field(default_factory=list)  # seconds a step, forward and backward
    calls: list[Call] = field(default_factory=list)  # convolutions of a cycle of steps

    def __post_init__(self) -> None:
        words, training = self.name.split("+"), self.config.student.training
        self.fabric = launch(self.device, "32-true" if "float32" in words else training.precision, Ranks())
        torch.manual_seed(training.seed)
        joint = Joint(self.config, self.parts.resolution)
        if "compile" in words:
            compile_networks(joint, self.fabric.device)
        for network in ("teacher", "student", "decoder"):
            module = getattr(joint, network)
            if module is not None:
                lay_out(module, channels_last=network in words)
        joint.clock = StepClock(self.fabric.device)
        self.joint, optimizer = joint, make_optimizer(joint, training)
        self.module, wrapped = self.fabric.setup(joint, optimizer)
        average = Average(joint, training.ema) if training.ema else None
        self.state = State(joint, wrapped, average, step=first_step(self.config))

    def run(self, steps: int, *, measured: bool) -> None:
        """Take so many steps more."""
        found = self.config.student
        changes = {"steps": self.state.step + steps, "save_every": 10**9, "workers": 0}
        training = found.training.model_copy(update=changes)
        now = self.config.model_copy(update={"student": found.model_copy(update={"training": training})})
        crops = training_crops(now, self.parts, 1, lambda note: None)
        with TemporaryDirectory() as folder:
            fit(
                self.state,
                self.module,
                batches(crops, self.state.step, self.fabric.device),
                training,
                self.fabric,
                clock=self.joint.clock,
                state_path=Path(folder) / "state.pt",
                on_step=self.reports.append if measured else lambda report: None,
                on_validate=lambda state: None,
            )

    def record(self) -> None:
        """Take a cycle of steps, and keep their convolutions; compiled ones are not seen."""
        compiled = "compile" in self.name.split("+")
        with nullcontext(Convolutions()) if compiled else Convolutions() as seen:
            self.run(self.config.student.training.teacher_every, measured=False)
        self.calls = seen.calls

    def measure_floor(self) -> None:
        """Time the convolutions of a step alone."""
        if self.calls:
            cycle = self.config.student.training.teacher_every
            forward, backward = floor(self.calls)
            self.floors.append((forward / cycle, backward / cycle))

    def result(self) -> dict[str, Any]:
        """Mean times, spread, and the steps that ran the teacher by themselves."""
        times, joint = StepTimes(), []
        for report in self.reports:
            times.add(report.seconds, report.parts)
            if (report.step - 1) % self.config.student.training.teacher_every == 0:
                joint.append(report.seconds)
        return {
            "variant": self.name,
            "networks": self.networks,
            **times.to_dict(),
            "median": statistics.median(report.seconds for report in self.reports),
            "samples_a_second": self.config.student.training.batch / times.seconds,
            "floor_forward": statistics.median(forward for forward, _ in self.floors) if self.floors else None,
            "floor_backward": statistics.median(backward for _, backward in self.floors) if self.floors else None,
            "with_teacher_median": statistics.median(joint) if joint else None,
            "with_teacher_least": min(joint) if joint else None,
            "last_loss": self.reports[-1].terms["loss"],
        }


def first_step(config: Pair) -> int:
    """Return the first step of a whole cycle with all terms."""
    training, queries = config.student.training, config.teacher.queries
    cycle = training.teacher_every * queries.every
    return -(-max(training.warmup, queries.start) // cycle) * cycle


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--variants", nargs="+", default=["student+teacher"])
    parser.add_argument("--steps", type=int, default=6, help="of every variant in every round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["joint"])
    parser.add_argument("--processor-time", action="store_true", help="seconds of the processor, on a busy machine")
    asked = parser.parse_args(arguments)
    for name in asked.variants:
        unknown = [word for word in name.split("+") if word not in WORDS]
        if unknown:
            parser.error(f"--variants: found {unknown[0]!r}, expected words of {', '.join(WORDS)} joined by +")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    with ExitStack() as stack:
        if asked.processor_time:
            stack.enter_context(mock.patch("time.perf_counter", time.process_time))
        variants = measured(asked)
    results = [variant.result() for variant in variants]
    print(table(["networks", "variant", "s a step", "samples/s", "floor", "with teacher", *PARTS], rows(results)))
    result = {
        **provenance("training_step.py", [str(a) for a in (arguments or sys.argv[1:])]),
        "machine": machine(variants[0].fabric.device),
        "time": "processor" if asked.processor_time else "wall",
        "configuration": {
            "teacher": variants[-1].config.teacher.model_dump(mode="json"),
            "student": variants[-1].config.student.model_dump(mode="json", exclude={"data"}),
        },
        "steps": asked.steps * asked.rounds,
        "results": results,
    }
    if asked.out:
        write_json(asked.out, result)
    return result


def measured(asked: argparse.Namespace) -> list[Variant]:
    """Run all variants in turns."""
    variants = []
    for networks in asked.networks:
        config = load_pair(asked.teacher, asked.student, [*asked.overrides, *NETWORKS[networks]])
        parts = open_parts(config)
        variants += [Variant(name, networks, config, parts, asked.device) for name in asked.variants]
    for variant in variants:
        variant.record()
    for _ in range(asked.rounds):
        for variant in variants:
            variant.run(asked.steps, measured=True)
            variant.measure_floor()
    return variants


def rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Format the results: the shares of the parts, and of the floor, are percent of a step."""

    def share(seconds: float, found: dict[str, Any]) -> str:
        return f"{100 * seconds / found['seconds']:.1f} %"

    return [
        [
            found["networks"],
            found["variant"],
            f"{found['seconds']:.3f}",
            f"{found['samples_a_second']:.3f}",
            share(found["floor_forward"] + found["floor_backward"], found) if found["floor_forward"] else "–",
            f"{found['with_teacher_median']:.3f}" if found["with_teacher_median"] else "–",
            *(share(found["parts"][part], found) for part in PARTS),
        ]
        for found in results
    ]


if __name__ == "__main__":
    main()
