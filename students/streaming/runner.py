"""Run the student on a stream of sections: each section is encoded once and paired with the previous one.

Results do not depend on how a stream is divided into calls. For sections of one size, a step always has the same number
of sections (padded if necessary), because kernels may sum in a different order in a batch of another size.

Legend: N sections, K offsets, E embedding channels, H W = y x, h w half resolution.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import NEAREST, section_affinity
from distill.core.affinity_conventions import to_uint8
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple
from distill.core.normalisation import UNCHANGED, Correction, Normaliser
from students.backends.base import Maps
from students.backends.choose import make_backend
from students.backends.functions import Decoded, ExtraOutputs
from students.slab_adapter import SlabAdapter
from students.streaming.outputs import EmbeddingType, SectionOutput, assembled, stored
from students.streaming.tiling import Tile, cut, halo
from students.streaming.transfer import Transfer
from students.student import Samples, Student, tile_samples

__all__ = ["EmbeddingType", "SectionOutput", "SectionRunner", "check_stream_offsets"]

_STEP_PIXELS = 8 * 2**20  # a step of this many pixels fills any device


class SectionRunner:
    """Processes sections in order; its state is the encoding of the previous section.

    With offsets that reach further back than one section, the embeddings of those earlier sections are kept as well:
    those of the branch for the previous section, as in the edge to the nearest section.
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
        normaliser: Normaliser = UNCHANGED,
    ) -> None:
        """Start before the first section.

        Args:
            student: in evaluation mode, on the device.
            slab: adapter to the query decoder, or None if only affinities are needed.
            device: computing device.
            precision: see `distill.core.hardware`.
            backend: see `students.backends.choose.make_backend`.
            tile: side of the tiles of `tiles`, in pixels.
            offsets: K offsets (z, y, x), the three nearest neighbours first; others within the section or to earlier
                sections.
            embedding: also return the current section's embedding, in this type.
            batch: maximum number of sections at once; by default chosen for the device.
            normaliser: normalises whole sections as in training. Regions of sections (`at`) must be given normalised,
                because the correction does not follow from their pixels alone.

        Raises:
            DistillError: the offsets do not begin with the nearest neighbours, one leads to a later section, or the
                backend is not available.
        """
        check_stream_offsets(offsets)
        self.further = tuple(offsets[3:])
        self.embedding = embedding
        self.reach = max([1, *(-z for z, _, _ in self.further)])  # sections back
        earlier = any(z < 0 for z, _, _ in self.further)
        self._wanted = ExtraOutputs(bool(embedding or self.further), earlier, slab is not None)
        self._offsets, self._tile, self._stride, self._levels = (
            tuple(offsets),
            tile,
            student.stride,
            student.aligned_levels,
        )
        self.halo = None if tile is None else halo(student, offsets)
        self._backend = make_backend(backend, student, slab, self._wanted, device=device, precision=precision)
        if batch is not None and not 1 <= batch <= self._backend.batch:
            raise DistillError(f"batch: found {batch}, expected 1 to {self._backend.batch} with {self._backend.name}")
        self.batch = batch or self._backend.batch
        self._transfer, self._normaliser = Transfer(device), normaliser
        self._region: Tile | None = None
        self._whole: tuple[int, int] | None = None
        self.timed: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext()  # around each stage
        self.reset()

    @property
    def backend(self) -> str:
        """Name of the backend, never `auto`."""
        return self._backend.name

    def at(self, region: Tile | None, section: tuple[int, int] | None = None) -> None:
        """Process one region of the sections from now on, or whole sections again; discards the previous section.

        Sections are then given as the region's own pixels (`Tile.filled`). Results are those of its core, and equal the
        results of the whole section there.

        Args:
            region: the region; None: whole sections.
            section: (H, W) of the sections that contain it.
        """
        self.reset()
        self._region, self._whole = region, section

    def reset(self) -> None:
        """Discard the previous section: the next one has none."""
        self._last: Maps | None = None
        self._size: tuple[int, int] | None = None
        self._raw: deque[_Recorded] = deque(maxlen=self.reach)  # with tiles: the sections z - 1, z - 2, ...
        # embeddings of the sections z - 1, z - 2, ...
        self._earlier: deque[Tensor] = deque(maxlen=max([0, *(-z for z, _, _ in self.further)]))

    def prime(self, section: NDArray[Any], correction: Correction | None = None) -> None:
        """Set the previous section without returning results: to resume, to start a range, or to bridge a gap.

        With offsets that reach `reach` sections back, prime this many sections in order.

        Args:
            section: (H, W) grey values as recorded.
            correction: of its grey values, if already known.

        Raises:
            ShapeError: its size differs from that of the previous section, or its type cannot be normalised.
        """
        if self._tile is not None:
            self._check(section[None])
            self._raw.appendleft(self._recorded(section, correction))
            return
        if self.reach > 1:
            self.push(section[None], None if correction is None else [correction])
            return
        self._check(section[None])
        grey = self._transfer.sections(section[None], [correction or self._correction(section)])
        self._last = self._backend.last(self._backend.encode(self._filled(grey)), 0)

    def push(self, sections: NDArray[Any], corrections: Sequence[Correction] | None = None) -> list[SectionOutput]:
        """Process the next sections.

        Args:
            sections: (N, H, W) grey values as recorded.
            corrections: of their grey values, if already known.

        Raises:
            ShapeError: their size differs from that of the previous section, their type cannot be normalised, or there
                are none.
        """
        size = self._check(sections)
        given = [self._correction(section) for section in sections] if corrections is None else list(corrections)
        if self._tile is not None:
            return [assembled(self.tiles(*pair), size) for pair in zip(sections, given, strict=True)]
        step = self._step(size)
        found = [
            self._run(sections[first : first + step], given[first : first + step], size)
            for first in range(0, len(sections), step)
        ]
        with self.timed("copy"):
            self._transfer.wait()
        return [output for outputs in found for output in outputs]

    def tiles(
        self, section: NDArray[Any], correction: Correction | None = None
    ) -> Iterator[tuple[slice, slice, SectionOutput]]:
        """Process the next section tile by tile; it becomes the previous one when the last tile has been consumed.

        All results equal those of the whole section. Each tile encodes both sections again, because features of a whole
        section would not fit into memory.

        Args:
            section: (H, W) grey values as recorded; referenced until the next one, so do not modify it.
            correction: of its grey values, if already known.

        Returns:
            Rows and columns of each tile in the section, and its results, in order of y, then x.

        Raises:
            DistillError: the runner was made without `tile`.
            ShapeError: its size or type differs from that of the previous section.
        """
        if self._tile is None or self.halo is None:
            raise DistillError("tile: found none, expected the side of a tile, in pixels")
        size = self._check(section[None])
        pieces = cut(size, self._tile, self.halo, self._stride)
        return self._pieces(self._recorded(section, correction), pieces)

    def _pieces(self, section: _Recorded, pieces: list[Tile]) -> Iterator[tuple[slice, slice, SectionOutput]]:
        for piece in pieces:
            yield (*piece.core, self._piece(section, piece))
        self._raw.appendleft(section)

    def _piece(self, section: _Recorded, tile: Tile) -> SectionOutput:
        size, samples = self._inside(tile, section.size)

        def decoded(previous: _Recorded | None, current: _Recorded) -> Decoded:
            given = (current,) if previous is None else (previous, current)
            with self.timed("encode"):
                maps = [
                    self._backend.encode(self._transfer.sections(one.region(tile)[None], [_NORMALISED]))
                    for one in given
                ]
            linked = torch.full((1, 1, 1, 1), float(previous is not None))
            with self.timed("decode and affinity"):
                return self._backend.decode(maps[0], maps[-1], linked, size, samples)

        found = decoded(self._raw[0] if self._raw else None, section)
        earlier = {1: found.previous} if self._raw else {}
        for step in {-z for z, _, _ in self.further if 1 < -z <= len(self._raw)}:
            earlier[step] = decoded(self._raw[step - 1], self._raw[step - 2]).previous
        further = [] if found.current is None else list(self._further(found.current, earlier))
        full, half = tile.inside(1), tile.inside(2)
        output = SectionOutput(
            self._transfer.host(torch.cat([found.affinity[0], *further])[:, *full]),
            self._embedding(found, 0, full),
            None if found.joined is None else found.joined[0][:, *half],
            None if found.logits is None else found.logits[0][:, *half],
        )
        self._transfer.wait()
        return output

    def _inside(self, tile: Tile, section: tuple[int, int]) -> tuple[tuple[int, int], tuple[Samples, ...]]:
        """Return the size of a tile's region before padding and its upsampling positions, in a section of size (H,
        W).
        """
        padded = [-(-length // self._stride) * self._stride for length in section]
        samples = tile_samples(tile.origin, tile.size, padded, self._levels, torch.device("cpu"))
        # pixels beyond the section matter where they are averaged, mirrored or reached; otherwise all tiles are alike
        size = tile.size
        if self._wanted.features or self.further or min(section) < 3:
            size = min(size[0], section[0] - tile.origin[0]), min(size[1], section[1] - tile.origin[1])
        return size, samples

    def _run(
        self, sections: NDArray[Any], corrections: Sequence[Correction], size: tuple[int, int]
    ) -> list[SectionOutput]:
        count = len(sections)
        with self.timed("copy"):
            grey = self._transfer.sections(sections, corrections)
        with self.timed("encode"):
            current = self._backend.encode(self._filled(grey))
        with self.timed("decode and affinity"):
            previous = self._backend.previous(self._last, current)
            linked = torch.ones(self._step(size), 1, 1, 1)
            linked[0] = float(self._last is not None)
            if self._region is None or self._whole is None:
                found = self._backend.decode(previous, current, linked, size)
            else:
                found = self._backend.decode(previous, current, linked, *self._inside(self._region, self._whole))
        with self.timed("copy"):
            outputs = [self._output(found, n, bool(linked[n])) for n in range(count)]
        self._last = self._backend.last(current, count - 1)
        return outputs

    def _correction(self, section: NDArray[Any]) -> Correction:
        if self._region is not None and self._normaliser != UNCHANGED:
            raise DistillError("section: found a region of it, expected one that is normalised already")
        return self._normaliser.of(section)

    def _recorded(self, section: NDArray[Any], correction: Correction | None) -> _Recorded:
        return _Recorded(section, correction or self._correction(section))

    def _check(self, sections: NDArray[Any]) -> tuple[int, int]:
        """Check that sections can follow the previous ones, and record their size."""
        if sections.ndim != 3 or not len(sections):
            raise ShapeError(f"sections: found shape {sections.shape}, expected (N, H, W) with at least one section")
        self._normaliser.check(sections.dtype)
        size = sections.shape[1], sections.shape[2]
        if 0 in size:
            raise ShapeError(f"section: found size {size}, expected at least one pixel")
        if self._size is not None and size != self._size:
            raise ShapeError(f"section: found size {size}, expected {self._size} as the one before it")
        self._size = size
        return size

    def _step(self, size: tuple[int, int]) -> int:
        """Return the number of sections per step: a power of two, so that every number up to `batch` ends on a whole
        step.
        """
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
            assert found.current is not None
            if linked and found.previous is not None:
                self._earlier.appendleft(found.previous[n : n + 1].clone())  # not a view of the whole batch
            earlier = dict(enumerate(self._earlier, start=1))
            affinity = torch.cat([affinity, *self._further(found.current[n : n + 1], earlier)])
        full, half = ((), ()) if self._region is None else (self._region.inside(1), self._region.inside(2))
        return SectionOutput(
            self._transfer.host(affinity[:, *full]),
            self._embedding(found, n, full),
            None if found.joined is None else found.joined[n][:, *half].contiguous(),  # not a view of the halo too
            None if found.logits is None else found.logits[n][:, *half],
        )

    def _embedding(self, found: Decoded, n: int, part: tuple[slice, ...] = ()) -> NDArray[Any] | None:
        if self.embedding is None or found.current is None:
            return None
        return self._transfer.host(stored(found.current[n][:, *part], self.embedding))

    def _further(self, now: Tensor, earlier: Mapping[int, Tensor | None]) -> Iterator[Tensor]:
        """Iterate over affinities (1, H, W) uint8 of every further offset.

        Args:
            now: (1, E, H, W) embedding of the section.
            earlier: embeddings of earlier sections by distance, if known.
        """
        for z, y, x in self.further:
            other = now if z == 0 else earlier.get(-z)
            edges = torch.zeros_like(now[:, 0]) if other is None else section_affinity(now, other, (y, x))
            yield to_uint8(edges)


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A whole section as recorded, with its normalisation."""

    section: NDArray[Any]  # (H, W)
    correction: Correction

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.section.shape[0], self.section.shape[1]

    def region(self, tile: Tile) -> NDArray[np.float32]:
        """Return the pixels of a tile's region, normalised."""
        rows, columns = tile.window(self.size)
        window = self.correction.apply(self.section[rows, columns], (rows.start, columns.start))
        return tile.filled(window, self.size)


_NORMALISED = UNCHANGED.of(np.zeros((1, 1), np.float32))


def check_stream_offsets(offsets: Sequence[Triple]) -> None:
    """Check that a stream can compute these affinities.

    Raises:
        DistillError: they do not begin with the nearest neighbours, or one is zero, repeated, or leads to a later
            section.
    """
    if tuple(offsets[:3]) != NEAREST:
        raise DistillError(f"offsets: found {[list(o) for o in offsets[:3]]} first, expected the three nearest ones")
    for offset in offsets[3:]:
        if offset[0] > 0 or offset == (0, 0, 0):
            raise DistillError(f"offset {list(offset)}: expected one within the section or to an earlier one (z <= 0)")
        if list(offsets).count(offset) > 1:
            raise DistillError(f"offset {list(offset)}: found more than once")
