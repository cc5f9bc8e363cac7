"""`distill bench seams`: seam scores of both networks over sections, window sizes, with and without blending.

As a control the student is also run by the teacher's windows: does the third dimension leave the seams, or the window?
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
    """A value with its 95 % interval, of n blocks."""

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
    """A value over several sections, with the interval that follows from theirs."""

    ratio: float
    low: float
    high: float
    sections: int


@dataclass(frozen=True)
class SectionSeams:
    """One section's scores; `pairwise` is the border score without averaging along the border."""

    section: int
    border: SeamScore
    pairwise: SeamScore
    stride: StrideScore | None
    shift: ShiftScore


@dataclass(frozen=True)
class SeamRow:
    """What one network does with one kind of windows.

    Attributes:
        window: side in pixels.
        kind: `side by side` or `blended`.
        network: `teacher`; `student, whole` sections; `student, windows`: run by the teacher's.
        sections: scores of every section.
    """

    window: int
    kind: str
    network: str
    sections: tuple[SectionSeams, ...]

    def pooled(self) -> dict[str, Pooled | None]:
        """`border`, `pairwise`, `stride` and `shift` over the sections."""
        return {
            "border": pool([s.border for s in self.sections], logarithmic=True),
            "pairwise": pool([s.pairwise for s in self.sections], logarithmic=True),
            "stride": pool([s.stride for s in self.sections], logarithmic=True),
            "shift": pool([s.shift for s in self.sections], logarithmic=False),
        }

    def cells(self) -> list[str]:
        """For a table under `HEADER`."""
        degrees = np.mean([s.shift.degrees for s in self.sections])
        excess = np.mean([s.shift.excess for s in self.sections])
        scores = [_cell(score) for score in self.pooled().values()]
        return [f"{self.window} {self.kind}, {self.network}", *scores, f"{degrees:.1f}", f"{excess:+.3f}"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    """Measure.

    Args:
        volume: grey values.
        teacher: 3D network.
        student: its student.
        sections: numbers of the sections to look at, 1 at least.
        sizes: sides of the windows in pixels.
        crop: pixels of a section along y and x, from the upper left corner.
        depth: sections of a window.
        runtime: device and precision.
        on_run: called with section by window sizes done and their number.

    Returns:
        Rows by size, kind of windows and network.

    Raises:
        DistillError: sections, crop or windows that are not there.
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
    """The sections that windows of `depth` and the student need, in memory, cut to the upper left corner.

    Args:
        whole: grey values.
        section: number of the section, 1 at least.
        side: pixels along y and x; less where a section is smaller.
        depth: of the teacher's windows.

    Returns:
        The piece, and the section's number in it.

    Raises:
        DistillError: no such section.
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
    """The student run by the teacher's windows, side by side; the last one wins."""
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
    """Mean of several sections' scores (geometric for ratios), each section as good as its own interval says."""
    there = [s for s in scored if s is not None]
    if not there:
        return None
    change: Callable[[float], float] = math.log if logarithmic else float
    back: Callable[[float], float] = math.exp if logarithmic else float
    middle = sum(change(s.ratio) for s in there) / len(there)
    # By the upper end alone, as a disagreement's lower end is cut off at 0.
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
