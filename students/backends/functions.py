"""The stream's two functions, in a form that every backend can take: encode a section once, decode a pair.

Both are modules of tensors alone, so that they can be run as they are, compiled, traced and exported. What depends on a
section's size is fixed when they are built; a backend builds them once a size.

Legend: B sections or pairs, E embedding channels, H W = y x, h w half resolution, K maps of an encoded section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.core.affinity import pair_affinity, to_uint8, unit
from students.slab_adapter import SlabAdapter
from students.student import Samples, SectionFeatures, Student


@dataclass(frozen=True)
class Wanted:
    """What `Decode` gives beside the affinities."""

    current: bool = False  # unit embedding of the current section
    previous: bool = False  # and of the previous one
    features: bool = False  # what the slab adapter takes of the section


@dataclass(frozen=True)
class Decoded:
    """What is known of a section once it and the one before it are encoded."""

    affinity: Tensor  # (B, 3, H, W) uint8
    current: Tensor | None = None  # (B, E, H, W) float32 of length one
    previous: Tensor | None = None
    joined: Tensor | None = None  # (B, J, h, w): see `SlabAdapter.joined`
    logits: Tensor | None = None  # (B, 3, h, w) float32


class Encode(nn.Module):
    """Sections to maps."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, grey: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, H, W) float32 in [0, 1] -> K maps, padded to the student's stride."""
        return self.student.encode(grey).maps


class Decode(nn.Module):
    """A pair's maps to uint8 affinities, and what else is wanted, as a flat tuple in the order of `Decoded`."""

    ones: Tensor

    def __init__(
        self, student: Student, slab: SlabAdapter | None, size: tuple[int, int] | None, wanted: Wanted, *, maps: int
    ) -> None:
        """Fix what depends on the size.

        Args:
            student: in evaluation mode.
            slab: its adapter, needed for the features.
            size: (H, W) of a section (or tile) before padding; None: any that needs none.
            wanted: which results.
            maps: K, how many maps `Encode` gives.
        """
        super().__init__()
        self.student, self.slab, self.size, self.wanted, self.maps = student, slab, size, wanted, maps
        self.register_buffer("ones", torch.ones(1, student.embedding_channels, 1, 1), persistent=False)

    def forward(self, linked: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Run the pairs.

        Args:
            linked: (B, 1, 1, 1) float32, 0 where there is no previous section, else 1.
            given: K maps of the previous and K of the current section. For a tile of a student with aligned upsampling
                levels then `lower` and `weight` of each level's `Samples`, rows before columns.
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
        """The results of `forward` with their names."""
        rest = iter(found[1:])
        return Decoded(
            found[0],
            next(rest) if self.wanted.current else None,
            next(rest) if self.wanted.previous else None,
            *((next(rest), next(rest)) if self.wanted.features else (None, None)),
        )

    def _total(self, values: Tensor) -> Tensor:
        """`channel_sum` as a convolution: a sum over few channels is slow on a CPU, a convolution is not."""
        return F.conv2d(values, self.ones.to(values.dtype))


def flat(samples: Sequence[Samples]) -> tuple[Tensor, ...]:
    """Sampling positions in the order that `Decode` takes them."""
    return tuple(part for level in samples for part in (*level.lower, *level.weight))
