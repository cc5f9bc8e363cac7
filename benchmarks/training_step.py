"""Measure the parts of a training step, and the effect of memory layout, precision and compilation.

    python benchmarks/training_step.py configs/ac4_cpu/teacher.yaml configs/ac4_cpu/student.yaml         --variants
    student student+teacher student+teacher+decoder --out result.json

A variant names, joined by +, the networks whose convolutions are channels-last (`none` for none of them), `compile` and
`float32`. The variants take turns, so that what slows the machine down slows them all. Steps come from behind the
warm-up, from the loop and data of `distill train`; those with the teacher are also listed by themselves. Crops are made
between the steps, so `data` is what they cost, not what a run with workers waits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
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


@dataclass
class Variant:
    """A way to train, and the steps that were measured of it."""

    name: str
    config: Pair
    parts: TrainingParts
    device: str
    reports: list[StepReport] = field(default_factory=list)

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

    def result(self) -> dict[str, Any]:
        """Mean times, spread, and the steps that ran the teacher by themselves."""
        times, joint = StepTimes(), []
        for report in self.reports:
            times.add(report.seconds, report.parts)
            if (report.step - 1) % self.config.student.training.teacher_every == 0:
                joint.append(report.seconds)
        return {
            "variant": self.name,
            **times.to_dict(),
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
    asked = parser.parse_args(arguments)
    for name in asked.variants:
        unknown = [word for word in name.split("+") if word not in WORDS]
        if unknown:
            parser.error(f"--variants: found {unknown[0]!r}, expected words of {', '.join(WORDS)} joined by +")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    config = load_pair(asked.teacher, asked.student, asked.overrides)
    parts = open_parts(config)
    variants = [Variant(name, config, parts, asked.device) for name in asked.variants]
    for variant in variants:
        variant.run(config.student.training.teacher_every, measured=False)
    for _ in range(asked.rounds):
        for variant in variants:
            variant.run(asked.steps, measured=True)
    results = [variant.result() for variant in variants]
    rows = [
        [
            found["variant"],
            f"{found['seconds']:.3f}",
            f"{found['with_teacher_median']:.3f}" if found["with_teacher_median"] else "–",
            *(f"{100 * found['parts'][part] / found['seconds']:.1f}" for part in PARTS),
        ]
        for found in results
    ]
    print(table(["variant", "s a step", "with teacher", *(f"{part} %" for part in PARTS)], rows))
    result = {
        **provenance("training_step.py", [str(a) for a in (arguments or sys.argv[1:])]),
        "machine": machine(variants[0].fabric.device),
        "configuration": {
            "teacher": config.teacher.model_dump(mode="json"),
            "student": config.student.model_dump(mode="json", exclude={"data"}),
        },
        "steps": asked.steps * asked.rounds,
        "results": results,
    }
    if asked.out:
        write_json(asked.out, result)
    return result


if __name__ == "__main__":
    main()
