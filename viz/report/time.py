"""Report section on time: steps and their parts, waiting, validations, and the remainder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from distill.training.run_folder import Pace, RunFolder, pace
from viz.report.html import Cell, Html, columns, facts, table
from viz.report.svg import AxisNote, Curve, line_chart


def timings(run: RunFolder) -> list[Html]:
    """Format steps, waiting, validations, and the remaining time of the run."""
    edges = [0, *sorted({int(note.x) for note in phases(run) if 0 < note.x < run.steps}), run.steps]
    found = [one for one in (pace(run, a, b) for a, b in itertools.pairwise(edges)) if one]
    if not found:
        return []
    rows: list[Sequence[Cell]] = [_pace_row(f"Steps {one.first + 1:,} to {one.last:,}", one) for one in found]
    whole = pace(run, 0, run.steps)
    if whole is not None and len(found) > 1:
        rows.append(_pace_row("All steps", whole))
    parts = [table("Training", ("Part", "Steps", "Time", "Seconds a step, median", "Waiting for data"), rows)]
    parts += _split_table(
        [(str(row[0]), split(run, one.first, one.last)) for row, one in zip(rows, found, strict=False)]
    )
    validations = [seconds for _, seconds in run.curve("validation_seconds")]
    pairs = []
    if validations:
        spent = sum(validations)
        pairs.append(("Validation", f"{len(validations)} in {duration(spent)}, {spent / len(validations):.1f} s each"))
    seconds = seconds_in_all(run)
    if seconds and whole is not None:
        rest = seconds - whole.seconds - sum(validations)
        pairs.append(("All", duration(seconds)))
        if rest >= 0 and not run.record.get("earlier"):
            pairs.append(("Other", f"{duration(rest)}: starting, saving, figures"))
    rates = [line_chart("Seconds a step", [Curve("seconds", run.curve("seconds"))], end=float(run.steps))]
    rates.append(line_chart("Learning rate", [Curve("lr", run.curve("lr"))], end=float(run.steps)))
    return [*parts, facts(pairs), columns(rates, "charts")]


def split(run: RunFolder, first: int, last: int) -> dict[str, float]:
    """Compute mean seconds per step by part, of the steps after `first` up to `last`; empty if parts were not logged.

    The remainder of the step is `other`.
    """
    before, steps = 0, 0
    sums: dict[str, float] = {}
    for row in run.rows:
        parts = row.get("parts")
        if "seconds" not in row or not isinstance(parts, dict):
            continue
        step = int(row["step"])
        count = step - max(before, first)
        if first < step <= last and count > 0 and parts:
            steps += count
            whole = {**parts, "other": max(0.0, float(row["seconds"]) - sum(parts.values()))}
            for name, seconds in whole.items():
                sums[name] = sums.get(name, 0.0) + count * float(seconds)
        before = max(before, step)
    return {name: value / steps for name, value in sums.items()}


def _split_table(splits: Sequence[tuple[str, dict[str, float]]]) -> list[Html]:
    names = list(dict.fromkeys(name for _, found in splits for name in found))
    names.sort(key=lambda name: name == "other")
    rows = []
    for label, found in splits:
        whole = sum(found.values())
        if whole > 0:
            cells = (_share(found[n], whole) if n in found else None for n in names)
            rows.append((label, *cells))
    head = ("Part", *(name.capitalize() for name in names))
    return [table("Where the time of a step goes, means", head, rows)] if rows else []


def _share(seconds: float, whole: float) -> str:
    """Format the seconds of a part with its share of the whole."""
    shown = f"{seconds:.3g} s" if seconds >= 0.001 else "below 0.001 s"
    return f"{shown} ({100 * seconds / whole:.0f} %)"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"


def seconds_in_all(run: RunFolder) -> float:
    """Return the seconds of the run including its earlier parts."""
    parts = [run.record, *(one for one in run.record.get("earlier", []) if isinstance(one, dict))]
    return sum(float(one["seconds"]) for one in parts if isinstance(one.get("seconds"), int | float))


def phases(run: RunFolder) -> list[AxisNote]:
    """Return the steps at which further losses begin."""
    warmup, start = run.setting("student.yaml", "training", "warmup"), run.setting("teacher.yaml", "queries", "start")
    begins: dict[int, list[str]] = {}
    for step, what in ((warmup, "distillation"), (start, "queries")):
        if isinstance(step, int) and step > 0:
            begins.setdefault(step, []).append(what)
    return [AxisNote(float(step), " and ".join(what) + " begin") for step, what in sorted(begins.items())]


def _pace_row(name: str, one: Pace) -> Sequence[Cell]:
    waited = "–" if math.isnan(one.waited) else f"{100 * one.waited:.1f} %"
    return name, one.last - one.first, duration(one.seconds), one.median, waited
