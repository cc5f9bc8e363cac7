"""Figures of a run: losses and validation over the steps, and one validation section as both networks segment it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from distill.core.normalisation import as_picture
from distill.training.data import Part
from distill.training.validation import Judged
from viz.figures import curves_figure, section_figure

_NO_LOSS = ("step", "lr", "seconds", "waited", "validation_seconds")


def run_figures(run: Path, judged: Mapping[str, Judged], part: Part) -> None:
    """Write figures/curves.png and, for each network, figures/validation_NETWORK.png.

    Args:
        run: run folder with metrics.jsonl.
        judged: the last validation.
        part: to validate on; of several the first.
    """
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    curves_figure(list(_curves(run / "metrics.jsonl")), folder / "curves.png")
    middle, resolution = len(part.raw) // 2, part.volume.resolution
    grey = as_picture(part.raw[middle])
    for name, found in judged.items():
        section_figure(
            grey,
            found.affinity_section,
            found.labels_section,
            part.counted[middle],
            (resolution[1], resolution[2]),
            folder / f"validation_{name}.png",
        )


def _curves(metrics: Path) -> Iterator[dict[str, float]]:
    """Rows of metrics.jsonl with the names that the figure looks for."""
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "loss" in row:
            terms = {name: value for name, value in row.items() if name not in _NO_LOSS and name != "loss"}
            yield {"step": row["step"], **{f"{name} loss": value for name, value in terms.items()}}
        for name in ("student", "teacher"):
            if f"validation_{name}" in row:
                yield {"step": row["step"], f"{name} + queries VOI": row[f"validation_{name}"]["voi"]}
