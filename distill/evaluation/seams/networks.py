"""Seam scores of trained networks: the teacher with sliding windows, the student on whole sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DistillError
from distill.evaluation.seams.border import SeamScore, score_of_changes
from distill.evaluation.seams.profile import Changes
from distill.evaluation.seams.shift import ShiftScore, shift_score
from distill.evaluation.seams.stride import StrideScore, stride_of_changes
from distill.inference.embeddings import Embedding, Mask, Sliding, student_section
from distill.inference.options import Runtime
from distill.models.load import TrainedStudent

DECODER_GRID = 2  # both networks end with an upsampling by two; borders are compared at the same phase of it
NETWORK_GRID = 16  # stride of both networks' coarsest maps; the spectrum excludes the harmonics of their own sampling


@dataclass(frozen=True)
class NetworkSeams:
    """Seam scores of one network at the teacher's window borders."""

    border: SeamScore
    stride: StrideScore | None  # None if no axis has two borders at one stride, or too few pixels next to them
    shift: ShiftScore | None  # None unless requested

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the border score, and the other scores by name, for JSON."""
        return {
            **self.border.to_dict(),
            "stride": None if self.stride is None else self.stride.to_dict(),
            "shift": None if self.shift is None else self.shift.to_dict(),
        }


def border_scores(changes: Sequence[Changes]) -> NetworkSeams:
    """Compute the border score and, if a stride repeats over at least two strips, the stride score.

    Raises:
        DistillError: as `distill.evaluation.seams.border.seam_score`.
    """
    border = score_of_changes(changes, grid=DECODER_GRID)
    try:
        stride = stride_of_changes(changes, grid=NETWORK_GRID)
    except DistillError:  # too few windows or pixels to compare: only the border score is available
        stride = None
    return NetworkSeams(border, stride, None)


def teacher_shift(one: Embedding, other: Embedding, sliding: Sliding, exclude: Mask) -> ShiftScore:
    """Compute the shift score between two runs of the teacher with windows offset by half a step."""
    rows, columns = (a + b for a, b in zip(sliding.borders(), sliding.borders(shifted=True), strict=True))
    return shift_score(one, other, rows, columns, exclude=exclude)


def student_shift(
    model: TrainedStudent, pair: NDArray[Any], seen: Embedding, sliding: Sliding, exclude: Mask, runtime: Runtime
) -> ShiftScore:
    """Compute the shift score of the student for a frame shifted by as much as the teacher's windows.

    Legend: `seen` (E, H, W) is its output for the whole second section of the pair.
    """
    y, x = sliding.shift
    framed, _ = student_section(model, pair[:, y:, x:], runtime)
    rows, columns = (
        sorted({b - by for b in a + c if b > by})
        for a, c, by in zip(sliding.borders(), sliding.borders(shifted=True), (y, x), strict=True)
    )
    return shift_score(
        np.ascontiguousarray(seen[:, y:, x:]), framed, rows, columns, exclude=np.ascontiguousarray(exclude[y:, x:])
    )
