"""`distill pca`: one section beside its embeddings as colours, and how they change across window borders.

Embedding figures after Liu et al., CVPR 2024: a 3D network run by sliding window leaves a
checkerboard, the 2D student, which sees whole sections, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import DistillError
from distill.geometry import Box
from distill.recipes.embeddings import (
    Embedding,
    Mask,
    Sliding,
    Windows,
    embedding_of,
    grey_volume,
    inside_neurites,
    student_section,
    teacher_section,
    teacher_sections,
)
from distill.recipes.models import TrainedStudent, TrainedTeacher, load_student, load_teacher, pick_device
from distill.recipes.seams import NetworkSeams, border_scores, student_shift, teacher_shift
from distill.recipes.volumes import Runtime, student_sections
from distill.sampling import as_unit_range
from distill.volume import Volume, open_volume
from viz.figures import Panel, pca_figure
from viz.insets import Inset, check_insets
from viz.layout import figure_suffix
from viz.movie import MovieFrames, movie_suffix, write_movie
from viz.pca import Palette, fit_palettes
from viz.seams import seam_profile

_SAMPLE = 50_000  # pixels that the colours are fitted on
_DIM = 0.55  # grey values outside neurites, beside colours inside

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawing:
    """What the figure shows beside its panels."""

    insets: tuple[Inset, ...] = ()
    grid: bool = False  # the windows' borders as lines
    membranes: bool = False  # colours outside neurites too


PLAIN = Drawing()


@dataclass(frozen=True)
class Movie:
    """The same panels through the stack."""

    out: Path
    sections: tuple[int, int | None] | None = None  # all from the second on


@dataclass(frozen=True)
class Seams:
    """What was found; scores and windows are None where there was no teacher."""

    teacher: NetworkSeams | None
    student: NetworkSeams | None
    sliding: Sliding | None
    region: str
    explained: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "measure": {
                "ratio": f"embedding change across window borders / beside them, {self.region}; no unit, 1 = no seam",
                "stride": "power of the change at the windows' stride / at frequencies between; no unit, 1 = no seam",
                "shift": "angle between runs with windows half a step apart (student: the section framed so) / angle "
                "between unrelated pixels; no unit, 0 = the same",
            },
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
            "student": None if self.student is None else self.student.to_dict(),
            "window_zyx": None if self.sliding is None else list(self.sliding.size),
            "overlap_zyx": None if self.sliding is None else list(self.sliding.overlap),
            "blend": None if self.sliding is None else self.sliding.blend,
            "explained_variance": self.explained,
        }


def pca(
    source: str,
    teacher: str | None,
    student: str,
    section: int,
    out: Path,
    windows: Windows,
    drawing: Drawing = PLAIN,
    movie: Movie | None = None,
    *,
    shifted: bool = False,
    device: str = "auto",
    precision: str = "bf16-mixed",
    resolution: tuple[float, float, float] | None = None,
    on_section: Callable[[int, int], None] | None = None,
) -> Seams:
    """Make the figure, and the movie if one is asked for; both with the colours fitted on `section`.

    Args:
        source: the volume.
        teacher: run folder or weights file; None = the student alone, without scores.
        student: run folder or weights file.
        section: number of the section, 1 at least (the student needs the one before it).
        out: .png, .svg or .pdf.
        windows: the teacher's sliding window.
        drawing: see `Drawing`.
        movie: where to, and which sections.
        shifted: also run the teacher with windows half a step further, and the student on a section framed so, and
            measure how much the runs disagree.
        device: where to compute.
        precision: see `Runtime`.
        resolution: for files without one.
        on_section: called with sections of the movie done and their number.

    Raises:
        DistillError: bad input; the section is not there; a movie that cannot be written here.
    """
    figure_suffix(out)
    if movie is not None:
        movie_suffix(movie.out)
    volume = open_volume(source, resolution=resolution)
    runtime = Runtime(pick_device(device), precision)
    grey_volume(volume, source)
    depth, height, width = volume.size
    if not 1 <= section < depth:
        raise DistillError(f"--section: found {section}, expected 1 to {depth - 1} for {source}")
    check_insets(drawing.insets, (height, width))
    through = None if movie is None else _through(movie, depth, source)
    taught = None if teacher is None else load_teacher(teacher, runtime.device)
    learnt = load_student(student, runtime.device)
    sliding = None if taught is None else Sliding.over(windows, taught.config.decoder.block, volume.size)

    pair = volume.read(Box((section - 1, 0, 0), (section + 1, height, width)))
    seen, inside = student_section(learnt, pair, runtime)
    embeddings = [seen]
    if taught is not None and sliding is not None:
        embeddings.insert(0, teacher_section(taught, volume, section, sliding, runtime))
    sample = np.random.default_rng(0).permutation(np.flatnonzero(inside))[:_SAMPLE]
    palettes = fit_palettes([e.reshape(len(e), -1)[:, sample] for e in embeddings])
    region = "in all pixels" if inside.all() else "inside neurites"
    draw = _Draw(_titles(sliding, windows), palettes, region, drawing.membranes)
    panels, grey = draw.panels(embeddings, inside, pair[1]), _grey(pair[1])
    borders = None if sliding is None else sliding.borders()
    scored: list[NetworkSeams] = []
    profile = []
    if borders is not None:
        for name, e in zip(("Teacher", "Student"), embeddings, strict=True):
            scored.append(border_scores(e, borders, ~inside))
            profile.append((name, seam_profile(e, *borders, exclude=~inside), scored[-1].border))
    pca_figure(
        grey,
        panels,
        volume.resolution[1:],
        borders,
        profile,
        out,
        insets=drawing.insets,
        grid=drawing.grid,
        region=region,
    )
    if shifted and taught is not None and sliding is not None:
        other = teacher_section(taught, volume, section, sliding, runtime, shifted=True)
        shifts = [
            teacher_shift(embeddings[0], other, sliding, ~inside),
            student_shift(learnt, pair, seen, sliding, ~inside, runtime),
        ]
        scored = [NetworkSeams(s.border, s.stride, shift) for s, shift in zip(scored, shifts, strict=True)]
    if movie is not None and through is not None:
        frames = MovieFrames(grey, panels, volume.resolution[1:], borders)
        made = _frames(volume, through, taught, learnt, sliding, runtime, draw, frames, on_section)
        write_movie(made, movie.out, frames.draw(grey, [p.rgb for p in panels], section))
    names = ("student",) if teacher is None else ("teacher", "student")
    explained = {n: [float(v) for v in p.basis.explained] for n, p in zip(names, palettes, strict=True)}
    teacher_seams, student_seams = scored or (None, None)
    return Seams(teacher_seams, student_seams, sliding, region, explained)


@dataclass(frozen=True)
class _Draw:
    """How an embedding becomes a panel, the same in every section."""

    titles: Sequence[str]
    palettes: Sequence[Palette]
    region: str
    membranes: bool

    def panels(self, embeddings: Sequence[Embedding], inside: Mask, section: NDArray[Any]) -> list[Panel]:
        images = [palette.rgb(e) for palette, e in zip(self.palettes, embeddings, strict=True)]
        if not self.membranes:
            dim = np.round(as_unit_range(section) * (255 * _DIM)).astype(np.uint8)[..., None]
            images = [np.where(inside[..., None], image, dim) for image in images]
        return [
            Panel(title, image, f"{palette.basis.note} {self.region}")
            for title, image, palette in zip(self.titles, images, self.palettes, strict=True)
        ]


def _titles(sliding: Sliding | None, windows: Windows) -> list[str]:
    student = "Student, whole section"
    if sliding is None:
        return [student]
    return [f"Teacher, {sliding.size[1]} × {sliding.size[2]} windows, {windows.kind}", student]


def _grey(section: NDArray[Any]) -> Grey:
    return np.round(as_unit_range(section) * 255).astype(np.uint8)


def _through(movie: Movie, depth: int, source: str) -> range:
    first, stop = movie.sections or (1, None)
    found = range(max(1, first), depth if stop is None else min(stop, depth))
    if len(found) == 0 or first < 0:
        raise DistillError(f"--sections: found {first}:{stop}, expected sections between 1 and {depth} for {source}")
    return found


def _frames(
    volume: Volume,
    through: range,
    taught: TrainedTeacher | None,
    learnt: TrainedStudent,
    sliding: Sliding | None,
    runtime: Runtime,
    draw: _Draw,
    frames: MovieFrames,
    on_section: Callable[[int, int], None] | None,
) -> Iterator[Grey]:
    """One picture (H, W, 3) a section; what is held is one slab of windows and the student's last section."""
    results = student_sections(learnt, volume.sections(through.start - 1, through.stop), runtime, with_slab=False)
    next(results)
    slid: Iterator[Embedding | None] = iter([None] * len(through))
    if taught is not None and sliding is not None:
        slid = teacher_sections(taught, volume, through, sliding, runtime)
    sections = volume.sections(through.start, through.stop)
    for done, (z, section, result, windowed) in enumerate(zip(through, sections, results, slid, strict=True), 1):
        embeddings = [e for e in (windowed, embedding_of(result)) if e is not None]
        panels = draw.panels(embeddings, inside_neurites(result), section)
        yield frames.draw(_grey(section), [p.rgb for p in panels], z)
        if on_section is not None:
            on_section(done, len(through))
