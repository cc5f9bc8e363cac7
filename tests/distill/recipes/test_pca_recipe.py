"""The embedding figure's networks see what the caption says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import distill.recipes.pca as recipe
from distill.errors import DistillError
from distill.recipes.models import load_student
from distill.recipes.pca import Seams, Windows, pca
from distill.sampling import as_unit_range
from distill.volume import open_volume
from students.stream import SectionStream


@pytest.fixture
def draw(run: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    return Draw(str(run), str(phantom), tmp_path, monkeypatch)


class Draw:
    """Makes a figure and keeps the student's embedding; the drawing itself is tested with `viz`."""

    def __init__(self, run: str, phantom: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.phantom, self.folder = run, phantom, folder
        self.seen: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None
        self.grey: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None
        student = recipe._student_section

        def keep(*given: object) -> object:
            found = student(*given)  # type: ignore[arg-type]
            self.seen = found[0]
            return found

        def keep_grey(grey: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], *_: object) -> None:
            self.grey = grey

        monkeypatch.setattr(recipe, "_student_section", keep)
        monkeypatch.setattr(recipe, "pca_figure", keep_grey)

    def __call__(self, section: int, windows: Windows) -> Seams:
        out = self.folder / "a.png"
        return pca(self.phantom, self.run, self.run, section, out, windows, device="cpu", precision="32-true")


@pytest.mark.parametrize("section", [1, 2, 10, 19])
@pytest.mark.parametrize("depth", [1, 2, 4, 40])
def test_student_sees_the_section_and_the_one_before(draw: Draw, run: Path, section: int, depth: int) -> None:
    found = draw(section, Windows((depth, 48, 48)))
    raw = open_volume(draw.phantom).read()
    student = load_student(str(run), torch.device("cpu"))
    stream = SectionStream(student.student, None, device=torch.device("cpu"), precision="32-true")
    pair = [stream.push(torch.from_numpy(as_unit_range(raw[z]))) for z in (section - 1, section)]
    embedding = pair[1].embedding / pair[1].embedding.norm(dim=0).clamp(min=1e-12)
    assert draw.seen is not None
    np.testing.assert_allclose(draw.seen, embedding.numpy(), atol=1e-5)
    np.testing.assert_array_equal(draw.grey, raw[section])
    assert found.window == (depth, 48, 48)
    assert found.student.ratio > 0


def test_default_window_is_the_block_and_leaves_a_border(draw: Draw) -> None:
    assert draw(10, Windows(None)).window == (4, 48, 48)


def test_blending_takes_the_seams_away(draw: Draw) -> None:
    hard, soft = draw(10, Windows((4, 48, 48))), draw(10, Windows((4, 48, 48), (0, 24, 24)))
    assert hard.teacher.ratio > soft.teacher.ratio
    assert hard.to_dict()["overlap_zyx"] == [0, 0, 0]
    assert soft.to_dict()["overlap_zyx"] == [0, 24, 24]
    assert set(hard.to_dict()["explained_variance"]) == {"teacher", "student"}


def test_wrong_windows(draw: Draw) -> None:
    with pytest.raises(DistillError, match=r"--overlap: found \(0, 48, 0\), expected at least 0 and less than"):
        draw(10, Windows((4, 48, 48), (0, 48, 0)))
    with pytest.raises(DistillError, match=r"--window: \(4, 96, 96\) covers the whole section"):
        draw(10, Windows((4, 96, 96)))
    with pytest.raises(DistillError, match=r"--section: found 0, expected 1 to 19"):
        draw(0, Windows(None))
    assert draw.grey is None
