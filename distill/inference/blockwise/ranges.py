"""Quantise the student of a segmentation before its first block."""

from __future__ import annotations

from dataclasses import replace

from distill.core.errors import DistillError
from distill.core.hardware import INT8
from distill.core.notes import Note
from distill.inference.blockwise.worker import Work
from distill.inference.calibration import from_volume, int8_line
from distill.models.load import TrainedStudent, TrainedTeacher
from students.backends.functions import ExtraOutputs
from students.backends.int8 import check_parts, quantised


def with_ranges(work: Work, trained: TrainedStudent | TrainedTeacher, note: Note) -> Work:
    """Choose the sections from which `int8` takes its ranges, and quantise the student; other precisions have none.

    Args:
        work: on all sections of the source.
        trained: its network.
        note: called with a line that says how much `int8` differs from float32.

    Raises:
        DistillError: a network or method that `int8` cannot compute, no sections, or too large a difference.
    """
    if work.precision != INT8:
        return work
    if isinstance(trained, TrainedTeacher):
        raise DistillError(f"--precision: found {INT8} with --network teacher, expected --network student")
    if work.method == "query":
        raise DistillError(f"--method: found query with --precision {INT8}, expected flood, waterz or mws")
    check_parts(trained.form)
    depth = work.plan.shape[0]
    calibration, ranges = from_volume(work.volume(), work.first, depth, work.normaliser, trained.form.stride)
    note(int8_line(quantised(trained.network, ExtraOutputs(), calibration).difference, calibration))
    return replace(work, ranges=ranges)
