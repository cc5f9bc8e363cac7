"""Draw a section next to its embeddings as colours, and their change across window borders (`distill pca`).

Embedding figures after Liu et al., CVPR 2024: a 3D network run by sliding window leaves a
checkerboard, the 2D student, which sees whole sections, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.core.hardware import AUTO, choose
from distill.core.normalisation import as_picture
from distill.evaluation.seams.border import profile_of_changes
from distill.evaluation.seams.networks import NetworkSeams, border_scores, student_shift, teacher_shift
from distill.evaluation.seams.profile import ALONG, changes_of
from distill.inference.embeddings import (
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
from distill.inference.grey_values import AS_RECORDED, GreyValues, check_grey, normaliser_of
from distill.inference.in_memory import student_sections
from distill.inference.options import Runtime
from distill.inference.rescaling.voxel_size import on_grid_of
from distill.io.volume import Volume, open_grey
from distill.models.load import TrainedStudent, TrainedTeacher, load_student, load_teacher, pick_device
from viz.embeddings.draw import Panel, pca_figure
from viz.embeddings.insets import Inset, check_insets
from viz.embeddings.movie import MovieFrames, movie_suffix, write_movie
from viz.embeddings.pca import Palette, fit_palettes
from viz.style import check_figure

_SAMPLE = 50_000  # pixels that the colours are fitted on
_DEPTH, _ENOUGH = 4, 2_000  # pixels from a membrane, and the fewest such pixels, to fit colours to
_LOOK = {"Teacher": "look for straight lines at the ticks: seams", "Student": "look for one colour within a neurite"}
_NEURITES = "inside neurites"
_BASIS = "colours and scores: pixels inside neurites (student's in-plane affinity above 0.5)"
_DIM = 0.55  # grey values outside neurites, next to colours inside

GreyImage = NDArray[np.uint8]


@dataclass(frozen=True)
class FigureOptions:
    """Optional parts of the figure."""

    insets: tuple[Inset, ...] = ()
    grid: bool = False  # the windows' borders as lines
    membranes: bool = False  # colours outside neurites too


PLAIN = FigureOptions()


@dataclass(frozen=True)
class Movie:
    """The same panels through the stack."""

    out: Path
    sections: tuple[int, int | None] | None = None  # all from the second on


@dataclass(frozen=True)
class Networks:
    """What is looked at, loaded on the device of `runtime`; no teacher = the student alone."""

    teacher: TrainedTeacher | None
    student: TrainedStudent
    runtime: Runtime


def on_source(networks: Networks, grey: GreyValues, volume: Volume) -> Networks:
    """Return the networks with their normalisations adapted to a source.

    Raises:
        DistillError: grey values that cannot be brought to the networks' scale.
    """
    taught, learnt = networks.teacher, networks.student
    learnt = replace(learnt, normaliser=normaliser_of(learnt, grey))
    check_grey(learnt.normaliser, volume.dtype, volume.source, lambda text: None)
    if taught is not None:
        taught = replace(taught, normaliser=normaliser_of(taught, grey))
    return replace(networks, teacher=taught, student=learnt)


@dataclass(frozen=True)
class Seams:
    """What was found; scores and windows are None where there was no teacher."""

    teacher: NetworkSeams | None
    student: NetworkSeams | None
    sliding: Sliding | None
    region: str
    explained: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Return a document for JSON."""
        return {
            "measure": {
                "ratio": f"embedding change across window borders / next to them, {self.region}; no unit, 1 = no seam",
                "stride": "power of the change at the windows' stride / at frequencies between; no unit, 1 = no seam",
                "shift": "angle between runs with windows half a step apart (student: the section framed so) / angle "
                "between unrelated pixels; no unit, 0 = the same",
            },
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
            "student": None if self.student is None else self.student.to_dict(),
            "window_zyx": None if self.sliding is None else list(self.sliding.size),
            "overlap_zyx": None if self.sliding is None else list(self.sliding.overlap),
            "blend": None if self.sliding is None else self.sliding.blend,
            "region": self.region,
            "explained_variance": self.explained,
        }


