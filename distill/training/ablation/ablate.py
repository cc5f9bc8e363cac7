"""Train with and without each distillation term, score all variants in the same way, and write one table (`distill
ablate`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.config import DataConfig, Pair, checked_pair
from distill.config.data import PartName, spans
from distill.core.atomic import write_text
from distill.core.choices import Network
from distill.core.errors import CheckpointError, DistillError, SourceError
from distill.core.version import VERSION
from distill.inference.options import Runtime
from distill.models.load import find_weights, pick_device
from distill.training.ablation.scores import (
    NetworkScores,
    score_weights,
    waterz_is_here,
)
from distill.training.ablation.table import Row, markdown
from distill.training.data import open_data
from distill.training.ranks import from_environment
from distill.training.run_folder import differing_file
from distill.training.schedule.planned_steps import STEPS_KEY, planned_settings
from distill.training.train import Progress, train

# active terms; a weight that is 0 in the configuration is set to 1 if the variant includes the term
VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "cross": ("cross",),
    "graft": ("graft",),
    "masks": ("masks",),
    "both": ("cross", "graft"),
    "both+masks": ("cross", "graft", "masks"),
}
_TERMS = ("cross", "graft", "masks")
_NETWORKS: tuple[Network, Network] = ("student", "teacher")


@dataclass(frozen=True)
class VariantRun:
    """One training of the ablation."""

    variant: str
    seed: int
    config: Pair
    folder: Path


@dataclass(frozen=True)
class Ablation:
    """Results of the ablation."""

    rows: list[Row]
    text: str  # Markdown
    files: tuple[Path, Path]  # ablation.md, ablation.json


def variant_of(config: Pair, variant: str, seed: int) -> Pair:
    """Return the configuration of one run: the terms of the variant and the seed, everything else unchanged.

    `none` is the student alone: no teacher is built, and the decoder is trained on the student's features. The decoder
    is initialised as in the other variants, with `teacher.weights` from the teacher's.

    Raises:
        DistillError: the variant is unknown or not possible for this pair.
    """
    if variant not in VARIANTS:
        raise DistillError(f"--variants: found {variant!r}, expected some of {', '.join(VARIANTS)}")
    values = config.model_dump()
    loss, terms = values["student"]["loss"], VARIANTS[variant]
    for term in _TERMS:
        loss[term] = (loss[term] or 1.0) if term in terms else 0.0
    if not terms:
        values["teacher"]["loss"] = dict.fromkeys(values["teacher"]["loss"], 0.0)
        values["teacher"]["queries"]["teacher"] = 0.0
    values["student"]["training"]["seed"] = seed
    return checked_pair(values, {part: f"variant {variant!r}, {part}" for part in values})


def plan(config: Pair, out: Path, variants: Sequence[str], seeds: Sequence[int]) -> list[VariantRun]:
    """Return all runs, seed by seed, so that an interrupted ablation has all variants of the first seeds.

    Raises:
        DistillError: nothing to do, a repeated entry, or a variant that is not possible for this pair.
    """
    for option, found in (("--variants", list(variants)), ("--seeds", list(seeds))):
        if not found or len(set(found)) != len(found):
            raise DistillError(f"{option}: found {found}, expected at least one, and none twice")
    return [
        VariantRun(variant, seed, variant_of(config, variant, seed), out / f"{variant}-s{seed}")
        for seed in seeds
        for variant in variants
    ]


def ablate(
    config: Pair,
    out: Path,
    *,
    variants: Sequence[str],
    seeds: Sequence[int],
    device: str,
    progress: Callable[[int, int], Progress],
    note: Callable[[str], None],
    command: list[str],
) -> Ablation:
    """Train the missing runs, score all of them, and write table and numbers to the folder.

    Args:
        config: the pair; the variants differ from it only in their terms.
        out: folder of the ablation, with one run folder per run.
        variants: names, see `VARIANTS`.
        seeds: each variant is trained once with each.
        device: `auto`, `cpu` or `cuda`.
        progress: callback during a run, created from the number of previous runs and their total.
        note: called with messages for the user.
        command: command line of the user.

    Raises:
        DistillError: bad input, or a finished run of another configuration; nothing is trained in these cases.
    """
    if (processes := from_environment().size) > 1:
        raise DistillError(f"ablate: found {processes} processes of torchrun, expected one")
    runs = plan(config, out, variants, seeds)
    finished = {run.folder: is_finished(run) for run in runs}
    opened = open_data(config)
    data = config.student.data
    runtime = Runtime(pick_device(device), config.student.training.precision)
    if config.teacher.weights is not None:
        find_weights(config.teacher.weights, "teacher")
    with_waterz = waterz_is_here()
    if not with_waterz:
        note("waterz is not installed: the table has no row of it; pip install 'affinity-distill[baselines]'")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"{out}: cannot be written: {error.strerror or error}") from None
    for before, run in enumerate(runs):
        done = finished[run.folder]
        note(f"run {before + 1} of {len(runs)}: {run.folder}{' is finished' if done else ''}")
        if not done:
            shown = progress(before, len(runs))
            train(run.config, run.folder, resume=True, device=device, progress=shown, command=command)
    scored: PartName = "validation" if all(one.entry.test is None for one in opened) else "test"

    def scores_of(model: Path, network: Network, folder: Path) -> NetworkScores:
        file = find_weights(str(model), network)
        note(f"scoring {file}")
        kept = folder / f"scores_{network}.json"
        return score_weights(file, network, opened, data, runtime, kept, with_waterz=with_waterz)

    rows = []
    for run in sorted(runs, key=lambda run: list(variants).index(run.variant)):  # seeds stay in order
        for network in _NETWORKS[: 1 + run.config.teacher_learns]:
            rows.append(Row(run.variant, run.seed, network, scores_of(run.folder, network, run.folder)))
    if config.teacher.weights is not None:
        rows.append(Row("", None, "teacher", scores_of(Path(config.teacher.weights), "teacher", out)))
    rows.sort(key=lambda row: row.network != "student")
    about = _about(config, runs, scored, seeds)
    text = markdown(rows, about)
    return Ablation(rows, text, _write(out, config, rows, text, scored, command))


def is_finished(run: VariantRun) -> bool:
    """Return whether a run of this configuration is complete.

    Raises:
        CheckpointError: its folder holds a finished run of another configuration.
    """
    try:
        ended = json.loads((run.folder / "run.json").read_text(encoding="utf-8")).get("ended")
    except (OSError, ValueError, AttributeError):
        return False
    if ended != "done":
        return False
    different = differing_file(run.folder, run.config)
    if different is not None:
        raise CheckpointError(
            f"{different}: a finished run of another configuration; expected that of variant {run.variant!r}, or "
            "another --out"
        )
    return True


def _about(config: Pair, runs: Sequence[VariantRun], scored: PartName, seeds: Sequence[int]) -> list[str]:
    training, data = config.student.training, config.student.data
    lines = [
        f"{_where(data, 'train', 'trained on ')}, {steps_in_words(runs)} of "
        f"{training.batch} x {' x '.join(map(str, training.crop))}, seeds {', '.join(map(str, seeds))}; mean (range).",
        f"Scores: {_where(data, scored)} ({scored}), preset skimage, VOI in bits. Checkpoints, thresholds: "
        f"chosen on {_where(data, 'validation')} (validation).",
    ]
    if scored == "validation":
        lines.append(
            "The scored sections are those that checkpoints and thresholds were chosen on: differences between "
            "rows are meaningful, but the level of all scores is slightly too good. Set student.data.test to score on "
            "separate sections."
        )
    return lines


def steps_in_words(runs: Sequence[VariantRun]) -> str:
    """Describe the steps of the finished runs; runs of given duration differ in their number."""
    found = []
    for run in runs:
        own = run.config.student.training
        found.append(planned_settings(run.folder).get(STEPS_KEY, own.steps) if own.minutes is not None else own.steps)
    fewest, most = min(found), max(found)
    text = f"{fewest:,} steps" if fewest == most else f"{fewest:,} to {most:,} steps"
    minutes = runs[0].config.student.training.minutes
    return text if minutes is None else f"{minutes:g} minutes each, which were {text},"


def _where(data: DataConfig, name: PartName, verb: str = "") -> str:
    """Describe the parts of a name; volumes are named in the first line or if there are several."""
    found = []
    for _, volume, part in data.having(name):
        first, last = spans(part)[0]
        text = f"{verb}sections {first} to {last - 1}"
        if len(spans(part)) > 1:
            (top, bottom), (left, right) = spans(part)[1:]
            text += f", rows {top} to {bottom - 1}, columns {left} to {right - 1}"
        file = Path(volume.raw.partition(":")[0]).name
        file += f", one section in {volume.every}" if volume.every > 1 else ""
        found.append(f"{file}: {text}" if verb or len(data.labelled) > 1 else text)
    return "; ".join(found)


def _sections(data: DataConfig) -> dict[str, Any]:
    """Return the parts used for selection or scoring; one list per volume if there are several."""
    found: dict[str, Any] = {}
    for name in ("validation", "test"):
        parts = [[list(span) for span in spans(part)] for _, _, part in data.having(name)]
        rows = [part[0] if len(part) == 1 else part for part in parts]
        if rows:
            found[name] = rows if data.volumes else rows[0]
    return found


def _write(
    out: Path,
    config: Pair,
    rows: Sequence[Row],
    text: str,
    scored: PartName,
    command: list[str],
) -> tuple[Path, Path]:
    table, numbers = out / "ablation.md", out / "ablation.json"
    write_text(table, text)
    values = {
        "version": VERSION,
        "command": shlex.join(command),
        "scored_on": scored,
        "sections": _sections(config.student.data),
        "teacher": config.teacher.model_dump(mode="json"),
        "student": config.student.model_dump(mode="json"),
        "rows": [asdict(row) for row in rows],
    }
    write_text(numbers, json.dumps(values, indent=2) + "\n")
    return table, numbers
