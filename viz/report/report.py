"""`distill report`: a run folder as one web page that needs no network and no other file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.core.atomic import write_text
from distill.core.errors import DistillError, SourceError
from distill.core.geometry import Box
from distill.core.notes import Note
from distill.core.version import VERSION
from distill.evaluation.aligned import overlapping
from distill.evaluation.contingency import Scores
from distill.evaluation.evaluate import find_worst
from distill.evaluation.segmentation import evaluate
from distill.evaluation.worst_objects.locate import Spot
from distill.inference.options import Runtime
from distill.io.readers.zarr import zarr_node, zarr_ranks
from distill.io.volume import Volume, open_grey, open_labels
from distill.io.writers.output import check_place
from distill.io.writers.store import create_zarr
from distill.training.data import LabelledPart as TrainingPart
from distill.training.run_folder import RunFolder, read_run
from distill.training.train import FinishedTraining
from distill.training.validation import Judged
from viz.curves import run_figures
from viz.report import seams as report_seams
from viz.report import sections as report_parts
from viz.report import time as report_time
from viz.report.crops import crop
from viz.report.html import Cell, Html, PageSection, columns, embed_pixels, figure, heading, page, paragraph, table
from viz.report.images import seam_image, sweep_image

LAST_VALIDATION = "last_validation.zarr"

_SECTION = "first_section"  # attribute: number in the volume that the array was cut from
_WORST = 3  # objects of each kind that are shown for a segmentation
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Segmentation:
    """A segmentation, its ground truth and image as sources, and what is known of how it was made."""

    name: str
    source: str
    labels: str
    raw: str | None
    made: Mapping[str, Any]


@dataclass(frozen=True)
class _Scored:
    """A segmentation with its scores and worst errors."""

    of: _Segmentation
    scores: Scores
    sections: tuple[int, int]  # of the labels, last excluded
    errors: Sequence[Html]


def report(
    run: Path,
    out: Path | None = None,
    *,
    segmentations: Sequence[str] = (),
    labels: str | None = None,
    preset: str = "skimage",
    seams: Runtime | None = None,
    note: Note,
) -> Path:
    """Write the report of a run, under a temporary name first.

    Args:
        run: run folder.
        out: file to write; `report.html` in the run folder by default.
        segmentations: stores or sources to score and to show the worst errors of; by default the stores in the run
            folder, and where there are none the section that training kept of its last validation.
        labels: their ground truth; by default that of the run.
        preset: see `distill.evaluation.metrics`.
        seams: where to run both networks over a validation section first, for the embedding figure and the seam scores;
            by default those of the run folder are shown, which training leaves there.
        note: called with lines about what had to be left out.

    Returns:
        The file.

    Raises:
        DistillError: no run folder, a named source that does not fit, or a place that cannot be written.
    """
    target = out or run / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise SourceError(f"--out: found {str(target)!r}, expected a name that ends in .html")
    check_place(target)
    found = read_run(run)
    if seams is not None:
        seam_image(found, seams)
    _sweep(found, note)
    truth = labels or _setting(found, "labels")
    if labels is not None:
        open_labels(labels, resolution=_resolution(found))
    if segmentations:
        if truth is None:
            raise DistillError(f"--labels: found none, nor any in {run}/student.yaml, expected a ground truth")
        scored = [_score(_named(source, truth, found), found, preset) for source in segmentations]
    else:
        inside = _stores(found, truth) if truth else []
        scored = _score_those_there(inside or _last_validation(found), found, preset, note)
    write_text(target, _document(found, scored), errors="replace")
    return target


def report_after_training(finished: FinishedTraining) -> None:
    """Draw the run's figures, keep the section that the last validation was judged on, and write the report.

    A report that cannot be written does not fail the run, whose weights and record are on disk by now: what went wrong
    is logged, and `distill report` makes it good.
    """
    run, judged = finished.folder, finished.judged
    try:
        if judged:
            run_figures(run, judged, finished.part)
            _keep_section(run, judged, finished.part)
        found = read_run(run)
        _seams(found, judged, finished.runtime, logger.info)
        _sweep(found, logger.warning)
        scored = _score_those_there(_last_validation(found), found, "skimage", logger.warning)
        write_text(run / "report.html", _document(found, scored), errors="replace")
    except (DistillError, OSError) as error:
        logger.warning("no report: %s; after fixing it: distill report %s", error, run)
    except Exception:
        logger.exception("no report, though the run is complete; please report this, and try distill report %s", run)


def _keep_section(run: Path, judged: Mapping[str, Judged], part: TrainingPart) -> None:
    """Write last_validation.zarr: image, ground truth and both segmentations of one section, at its position."""
    volume, middle = part.volume, len(part.raw) // 2
    section = part.box.start[0] + middle
    start = (section, part.box.start[1], part.box.start[2])
    z, y, x = (o + n * r for o, n, r in zip(volume.offset, start, volume.resolution, strict=True))
    recorded = volume.read(Box(start, (section + 1, part.box.stop[1], part.box.stop[2])))[
        0
    ]  # the part itself may be normalised
    arrays = {"raw": recorded, "labels": part.counted[middle]}
    arrays |= {name: found.labels_section for name, found in judged.items()}
    for name, image in arrays.items():
        create_zarr(
            run / LAST_VALIDATION,
            name,
            shape=(1, *image.shape),
            dtype=image.dtype,
            resolution=volume.resolution,
            offset=(z, y, x),
            attributes={_SECTION: section},
            overwrite=True,
        ).write_section(0, image)


def _sweep(run: RunFolder, note: Note) -> None:
    try:
        sweep_image(run)
    except (DistillError, ValueError, TypeError, KeyError) as error:
        note(f"the threshold sweep is not drawn: {error}")


def _seams(run: RunFolder, judged: Mapping[str, Judged], runtime: Runtime, note: Note) -> None:
    """Measure seam scores if both networks were trained; embeddings may be too flat early in training."""
    if {"student", "teacher"} <= judged.keys():
        try:
            seam_image(run, runtime)
        except DistillError as error:
            note(f"seams are not measured: {error}")


def _document(run: RunFolder, scored: Sequence[_Scored]) -> str:
    commands = [report_parts.command_line(one.of.made.get("command")) for one in scored]
    parts = [
        PageSection("run", "What was run", report_parts.what_was_run(run)),
        PageSection("scores", "Scores", [*report_parts.validation_scores(run), *_score_table(scored)]),
        PageSection("figures", "Figures", report_parts.figures(run)),
        PageSection("seams", "Seams", report_seams.seams(run)),
        PageSection("errors", "Worst errors", _errors(scored)),
        PageSection("curves", "Curves", report_parts.curves(run)),
        PageSection("time", "Time", report_time.timings(run)),
        PageSection("configuration", "Configuration", report_parts.configuration(run)),
        PageSection("repeat", "How to repeat it", report_parts.repeat(run, [line for line in commands if line])),
    ]
    title = f"Run {run.path.resolve().name}"
    foot = f"Written by distill {VERSION}. This file holds everything that it shows."
    return page(title, report_parts.lead(run), [report_parts.first_numbers(run)], parts, foot)


def _setting(run: RunFolder, key: str) -> str | None:
    found = run.data.get(key)
    return found if isinstance(found, str) else None


def _resolution(run: RunFolder) -> tuple[float, float, float] | None:
    found = run.data.get("resolution")
    return (float(found[0]), float(found[1]), float(found[2])) if isinstance(found, list) and len(found) == 3 else None


def _named(source: str, labels: str, run: RunFolder) -> _Segmentation:
    """Return the address of `segmentation` in a store, or the source itself."""
    path = Path(source)
    node = zarr_node(path) if path.is_dir() else None
    if node is None or not node[0].startswith("group"):
        return _Segmentation(source, source, labels, _setting(run, "raw"), {})
    made = node[1].get("made_by")
    made = made if isinstance(made, dict) else {}
    raw = made.get("source")
    record = path.with_name(path.name + ".run.json")
    with suppress(OSError, ValueError, TypeError):
        made |= json.loads(record.read_text(encoding="utf-8"))
    return _Segmentation(
        path.name, f"{source}:segmentation", labels, raw if isinstance(raw, str) else _setting(run, "raw"), made
    )


def _stores(run: RunFolder, labels: str) -> list[_Segmentation]:
    """Return the stores in a run folder that hold a segmentation."""
    paths = [path for path in sorted(run.path.glob("*.zarr")) if path.is_dir() and path.name != LAST_VALIDATION]
    return [_named(str(path), labels, run) for path in paths if "segmentation" in zarr_ranks(path)]


def _last_validation(run: RunFolder) -> list[_Segmentation]:
    """Show both networks on the section that training kept."""
    store = run.path / LAST_VALIDATION
    names = [name for name in ("student", "teacher") if (store / name).is_dir()]
    return [
        _Segmentation(f"last validation, {name}", f"{store}:{name}", f"{store}:labels", f"{store}:raw", {})
        for name in names
    ]


def _score_those_there(those: Sequence[_Segmentation], run: RunFolder, preset: str, note: Note) -> list[_Scored]:
    scored = []
    for one in those:
        try:
            scored.append(_score(one, run, preset))
        except DistillError as error:
            note(f"{one.name} is not scored: {error}")
    return scored


def _score(one: _Segmentation, run: RunFolder, preset: str) -> _Scored:
    nm = _resolution(run)
    found = evaluate(one.source, one.labels, preset, nm, worst=0)
    segmentation, labels = open_labels(one.source, resolution=nm), open_labels(one.labels, resolution=nm)
    try:
        raw = open_grey(one.raw, resolution=nm) if one.raw else None
    except DistillError:  # the errors can be seen without the image
        raw = None
    _, spots, _ = find_worst(*overlapping(segmentation, labels), preset, _WORST)
    place = found.box.shift((int(labels.attributes.get(_SECTION, 0)), 0, 0))
    errors = [_error(spot, segmentation, labels, raw, place.start) for spot in spots]
    return _Scored(one, found.scores, (place.start[0], place.stop[0]), errors)


def _error(spot: Spot, segmentation: Volume, labels: Volume, raw: Volume | None, origin: tuple[int, int, int]) -> Html:
    seen = crop(spot, segmentation, labels, raw)
    z, y, x = (v + o for v, o in zip(spot.voxel, origin, strict=True))
    place = f"section {z}, y {y}, x {x}"
    pictures = [
        embed_pixels(image, f"{what} around {spot.short}, {place}")
        for image, what in ((seen.section, "Image"), (seen.segmentation, "Segmentation"), (seen.truth, "Ground truth"))
    ]
    text = f"{spot.text[0].upper()}{spot.text[1:]}; {spot.error.voxels:,} voxels; {place}."
    return figure(pictures, text, "card", ("image", "segmentation", "ground truth"))


def _score_table(scored: Sequence[_Scored]) -> list[Html]:
    if not scored:
        return []
    head = ("Segmentation", "Made by", "Sections", "Preset", "VOI split", "VOI merge", "VOI", "ARAND", "True objects")
    rows: list[Sequence[Cell]] = []
    for one in scored:
        s = one.scores
        made = one.of.made.get("method") and f"{one.of.made.get('network', 'student')}, {one.of.made['method']}"
        first, last = one.sections
        span = f"{first}:{last}"
        scores = (s.preset, s.voi_split, s.voi_merge, s.voi_sum, s.arand, s.n_true, s.n_pred)
        rows.append((one.of.name, made or None, span, *scores))
    return [table("Segmentations against ground truth", (*head, "Found"), rows)]


def _errors(scored: Sequence[_Scored]) -> list[Html]:
    if not scored:
        return [paragraph("No segmentation to look into: make one with distill stream, or name one by --segmentation.")]
    parts = [
        paragraph(
            "The objects that add most bits to VOI split or merge. The object is painted in one colour and its main "
            "pieces in several: segments where it is split, objects of the ground truth where it is merged. The ring "
            "lies where the second piece comes closest to the first."
        )
    ]
    for one in scored:
        parts += [heading(one.of.name), columns(one.errors, "cards") if one.errors else paragraph("No error.")]
    return parts