def pca(
    source: str,
    teacher: str | None,
    student: str,
    section: int,
    out: Path,
    windows: Windows,
    drawing: FigureOptions = PLAIN,
    movie: Movie | None = None,
    *,
    shifted: bool = False,
    device: str = "auto",
    precision: str = AUTO,
    resolution: tuple[float, float, float] | None = None,
    grey: GreyValues = AS_RECORDED,
    rescale: bool = False,
    on_section: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Seams:
    """Make the figure, and the movie if one is asked for; both with the colours fitted on `section`.

    Args:
        source: the volume.
        teacher: run folder or weights file; None = the student alone, without scores.
        student: run folder or weights file.
        section: number of the section, 1 at least (the student needs the one before it).
        out: .png, .svg or .pdf.
        windows: the teacher's sliding window.
        drawing: see `FigureOptions`.
        movie: where to, and which sections.
        shifted: also run the teacher with windows half a step further, and the student on a section framed so, and
            measure how much the runs disagree.
        device: where to compute.
        precision: see `distill.core.hardware`.
        resolution: for files without one.
        grey: how the user wants grey values taken.
        rescale: draw and compute on the pixels that the student was trained on, see
            `distill.inference.rescaling.results`.
        on_section: called with sections of the movie done and their number.
        note: called with lines that the user should see, device and precision among them.

    Raises:
        DistillError: bad input; the section is not there; a movie that cannot be written here.
    """
    check_figure(out)
    if movie is not None:
        movie_suffix(movie.out)
    volume = open_grey(source, resolution=resolution)
    chosen = choose(precision, pick_device(device))
    runtime = Runtime(pick_device(device), chosen.precision)
    grey_volume(volume, source)
    if not 1 <= section < volume.size[0]:
        raise DistillError(f"--section: found {section}, expected 1 to {volume.size[0] - 1} for {source}")
    through = None if movie is None else _through(movie, volume.size[0], source)
    taught = None if teacher is None else load_teacher(teacher, runtime.device)
    networks = on_source(Networks(taught, load_student(student, runtime.device), runtime), grey, volume)
    held: list[str] = []
    models = [networks.student, *(() if networks.teacher is None else (networks.teacher,))]
    only = "draw the student by --raw-only-student"
    volume, _ = on_grid_of(
        models, volume, rescale=rescale, note=held.append, results="so is the figure", otherwise=only
    )
    check_insets(drawing.insets, (volume.size[1], volume.size[2]))
    if taught is not None:
        Sliding.over(windows, taught.config.decoder.block, volume.size)  # refused before anything is said
    for line in (*chosen.lines, *held):
        note(line)
    looked = look(volume, networks, section, windows)
    seams, painter, panels = draw_pca(looked, out, drawing)
    if shifted and looked.sliding is not None:
        seams = with_shifts(seams, volume, networks, section, looked)
    if movie is not None and through is not None:
        shown = _grey(looked.pair[1])
        frames = MovieFrames(shown, panels, volume.resolution[1:], looked.borders)
        made = _frames(volume, through, networks, looked.sliding, painter, frames, on_section)
        write_movie(made, movie.out, frames.draw(shown, [p.rgb for p in panels], section))
    return seams


@dataclass(frozen=True)
class Looked:
    """One section as the networks see it.

    Attributes:
        pair: (2, H, W) the section before and the section.
        embeddings: (E, H, W) each: the teacher's, if there is one, and the student's.
        inside: (H, W) pixels inside neurites.
        sliding: the teacher's windows.
        kind: of the windows, in words.
        resolution: nm per pixel in y and x.
    """

    pair: NDArray[Any]
    embeddings: tuple[Embedding, ...]
    inside: Mask
    sliding: Sliding | None
    kind: str
    resolution: tuple[float, float]

    @property
    def borders(self) -> tuple[list[int], list[int]] | None:
        """Return the rows and columns at which windows begin."""
        return None if self.sliding is None else self.sliding.borders()

    @property
    def region(self) -> str:
        """Return the region of the pixels that determine colours and scores."""
        return "in all pixels" if self.inside.all() else _NEURITES


def look(volume: Volume, networks: Networks, section: int, windows: Windows) -> Looked:
    """Run the networks over one section.

    Raises:
        DistillError: windows that leave no border.
    """
    taught = networks.teacher
    sliding = None if taught is None else Sliding.over(windows, taught.config.decoder.block, volume.size)
    pair = volume.read(Box((section - 1, 0, 0), (section + 1, *volume.size[1:])))
    seen, inside = student_section(networks.student, pair, networks.runtime)
    embeddings: tuple[Embedding, ...] = (seen,)
    if taught is not None and sliding is not None:
        embeddings = (teacher_section(taught, volume, section, sliding, networks.runtime), seen)
    return Looked(pair, embeddings, inside, sliding, windows.kind, (volume.resolution[1], volume.resolution[2]))


def _deep(inside: Mask) -> Mask:
    """Return the pixels well inside neurites, whose embeddings differ less than those at membranes.

    Colours fitted to them show differences between neurites; fitted to all pixels, they show membranes only, and every
    neurite is the same. All pixels inside where few are that deep.
    """
    deep: Mask = ndimage.binary_erosion(inside, iterations=_DEPTH)
    return deep if np.count_nonzero(deep) >= _ENOUGH else inside


def draw_pca(looked: Looked, out: Path, drawing: FigureOptions = PLAIN) -> tuple[Seams, Painter, list[Panel]]:
    """Fit the colours, score the borders, write the figure.

    Raises:
        DistillError: colours or scores that cannot be had, or an `out` that cannot be written.
    """
    inside, borders, region = looked.inside, looked.borders, looked.region
    sample = np.random.default_rng(0).permutation(np.flatnonzero(_deep(inside)))[:_SAMPLE]
    palettes = fit_palettes([e.reshape(len(e), -1)[:, sample] for e in looked.embeddings])
    painter = Painter(_titles(looked), palettes, region, drawing.membranes)
    panels = painter.panels(looked.embeddings, inside, looked.pair[1])
    scored: list[NetworkSeams] = []
    profile = []
    if borders is not None:
        for name, e in zip(("Teacher", "Student"), looked.embeddings, strict=True):
            changes = changes_of(e, *borders, ~inside, ALONG)
            scored.append(border_scores(changes))
            profile.append((name, profile_of_changes(changes), scored[-1].border))
    pca_figure(
        _grey(looked.pair[1]),
        panels,
        looked.resolution,
        borders,
        profile,
        out,
        insets=drawing.insets,
        grid=drawing.grid,
        region=region,
        basis=_BASIS if region == _NEURITES else "",
        kind="" if looked.sliding is None else looked.kind,
    )
    names = ("student",) if looked.sliding is None else ("teacher", "student")
    explained = {n: [float(v) for v in p.basis.explained] for n, p in zip(names, palettes, strict=True)}
    teacher, student = scored or (None, None)
    return Seams(teacher, student, looked.sliding, region, explained), painter, panels


def with_shifts(seams: Seams, volume: Volume, networks: Networks, section: int, looked: Looked) -> Seams:
    """Add the scores of runs whose windows are shifted by half a step; unchanged without a teacher."""
    taught, sliding = networks.teacher, looked.sliding
    if taught is None or sliding is None or seams.teacher is None or seams.student is None:
        return seams
    one, seen = looked.embeddings
    other = teacher_section(taught, volume, section, sliding, networks.runtime, shifted=True)
    framed = student_shift(networks.student, looked.pair, seen, sliding, ~looked.inside, networks.runtime)
    return replace(
        seams,
        teacher=replace(seams.teacher, shift=teacher_shift(one, other, sliding, ~looked.inside)),
        student=replace(seams.student, shift=framed),
    )


@dataclass(frozen=True)
class Painter:
    """How an embedding becomes a panel, the same in every section."""

    titles: Sequence[str]
    palettes: Sequence[Palette]
    region: str
    membranes: bool

    def panels(self, embeddings: Sequence[Embedding], inside: Mask, section: NDArray[Any]) -> list[Panel]:
        images = [palette.rgb(e) for palette, e in zip(self.palettes, embeddings, strict=True)]
        if not self.membranes:
            dim = np.round(as_picture(section) * _DIM).astype(np.uint8)[..., None]
            images = [np.where(inside[..., None], image, dim) for image in images]
        return [
            Panel(title, image, f"{palette.basis.note} {self.region}; {_LOOK[title.partition(',')[0]]}")
            for title, image, palette in zip(self.titles, images, self.palettes, strict=True)
        ]


def _titles(looked: Looked) -> list[str]:
    student = "Student, whole section"
    if looked.sliding is None:
        return [student]
    return [f"Teacher, {looked.sliding.size[1]} × {looked.sliding.size[2]} windows", student]


def _grey(section: NDArray[Any]) -> GreyImage:
    return as_picture(section)


def _through(movie: Movie, depth: int, source: str) -> range:
    first, stop = movie.sections or (1, None)
    found = range(max(1, first), depth if stop is None else min(stop, depth))
    if len(found) == 0 or first < 0:
        raise DistillError(f"--sections: found {first}:{stop}, expected sections between 1 and {depth} for {source}")
    return found


def _frames(
    volume: Volume,
    through: range,
    networks: Networks,
    sliding: Sliding | None,
    painter: Painter,
    frames: MovieFrames,
    on_section: Callable[[int, int], None] | None,
) -> Iterator[GreyImage]:
    """Iterate over one picture (H, W, 3) per section, holding one slab of windows and one section of the student."""
    taught, learnt, runtime = networks.teacher, networks.student, networks.runtime
    results = student_sections(
        learnt, volume.sections(through.start - 1, through.stop), runtime, with_slab=False, embedding="float32"
    )
    next(results)
    slid: Iterator[Embedding | None] = iter([None] * len(through))
    if taught is not None and sliding is not None:
        slid = teacher_sections(taught, volume, through, sliding, runtime)
    sections = volume.sections(through.start, through.stop)
    for done, (z, section, result, windowed) in enumerate(zip(through, sections, results, slid, strict=True), 1):
        embeddings = [e for e in (windowed, embedding_of(result)) if e is not None]
        panels = painter.panels(embeddings, inside_neurites(result), section)
        yield frames.draw(_grey(section), [p.rgb for p in panels], z)
        if on_section is not None:
            on_section(done, len(through))
