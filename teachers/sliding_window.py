"""Sliding-window inference of a 3D teacher: overlapping windows, blended into one volume.

The seam score measures the seams that the windows leave in the embeddings.

Legend: E embedding channels, D H W = z y x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import fill_frame, unit
from distill.core.devices import to_device
from distill.core.geometry import Box, Triple, tiles
from distill.core.hardware import computing, volume_precision
from teachers.orientations import full_affinity, run_orientations
from teachers.teacher import Teacher, TeacherOutput


@dataclass(frozen=True)
class TeacherVolume:
    """Outputs of a teacher for a volume."""

    affinity: NDArray[np.float32]  # (3, D, H, W) in [0, 1]
    windows: list[Box]


def run_teacher(
    teacher: Teacher,
    raw: NDArray[np.float32],
    windows: Sequence[Box],
    *,
    device: torch.device,
    precision: str,
    blend: bool = True,
    orientations: int = 1,
    on_block: Callable[[Box, TeacherOutput, NDArray[np.float32]], None] | None = None,
) -> TeacherVolume:
    """Run a teacher over a volume in memory.

    Args:
        teacher: in evaluation mode, on the device.
        raw: (D, H, W) in [0, 1].
        windows: blocks that cover the volume, run in this order (see `sliding_windows`).
        device: computing device.
        precision: see `distill.core.hardware`.
        blend: weight windows by a pyramid that decreases towards their borders; otherwise the last window is kept (the
            unblended checkerboard).
        orientations: flips and transposes whose affinities are averaged, 1 to 16 (`teachers.orientations`).
        on_block: called with every window, the teacher's output and its own affinities (3, D, H, W).
    """
    affinity = np.zeros((3, *raw.shape), dtype=np.float32)
    edge_weight = np.zeros_like(affinity)
    for window in windows:
        output = _run(teacher, raw[window.slices], device, precision, orientations)
        own = block_affinity(output, (window.shape[1], window.shape[2]))
        if on_block is not None:
            on_block(window, output, own)
        here = (slice(None), *window.slices)
        share = _pyramid(window.shape) if blend else np.ones(window.shape, dtype=np.float32)
        inside = share * _edges_inside(window.shape)
        if not blend:
            affinity[here] = np.where(inside > 0, 0, affinity[here])
            edge_weight[here] = np.where(inside > 0, 0, edge_weight[here])
        affinity[here] += own * inside
        edge_weight[here] += inside
    affinity /= np.maximum(edge_weight, np.finfo(np.float32).tiny)
    _fill_seams(affinity, edge_weight, windows)
    fill_frame(affinity)
    return TeacherVolume(affinity, list(windows))


def slide_embedding(
    teacher: Teacher,
    raw: NDArray[np.float32],
    windows: Sequence[Box],
    embed: Callable[[TeacherOutput], Tensor],
    *,
    device: torch.device,
    precision: str,
    blend: bool = True,
    kept: range | None = None,
) -> NDArray[np.float32]:
    """Compute the embedding of some sections of a volume in memory from windows; other sections are not kept.

    Args:
        teacher: in evaluation mode, on the device.
        raw: (D, H, W) in [0, 1].
        windows: blocks that cover the volume, run in this order (see `sliding_windows`).
        embed: function that extracts the embedding (E, D, H, W) at full resolution from a window's output, e.g.
            `head_embedding`.
        device: computing device.
        precision: see `distill.core.hardware`.
        blend: as for `run_teacher`.
        kept: consecutive sections of the volume; all of them by default.

    Returns:
        (E, len(kept), H, W), L2-normalised before blending.
    """
    sections = range(raw.shape[0]) if kept is None else kept
    height, width = raw.shape[1:]
    stitched = np.zeros((0, len(sections), height, width), dtype=np.float32)
    weight = np.zeros((len(sections), height, width), dtype=np.float32)
    for window in windows:
        first, stop = max(window.start[0], sections.start), min(window.stop[0], sections.stop)
        if first >= stop:
            continue
        own = slice(first - window.start[0], stop - window.start[0])
        found = embed(_run(teacher, raw[window.slices], device, precision))[:, own]
        features = unit(found.float(), dim=0).cpu().numpy()
        if len(stitched) == 0:
            stitched = np.zeros((len(features), *weight.shape), dtype=np.float32)
        here = (slice(first - sections.start, stop - sections.start), *window.slices[1:])
        if blend:
            share = _pyramid(window.shape)[own]
            stitched[:, *here] += features * share
            weight[here] += share
        else:
            stitched[:, *here], weight[here] = features, 1
    stitched /= weight
    return stitched


def sliding_windows(shape: Triple, block: Triple, overlap: Triple) -> list[Box]:
    """Cover a volume with windows of `block` voxels that share `overlap` voxels with the next."""
    z, y, x = (max(1, b - o) for b, o in zip(block, overlap, strict=True))
    return list(tiles(Box.of_shape(shape), block, (z, y, x)))


@torch.inference_mode()
def _run(
    teacher: Teacher, raw: NDArray[np.float32], device: torch.device, precision: str, count: int = 1
) -> TeacherOutput:
    with computing(device, volume_precision(device, precision)):
        return run_orientations(teacher, to_device(np.array(raw)[None, None], device), count)


def head_embedding(output: TeacherOutput) -> Tensor:
    """Return the voxel embedding of the embedding head for one block, (E, D, H, W)."""
    assert output.embedding is not None, "a teacher without an embedding head"
    return output.embedding[0]


def block_affinity(output: TeacherOutput, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return full-resolution affinities (3, D, H, W) of one block: of the affinity head, else of the embedding, else of
    the affinity branch, upsampled.
    """
    own = full_affinity(output)
    if own is not None:
        return own[0].cpu().numpy()
    half: Tensor = output.decoder_input.affinity_logits[0].float().sigmoid()
    full = half.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    return full[..., : size[0], : size[1]].cpu().numpy()


def _fill_seams(affinity: NDArray[np.float32], edge_weight: NDArray[np.float32], windows: Sequence[Box]) -> None:
    """Give edges between windows that share no voxel the value of the next ones inside a window.

    Args:
        affinity: (3, D, H, W), changed in place.
        edge_weight: (3, D, H, W), 0 for edges that lie in no window.
        windows: all of them.
    """
    for window in windows:
        for axis, size in enumerate(window.shape):
            if window.start[axis] == 0 or size < 2:
                continue
            own = affinity[axis][window.slices].swapaxes(0, axis)  # a view
            unknown = edge_weight[axis][window.slices].swapaxes(0, axis)[0] == 0
            own[0][unknown] = own[1][unknown]


def _edges_inside(shape: Triple) -> NDArray[np.float32]:
    """Return (3, D, H, W): 1 where the edge to the previous voxel is inside a window, 0 in its first section, row,
    column.
    """
    inside = np.ones((3, *shape), dtype=np.float32)
    inside[0, 0], inside[1, :, 0], inside[2, :, :, 0] = 0, 0, 0
    return inside


def _pyramid(shape: Triple) -> NDArray[np.float32]:
    """Return weights of 1 in the centre that decrease linearly to 1 / (n / 2) at the border of each axis."""
    axes = []
    for n in shape:
        ramp = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32)
        axes.append(ramp / ramp.max())
    z, y, x = axes
    weight: NDArray[np.float32] = z[:, None, None] * y[None, :, None] * x[None, None, :]
    return weight
