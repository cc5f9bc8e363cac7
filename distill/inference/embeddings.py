"""Embeddings of single sections: the teacher's by sliding window, the student's on the whole section.

Legend: E embedding channels, D H W = z y x.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity_conventions import from_uint8
from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple
from distill.core.hardware import computing, volume_precision
from distill.inference.in_memory import student_sections
from distill.inference.options import Runtime
from distill.io.volume import Volume
from distill.models.load import TrainedStudent, TrainedTeacher
from students.streaming.runner import SectionOutput
from teachers.sliding_window import head_embedding, slide_embedding, sliding_windows
from teachers.teacher import TeacherOutput

_INSIDE = 0.5  # mean in-plane affinity of the student
_FEW = 0.05  # share of pixels

Embedding = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """Size, overlap and blending of the teacher's windows."""

    size: Triple | None  # voxels; None = the decoder's block, at most half a section
    overlap: Triple = (0, 0, 0)
    blend: bool = True

    @property
    def kind(self) -> str:
        """Describe whether neighbouring windows are blended."""
        if not any(self.overlap[1:]):
            return "side by side"
        return "blended" if self.blend else "overlapping, not blended"


@dataclass(frozen=True)
class Sliding:
    """A teacher's windows over the sections of one volume.

    Attributes:
        size: of a window, voxels.
        overlap: overlap of neighbours in voxels.
        blend: whether overlaps are blended.
        shape: of the volume.
    """

    size: Triple
    overlap: Triple
    blend: bool
    shape: Triple

    @classmethod
    def over(cls, windows: Windows, block: Triple, shape: Triple) -> Sliding:
        """Check the requested windows against the volume.

        Raises:
            DistillError: the overlap is invalid, or the windows leave no border.
        """
        size = windows.size or _default_window(block, shape)
        if any(not 0 <= shared < extent for shared, extent in zip(windows.overlap, size, strict=True)):
            raise DistillError(
                f"--overlap: found {windows.overlap}, expected at least 0 and less than the window {size}"
            )
        found = cls(size, windows.overlap, windows.blend, shape)
        rows, columns = found.borders()
        if not rows and not columns:
            raise DistillError(f"--window: {size} covers the whole section {shape[1:]}; expected a smaller window")
        return found

    @property
    def shift(self) -> tuple[int, int]:
        """Return half a window's step in y and x, 0 along an axis with a single window."""
        y, x = (max(1, (self.size[a] - self.overlap[a]) // 2) if self.size[a] < self.shape[a] else 0 for a in (1, 2))
        return y, x

    def boxes(self, depth: int, *, shifted: bool = False) -> list[Box]:
        """Return windows over `depth` sections; if shifted, all but the first along an axis begin half a step later."""
        by = self.shift if shifted else (0, 0)
        boxes: list[Box] = []
        for box in sliding_windows((depth, *self.shape[1:]), self.size, self.overlap):
            boxes += self._moved(box, by)
        return sorted(set(boxes))

    def _moved(self, box: Box, by: tuple[int, int]) -> Iterator[Box]:
        """Yield a shifted window and, if it is the first along an axis, also the unshifted one."""
        starts = []
        for axis, shift in zip((1, 2), by, strict=True):
            start, last = box.start[axis], self.shape[axis] - box.shape[axis]
            starts.append({min(start + shift, last), *([0] if start == 0 else [])})
        for y in starts[0]:
            for x in starts[1]:
                yield box.shift((0, y - box.start[1], x - box.start[2]))

    def borders(self, *, shifted: bool = False) -> tuple[list[int], list[int]]:
        """Return rows and columns at which a window begins."""
        boxes = self.boxes(1, shifted=shifted)
        rows, columns = (sorted({box.start[axis] for box in boxes} - {0}) for axis in (1, 2))
        return rows, columns

    def slab(self, section: int) -> tuple[int, int]:
        """Return first and last (exclusive) section of the windows in which `section` is closest to the middle."""
        depth = min(self.size[0], self.shape[0])
        first = max(0, min(section - depth // 2, self.shape[0] - depth))
        return first, first + depth


def grey_volume(volume: Volume, source: str) -> None:
    """Check that a volume has no channels.

    Raises:
        DistillError: it has channels.
    """
    if volume.channels is not None:
        raise DistillError(f"{source}: found {volume.channels} channels, expected one grey-value volume z, y, x")


def teacher_slab(
    model: TrainedTeacher,
    raw: NDArray[Any],
    sliding: Sliding,
    runtime: Runtime,
    *,
    kept: range | None = None,
    shifted: bool = False,
) -> Embedding:
    """Compute the teacher's embedding of whole sections (D, H, W) by sliding window: (E, D, H, W), unit length before
    blending.

    The embedding is that of the embedding head; for a teacher without one, the mask features of its decoder. `kept` are
    consecutive sections to keep, by default all: the network may see more sections than are held in memory.
    """

    def mask_features(output: TeacherOutput) -> Tensor:
        precision = volume_precision(runtime.device, runtime.precision)
        with torch.inference_mode(), computing(runtime.device, precision):  # as the network that made the features
            found = model.decoder.mask_features(output.decoder_input)
        full = found[0].repeat_interleave(2, -2).repeat_interleave(2, -1)
        return full[..., : output.levels[0].shape[-2], : output.levels[0].shape[-1]]

    return slide_embedding(
        model.teacher,
        model.normaliser.sections(raw),
        sliding.boxes(len(raw), shifted=shifted),
        head_embedding if model.teacher.embedding_channels else mask_features,
        device=runtime.device,
        precision=runtime.precision,
        blend=sliding.blend,
        kept=kept,
    )


def teacher_section(
    model: TrainedTeacher, volume: Volume, section: int, sliding: Sliding, runtime: Runtime, *, shifted: bool = False
) -> Embedding:
    """Compute the teacher's embedding of one section, (E, H, W)."""
    first, stop = sliding.slab(section)
    raw = volume.read(Box((first, 0, 0), (stop, *volume.size[1:])))
    here = range(section - first, section - first + 1)
    return teacher_slab(model, raw, sliding, runtime, kept=here, shifted=shifted)[:, 0]


def teacher_sections(
    model: TrainedTeacher, volume: Volume, sections: range, sliding: Sliding, runtime: Runtime
) -> Iterator[Embedding]:
    """Iterate over the teacher's embeddings of consecutive sections, (E, H, W) each; one slab of windows is held at a
    time.

    A section in two slabs is taken from the one in which it is closer to the middle; nothing is blended along z.
    """
    depth = min(sliding.size[0], sliding.shape[0])
    step, last = max(1, depth - sliding.overlap[0]), sliding.shape[0] - depth
    starts = [*range(0, last, step), last]
    ends = [(after + start + depth + 1) // 2 for start, after in itertools.pairwise(starts)]
    for start, begin, end in zip(starts, [0, *ends], [*ends, sliding.shape[0]], strict=True):
        owned = range(max(begin, sections.start), min(end, sections.stop))
        if len(owned) == 0:
            continue
        raw = volume.read(Box((start, 0, 0), (start + depth, *volume.size[1:])))
        here = range(owned.start - start, owned.stop - start)
        found = teacher_slab(model, raw, sliding, runtime, kept=here)
        for k in range(len(here)):
            yield np.ascontiguousarray(found[:, k])


def student_section(model: TrainedStudent, pair: NDArray[Any], runtime: Runtime) -> tuple[Embedding, Mask]:
    """Compute the embedding of the second section (E, H, W), and its mask inside neurites (`inside_neurites`)."""
    results = student_sections(model, pair, runtime, with_slab=False, embedding="float32")
    next(results)  # not kept: its embedding is as large as the one needed
    last = next(results)
    return embedding_of(last), inside_neurites(last)


def embedding_of(result: SectionOutput) -> Embedding:
    """Return a section's embedding (E, H, W), scaled to unit length."""
    assert result.embedding is not None, "not asked for"
    return result.embedding


def inside_neurites(result: SectionOutput) -> Mask:
    """Mark pixels inside neurites, (H, W): mean in-plane affinity of the student above 0.5.

    Trained with background edges at 0, neighbouring membrane pixels receive orthogonal or opposite embeddings, a
    pixel-wide pattern unrelated to windows. Colours and seam scores are therefore based on the pixels inside neurites,
    the same for both networks. If the student is too little trained to distinguish them, all pixels are used.
    """
    inside: Mask = from_uint8(result.affinity[1:3]).mean(0) > _INSIDE
    return inside if inside.mean() >= _FEW else np.ones_like(inside)


def _default_window(block: Triple, shape: Triple) -> Triple:
    z, y, x = shape
    return min(block[0], z), min(block[1], -(-y // 2)), min(block[2], -(-x // 2))
