"""Run a teacher on flipped and transposed blocks, and move its output back.

A section has no preferred direction, so the same tissue in another orientation gives a second estimate of the same
affinities; their mean is better than each of them (test-time augmentation). Edges point to the previous voxel: in a
flipped block, the edge of a voxel is stored at its other end.

Legend: B batch, C channels, D H W = z y x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.core.affinity import embedding_affinity
from teachers.teacher import Teacher, TeacherOutput, certain_logits

ORIENTATIONS = (1, 2, 4, 8, 16)  # numbers of them that are groups


@dataclass(frozen=True)
class Orientation:
    """Axes that are reversed, then a transposition of y and x.

    Attributes:
        flips: reversed axes z, y, x.
        transpose: y and x are exchanged after the flips.
    """

    flips: tuple[bool, bool, bool]
    transpose: bool

    @property
    def identity(self) -> bool:
        """Return whether the block stays as it is."""
        return not (any(self.flips) or self.transpose)

    def of(self, volume: Tensor) -> Tensor:
        """Orient (..., D, H, W)."""
        flipped = volume.flip([axis - 3 for axis in range(3) if self.flips[axis]])
        return flipped.transpose(-1, -2) if self.transpose else flipped

    def back(self, volume: Tensor) -> Tensor:
        """Move (..., D, H, W) of the oriented block back; the inverse of `of`."""
        turned = volume.transpose(-1, -2) if self.transpose else volume
        return turned.flip([axis - 3 for axis in range(3) if self.flips[axis]])

    def affinity_back(self, affinity: Tensor) -> Tensor:
        """Move affinities (B, 3, D, H, W) of the oriented block back, each edge to its own voxel.

        Edges that leave the block are 0 along reversed axes.
        """
        channels = self.back(affinity[:, [0, 2, 1]] if self.transpose else affinity).unbind(1)
        return torch.stack([_moved_on(one, axis) if self.flips[axis] else one for axis, one in enumerate(channels)], 1)


def orientations(count: int) -> list[Orientation]:
    """Return the first 1, 2, 4, 8 or 16 orientations: flips of y, of x, transposition, flip of z, one after another."""
    return [
        Orientation((bool(number & 8), bool(number & 1), bool(number & 2)), bool(number & 4)) for number in range(count)
    ]


def draw_orientation(count: int, generator: torch.Generator) -> Orientation:
    """Draw one of `orientations(count)`; nothing is drawn if there is only one."""
    number = int(torch.randint(count, (1,), generator=generator, device="cpu")) if count > 1 else 0
    return orientations(count)[number]


def run_oriented(teacher: Teacher, volume: Tensor, orientation: Orientation) -> TeacherOutput:
    """Run a teacher on an oriented block (B, 1, D, H, W) and move its output back.

    Affinities of an orientation other than the identity are given as logits at full resolution.
    """
    found: TeacherOutput = teacher(orientation.of(volume))
    if orientation.identity:
        return found
    given = found.decoder_input
    half = orientation.affinity_back(given.affinity_logits.float().sigmoid())
    full = full_affinity(found)
    return replace(
        found,
        decoder_input=replace(given, features=orientation.back(given.features), affinity_logits=certain_logits(half)),
        embedding=None if found.embedding is None else orientation.back(found.embedding),
        levels=[orientation.back(level) for level in found.levels],
        affinity_logits=None if full is None else certain_logits(orientation.affinity_back(full)),
        extra=(),
    )


def run_orientations(teacher: Teacher, volume: Tensor, count: int) -> TeacherOutput:
    """Run a teacher on a block (B, 1, D, H, W) and average its full-resolution affinities over orientations.

    Features, embedding and the decoder's logits are those of the block as it is. Teachers without affinities at full
    resolution run once.
    """
    found: TeacherOutput = teacher(volume)
    total = full_affinity(found)
    if count == 1 or total is None:
        return found
    for orientation in orientations(count)[1:]:
        other = full_affinity(teacher(orientation.of(volume)))
        assert other is not None
        total = total + orientation.affinity_back(other)
    return replace(found, affinity_logits=certain_logits(total / count))


def full_affinity(output: TeacherOutput) -> Tensor | None:
    """Return affinities at full resolution, (B, 3, D, H, W) in [0, 1]: of the head, else cosines of the embedding; None
    without either.
    """
    if output.affinity_logits is not None:
        return output.affinity_logits.float().sigmoid()
    return None if output.embedding is None else embedding_affinity(output.embedding.float())


def _moved_on(values: Tensor, axis: int) -> Tensor:
    """Move (B, D, H, W) by one voxel along an axis of the block; 0 enters."""
    moved = torch.zeros_like(values)
    length = values.shape[axis + 1]
    moved.narrow(axis + 1, 1, length - 1).copy_(values.narrow(axis + 1, 0, length - 1))
    return moved
