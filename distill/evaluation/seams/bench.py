"""Seam scores of both networks over sections and window sizes, with and without blending (`distill bench seams`).

As a control, the student is also run with the teacher's windows, to separate the effect of windows from that of the
third dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.evaluation.seams.border import SeamScore, seam_score
from distill.evaluation.seams.networks import DECODER_GRID, border_scores, student_shift, teacher_shift
from distill.evaluation.seams.profile import ALONG, changes_of
from distill.evaluation.seams.shift import ShiftScore
from distill.evaluation.seams.stride import StrideScore
from distill.inference.embeddings import Embedding, Mask, Sliding, Windows, student_section, teacher_section
from distill.inference.options import Runtime
from distill.io.volume import Volume, volume_from_array
from distill.models.load import TrainedStudent, TrainedTeacher

_SHARED = 4  # blended windows share a quarter of their width

OnRun = Callable[[int, int], None]


class Scored(Protocol):
    """A value with its 95 % interval, from n blocks."""

    @property
    def ratio(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Pooled:
    """Mean of a value over several sections, with an interval derived from theirs."""

    ratio: float
    low: float
    high: float
    sections: int


@dataclass(frozen=True)
class SectionSeams:
    """Scores of one section; `pairwise` is the border score without averaging along the border."""

    section: int
    border: SeamScore
    pairwise: SeamScore
    stride: StrideScore | None
    shift: ShiftScore


@dataclass(frozen=True)
class SeamRow:
    """Scores of one network with one kind of windows.

    Attributes:
        window: side in pixels.
        kind: `side by side` or `blended`.
        network: `teacher`; `student, whole`: on whole sections; `student, windows`: with the teacher's windows.
        sections: scores of every section.
    """

    window: int
    kind: str
    network: str
    sections: tuple[SectionSeams, ...]

    def pooled(self) -> dict[str, Pooled | None]:
        """Pool `border`, `pairwise`, `stride` and `shift` over the sections."""
        return {
            "border": pool([s.border for s in self.sections], logarithmic=True),
            "pairwise": pool([s.pairwise for s in self.sections], logarithmic=True),
            "stride": pool([s.stride for s in self.sections], logarithmic=True),
            "shift": pool([s.shift for s in self.sections], logarithmic=False),
        }

    def cells(self) -> list[str]:
        """Format the row for a table under `HEADER`."""
        degrees = np.mean([s.shift.degrees for s in self.sections])
        excess = np.mean([s.shift.excess for s in self.sections])
        scores = [_cell(score) for score in self.pooled().values()]
        return [f"{self.window} {self.kind}, {self.network}", *scores, f"{degrees:.1f}", f"{excess:+.3f}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        pooled = {key: None if score is None else asdict(score) for key, score in self.pooled().items()}
        return {**asdict(self), "pooled": pooled}


HEADER = ("window, network", "border", "border, pair by pair", "stride", "shift", "degrees", "excess at borders")


def bench_seams(
    volume: Volume,
    teacher: TrainedTeacher,
    student: TrainedStudent,
    sections: Sequence[int],
    sizes: Sequence[int],
    crop: int,
    depth: int,
    runtime: Runtime,
    on_run: OnRun = lambda done, total: None,
) -> list[SeamRow]:
    """Measure the seam scores of a teacher and its student.

    Args:
        volume: grey values.
        teacher: 3D network.
        student: its student.
        sections: numbers of the sections to score, at least 1.
        sizes: sides of the windows in pixels.
        crop: pixels of a section along y and x, from the upper left corner.
        depth: sections of a window.
        runtime: device and precision.
        on_run: called with the number of combinations of section and window size done and their total.

    Returns:
        Rows by size, kind of windows and network.

    Raises:
        DistillError: sections, crop or windows do not exist in the volume.
    """
    if not sections or not sizes:
        raise DistillError("bench seams: found no sections or no windows, expected one of each at least")
    found: dict[tuple[int, str, str], list[SectionSeams]] = {}
    runs = [(z, size) for z in sections for size in sizes]
    for done, (z, size) in enumerate(runs):
        piece, section = corner(volume, z, crop, depth)
        pair = piece.read(Box((section - 1, 0, 0), (section + 1, *piece.size[1:])))
        seen, inside = student_section(student, pair, runtime)
        for overlap in (0, size // _SHARED):
            windows = Windows((depth, size, size), (0, overlap, overlap))
            sliding = Sliding.over(windows, (depth, size, size), piece.size)
            slid = [teacher_section(teacher, piece, section, sliding, runtime, shifted=s) for s in (False, True)]
            shifts = teacher_shift(slid[0], slid[1], sliding, ~inside)
            rows = {"teacher": _scores(z, slid[0], sliding, inside, shifts)}
            framed = student_shift(student, pair, seen, sliding, ~inside, runtime)
            rows["student, whole"] = _scores(z, seen, sliding, inside, framed)
            if overlap == 0:
                cut = [student_windows(student, pair, sliding, runtime, shifted=s) for s in (False, True)]
                shifts = teacher_shift(cut[0], cut[1], sliding, ~inside)
                rows["student, windows"] = _scores(z, cut[0], sliding, inside, shifts)
            for network, row in rows.items():
                found.setdefault((size, windows.kind, network), []).append(row)
        on_run(done + 1, len(runs))
    order = {size: k for k, size in enumerate(sizes)}
    keys = sorted(found, key=lambda key: order[key[0]])
    return [SeamRow(*key, tuple(found[key])) for key in keys]


def corner(whole: Volume, section: int, side: int, depth: int) -> tuple[Volume, int]:
    """Read the sections needed by windows of `depth` and by the student into memory, cropped to the upper left corner.

    Args:
        whole: grey values.
        section: number of the section, at least 1.
        side: pixels along y and x; fewer if a section is smaller.
        depth: of the teacher's windows.

    Returns:
        The cropped volume, and the section's number in it.

    Raises:
        DistillError: the section does not exist.
    """
    if not 1 <= section < whole.size[0]:
        raise DistillError(f"section: found {section}, expected 1 to {whole.size[0] - 1} for {whole.source}")
    first = max(0, min(section - max(1, depth // 2), whole.size[0] - depth))
    stop = min(whole.size[0], max(first + depth, section + 1))
    raw = whole.read(Box((first, 0, 0), (stop, min(side, whole.size[1]), min(side, whole.size[2]))))
    return volume_from_array(raw, whole.resolution), section - first


def student_windows(
    student: TrainedStudent, pair: NDArray[Any], sliding: Sliding, runtime: Runtime, *, shifted: bool
) -> Embedding:
    """Run the student with the teacher's windows, side by side; overlaps keep the last window."""
    out: Embedding | None = None
    for box in sliding.boxes(1, shifted=shifted):
        _, y, x = box.slices
        embedding, _ = student_section(student, pair[:, y, x], runtime)
        if out is None:
            out = np.zeros((len(embedding), *pair.shape[1:]), np.float32)
        out[:, y, x] = embedding
    assert out is not None
    return out


