"""Report section on seams: effect of the teacher's windows on its embedding, compared with the student on whole
sections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distill.core.errors import SourceError
from distill.training.run_folder import RunFolder
from viz.report.html import Cell, Html, embed_file, figure, paragraph, table
from viz.report.images import SEAMS

_CAPTION = (
    "pca.png. One validation section next to the embeddings of the teacher, window by window, and of the student: "
    "their first three principal components as red, green and blue, those of the student rotated onto those of the "
    "teacher. Below, the change of the embedding from pixel to pixel, by distance to the nearest window border."
)
_SCORES = (  # key, comparison, value without a seam
    ("border", "change across borders / next to them", "1"),
    ("stride", "power at the windows' stride / between", "1"),
    ("shift", "angle between shifted runs / unrelated pixels", "0"),
)


def seams(run: RunFolder) -> list[Html]:
    """Format figure and scores; empty if they were not measured."""
    picture = run.path / "figures" / "pca.png"
    found = _read(run)
    if not found and not picture.is_file():
        return []
    parts: list[Html] = []
    if found:
        rows = _rows(found)
        window, overlap = found.get("window_zyx"), found.get("overlap_zyx")
        shared = f"sharing {_sizes(overlap)}" if isinstance(overlap, list) and any(overlap) else "side by side"
        parts += [
            table(
                f"Seam scores with 95 % intervals, section {found.get('section')}, windows of {_sizes(window)} voxels "
                f"(z, y, x), {shared}, {found.get('region', 'in all pixels')}",
                ("Score", "No seam", "Teacher", "Student", "Teacher, random borders"),
                rows,
            ),
            paragraph(
                "Without unit. The intervals are over the borders of this one section; other sections were not "
                "sampled. Definitions and what planted seams show of them: docs/results/seams.md.",
                "hint",
            ),
        ]
    try:
        parts.append(figure([embed_file(picture, f"pca.png: {_CAPTION}")], _CAPTION))
    except SourceError as error:
        parts.append(paragraph(str(error), "hint"))
    return parts


def _read(run: RunFolder) -> Mapping[str, Any]:
    try:
        found = json.loads((run.path / "figures" / SEAMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(found: Mapping[str, Any]) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for key, name, none in _SCORES:
        own = {network: _score(found.get(network), key) for network in ("teacher", "student")}
        if any(own.values()):
            null = (own["teacher"] or {}).get("null") if key != "shift" else None
            rows.append((name, none, _said(own["teacher"]), _said(own["student"]), null))
    return rows


def _score(network: object, key: str) -> dict[str, Any]:
    if not isinstance(network, dict):
        return {}
    one = network if key == "border" else network.get(key)
    return one if isinstance(one, dict) and isinstance(one.get("ratio"), int | float) else {}


def _said(score: Mapping[str, Any]) -> str:
    if not score:
        return "–"
    return f"{score['ratio']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def _sizes(values: object) -> str:
    return " × ".join(str(v) for v in values) if isinstance(values, list) else "?"
