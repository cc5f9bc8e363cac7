"""Figures of a run for its report: the threshold sweep of its validation, and its embeddings with their seams."""

from __future__ import annotations

import json
from pathlib import Path

from distill.core.atomic import write_text
from distill.core.errors import SourceError
from distill.evaluation.seams.bench import corner
from distill.inference.embeddings import Windows
from distill.inference.grey_values import GreyValues
from distill.inference.options import Runtime
from distill.io.volume import open_grey
from distill.models.load import load_student, load_teacher
from distill.training.run_folder import RunFolder
from viz.charts import SweepPoint, sweep_figure
from viz.embeddings.figure import Networks, draw_pca, look, on_source, with_shifts

SEAMS = "seams.json"  # next to figures/pca.png
_NOT_MERGED = 1.0  # position on the threshold axis: no mean affinity is above it
_SIDE = 1024  # maximum pixels of a section, to limit the run time of a 3D network in a report


def sweep_image(run: RunFolder) -> bool:
    """Write figures/sweep.png: every merge threshold of the best validation of each network, with the selected one
    marked.

    Returns:
        Whether there was one to draw.

    Raises:
        DistillError: values that are not a sweep, or a folder that cannot be written.
    """
    points, chosen = [], {}
    for name, found in run.validations().items():
        with_sweep = [one for _, one in found if one.get("sweep")]
        if not with_sweep:
            continue
        best = min(with_sweep, key=lambda one: float(one["voi"]))
        method = f"{name} + queries"
        for threshold, split, merge, arand in best["sweep"]:
            at = _NOT_MERGED if threshold is None else float(threshold)
            points.append(SweepPoint(method, at, float(split), float(merge), float(arand)))
        threshold = best.get("merge_threshold")
        chosen[method] = _NOT_MERGED if threshold is None else float(threshold)
    if not points:
        return False
    sweep_figure(points, _folder(run) / "sweep.png", chosen, 200, "chosen, on these sections")
    return True


def seam_image(run: RunFolder, runtime: Runtime) -> None:
    """Write figures/pca.png and figures/seams.json: both best networks on the middle section of the validation part.

    The teacher uses windows of its decoder's block, at most half the section, side by side. For a section larger than
    1024 pixels, the upper left corner is used.

    Raises:
        DistillError: a network or the data do not exist, or the scores cannot be computed.
    """
    data = run.data
    if not isinstance(data.get("validation"), list):
        raise SourceError(f"{run.path}/student.yaml: found no data and validation sections, expected those of the run")
    first, stop = (int(n) for n in data["validation"])
    section = max(1, (first + stop) // 2)
    resolution = data.get("resolution")
    volume = open_grey(str(data.get("raw")), resolution=tuple(resolution) if resolution else None)
    both = load_teacher(str(run.path), runtime.device), load_student(str(run.path), runtime.device)
    networks = on_source(Networks(*both, runtime), GreyValues(invert=bool(data.get("invert"))), volume)
    assert networks.teacher is not None
    depth = networks.teacher.config.decoder.block[0]
    piece, section_there = corner(volume, section, _SIDE, depth)
    looked = look(piece, networks, section_there, Windows(None))
    seams, _, _ = draw_pca(looked, _folder(run) / "pca.png")
    seams = with_shifts(seams, piece, networks, section_there, looked)
    values = {"section": section, "size": list(piece.size[1:]), **seams.to_dict()}
    write_text(_folder(run) / SEAMS, json.dumps(values, indent=2) + "\n")


def _folder(run: RunFolder) -> Path:
    folder = run.path / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be made: {error.strerror or error}") from None
    return folder
