"""The student on a stream of sections: each section is encoded once and paired with the one before it.

Legend: E embedding channels, H W = y x, h w half resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.affinity import pair_affinity
from distill.errors import ShapeError
from students.slab import SlabAdapter
from students.yshape import SectionFeatures, YShape


@dataclass(frozen=True)
class SectionResult:
    """What the stream gives for a section."""

    affinity: Tensor  # (3, H, W) float32 in [0, 1]; channel z is 0 for a section without a previous one
    embedding: Tensor  # (E, H, W)
    mixed: Tensor | None  # (64, h, w): the slab adapter's features, None without an adapter
    logits: Tensor | None  # (3, h, w): affinity logits at half resolution


class SectionStream:
    """Takes sections one by one; its state is the previous section's encoding."""

    def __init__(self, student: YShape, slab: SlabAdapter | None, *, device: torch.device, precision: str) -> None:
        """Start before the first section.

        Args:
            student: in evaluation mode, on the device.
            slab: adapter to the query decoder, or None if only affinities are wanted.
            device: where to compute.
            precision: `32-true` or `bf16-mixed`.
        """
        self.student, self.slab, self.device = student, slab, device
        self.half_precision = precision == "bf16-mixed"
        self.previous: SectionFeatures | None = None

    @torch.inference_mode()
    def push(self, section: Tensor) -> SectionResult:
        """Run the next section.

        Args:
            section: (H, W) float32 in [0, 1].

        Raises:
            ShapeError: its size is not the previous section's.
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half_precision):
            image = section.to(self.device)[None, None].contiguous(memory_format=torch.channels_last)
            current = self.student.encode(image)
            first = self.previous is None
            before = current if self.previous is None else self.previous
            if before.size != current.size:
                raise ShapeError(f"section: found size {current.size}, expected {before.size} as the one before it")
            pair = self.student.decode(before, current)
            affinity = pair_affinity(pair.previous.float(), pair.current.float())
            if first:
                affinity[:, 0] = 0  # no edge to a previous section
            mixed = logits = None
            if self.slab is not None:
                mixed, logits = (part[0] for part in self.slab.section(pair.half, pair.full, affinity))
        self.previous = current
        return SectionResult(affinity[0], pair.current[0], mixed, logits)
