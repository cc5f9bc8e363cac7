"""Sections of a run's report that are based on the files of the run folder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core.errors import SourceError
from distill.training.run_folder import RunFolder
from viz.report.html import (
    Cell,
    Html,
    code,
    columns,
    embed_file,
    facts,
    figure,
    folded,
    heading,
    key_numbers,
    paragraph,
    table,
)
from viz.report.svg import Curve, line_chart
from viz.report.time import duration, phases, seconds_in_all

_MEASURES = (
    "VOI: variation of information in bits, the sum of split and merge. ARAND: adapted Rand error. For both, lower is "
    "better. F1: of the edges that must be cut, along each axis; 1 is best."
)
_COLOURS = "The largest segment of a neuron has the neuron's colour; a second colour in a neuron is a split."
_FEW = 4  # validation sections

_MOST_FIGURES = 24
_ELSEWHERE = ("pca",)  # shown with the seam scores
_LINE = 96  # characters of a command's line
_NETWORKS = ("student", "teacher")
_TERMS = {
    "slice": "Student: affinities",
    "offsets": "Student: longer offsets",
    "cross": "Student from teacher: affinities",
    "graft": "Student from teacher: features",
    "teacher_offsets": "Teacher: 12 offsets",
    "teacher_affinity": "Teacher: affinities",
}
_SCORES = {"voi": "VOI (bits)", "voi_split": "VOI split (bits)", "voi_merge": "VOI merge (bits)", "arand": "ARAND"}
_FIGURES = {
    "validation_student": "One validation section, student and query decoder: image, segmentation, ground truth, and "
    f"the affinities to the neighbour in z, y and x. {_COLOURS}",
    "validation_teacher": f"The same section, teacher and query decoder. {_COLOURS}",
    "sweep": "Validation: VOI split against merge, and ARAND, as neighbours are merged above each mean affinity (1 = "
    "nothing merged), at the best step of each network. The ring marks the chosen threshold.",
    "curves": "Loss terms and validation VOI over the steps, for print; the charts below show the same.",
}


def lead(run: RunFolder) -> str:
    """Describe the run in a sentence."""
    kinds = {one: str(run.setting(f"{one}.yaml", "kind") or "?") for one in _NETWORKS}
    planned = run.setting("student.yaml", "training", "steps")
    steps = f"{run.steps:,} steps" if planned in (None, run.steps) else f"{run.steps:,} of {planned:,} steps"
    seconds = seconds_in_all(run)
    took = f" in {duration(seconds)}" if seconds else ""
    taught = (
        f"Teacher {kinds['teacher']}, student {kinds['student']}" if _taught(run) else f"Student {kinds['student']}"
    )
    return f"{taught}: {steps}{took}, {_ended(run)}."


def _taught(run: RunFolder) -> bool:
    """Return whether a teacher took part: it was trained, or distilled into the student."""
    from_teacher = ("cross", "graft", "masks", "unlabelled")
    return "teacher" in run.validations() or any(name.startswith(("teacher_", *from_teacher)) for name in run.terms())


def first_numbers(run: RunFolder) -> Html:
    """Format the best validation of both networks and the duration."""
    shown = []
    for name, found in _best(run).items():
        step, scores = found
        shown.append((f"VOI, {name}", f"{_number(scores.get('voi')):.3f}", f"bits, step {step:,}, validation"))
        shown.append((f"ARAND, {name}", f"{_number(scores.get('arand')):.3f}", "same step"))
    return key_numbers(shown)


def what_was_run(run: RunFolder) -> list[Html]:
    """Format command, versions, machine and data."""
    record = run.record
    pairs = [
        ("Run folder", str(run.path)),
        ("Command", " ".join(_typed(record.get("command")))),
        ("Started", str(record.get("started", "")).replace("T", " ")),
        ("Ended", f"{_ended(run)}, after {duration(_number(record.get('seconds')))}" if record else ""),
        ("Seed", str(record.get("seed", ""))),
        ("Versions", _listed(record.get("versions"))),
        ("Python", str(record.get("python", ""))),
        ("Machine", _listed(record.get("machine"))),
        ("Device", str(record.get("hardware", ""))),
        ("Precision", ", ".join(str(record[key]) for key in ("precision", "precision_by") if key in record)),
    ]
    for name, keys in (("Image", "raw"), ("Labels", "labels")):
        pairs.append((name, str(run.data.get(keys) or "")))
    for name in ("train", "validation"):
        span = run.data.get(name)
        if isinstance(span, list) and len(span) == 2 and all(isinstance(n, int) for n in span):
            pairs.append((f"Sections, {name}", f"{span[0]}:{span[1]} (the last one excluded)"))
    volumes = run.setting("student.yaml", "data", "volumes")
    if isinstance(volumes, list) and len(volumes) > 1:
        pairs.append(("Labelled volumes", f"{len(volumes)}, see the configuration"))
    earlier = [one for one in record.get("earlier", []) if isinstance(one, dict)]
    parts = [facts([pair for pair in pairs if pair[1]])]
    if earlier:
        head = ("Started", "From step", "Time", "Ended")
        rows = [
            (
                str(one.get("started")),
                one.get("first_step"),
                duration(_number(one.get("seconds"))),
                str(one.get("ended")),
            )
            for one in earlier
        ]
        parts.append(table("Earlier parts of this run", head, rows))
    return parts


def validation_scores(run: RunFolder) -> list[Html]:
    """Format every validation of both networks."""
    head = ("Network", "Step", "VOI split", "VOI merge", "VOI", "ARAND", "F1 z", "F1 y", "F1 x", "Merged above")
    rows: list[Sequence[Cell]] = []
    best = _best(run)
    presets = set()
    for name, found in run.validations().items():
        for step, scores in found:
            presets.add(str(scores.get("preset", "skimage")))  # preset of `score` if none is named
            f1 = [*(scores.get("boundary_f1_zyx") or []), None, None, None][:3]
            seeds = scores.get("seed_thresholds")
            threshold = scores.get("merge_threshold")
            rows.append(
                (
                    f"{name}{', best' if best.get(name, (None,))[0] == step else ''}",
                    step,
                    *(scores.get(key) for key in ("voi_split", "voi_merge", "voi", "arand")),
                    *f1,
                    "not merged" if threshold is None else f"{threshold:g}",
                    ", ".join(f"{s:g}" for s in seeds) if isinstance(seeds, list) else None,
                )
            )
    if not rows:
        return [paragraph("No validation was logged.")]
    return [
        paragraph(_MEASURES, "hint"),
        table(f"Validation, preset {', '.join(sorted(presets))}", (*head, "Seeds above"), rows),
        paragraph(
            "The best step and the thresholds of seeds and merging were chosen on these sections: expect somewhat "
            "worse on others." + _few(run),
            "hint",
        ),
    ]


def _few(run: RunFolder) -> str:
    span = run.data.get("validation")
    if not (isinstance(span, list) and len(span) == 2 and all(isinstance(n, int) for n in span)):
        return ""
    count = span[1] - span[0]
    if count >= _FEW:
        return ""
    return (
        f" There are {count} of them, too few to tell one threshold or step from the next: validate on {_FEW} at least."
    )


def figures(run: RunFolder) -> list[Html]:
    """Embed the images in figures/, with captions."""
    folder = run.path / "figures"
    parts, left = [], []
    rank = {name: k for k, name in enumerate(_FIGURES)}
    there = [path for path in folder.glob("*.png") if path.stem not in _ELSEWHERE]
    paths = sorted(there, key=lambda path: (rank.get(path.stem, len(rank)), path.name))
    for path in paths[:_MOST_FIGURES]:
        caption = _FIGURES.get(path.stem, path.stem.replace("_", " "))
        try:
            shown = figure([embed_file(path, f"{path.name}: {caption}")], f"{path.name}. {caption}")
        except SourceError as error:
            left.append(str(error))
            continue
        parts.append(folded("Curves for print", shown) if path.stem == "curves" else shown)
    left += [f"{path.name}: not shown, this page holds {_MOST_FIGURES} figures" for path in paths[_MOST_FIGURES:]]
    return parts + [paragraph(line, "hint") for line in left]


def curves(run: RunFolder) -> list[Html]:
    """Draw losses and validation scores over the steps."""
    notes = phases(run)
    end = float(run.steps)
    parts: list[Html] = []
    names = list(_best(run))[:4]
    scores = [
        line_chart(
            title, [Curve(name, run.curve(f"validation_{name}.{key}")) for name in names], size=(270, 190), end=end
        )
        for key, title in _SCORES.items()
    ]
    if names:
        parts += [heading("Validation"), columns(scores, "small-charts")]
    terms = run.terms()
    if run.curve("loss"):
        loss = [Curve("loss", run.curve("loss"))]
        whole = line_chart("Loss, the sum of all terms", loss, log=True, notes=notes, size=(1110, 260), end=end)
        small = [line_chart(_term(name), [Curve(name, run.curve(name))], log=True, end=end) for name in terms]
        parts += [
            heading("Training loss"),
            paragraph("Weighted as they are summed, each point the mean since the one before it.", "hint"),
            Html(whole),
            *([columns(small, "charts")] if len(terms) > 1 else []),
        ]
    return parts


def configuration(run: RunFolder) -> list[Html]:
    """Format both files with all values resolved."""
    files = [folded(name, code(text), opened=True) for name, text in run.configuration.items()]
    return [columns(files, "columns")] if files else []


def repeat(run: RunFolder, commands: Sequence[str]) -> list[Html]:
    """Format the commands that reproduce the run and its results."""
    folder = str(run.path)
    again = ["distill", "train", f"{folder}/teacher.yaml", f"{folder}/student.yaml", "--out", f"{folder}_again"]
    parts = [
        paragraph("As it was typed, in the folder where it was typed:"),
        code(_command(run.record) or "not recorded"),
        paragraph("From the resolved configuration in the run folder, whatever has become of the original files:"),
        code(command_line(again)),
    ]
    data = run.data
    if isinstance(data.get("validation"), list) and len(data["validation"]) == 2:
        raw, labels = str(data.get("raw")), str(data.get("labels"))
        first, last = data["validation"]
        out, found = f"{folder}/validation.zarr", f"{folder}/evaluation.json"
        lines = [
            command_line(["distill", "stream", raw, "--sections", f"{first}:{last}", "--model", folder, "--out", out]),
            command_line(["distill", "evaluate", f"{out}:segmentation", labels, "--json"]) + f" > {shlex.quote(found)}",
            command_line(["distill", "view", out, "--labels", labels, "--evaluation", found]),
        ]
        parts += [
            paragraph("The student over the validation sections, its scores, and both in the browser:"),
            code("\n".join(lines)),
        ]
    if commands:
        parts += [paragraph("What made the segmentations of this page:"), code("\n".join(commands))]
    return [*parts, paragraph("This page:"), code(command_line(["distill", "report", folder]))]


def command_line(words: object) -> str:
    """Format a recorded command as typed, in lines of readable length; empty if none was recorded."""
    typed = _typed(words)
    lines = typed[:1]
    for quoted in typed[1:]:
        value = lines[-1].rpartition(" ")[2].startswith("--")  # stays next to its option
        if len(lines[-1]) + len(quoted) < _LINE or value:
            lines[-1] += f" {quoted}"
        else:
            lines.append(f"    {quoted}")
    return " \\\n".join(lines)


def _typed(words: object) -> list[str]:
    """Quote a recorded command for a shell, word by word; empty if none was recorded."""
    if not isinstance(words, list) or not words:
        return []
    return [Path(str(words[0])).name, *(shlex.quote(str(word)) for word in words[1:])]


def _best(run: RunFolder) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return (step, scores) of the lowest validation VOI by network, student first."""
    found = {
        name: min(scored, key=lambda one: _number(one[1].get("voi"), math.inf))
        for name, scored in run.validations().items()
    }
    return {name: found[name] for name in sorted(found, key=lambda name: (name not in _NETWORKS, name))}


def _term(name: str) -> str:
    for network in _NETWORKS:
        if name.startswith(f"{network}_") and name not in _TERMS:
            return f"Queries on {network}: {name.removeprefix(f'{network}_').replace('_', ' ')}"
    return _TERMS.get(name, name.replace("_", " "))


def _ended(run: RunFolder) -> str:
    ended = run.record.get("ended")
    return {"done": "finished", "running": "not finished when this page was written"}.get(str(ended), str(ended))


def _command(record: Mapping[str, Any]) -> str:
    return command_line(record.get("command"))


def _listed(values: object) -> str:
    if not isinstance(values, dict):
        return "" if values is None else str(values)
    return ", ".join(f"{name} {_listed(value)}" for name, value in values.items())


def _number(value: object, default: float = math.nan) -> float:
    return float(value) if isinstance(value, int | float) else default
