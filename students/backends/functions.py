"""The two streaming functions that every backend runs: encode a section once, decode a pair.

Both are modules with tensor inputs and outputs only, so they can be run, compiled, traced and exported. Values that
depend on the section size are fixed at construction; a backend builds the modules once per size.

Legend: B sections or pairs, E embedding channels, H W = y x, h w half resolution, K maps of an encoded section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.affinity import pair_affinity, unit
from distill.core.affinity_conventions import to_uint8
from students.slab_adapter import SlabAdapter
from students.student import Samples, SectionFeatures, Student


@dataclass(frozen=True)
class ExtraOutputs:
    """Outputs of `Decode` in addition to the affinities."""

    current: bool = False  # unit embedding of the current section
    previous: bool = False  # unit embedding of the previous section
    features: bool = False  # inputs of the slab adapter


@dataclass(frozen=True)
class Decoded:
    """Outputs for a section, computed from it and the previous section."""

    affinity: Tensor  # (B, 3, H, W) uint8
    current: Tensor | None = None  # (B, E, H, W) float32 of unit length
    previous: Tensor | None = None
    joined: Tensor | None = None  # (B, J, h, w): see `SlabAdapter.joined`
    logits: Tensor | None = None  # (B, 3, h, w) float32


class Encode(nn.Module):
    """Convert sections to feature maps."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, grey: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 1, H, W) float32 in [0, 1] to K maps, padded to the student's stride."""
        return self.student.encode(grey).maps


class Decode(nn.Module):
    """Convert the maps of a pair to uint8 affinities and the requested outputs, as a flat tuple in the order of
    `Decoded`.
    """

    ones: Tensor

    def __init__(
        self,
        student: Student,
        slab: SlabAdapter | None,
        size: tuple[int, int] | None,
        wanted: ExtraOutputs,
        *,
        maps: int,
    ) -> None:
        """Build the module for a section size.

        Args:
            student: in evaluation mode.
            slab: its adapter, required for the features.
            size: (H, W) of a section (or tile) before padding; None: any size that needs no padding.
            wanted: requested outputs.
            maps: K, number of maps of `Encode`.
        """
        super().__init__()
        self.student, self.slab, self.size, self.wanted, self.maps = student, slab, size, wanted, maps
        self.register_buffer("ones", torch.ones(1, student.embedding_channels, 1, 1), persistent=False)

    def forward(self, linked: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Decode the pairs.

        Args:
            linked: (B, 1, 1, 1) float32, 0 where there is no previous section, otherwise 1.
            given: K maps of the previous and K of the current section. For a tile of a student with aligned upsampling
                levels, these are followed by `lower` and `weight` of each level's `Samples`, rows before columns.
        """
        k = self.maps
        samples = tuple(
            Samples((rows, columns), (rows_weight, columns_weight))
            for rows, columns, rows_weight, columns_weight in zip(
                *(given[2 * k + n :: 4] for n in range(4)), strict=True
            )
        )
        previous, current = (SectionFeatures(given[n : n + k], self.size, samples) for n in (0, k))
        pair = self.student.decode(previous, current)
        affinity = pair_affinity(pair.previous, pair.current, total=self._total)
        first, others = affinity[:, :1].float() * linked, affinity[:, 1:].float()
        affinity = torch.cat([first, others], 1)
        found = [to_uint8(affinity)]
        if self.wanted.current:
            found.append(unit(pair.current.float()))
        if self.wanted.previous:
            found.append(unit(pair.previous.float()))
        if self.wanted.features:
            assert self.slab is not None
            found += self.slab.joined(pair.half, pair.full, affinity)
        return tuple(found)

    def named(self, found: tuple[Tensor, ...]) -> Decoded:
        """Name the outputs of `forward`."""
        return name_outputs(self.wanted, found)

    def _total(self, values: Tensor) -> Tensor:
        """Compute `channel_sum` as a convolution, which is faster on a CPU than a sum over few channels."""
        return F.conv2d(values, self.ones.to(values.dtype))


def name_outputs(wanted: ExtraOutputs, found: tuple[Tensor, ...]) -> Decoded:
    """Name the outputs of `Decode.forward`."""
    rest = iter(found[1:])
    return Decoded(
        found[0],
        next(rest) if wanted.current else None,
        next(rest) if wanted.previous else None,
        *((next(rest), next(rest)) if wanted.features else (None, None)),
    )


def flat(samples: Sequence[Samples]) -> tuple[Tensor, ...]:
    """Flatten sampling positions to the order expected by `Decode`."""
    return tuple(part for level in samples for part in (*level.lower, *level.weight))
