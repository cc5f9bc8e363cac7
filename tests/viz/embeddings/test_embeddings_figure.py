"""The embedding figure's networks see what the caption says; the movie shows what the figure shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import distill.evaluation.seams.networks as seams
import viz.embeddings.figure as recipe
from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.inference.embeddings import Sliding, Windows, teacher_section, teacher_sections, teacher_slab
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models.load import load_student, load_teacher
from students.streaming.runner import SectionRunner
from teachers.sliding_window import sliding_windows
from viz.embeddings.figure import FigureOptions, Movie, Seams, pca
from viz.embeddings.insets import Inset

CPU = Runtime(torch.device("cpu"), "32-true")
Array = np.ndarray[Any, Any]


@pytest.fixture
def draw(run: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    return Draw(str(run), str(phantom), tmp_path, monkeypatch)


class Draw:
    """Makes a figure and keeps what it is given; the drawing itself is tested with `viz`."""

    def __init__(self, run: str, phantom: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.phantom, self.folder = run, phantom, folder
        self.seen: list[Array] = []
        self.mask: Array | None = None  # in place of the student's own, which is too young
        self.given: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}
        student = recipe.student_section

        def keep(*given: Any) -> Any:
            embedding, inside = student(*given)
            self.seen.append(embedding)
            return embedding, inside if self.mask is None else self.mask

        def keep_figure(*given: Any, **named: Any) -> None:
            self.given, self.named = given, named

        for module in (recipe, seams):
            monkeypatch.setattr(module, "student_section", keep)
        monkeypatch.setattr(recipe, "pca_figure", keep_figure)

    def __call__(self, section: int, windows: Windows, *more: Any, alone: bool = False, **named: Any) -> Seams:
        out = self.folder / "a.png"
        teacher = None if alone else self.run
        options = {"device": "cpu", "precision": "32-true", **named}
        return pca(self.phantom, teacher, self.run, section, out, windows, *more, **options)


@pytest.mark.parametrize("section", [1, 2, 10, 19])
@pytest.mark.parametrize("depth", [1, 2, 4, 40])
def test_student_sees_the_section_and_the_one_before(draw: Draw, run: Path, section: int, depth: int) -> None:
    found = draw(section, Windows((depth, 48, 48)))
    raw = open_volume(draw.phantom).read()
    student = load_student(str(run), torch.device("cpu"))
    cpu = torch.device("cpu")
    runner = SectionRunner(
        student.student,
        None,
        device=cpu,
        precision="32-true",
        backend="eager",
        embedding="float32",
        normaliser=student.normaliser,
    )
    _, second = runner.push(raw[section - 1 : section + 1])
    np.testing.assert_allclose(draw.seen[0], second.embedding, atol=1e-5)
    np.testing.assert_array_equal(draw.given[0], raw[section])
    assert found.sliding is not None
    assert found.sliding.size == (depth, 48, 48)
    assert found.student is not None
    assert found.student.border.ratio > 0


def test_default_window_is_the_block_and_leaves_a_border(draw: Draw) -> None:
    assert draw(10, Windows(None)).to_dict()["window_zyx"] == [4, 48, 48]


def test_blending_takes_the_seams_away(draw: Draw) -> None:
    hard, soft = draw(10, Windows((4, 48, 48))), draw(10, Windows((4, 48, 48), (0, 24, 24)))
    assert hard.teacher is not None
    assert soft.teacher is not None
    assert hard.teacher.border.ratio > soft.teacher.border.ratio
    assert hard.to_dict()["overlap_zyx"] == [0, 0, 0]
    assert soft.to_dict()["overlap_zyx"] == [0, 24, 24]
    assert set(hard.to_dict()["explained_variance"]) == {"teacher", "student"}
    assert hard.teacher.stride is None, "one border has no stride"
    assert soft.teacher.stride is not None
    assert soft.teacher.stride.stride == (24, 24)
    assert soft.to_dict()["teacher"]["stride"]["stride"] == [24, 24]


def test_shifted_windows_disagree_and_a_second_like_run_does_not(draw: Draw, run: Path) -> None:
    found = draw(10, Windows((4, 48, 48)), shifted=True)
    assert found.teacher is not None
    assert found.student is not None
    assert found.teacher.shift is not None
    assert found.student.shift is not None
    assert found.teacher.shift.low > 0
    assert draw.seen[1].shape[1:] == (72, 72), "the student's section framed half a window later"
    assert found.to_dict()["teacher"]["shift"]["ratio"] == found.teacher.shift.ratio
    assert draw(10, Windows((4, 48, 48))).to_dict()["teacher"]["shift"] is None


def test_membranes_are_grey_unless_asked_for_and_the_figure_says_where_the_colours_come_from(draw: Draw) -> None:
    draw(10, Windows(None))
    assert draw.named["region"] == "in all pixels"
    assert all("% of variance in all pixels; look for" in panel.note for panel in draw.given[1])
    draw.mask = inside = np.random.default_rng(0).random((12, 12)).repeat(8, 0).repeat(8, 1) < 0.7
    draw(10, Windows(None))
    raw, panels = draw.given[:2]
    assert draw.named["region"] == "inside neurites"
    for panel in panels:
        assert "% of variance inside neurites; look for" in panel.note
        outside = panel.rgb[~inside]
        assert (outside == outside[:, :1]).all()
        np.testing.assert_allclose(outside[:, 0], 0.55 * raw[~inside], atol=1)
    coloured = [panel.rgb for panel in panels]
    draw(10, Windows(None), FigureOptions(membranes=True))
    for panel, before in zip(draw.given[1], coloured, strict=True):
        np.testing.assert_array_equal(panel.rgb[inside], before[inside])
        assert (np.ptp(panel.rgb[~inside].astype(int), axis=1) > 0).mean() > 0.9


def test_student_alone_needs_no_teacher(draw: Draw) -> None:
    found = draw(10, Windows(None), FigureOptions((Inset((0, 20), (0, 20)),)), alone=True)
    assert found.teacher is found.student is found.sliding is None
    assert [panel.title for panel in draw.given[1]] == ["Student, whole section"]
    assert draw.given[3] is None
    assert draw.given[4] == []
    record = found.to_dict()
    assert (record["teacher"], record["student"], record["window_zyx"]) == (None, None, None)
    assert list(record["explained_variance"]) == ["student"]


@pytest.mark.parametrize("alone", [False, True])
def test_movie_shows_the_figures_colours_in_every_section(draw: Draw, tmp_path: Path, alone: bool) -> None:
    frames: list[tuple[int, list[Array]]] = []
    done: list[tuple[int, int]] = []
    draw_frame = recipe.MovieFrames.draw

    def keep(self: Any, raw: Array, images: list[Array], section: int) -> Array:
        frames.append((section, [raw, *images]))
        return draw_frame(self, raw, images, section)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.MovieFrames, "draw", keep)
        movie = Movie(tmp_path / "a.gif", (8, 13))
        windows = Windows((4, 48, 48), (2, 0, 0))
        draw(10, windows, FigureOptions(), movie, alone=alone, on_section=lambda *both: done.append(both))
    assert [z for z, _ in frames] == [10, 8, 9, 10, 11, 12]
    assert done == [(k, 5) for k in range(1, 6)]
    shown = dict(frames[1:])[10]
    figure = [draw.given[0], *(panel.rgb for panel in draw.given[1])]
    for one, other in zip(shown, figure, strict=True):
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)
    raw = open_volume(draw.phantom).read()
    for z, images in frames:
        np.testing.assert_array_equal(images[0], raw[z])
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 5


@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize("sections", [range(1, 20), range(5, 9), range(19, 20)])
def test_sections_of_the_movie_come_from_the_nearest_slab(
    run: Path, phantom: Path, overlap: int, sections: range
) -> None:
    """Held against every slab run by itself; only one slab is read at a time."""
    volume = open_volume(str(phantom))
    teacher = load_teacher(str(run), torch.device("cpu"))
    sliding = Sliding.over(Windows((4, 96, 48), (overlap, 0, 0)), (4, 48, 48), volume.size)
    slabs = {
        z: teacher_slab(teacher, volume.read(Box((z, 0, 0), (z + 4, 96, 96))), sliding, CPU)
        for z in {*range(0, 16, 4 - overlap), 16}
    }
    found = list(teacher_sections(teacher, volume, sections, sliding, CPU))
    assert len(found) == len(sections)
    for z, embedding in zip(sections, found, strict=True):
        away = {first: abs(z - first - 1.5) for first in slabs if first <= z < first + 4}
        nearest = [slabs[first][:, z - first] for first, d in away.items() if d == min(away.values())]
        assert any(np.allclose(embedding, one, atol=1e-5) for one in nearest)


def test_section_of_the_figure_lies_in_the_middle_of_its_windows(run: Path, phantom: Path) -> None:
    volume = open_volume(str(phantom))
    teacher = load_teacher(str(run), torch.device("cpu"))
    sliding = Sliding.over(Windows((4, 96, 48)), (4, 48, 48), volume.size)
    for section, first in ((0, 0), (1, 0), (2, 0), (3, 1), (10, 8), (18, 16), (19, 16)):
        assert sliding.slab(section) == (first, first + 4)
    slab = teacher_slab(teacher, volume.read(Box((8, 0, 0), (12, 96, 96))), sliding, CPU)
    np.testing.assert_allclose(teacher_section(teacher, volume, 10, sliding, CPU), slab[:, 2], atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 4, 10])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (50, 64), (100, 20)])
def test_shifted_windows_cover_everything_from_half_a_step_on(overlap: int, height: int, width: int) -> None:
    sliding = Sliding.over(Windows((2, 24, 24), (0, overlap, overlap)), (4, 48, 48), (2, height, width))
    plain, shifted = sliding.boxes(2), sliding.boxes(2, shifted=True)
    assert plain == list(sliding_windows((2, height, width), (2, 24, 24), (0, overlap, overlap)))
    assert {box.shape for box in shifted} == {plain[0].shape}
    covered = np.zeros((2, height, width), bool)
    for box in shifted:
        assert Box.of_shape((2, height, width)).contains(box)
        covered[box.slices] = True
    assert covered.all()
    step = 24 - overlap
    for axis, (before, after) in enumerate(zip(sliding.borders(), sliding.borders(shifted=True), strict=True)):
        last = (height, width)[axis] - 24
        assert after == sorted({min(b + step // 2, last) for b in [0, *before]} if last > 0 else set())


def test_wrong_windows(draw: Draw) -> None:
    with pytest.raises(DistillError, match=r"--overlap: found \(0, 48, 0\), expected at least 0 and less than"):
        draw(10, Windows((4, 48, 48), (0, 48, 0)))
    with pytest.raises(DistillError, match=r"--window: \(4, 96, 96\) covers the whole section"):
        draw(10, Windows((4, 96, 96)))
    with pytest.raises(DistillError, match=r"--section: found 0, expected 1 to 19"):
        draw(0, Windows(None))
    with pytest.raises(DistillError, match=r"--inset: found rows 90:99, columns 0:9"):
        draw(10, Windows(None), FigureOptions((Inset((90, 99), (0, 9)),)))
    for sections in ((30, None), (5, 5), (-3, 4)):
        with pytest.raises(DistillError, match=r"--sections: found .* expected sections between 1 and 20"):
            draw(10, Windows(None), FigureOptions(), Movie(draw.folder / "a.gif", sections))
    with pytest.raises(DistillError, match=r"\.avi"):
        draw(10, Windows(None), FigureOptions(), Movie(draw.folder / "a.avi"))
    assert draw.given == ()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "found neither"),
        (("--teacher", "RUN", "--raw-only-student"), "found both"),
        (("--raw-only-student", "--window", "4,48,48"), "the student alone has no windows"),
        (("--raw-only-student", "--shifted"), "the student alone has no windows"),
        (("--raw-only-student", "--sections", "1:4"), "--sections: found no --movie"),
        (("--raw-only-student", "--inset", "1,2"), "--inset: found '1,2', expected Y0:Y1,X0:X1"),
        (("--raw-only-student", "--movie", "a.avi"), "expected .gif or .mp4"),
    ],
)
def test_wrong_words(cli: Any, run: Path, phantom: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    given = [str(run) if word == "RUN" else word for word in words]
    said = cli("pca", phantom, "--student", run, "--section", 3, "--out", tmp_path / "a.png", "--device", "cpu", *given)
    assert said.code == 2
    assert says in said.err
    assert list(tmp_path.iterdir()) == []


def test_student_alone_with_insets_and_movie_from_the_command_line(
    cli: Any, run: Path, phantom: Path, cpu: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("--raw-only-student", "--inset", "10:40,20:50", "--movie", tmp_path / "a.gif", "--sections", "2:5")
    said = cli("pca", phantom, "--student", run, "--section", 3, "--out", tmp_path / "a.svg", *cpu, *words)
    assert said.code == 0, said.err
    assert "seam score" not in said.out
    assert said.out.splitlines()[-1] == f"movie: {tmp_path / 'a.gif'}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.svg"]
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 3
