"""The voxels that a model was trained on, against those that it is to work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres
from distill.inference.rescaling.results import Rescaling, rescaling_of

PIXEL = 0.1  # relative difference in y or x that is worth a warning
THICKNESS = 0.25  # the same of sections

Note = Callable[[str], None]


def trained_resolution(notes: Mapping[str, Any]) -> Nanometres | None:
    """Voxel size z, y, x in nm that a model's weights say they were trained on; None where they do not."""
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
    """Find the grid that a model works on, and report voxels unlike those that it was trained on.

    Args:
        model: file of the weights.
        notes: what they say of their training.
        source: name of the sections.
        size: (H, W) of a section.
        resolution: of the sections, nm.
        rescale: whether to work on the model's pixels.
        note: called with lines that the user should see.
        results: of what is resampled, in words.

    Returns:
        Both grids; None where the model works on the sections' own.

    Raises:
        DistillError: the weights do not say what they were trained on and `rescale` is asked for, or the sizes are too
            far apart.
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


def differs(found: float, wanted: float, least: float) -> bool:
    """Whether the larger of two numbers is the smaller one and more than `least` of it."""
    return max(found, wanted) > (1 + least) * min(found, wanted) * (1 + 1e-9)


def record_of(rescaling: Rescaling | None, resolution: Nanometres) -> dict[str, Any] | None:
    """What a store and run.json say of rescaling; None where there is none.

    Args:
        rescaling: of the sections.
        resolution: of the sections as recorded, nm.
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
