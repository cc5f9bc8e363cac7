"""`pca`: the embeddings of teacher and student as colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.core.geometry import Nanometres, Triple
from distill.core.hardware import AUTO
from distill.python.running import Progress, Where

if TYPE_CHECKING:
    from viz.embeddings.figure import Seams


def pca(
    source: Where,
    student: Where,
    out: Where,
    *,
    teacher: Where | None = None,
    section: int = 1,
    window: Triple | None = None,
    overlap: Triple = (0, 0, 0),
    blend: bool = True,
    shifted: bool = False,
    insets: Sequence[str] = (),
    grid: bool = False,
    membranes: bool = False,
    movie: Where | None = None,
    sections: tuple[int, int | None] | None = None,
    resolution: Nanometres | None = None,
    normalise: str | None = None,
    invert: bool = False,
    rescale: bool = False,
    device: str = "auto",
    precision: str = AUTO,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Seams:
    """Draw the embeddings of teacher and student as colours, and score the seams that sliding windows leave.

    Args:
        source: volume.
        student: bundled model, run folder or weights file.
        out: figure, .png, .svg or .pdf.
        teacher: model whose teacher is drawn as well; None = the student alone, without scores.
        section: number of the section, 1 at least.
        window: of the teacher, z, y, x in voxels; None = its decoder's block.
        overlap: of neighbouring windows.
        blend: weight windows down towards their borders.
        shifted: also measure the disagreement with a run of windows shifted by half a step.
        insets: regions to enlarge, `Y0:Y1,X0:X1` in pixels.
        grid: draw the borders of the windows.
        membranes: also colour pixels outside neurites.
        movie: movie of all sections to write, .gif, or .mp4 with ffmpeg.
        sections: of the movie, first and one past the last.
        resolution: voxel size z, y, x in nm, for sources that do not state it.
        normalise: kind of normalisation instead of the models' own.
        invert: dark and bright are exchanged.
        rescale: compute at the pixel size of the student.
        device: `auto`, `cpu` or `cuda`.
        precision: see `distill.core.hardware`.
        progress: called with the sections of the movie done and their number.
        note: called with lines for the user.

    Returns:
        Seam scores.

    Raises:
        DistillError: bad input, or no such section.
    """
    from distill.inference.embeddings import Windows
    from distill.inference.grey_values import GreyValues
    from viz.embeddings.figure import FigureOptions, Movie
    from viz.embeddings.figure import pca as draw
    from viz.embeddings.insets import Inset

    return draw(
        str(source),
        None if teacher is None else str(teacher),
        str(student),
        section,
        Path(out),
        Windows(window, overlap, blend),
        FigureOptions(tuple(Inset.parse(text) for text in insets), grid, membranes),
        None if movie is None else Movie(Path(movie), sections),
        shifted=shifted,
        device=device,
        precision=precision,
        resolution=resolution,
        grey=GreyValues(normalise, invert),
        rescale=rescale,
        on_section=progress,
        note=note,
    )
