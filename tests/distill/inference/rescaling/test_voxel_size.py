"""What is said of voxels unlike those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.core.errors import DistillError
from distill.core.geometry import Nanometres
from distill.inference.rescaling.results import Rescaling
from distill.inference.rescaling.voxel_size import grid_for, record_of

MODEL = Path("model.safetensors")
KNOWN = {"resolution": [30.0, 6.0, 6.0]}


def found(resolution: Nanometres, *, rescale: bool, notes: dict[str, Any]) -> tuple[Rescaling | None, list[str]]:
    said: list[str] = []
    grid = grid_for(MODEL, notes, "brain.h5", (60, 66), resolution, rescale=rescale, note=said.append)
    return grid, said


@pytest.mark.parametrize(
    ("resolution", "pixels", "thickness"),
    [
        ((30, 6, 6), False, False),
        ((30, 6.6, 5.5), False, False),
        ((30, 6.7, 6), True, False),
        ((30, 6, 5.4), True, False),
        ((37.5, 6, 6), False, False),
        ((24, 6, 6), False, False),
        ((38, 6, 6), False, True),
        ((8, 8, 8), True, True),
    ],
)
def test_other_voxels_are_warned_of(resolution: Nanometres, pixels: bool, thickness: bool) -> None:
    grid, said = found(resolution, rescale=False, notes=KNOWN)
    assert grid is None
    assert sum("pixels of" in line for line in said) == pixels
    assert sum("sections of" in line for line in said) == thickness
    assert len(said) == pixels + thickness
    for line in said:
        assert line.startswith("warning: brain.h5 has ")
        if "pixels of" in line:
            y, x = (f"{n:g}" for n in resolution[1:])
            assert f"{y} x {x} nm, the model was trained on 6 x 6 nm (y, x); --rescale" in line


def test_a_thickness_comes_with_what_can_be_done() -> None:
    _, thin = found((8, 6, 6), rescale=False, notes=KNOWN)
    _, thick = found((50, 6, 6), rescale=True, notes=KNOWN)
    assert "distill copy brain.h5 OUT --every 4 makes sections of 32 nm" in thin[0]
    assert "sections of 50 nm, the model was trained on 30 nm; train it further" in thick[0]


def test_rescaling_is_said_and_recorded() -> None:
    grid, said = found((30, 5, 7.5), rescale=True, notes=KNOWN)
    assert grid == Rescaling((60, 66), (50, 83), (1.2, 0.8))
    assert len(said) == 1
    assert said[0].startswith("brain.h5: sections are resampled from 5 x 7.5 to 6 x 6 nm (y, x)")
    assert record_of(grid, (30, 5, 7.5)) == {"size": [50, 83], "pixel": [6, 6], "factor": [1.2, 0.8]}


def test_one_pixel_size_needs_no_rescaling() -> None:
    assert found((30, 6, 6), rescale=True, notes=KNOWN) == (None, [])
    assert record_of(None, (30, 6, 6)) is None


def test_a_model_that_does_not_know_its_voxels() -> None:
    _, said = found((30, 4, 4), rescale=False, notes={})
    assert len(said) == 1
    assert "model.safetensors does not say what voxels it was trained on; brain.h5 has 30 x 4 x 4 nm" in said[0]
    with pytest.raises(DistillError, match=r"--rescale: model.safetensors does not say .* convert --resolution Z,Y,X"):
        found((30, 4, 4), rescale=True, notes={})
