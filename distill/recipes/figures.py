"""Figures of a run: losses and validation over the steps, and one validation section as both networks segment it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.geometry import Nanometres
from distill.normalisation import as_picture
from distill.recipes.validation import Judged
from viz.figures import curves_figure, section_figure

_NO_LOSS = ("step", "lr", "seconds", "waited", "validation_seconds")


def run_figures(
    run: Path, judged: Mapping[str, Judged], raw: NDArray[Any], labels: NDArray[np.uint64], resolution: Nanometres
) -> None:
    """Write figures/curves.png and, for each network, figures/validation_NETWORK.png.

    Args:
        run: run folder with metrics.jsonl.
        judged: the last validation.
        raw: (D, H, W) of the validation part.
        labels: (D, H, W) ground truth.
        resolution: nm.
    """
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    curves_figure(list(_curves(run / "metrics.jsonl")), folder / "curves.png")
    middle = len(raw) // 2
    grey = as_picture(raw[middle])
    for name, found in judged.items():
        section_figure(
            grey,
            found.affinity_section,
            found.labels_section,
            labels[middle],
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
