"""The student on a stream of sections: each section is encoded once and paired with the one before it.

Legend: N sections, K offsets, E embedding channels, H W = y x, h w half resolution.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.affinity import NEAREST, pair_affinity, section_affinity
from distill.errors import DistillError, ShapeError
from distill.geometry import Triple
from students.section import PairOutput, SectionFeatures, Student
from students.slab import SlabAdapter


@dataclass(frozen=True)
class SectionResult:
    """What the stream gives for a section."""

    affinity: Tensor  # (K, H, W) float32 in [0, 1]; edges to a section that the stream has not seen are 0
    embedding: Tensor  # (E, H, W)
    mixed: Tensor | None  # (64, h, w): the slab adapter's features, None without an adapter
    logits: Tensor | None  # (3, h, w): affinity logits at half resolution


class SectionStream:
    """Takes sections in order; its state is the previous section's encoding.

    With offsets that reach further back than one section the embeddings of so many earlier sections are kept as well:
    those of the branch that sees its section as the previous one, as in the edge to the nearest section.
    """

    def __init__(
        self,
        student: Student,
        slab: SlabAdapter | None,
        *,
        device: torch.device,
        precision: str,
        offsets: Sequence[Triple] = NEAREST,
    ) -> None:
        """Start before the first section.

        Args:
            student: in evaluation mode, on the device.
            slab: adapter to the query decoder, or None if only affinities are wanted.
            device: where to compute.
            precision: `32-true` or `bf16-mixed`.
            offsets: K edges (z, y, x), the three nearest ones first; others within the section or to earlier ones.

        Raises:
            DistillError: the offsets do not begin with the nearest ones, or one leads to a later section.
        """
        check_offsets(offsets)
        self.student, self.slab, self.device = student, slab, device
        self.half_precision = precision == "bf16-mixed"
        self.further = tuple(offsets[3:])
        self.previous: SectionFeatures | None = None
        # embeddings of the sections z - 1, z - 2, ...
        self.earlier: deque[Tensor] = deque(maxlen=max([0, *(-z for z, _, _ in self.further)]))

    @torch.inference_mode()
    def push(self, section: Tensor) -> SectionResult:
        """Run the next section.

        Args:
            section: (H, W) float32 in [0, 1].

        Raises:
            ShapeError: its size is not the previous section's.
        """
        return self.push_many(section[None])[0]

    @torch.inference_mode()
    def push_many(self, sections: Tensor) -> list[SectionResult]:
        """Run the next sections as one batch: faster where one section does not fill the device.

        Args:
            sections: (N, H, W) float32 in [0, 1].

        Raises:
            ShapeError: their size is not the previous section's, or there are none.
        """
        if not len(sections):
            raise ShapeError("sections: found none, expected at least 1")
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half_precision):
            images = sections.to(self.device)[:, None].contiguous(memory_format=torch.channels_last)
            current = self.student.encode(images)
            first = self.previous is None
            before = current.rows(_numbers(0, 1, images.device)) if self.previous is None else self.previous
            if before.size != current.size:
                raise ShapeError(f"section: found size {current.size}, expected {before.size} as the one before it")
            count = len(sections)
            pair = self.student.decode(before.followed_by(current, count - 1), current)
            affinity = pair_affinity(pair.previous.float(), pair.current.float())
            if first:
                affinity[0, 0] = 0  # no edge to a previous section
            mixed = logits = None
            if self.slab is not None:
                mixed, logits = self.slab.section(pair.half, pair.full, affinity)
        self.previous = current.rows(_numbers(count - 1, count, images.device))
        return [
            SectionResult(
                self._with_further(affinity[n], pair, n, first and n == 0),
                pair.current[n],
                None if mixed is None else mixed[n],
                None if logits is None else logits[n],
            )
            for n in range(count)
        ]

    def _with_further(self, nearest: Tensor, pair: PairOutput, n: int, first: bool) -> Tensor:
        """The section's nearest affinities (3, H, W) with those of the further offsets behind them."""
        if not self.further:
            return nearest
        if not first and self.earlier.maxlen:
            self.earlier.appendleft(pair.previous[n : n + 1].float().clone())  # not a view of the whole batch
        now = pair.current[n : n + 1].float()
        rows = [nearest]
        for z, y, x in self.further:
            other = now if z == 0 else self.earlier[-z - 1] if -z <= len(self.earlier) else None
            rows.append(torch.zeros_like(nearest[:1]) if other is None else section_affinity(now, other, (y, x)))
        return torch.cat(rows)


def check_offsets(offsets: Sequence[Triple]) -> None:
    """Make sure that a stream can give these affinities.

    Raises:
        DistillError: they do not begin with the nearest ones, one leads to a later section or nowhere, or comes twice.
    """
    if tuple(offsets[:3]) != NEAREST:
        raise DistillError(f"offsets: found {[list(o) for o in offsets[:3]]} first, expected the three nearest ones")
    for offset in offsets[3:]:
        if offset[0] > 0 or offset == (0, 0, 0):
            raise DistillError(f"offset {list(offset)}: expected one within the section or to an earlier one (z <= 0)")
        if list(offsets).count(offset) > 1:
            raise DistillError(f"offset {list(offset)}: found more than once")


def _numbers(first: int, stop: int, device: torch.device) -> Tensor:
    return torch.arange(first, stop, device=device)
