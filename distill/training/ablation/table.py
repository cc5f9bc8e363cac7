"""Format the table of an ablation: mean and range over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.core.choices import Network
from distill.training.ablation.scores import MethodScores, NetworkScores

SCORED_METHODS: dict[str, Callable[[NetworkScores], MethodScores | None]] = {
    "query decoder": lambda scores: scores.query,
    "waterz at 0.5": lambda scores: scores.waterz_published,
    "waterz, chosen": lambda scores: scores.waterz_chosen,
}


@dataclass(frozen=True)
class Row:
    """Scores of one network of one run."""

    variant: str  # of the student; "" for a pretrained teacher
    seed: int | None
    network: Network
    scores: NetworkScores

    @property
    def name(self) -> str:
        """Name of the row in the table."""
        if self.network == "student":
            return f"student, {self.variant}"
        return f"teacher of {self.variant}" if self.variant else "teacher"


def markdown(rows: Sequence[Row], about: Sequence[str]) -> str:
    """Format two tables, segmentations and boundaries, and the gain of distillation over the student alone.

    Args:
        rows: in the order of the table.
        about: lines that describe training and scoring.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    grouped = {name: [row.scores for row in rows if row.name == name] for name in names}
    first = [["network", "seeds", "segmentation", "VOI split", "merge", "sum", "ARAND", "thresholds"]]
    second = [["network", "seeds", "boundary F1 z", "y", "x"]]
    for name, found in grouped.items():
        for method, pick in SCORED_METHODS.items():
            picked = [one for one in map(pick, found) if one is not None]
            if picked:
                values = [[getattr(one, key) for one in picked] for key in ("voi_split", "voi_merge", "voi", "arand")]
                first.append([name, str(len(picked)), method, *map(spread, values), _thresholds(picked)])
        edges = zip(*(one.boundary_f1_zyx for one in found), strict=True)
        second.append([name, str(len(found)), *(spread(list(values)) for values in edges)])
    compared = comparison(rows)
    return "\n".join([*about, "", *_table(first), "", *_table(second), *([""] if compared else []), *compared, ""])


def comparison(rows: Sequence[Row]) -> list[str]:
    """Compare the VOI of every other variant with that of the student alone and of the teacher, by method; mean over
    seeds.
    """
    lines = []
    students = list(dict.fromkeys(row.variant for row in rows if row.network == "student"))
    for method, pick in SCORED_METHODS.items():
        means = {
            variant: _mean_voi([row for row in rows if row.network == "student" and row.variant == variant], pick)
            for variant in students
        }
        for variant, mean in means.items():
            own = [row for row in rows if row.network == "teacher" and row.variant in (variant, "")]
            against = {"none": means.get("none"), "its teacher": _mean_voi(own, pick)}
            said = [
                f"{100 * (mean / other - 1):+.1f} % against {name}"
                for name, other in against.items()
                if mean is not None and other and name != variant and variant != "none"
            ]
            if said:
                lines.append(f"- VOI of {variant}, {method}: {', '.join(said)}")
    return lines


def spread(values: Sequence[float]) -> str:
    """Format the mean and, for several values, their range."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _mean_voi(rows: Sequence[Row], pick: Callable[[NetworkScores], MethodScores | None]) -> float | None:
    found = [one.voi for one in (pick(row.scores) for row in rows) if one is not None]
    return float(np.mean(found)) if found else None


def _thresholds(scores: Sequence[MethodScores]) -> str:
    values = dict.fromkeys("none" if one.threshold is None else f"{one.threshold:g}" for one in scores)
    return ", ".join(values)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table with aligned columns, readable on a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [padded[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *padded[1:]]
