"""A teacher that starts as a trained 2D student: its sections exchange features before pairs of them are decoded.

A student processes every section by itself and compares neighbours at its very end. Between its encoder and its pair
decoder, residual 3D modules mix the maps of several sections at every level. The last layer of each module starts at
zero, so that the network begins as the student and learns what the sections around it add. Starting a 3D network from a
2D one follows Carreira and Zisserman, CVPR 2017 (inflated kernels).

Fusion block, affinity branch and query decoder are those of AGQ (Chen et al., ICLR 2025), on the mixed maps in place of
a U-Net's. The affinity branch predicts what is to be added to the log-odds of the full-resolution affinities and starts
at zero.

Legend: B batch, C channels, D H W = z y x, h w = half resolution, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distill.core.affinity import pair_affinity
from distill.decoder.decoder import DecoderInput
from distill.decoder.layers import Conv
from students.student import PairOutput, Student
from teachers.agq import FusingTeacher
from teachers.teacher import TeacherOutput, certain_logits, half_logits

_COARSE = 2  # first level that the fusion block reads from the mixed maps; finer ones from the decoded pairs


class InflatedTeacher(FusingTeacher):
    """A student with mixed sections, fusion block and affinity branch."""

    def __init__(
        self,
        student: Student,
        *,
        widths: Sequence[int] = (8, 24, 32, 48, 64),
        layers: int = 2,
        fused: int = 64,
        branch_width: int = 64,
        branch_depth: int = 4,
    ) -> None:
        """Build the network.

        Args:
            student: 2D network that becomes a part of this one.
            widths: channels of the mixing modules, fine to coarse; the last one also holds for coarser maps.
            layers: 3x3x3 convolutions of a mixing module; each lets a section see one more to either side.
            fused: channels passed to the decoder (64 in its interface).
            branch_width: channels of the affinity branch.
            branch_depth: number of its 3x3x3 layers before the projection.
        """
        super().__init__()
        self.backbone = MixedStudent(student, widths, layers=layers)
        finest = [student.full_channels, student.half_channels]
        coarse = [count for count in map_channels(student)[_COARSE:] if count]
        self.add_branches([*finest, *coarse], fused=fused, branch_width=branch_width, branch_depth=branch_depth)
        _start_at_zero(self.affinity_branch.projection)
        self.embedding_channels = student.embedding_channels

    def forward(self, volume: Tensor) -> TeacherOutput:
        """Run a block.

        Args:
            volume: (B, 1, D, H, W), grey values in [0, 1].

        Returns:
            The embedding is that of the pair decoder's current branch; the affinities compare both branches, as the
            student's do, and are also given as `extra`, without limits. The first section of a block is its own
            previous one.
        """
        batch, _, depth, height, width = volume.shape
        found = self.backbone(volume)
        pair = found.pair
        affinity = _volumes(pair_affinity(pair.previous.float(), pair.current.float()), batch)
        levels = [_volumes(pair.full, batch), _volumes(pair.half, batch)]
        coarse = [_volumes(level, batch) for level in found.maps[_COARSE:] if level.shape[1]]
        features, added = self.fuse([*levels, *coarse], (depth, (height + 1) // 2, (width + 1) // 2))
        given = DecoderInput(features, half_logits(affinity) + added)
        embedding = _volumes(pair.current, batch)
        return TeacherOutput(given, embedding, levels, certain_logits(affinity), extra=(affinity,))


@dataclass(frozen=True)
class MixedSections:
    """Output of `MixedStudent`: rows are the sections of all blocks, (B * D, C, ...)."""

    maps: tuple[Tensor, ...]  # mixed, fine to coarse, padded to the student's stride
    pair: PairOutput


class MixedStudent(nn.Module):
    """A student whose sections exchange features."""

    def __init__(self, student: Student, widths: Sequence[int], *, layers: int) -> None:
        super().__init__()
        self.student = student
        self.mixing = nn.ModuleList(
            SectionMixing(count, widths[min(level, len(widths) - 1)], layers=layers) if count else nn.Identity()
            for level, count in enumerate(map_channels(student))
        )

    def forward(self, volume: Tensor) -> MixedSections:
        """Run a block (B, 1, D, H, W)."""
        batch, _, depth, _, _ = volume.shape
        found = self.student.encode(volume.transpose(1, 2).flatten(0, 1))
        maps = tuple(
            mixing(_volumes(level, batch)).transpose(1, 2).flatten(0, 1)
            for mixing, level in zip(self.mixing, found.maps, strict=True)
        )
        mixed = replace(found, maps=maps)
        rows = torch.arange(batch * depth, device=volume.device)
        before = mixed.rows(rows - (rows % depth > 0).long())
        return MixedSections(maps, self.student.decode(before, mixed))


class SectionMixing(nn.Module):
    """Residual module of 3x3x3 convolutions between two 1x1x1 convolutions, which starts as the identity."""

    def __init__(self, channels: int, width: int, *, layers: int) -> None:
        super().__init__()
        self.reduce = _block(channels, width, (1, 1, 1))
        self.mix = nn.Sequential(*(_block(width, width, (3, 3, 3)) for _ in range(layers)))
        self.expand = Conv(width, channels, (1, 1, 1), bias=True)
        _start_at_zero(self.expand)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        added: Tensor = self.expand(self.mix(self.reduce(x)))
        return x + added


def map_channels(student: Student) -> list[int]:
    """Return the channels of a student's encoded maps, fine to coarse; some encoders have an empty one."""
    training = student.training
    device = next(student.parameters()).device
    with torch.no_grad():
        maps = student.eval().encode(torch.zeros(1, 1, student.stride, student.stride, device=device)).maps
    student.train(training)
    return [found.shape[1] for found in maps]


def _start_at_zero(layer: Conv) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _volumes(rows: Tensor, batch: int) -> Tensor:
    """Rearrange sections (B * D, C, ...) to volumes (B, C, D, ...)."""
    volumes: Tensor = rows.unflatten(0, (batch, -1))  # type: ignore[no-untyped-call]
    return volumes.transpose(1, 2)


def _block(inputs: int, outputs: int, kernel: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(Conv(inputs, outputs, kernel, bias=False), nn.BatchNorm3d(outputs), nn.ELU())
