"""Seam scores of trained networks: the teacher by sliding window, the student of whole sections."""

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

DECODER_GRID = 2  # both networks end with an upsampling by two; borders are compared on the same phase of it
NETWORK_GRID = 16  # both networks' coarsest maps; the spectrum leaves out what their own sampling repeats


@dataclass(frozen=True)
class NetworkSeams:
    """Seam scores of one network at the teacher's window borders."""

    border: SeamScore
    stride: StrideScore | None  # None where no axis has two borders at one stride, or too little beside them
    shift: ShiftScore | None  # None unless asked for

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the border score's fields, and the others by name."""
        return {
            **self.border.to_dict(),
            "stride": None if self.stride is None else self.stride.to_dict(),
            "shift": None if self.shift is None else self.shift.to_dict(),
        }


def border_scores(changes: Sequence[Changes]) -> NetworkSeams:
    """Border score and, where a stride repeats over two strips or more, the score of its spectrum.

    Raises:
        DistillError: as `distill.evaluation.seams.border.seam_score`.
    """
    border = score_of_changes(changes, grid=DECODER_GRID)
    try:
        stride = stride_of_changes(changes, grid=NETWORK_GRID)
    except DistillError:  # too few windows or pixels to compare: the border score stands alone
        stride = None
    return NetworkSeams(border, stride, None)


def teacher_shift(one: Embedding, other: Embedding, sliding: Sliding, exclude: Mask) -> ShiftScore:
    """How much two runs of the teacher differ whose windows lie half a step apart."""
    rows, columns = (a + b for a, b in zip(sliding.borders(), sliding.borders(shifted=True), strict=True))
    return shift_score(one, other, rows, columns, exclude=exclude)


def student_shift(
    model: TrainedStudent, pair: NDArray[Any], seen: Embedding, sliding: Sliding, exclude: Mask, runtime: Runtime
) -> ShiftScore:
    """How much the student's embedding depends on the section's frame, moved by as much as the teacher's windows.

    Legend: `seen` (E, H, W) is what it gives for the whole of the pair's second section.
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
