"""`distill segment`: trained networks over a volume that fits in memory, into a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import distill
from distill.agglomerate import waterz
from distill.errors import CheckpointError, DistillError
from distill.geometry import Nanometres, of_another_shape
from distill.ids import compact
from distill.recipes.models import load_student, load_teacher, pick_device
from distill.recipes.outputs import Output, check_free, frame_of
from distill.recipes.volumes import Runtime, student_affinity, student_volume, teacher_volume
from distill.volume import open_volume

WATERZ_THRESHOLD = 0.5  # Liu et al., CVPR 2024

Note = Callable[[str], None]
OnSection = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """What stream and segment have in common."""

    resolution: tuple[float, float, float] | None = None
    sections: tuple[int, int | None] | None = None
    device: str = "auto"
    precision: str = "bf16-mixed"
    merge: float | None = None  # None = the model's own, chosen on its validation part
    overwrite: bool = False
    backend: str = "auto"  # of the student, see `students.backend`


def segment(
    source: str,
    model: str,
    out: Path,
    options: Options,
    *,
    network: Literal["student", "teacher"],
    method: Literal["query", "waterz"],
    on_section: OnSection,
    note: Note,
) -> dict[str, Any]:
    """Segment a volume that fits in memory.

    Args:
        source: the volume.
        model: run folder or weights file.
        out: Zarr store to make.
        options: see `Options`; `merge` is waterz's own threshold (merge below this score) for that method.
        network: which of a run's two networks.
        method: `query` = shared query decoder, `waterz` = the papers' watershed and agglomeration.
        on_section: called with sections done and their number.
        note: called with lines that the user should see.

    Returns:
        What was done, for the record.
    """
    check_free(out, source, options.overwrite)
    check_precision(options)
    volume = open_volume(source, resolution=options.resolution)
    frame = frame_of(volume, options.sections)
    runtime = Runtime(pick_device(options.device), options.precision, options.backend)
    sections = volume.sections(frame.first, frame.first + frame.shape[0])
    counted = _counted(sections, frame.shape[0], on_section)
    if network == "student":
        student = load_student(model, runtime.device)
        check_resolution(student.notes, volume.source, volume.resolution, note)
        notes, path = student.notes, student.path
        if method == "query":
            if student.decoder is None:
                raise CheckpointError(f"{student.path}: has no query decoder, expected --method waterz for this model")
            found = student_volume(student, counted, frame.shape, runtime)
            affinity, labels = found.affinity, compact(found.labels(merge_threshold(options, notes)))
        else:
            affinity = student_affinity(student, counted, frame.shape, runtime)
    else:
        teacher = load_teacher(model, runtime.device)
        check_resolution(teacher.notes, volume.source, volume.resolution, note)
        notes, path = teacher.notes, teacher.path
        found = teacher_volume(teacher, np.stack(list(counted)), runtime)
        affinity = found.affinity
        if method == "query":
            labels = compact(found.labels(merge_threshold(options, notes)))
    threshold = merge_threshold(options, notes)
    if method == "waterz":
        threshold = WATERZ_THRESHOLD if options.merge is None else options.merge
        labels = waterz(affinity, [threshold])[threshold]
    about = _about(source, path, options, method, threshold)
    about |= {"network": network, "objects": int(labels.max())}
    output = Output(out, frame)
    try:
        for z in range(frame.shape[0]):
            output.write_affinity(z, _quantised(affinity[:, z]))
            output.write_segmentation(z, labels[z : z + 1])
        output.complete(about)
    except BaseException:
        output.discard()
        raise
    return about


def _quantised(affinity: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(affinity, 0, 1) * 255), dtype=np.uint8)


def _counted(sections: Iterator[NDArray[Any]], total: int, on_section: OnSection) -> Iterator[NDArray[Any]]:
    for z, section in zip(itertools.count(1), sections, strict=False):
        yield section
        on_section(z, total)


def merge_threshold(options: Options, notes: dict[str, Any]) -> float | None:
    """The one given, else the one that the model's validation chose."""
    if options.merge is not None:
        return options.merge
    chosen = notes.get("merge_threshold")
    return None if chosen is None else float(chosen)


def check_resolution(notes: dict[str, Any], source: str, resolution: Nanometres, note: Note) -> None:
    """Tell the user where the volume's voxels are of another shape than those that the model was trained on."""
    trained = notes.get("resolution")
    if trained is None:
        return
    if of_another_shape(resolution, trained):
        found, wanted = (" x ".join(f"{n:g}" for n in r) for r in (resolution, trained))
        note(f"warning: {source} has voxels of {found} nm, the model was trained on {wanted} nm (z, y, x)")


def check_precision(options: Options) -> None:
    """Refuse an unknown precision.

    Raises:
        DistillError: it is one.
    """
    if options.precision not in ("bf16-mixed", "32-true"):
        raise DistillError(f"--precision: found {options.precision!r}, expected bf16-mixed or 32-true")


def _about(source: str, model: Path, options: Options, method: str | None, threshold: float | None) -> dict[str, Any]:
    return {
        "version": distill.__version__,
        "source": source,
        "model": str(model),
        "precision": options.precision,
        "method": method,
        "merge_threshold": threshold,
    }