def pool(scored: Sequence[Scored | None], *, logarithmic: bool) -> Pooled | None:
    """Average the scores of several sections (geometric mean for ratios), and combine their intervals."""
    there = [s for s in scored if s is not None]
    if not there:
        return None
    change: Callable[[float], float] = math.log if logarithmic else float
    back: Callable[[float], float] = math.exp if logarithmic else float
    middle = sum(change(s.ratio) for s in there) / len(there)
    # From the upper end only, because the lower end of a disagreement is truncated at 0.
    errors = [(change(s.high) - change(s.ratio)) / float(stdtrit(s.n - 1, 0.975)) for s in there]
    half = 1.96 * math.sqrt(sum(e**2 for e in errors)) / len(there)
    return Pooled(back(middle), back(middle - half), back(middle + half), len(there))


def _scores(section: int, embedding: Embedding, sliding: Sliding, inside: Mask, shift: ShiftScore) -> SectionSeams:
    borders = sliding.borders()
    found = border_scores(changes_of(embedding, *borders, ~inside, ALONG))
    pairwise = seam_score(embedding, *borders, exclude=~inside, grid=DECODER_GRID, along=1)
    return SectionSeams(section, found.border, pairwise, found.stride, shift)


def _cell(score: Pooled | None) -> str:
    return "-" if score is None else f"{score.ratio:.2f} ({score.low:.2f} to {score.high:.2f})"
