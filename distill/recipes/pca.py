"""`distill pca`: one section beside its embeddings as colours, and how they change across window borders.

Embedding figures after Liu et al., CVPR 2024: a 3D network run by sliding window leaves a
checkerboard, the 2D student, which sees whole sections, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.affinity import unit
from distill.errors import DistillError
from distill.geometry import Box, Triple
from distill.layers import coordinates
from distill.recipes.models import TrainedStudent, TrainedTeacher, load_student, load_teacher, pick_device
from distill.recipes.volumes import Runtime, student_sections
from distill.sampling import as_unit_range
from distill.volume import open_volume
from teachers.agq import TeacherOutput
from teachers.tiled import head_embedding, run_teacher, sliding_windows
from viz.figures import Panel, pca_figure
from viz.pca import align_basis, fit_basis, scores, to_rgb
from viz.seams import SeamProfile, SeamScore, seam_profile, seam_score

_INSIDE = 0.5  # mean in-plane affinity of the student
_FEW = 0.05  # share of pixels
_DECODER_GRID = 2  # both networks end with an upsampling by two; borders are compared on the same phase of it


@dataclass(frozen=True)
class Windows:
    """How the teacher slides."""

    size: Triple | None  # voxels; None = the decoder's block, at most half a section
    overlap: Triple = (0, 0, 0)
    blend: bool = True


@dataclass(frozen=True)
class Seams:
    """Seam scores of both networks at the teacher's window borders."""

    teacher: SeamScore
    student: SeamScore
    window: Triple
    overlap: Triple
    blend: bool
    explained: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "measure": "mean embedding change across window borders / beside them, inside neurites; 1 = no seam",
            "teacher": self.teacher.to_dict(),
            "student": self.student.to_dict(),
            "window_zyx": list(self.window),
            "overlap_zyx": list(self.overlap),
            "blend": self.blend,
            "explained_variance": self.explained,
        }


def pca(
    source: str,
    teacher: str,
    student: str,
    section: int,
    out: Path,
    windows: Windows,
    *,
    device: str = "auto",
    precision: str = "bf16-mixed",
    resolution: tuple[float, float, float] | None = None,
) -> Seams:
    """Make the figure.

    Args:
        source: the volume.
        teacher: run folder or weights file.
        student: run folder or weights file.
        section: number of the section, 1 at least (the student needs the one before it).
        out: .png, .svg or .pdf.
        windows: the teacher's sliding window.
        device: where to compute.
        precision: see `Runtime`.
        resolution: for files without one.

    Raises:
        DistillError: bad input; the section is not there.
    """
    volume = open_volume(source, resolution=resolution)
    runtime = Runtime(pick_device(device), precision)
    if volume.channels is not None:
        raise DistillError(f"{source}: found {volume.channels} channels, expected one grey-value volume z, y, x")
    depth, height, width = volume.size
    if not 1 <= section < depth:
        raise DistillError(f"--section: found {section}, expected 1 to {depth - 1} for {source}")
    taught, learnt = load_teacher(teacher, runtime.device), load_student(student, runtime.device)
    size = windows.size or _default_window(taught.config.decoder.block, (depth, height, width))
    if any(not 0 <= shared < extent for shared, extent in zip(windows.overlap, size, strict=True)):
        raise DistillError(f"--overlap: found {windows.overlap}, expected at least 0 and less than the window {size}")
    first = max(0, min(section - size[0] // 2, depth - size[0]))
    raw = volume.read(Box((first, 0, 0), (min(depth, first + size[0]), height, width)))
    slid = _teacher_section(taught, raw, section - first, size, windows, runtime)
    seen, inside = _student_section(
        learnt, volume.read(Box((section - 1, 0, 0), (section + 1, height, width))), runtime
    )
    boxes = sliding_windows((len(raw), height, width), size, windows.overlap)
    rows, columns = (sorted({box.start[axis] for box in boxes} - {0}) for axis in (1, 2))
    borders = rows, columns
    if not rows and not columns:
        raise DistillError(f"--window: {size} covers the whole section {(height, width)}; expected a smaller window")
    bases = [fit_basis(embedding[:, inside]) for embedding in (slid, seen)]
    rotation = align_basis(bases[1], seen, scores(slid, bases[0]))
    kind = "blended" if windows.blend and any(windows.overlap) else "side by side"
    panels = [
        Panel(f"Teacher, {size[1]} x {size[2]} windows, {kind}", to_rgb(slid, bases[0]), bases[0].note),
        Panel("Student, whole section", to_rgb(seen, bases[1], rotation), bases[1].note),
    ]
    profile: list[tuple[str, SeamProfile, SeamScore]] = [
        (name, seam_profile(e, *borders, exclude=~inside), seam_score(e, *borders, exclude=~inside, grid=_DECODER_GRID))
        for name, e in (("Teacher", slid), ("Student", seen))
    ]
    grey = np.round(as_unit_range(raw[section - first]) * 255).astype(np.uint8)
    pca_figure(grey, panels, volume.resolution[1:], borders, profile, out)
    explained = {name: [float(v) for v in b.explained] for name, b in zip(("teacher", "student"), bases, strict=True)}
    return Seams(profile[0][2], profile[1][2], size, windows.overlap, windows.blend, explained)


def _default_window(block: Triple, shape: Triple) -> Triple:
    z, y, x = shape
    return min(block[0], z), min(block[1], -(-y // 2)), min(block[2], -(-x // 2))


def _teacher_section(
    model: TrainedTeacher, raw: NDArray[Any], z: int, size: Triple, windows: Windows, runtime: Runtime
) -> NDArray[np.float32]:
    def mask_features(output: TeacherOutput) -> Tensor:
        given = output.decoder_input
        with torch.inference_mode():
            found = unit(model.decoder.mask_branch(torch.cat([coordinates(given.features), given.features], 1)).float())
        full = found[0].repeat_interleave(2, -2).repeat_interleave(2, -1)
        return full[..., : output.levels[0].shape[-2], : output.levels[0].shape[-1]]

    embed = head_embedding if model.teacher.embedding_head is not None else mask_features
    boxes = sliding_windows((len(raw), *raw.shape[1:]), size, windows.overlap)
    found = run_teacher(
        model.teacher,
        as_unit_range(raw),
        boxes,
        device=runtime.device,
        precision=runtime.precision,
        blend=windows.blend,
        embed=embed,
    )
    assert found.embedding is not None
    return found.embedding[:, z]


def _student_section(
    model: TrainedStudent, pair: NDArray[Any], runtime: Runtime
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The second section's embedding (E, H, W), and where it lies inside neurites.

    Trained with background edges at 0, neighbouring membrane pixels get orthogonal or opposite embeddings: a pixel-wide
    pattern that has nothing to do with windows. Colours and seam scores therefore go by the pixels inside neurites
    alone, the same ones for both networks; a student too young to tell them apart leaves all pixels in.
    """
    *_, last = student_sections(model, pair, runtime, with_slab=False)
    embedding: NDArray[np.float32] = unit(last.embedding.float(), dim=0).cpu().numpy()
    inside: NDArray[np.bool_] = (last.affinity[1:].mean(0) > _INSIDE).cpu().numpy()
    if inside.mean() < _FEW:
        inside = np.ones_like(inside)
    return embedding, inside
