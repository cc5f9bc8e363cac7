"""Compare the voxel size of a model's training data with that of the data to segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres
from distill.core.notes import Note
from distill.inference.rescaling.results import Rescaling, rescaling_of
from distill.inference.rescaling.sections import resampled
from distill.io.volume import Volume
from distill.models.load import TrainedStudent, TrainedTeacher

PIXEL = 0.1  # relative difference in y or x above which a message is printed
THICKNESS = 0.25  # the same for section thickness


def trained_resolution(notes: Mapping[str, Any]) -> Nanometres | None:
    """Return the voxel size z, y, x in nm recorded in a model's weights; None if none is recorded."""
    found = notes.get("resolution")
    if found is None:
        return None
    z, y, x = (float(n) for n in found)
    return z, y, x


def grid_for(
    model: Path,
    notes: Mapping[str, Any],
    source: str,
    size: tuple[int, int],
    resolution: Nanometres,
    *,
    rescale: bool,
    note: Note,
    results: str = "results are on the source's own pixels",
) -> Rescaling | None:
    """Determine the grid on which a model is applied, and report voxel sizes that differ from its training data.

    Args:
        model: weights file.
        notes: of the weights file.
        source: name of the sections.
        size: (H, W) of a section.
        resolution: of the sections, nm.
        rescale: whether to use the model's pixel size.
        note: called with lines for the user.
        results: phrase that describes where results are written.

    Returns:
        The mapping between the grids; None if the model is applied to the sections as they are.

    Raises:
        DistillError: `rescale` is set and the weights record no voxel size, or the pixel sizes differ too much.
    """
    trained = trained_resolution(notes)
    if trained is None:
        if rescale:
            raise DistillError(
                f"--rescale: {model} does not say what voxels it was trained on, expected weights that do; a published "
                "checkpoint is given them by distill convert --resolution Z,Y,X"
            )
        note(f"{model} does not say what voxels it was trained on; {source} has {_text(resolution)} nm (z, y, x)")
        return None
    _check_thickness(source, resolution[0], trained[0], note)
    found = rescaling_of(source, size, resolution, trained[1:]) if rescale else None
    if found is not None:
        nm = f"from {_text(resolution[1:])} to {_text(trained[1:])} nm (y, x)"
        note(f"{source}: sections are resampled {nm}; {results}")
    elif not rescale and any(differs(a, b, PIXEL) for a, b in zip(resolution[1:], trained[1:], strict=True)):
        note(
            f"warning: {source} has pixels of {_text(resolution[1:])} nm, the model was trained on "
            f"{_text(trained[1:])} nm (y, x); --rescale makes it work on those"
        )
    return found


def on_grid_of(
    models: Sequence[TrainedStudent | TrainedTeacher],
    volume: Volume,
    *,
    rescale: bool,
    note: Note,
    results: str,
    otherwise: str,
) -> tuple[Volume, Rescaling | None]:
    """Resample a volume to the pixels that several models were trained on, if that is asked for.

    Args:
        models: all of them see the volume.
        volume: grey values.
        rescale: whether to work on the models' pixels.
        note: called with lines for the user.
        results: description of what is computed, for a message.
        otherwise: what to type for models of different voxel sizes.

    Returns:
        The volume that the models see, and both grids (None: they are the same).

    Raises:
        DistillError: with `rescale`, the models were trained on different pixels, or on unknown ones.
    """
    first, *others = models
    every = [first, *(one for one in others if trained_resolution(one.notes) != trained_resolution(first.notes))]
    if rescale and len(every) > 1:
        nm = [trained_resolution(one.notes) for one in every]
        raise DistillError(
            f"--rescale: found a student trained on {nm[0]} nm and a teacher trained on {nm[1]} nm, expected one voxel "
            f"size; {otherwise}"
        )
    found = None
    for one in every:
        found = grid_for(
            one.path,
            one.notes,
            volume.source,
            volume.size[1:],
            volume.resolution,
            rescale=rescale,
            note=note,
            results=results,
        )
    return volume if found is None else resampled(volume, found), found


def differs(found: float, wanted: float, least: float) -> bool:
    """Return whether two numbers differ by more than the fraction `least`, relative to the smaller one."""
    return max(found, wanted) > (1 + least) * min(found, wanted) * (1 + 1e-9)


def record_of(rescaling: Rescaling | None, resolution: Nanometres) -> dict[str, Any] | None:
    """Return the record of rescaling for the store and run.json; None without rescaling.

    Args:
        rescaling: of the sections.
        resolution: of the sections of the source, nm.
    """
    if rescaling is None:
        return None
    return {
        "size": list(rescaling.model),
        "pixel": [round(nm * factor, 6) for nm, factor in zip(resolution[1:], rescaling.factor, strict=True)],
        "factor": list(rescaling.factor),
    }


def _check_thickness(source: str, found: float, trained: float, note: Note) -> None:
    if not differs(found, trained, THICKNESS):
        return
    step = round(trained / found)
    way = "train it further on sections as thick"
    if step > 1:
        way = f"distill copy {source} OUT --every {step} makes sections of {found * step:g} nm"
    note(f"warning: {source} has sections of {found:g} nm, the model was trained on {trained:g} nm; {way}")


def _text(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
