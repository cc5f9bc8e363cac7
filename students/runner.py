"""The student on a stream of sections: each section is encoded once and paired with the one before it.

Results do not depend on how a stream was cut into calls. A step always has the same number of sections for sections of
one size (missing ones are filled up), because kernels may add up in another order in a batch of another size.

Legend: N sections, K offsets, E embedding channels, H W = y x, h w half resolution.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.affinity import NEAREST, section_affinity, to_uint8
from distill.errors import DistillError, ShapeError
from distill.geometry import Triple
from distill.sampling import as_unit_range
from students.backend import Maps, make_backend
from students.functions import Decoded, Wanted
from students.section import Student
from students.slab import SlabAdapter

EmbeddingType = Literal["uint8", "float16", "float32"]

_STEP_PIXELS = 8 * 2**20  # a step of so many pixels fills any device


@dataclass(frozen=True)
class SectionOutput:
    """What the stream gives for a section, or for a tile of it."""

    affinity: NDArray[np.uint8]  # (K, H, W); edges to a section that the stream has not seen are 0
    embedding: NDArray[Any] | None  # (E, H, W) of length one if asked for; uint8: -1..1 as 0..255
    mixed: Tensor | None  # (64, h, w): the slab adapter's features, None without an adapter
    logits: Tensor | None  # (3, h, w): affinity logits at half resolution


class SectionRunner:
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
        backend: str = "auto",
        tile: int | None = None,
        offsets: Sequence[Triple] = NEAREST,
        embedding: EmbeddingType | None = None,
        batch: int | None = None,
    ) -> None:
        """Start before the first section.

        Args:
            student: in evaluation mode, on the device.
            slab: adapter to the query decoder, or None if only affinities are wanted.
            device: where to compute.
            precision: `32-true` or `bf16-mixed`.
            backend: see `students.backend.make_backend`.
            tile: side of the tiles that `tiles` cuts, in pixels.
            offsets: K edges (z, y, x), the three nearest ones first; others within the section or to earlier ones.
            embedding: also give the current section's embedding, in this type.
            batch: most sections at once; by default as many as the device likes.

        Raises:
            DistillError: the offsets do not begin with the nearest ones or one leads to a later section, or the backend
                cannot be had.
        """
        check_offsets(offsets)
        self.further = tuple(offsets[3:])
        self.embedding = embedding
        self.reach = max([1, *(-z for z, _, _ in self.further)])  # sections back
        earlier = any(z < 0 for z, _, _ in self.further)
        wanted = Wanted(bool(embedding or self.further), earlier, slab is not None)
        self._backend = make_backend(backend, student, slab, wanted, device=device, precision=precision)
        if batch is not None and not 1 <= batch <= self._backend.batch:
            raise DistillError(f"batch: found {batch}, expected 1 to {self._backend.batch} with {self._backend.name}")
        self.batch = batch or self._backend.batch
        self.device = device
        self.reset()

    @property
    def backend(self) -> str:
        """Which backend computes: never `auto`."""
        return self._backend.name

    def reset(self) -> None:
        """Forget the sections so far: the next one has no previous one."""
        self._last: Maps | None = None
        self._size: tuple[int, int] | None = None
        # embeddings of the sections z - 1, z - 2, ...
        self._earlier: deque[Tensor] = deque(maxlen=max([0, *(-z for z, _, _ in self.further)]))

    def prime(self, section: NDArray[Any]) -> None:
        """Let a section become the previous one without results: to resume, to begin a range, to bridge a gap.

        With offsets that reach `reach` sections back, so many sections are primed in order.

        Args:
            section: (H, W) uint8, uint16, or float in [0, 1].

        Raises:
            ShapeError: its size is not the previous section's, or its type is another.
        """
        if self.reach > 1:
            self.push(section[None])
            return
        grey, _ = self._checked(section[None])
        self._last = self._backend.last(self._backend.encode(self._filled(grey)), 0)

    def push(self, sections: NDArray[Any]) -> list[SectionOutput]:
        """Run the next sections.

        Args:
            sections: (N, H, W) uint8, uint16, or float in [0, 1].

        Raises:
            ShapeError: their size is not the previous section's, their type is another, or there are none.
        """
        grey, size = self._checked(sections)
        step = self._step(size)
        return [found for first in range(0, len(grey), step) for found in self._run(grey[first : first + step], size)]

    def _run(self, grey: Tensor, size: tuple[int, int]) -> list[SectionOutput]:
        count = len(grey)
        current = self._backend.encode(self._filled(grey))
        previous = self._backend.previous(self._last, current)
        linked = torch.ones(self._step(size), 1, 1, 1)
        linked[0] = float(self._last is not None)
        found = self._backend.decode(previous, current, linked, size)
        outputs = [self._output(found, n, bool(linked[n])) for n in range(count)]
        self._last = self._backend.last(current, count - 1)
        return outputs

    def _checked(self, sections: NDArray[Any]) -> tuple[Tensor, tuple[int, int]]:
        """Sections as (N, 1, H, W) grey values, and their size."""
        if sections.ndim != 3 or not len(sections):
            raise ShapeError(f"sections: found shape {sections.shape}, expected (N, H, W) with at least one section")
        size = sections.shape[1], sections.shape[2]
        if 0 in size:
            raise ShapeError(f"section: found size {size}, expected at least one pixel")
        if self._size is not None and size != self._size:
            raise ShapeError(f"section: found size {size}, expected {self._size} as the one before it")
        grey = torch.from_numpy(np.ascontiguousarray(as_unit_range(sections)))[:, None]
        self._size = size
        return grey, size

    def _step(self, size: tuple[int, int]) -> int:
        """Sections a step: a power of two, so that every number up to `batch` ends on a whole step."""
        step = 1
        while 2 * step <= self.batch and 2 * step * size[0] * size[1] <= _STEP_PIXELS:
            step *= 2
        return step

    def _filled(self, grey: Tensor) -> Tensor:
        missing = self._step((grey.shape[2], grey.shape[3])) - len(grey)
        return torch.cat([grey, grey[-1:].expand(missing, -1, -1, -1)]) if missing else grey

    def _output(self, found: Decoded, n: int, linked: bool) -> SectionOutput:
        affinity = found.affinity[n]
        if self.further:
            affinity = torch.cat([affinity, *self._with_further(found, n, linked)])
        return SectionOutput(
            affinity.cpu().numpy(),
            None if self.embedding is None or found.current is None else stored(found.current[n], self.embedding),
            None if found.mixed is None else found.mixed[n],
            None if found.logits is None else found.logits[n],
        )

    def _with_further(self, found: Decoded, n: int, linked: bool) -> Iterator[Tensor]:
        """The section's affinities (1, H, W) uint8 of every further offset."""
        assert found.current is not None
        if linked and found.previous is not None:
            self._earlier.appendleft(found.previous[n : n + 1].clone())  # not a view of the whole batch
        now = found.current[n : n + 1]
        for z, y, x in self.further:
            other = now if z == 0 else self._earlier[-z - 1] if -z <= len(self._earlier) else None
            edges = torch.zeros_like(now[:, 0]) if other is None else section_affinity(now, other, (y, x))
            yield to_uint8(edges)


def stored(embedding: Tensor, kind: EmbeddingType) -> NDArray[Any]:
    """Embeddings in [-1, 1] as they are stored: uint8 takes -1..1 to 0..255, floats stay as they are."""
    if kind == "uint8":
        embedding = (embedding * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    elif kind == "float16":
        embedding = embedding.half()
    found: NDArray[Any] = embedding.cpu().numpy()
    return found


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
