"""Ways in which `SectionRunner` processes sections: whole, one region of each, or in tiles.

Every mode keeps what it needs of the previous sections. With offsets that reach further back than one section, the
embeddings of those earlier sections are kept as well: those of the branch for the previous section, as in the edge to
the nearest section.

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

from distill.core.affinity import section_affinity
from distill.core.affinity_conventions import to_uint8
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple
from distill.core.normalisation import UNCHANGED, Correction, Normaliser
from students.backends.base import Backend, Maps
from students.backends.functions import Decoded
from students.streaming.outputs import EmbeddingType, SectionOutput, assembled, stored
from students.streaming.tiling import Tile, cut
from students.streaming.transfer import Transfer
from students.student import Samples, tile_samples

_STEP_PIXELS = 8 * 2**20  # a step of this many pixels fills any device
_NORMALISED = UNCHANGED.of(np.zeros((1, 1), np.float32))


@dataclass(eq=False)
class Steps:
    """What all modes share.

    Attributes:
        backend: runs the student.
        transfer: moves arrays to the device and results back.
        normaliser: of whole sections.
        further: offsets in addition to the nearest ones.
        embedding: type in which the embedding is returned, if at all.
        stride: of the student.
        levels: finest upsampling steps that depend on the size of the whole map, see `Student.aligned_levels`.
        samples_edges: whether features are returned, which depend on pixels beyond the section.
        timed: returns a context manager for the block of code of a stage.
    """

    backend: Backend
    transfer: Transfer
    normaliser: Normaliser
    further: tuple[Triple, ...]
    embedding: EmbeddingType | None
    stride: int
    levels: int
    samples_edges: bool
    timed: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext()

    @property
    def reach(self) -> int:
        """Return how many sections back the offsets reach, at least 1."""
        return max([1, *(-z for z, _, _ in self.further)])

    def inside(self, tile: Tile, section: tuple[int, int]) -> tuple[tuple[int, int], tuple[Samples, ...]]:
        """Return the size of a tile's region before padding and its upsampling positions.

        Args:
            tile: of the section.
            section: (H, W) of it.
        """
        padded = [-(-length // self.stride) * self.stride for length in section]
        samples = tile_samples(tile.origin, tile.size, padded, self.levels, torch.device("cpu"))
        # pixels beyond the section matter where they are averaged, mirrored or reached; otherwise all tiles are alike
        size = tile.size
        if self.samples_edges or self.further or min(section) < 3:
            size = min(size[0], section[0] - tile.origin[0]), min(size[1], section[1] - tile.origin[1])
        return size, samples

    def embedding_of(self, found: Decoded, n: int, part: tuple[slice, ...]) -> NDArray[Any] | None:
        """Return the embedding of section n in the requested type, cut to a part of it."""
        if self.embedding is None or found.current is None:
            return None
        return self.transfer.host(stored(found.current[n][:, *part], self.embedding))

    def further_affinities(self, now: Tensor, earlier: Mapping[int, Tensor | None]) -> Iterator[Tensor]:
        """Iterate over affinities (1, H, W) uint8 of every further offset.

        Args:
            now: (1, E, H, W) embedding of the section.
            earlier: embeddings of earlier sections by distance, if known.
        """
        for z, y, x in self.further:
            other = now if z == 0 else earlier.get(-z)
            edges = torch.zeros_like(now[:, 0]) if other is None else section_affinity(now, other, (y, x))
            yield to_uint8(edges)


class _Mode:
    """State that all modes have: the size of the sections."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self._size: tuple[int, int] | None = None

    def correction(self, section: NDArray[Any]) -> Correction:
        """Compute the normalisation of a section."""
        return self.steps.normaliser.of(section)

    def check(self, sections: NDArray[Any]) -> tuple[int, int]:
        """Check that sections can follow the previous ones, and record their size."""
        if sections.ndim != 3 or not len(sections):
            raise ShapeError(f"sections: found shape {sections.shape}, expected (N, H, W) with at least one section")
        self.steps.normaliser.check(sections.dtype)
        size = sections.shape[1], sections.shape[2]
        if 0 in size:
            raise ShapeError(f"section: found size {size}, expected at least one pixel")
        if self._size is not None and size != self._size:
            raise ShapeError(f"section: found size {size}, expected {self._size} as the one before it")
        self._size = size
        return size


class WholeSections(_Mode):
    """Process whole sections in steps of equal size; keeps the encoding of the previous section."""

    def __init__(self, steps: Steps, batch: int) -> None:
        """Start before the first section.

        Args:
            steps: shared by all modes.
            batch: maximum number of sections at once.
        """
        super().__init__(steps)
        self._batch = batch
        self.reset()

    def reset(self) -> None:
        """Discard the previous section."""
        self._size = None
        self._last: Maps | None = None
        # embeddings of the sections z - 1, z - 2, ...
        self._earlier: deque[Tensor] = deque(maxlen=max([0, *(-z for z, _, _ in self.steps.further)]))

    def prime(self, section: NDArray[Any], correction: Correction | None = None) -> None:
        """Set the previous section; see `SectionRunner.prime`."""
        if self.steps.reach > 1:
            self.push(section[None], None if correction is None else [correction])
            return
        self.check(section[None])
        backend = self.steps.backend
        grey = self.steps.transfer.sections(section[None], [correction or self.correction(section)])
        self._last = backend.last(backend.encode(self._filled(grey)), 0)

    def push(self, sections: NDArray[Any], corrections: Sequence[Correction] | None = None) -> list[SectionOutput]:
        """Process the next sections; see `SectionRunner.push`."""
        size = self.check(sections)
        given = [self.correction(section) for section in sections] if corrections is None else list(corrections)
        step = self._step(size)
        found = [
            self._run(sections[first : first + step], given[first : first + step], size)
            for first in range(0, len(sections), step)
        ]
        with self.steps.timed("copy"):
            self.steps.transfer.wait()
        return [output for outputs in found for output in outputs]

    def decode(self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int]) -> Decoded:
        """Decode pairs of sections of size (H, W)."""
        return self.steps.backend.decode(previous, current, linked, size)

    def part(self, scale: int) -> tuple[slice, ...]:
        """Return the part of the maps that is returned, at full (1) or half (2) resolution."""
        return ()

    def _run(
        self, sections: NDArray[Any], corrections: Sequence[Correction], size: tuple[int, int]
    ) -> list[SectionOutput]:
        count, backend, timed = len(sections), self.steps.backend, self.steps.timed
        with timed("copy"):
            grey = self.steps.transfer.sections(sections, corrections)
        with timed("encode"):
            current = backend.encode(self._filled(grey))
        with timed("decode and affinity"):
            previous = backend.previous(self._last, current)
            linked = torch.ones(self._step(size), 1, 1, 1, device="cpu")
            linked[0] = float(self._last is not None)
            found = self.decode(previous, current, linked, size)
        with timed("copy"):
            outputs = [self._output(found, n, bool(linked[n])) for n in range(count)]
        self._last = backend.last(current, count - 1)
        return outputs

    def _step(self, size: tuple[int, int]) -> int:
        """Return the number of sections per step: a power of two, so that every number up to `batch` ends on a whole
        step.
        """
        step = 1
        while 2 * step <= self._batch and 2 * step * size[0] * size[1] <= _STEP_PIXELS:
            step *= 2
        return step

    def _filled(self, grey: Tensor) -> Tensor:
        missing = self._step((grey.shape[2], grey.shape[3])) - len(grey)
        return torch.cat([grey, grey[-1:].expand(missing, -1, -1, -1)]) if missing else grey

    def _output(self, found: Decoded, n: int, linked: bool) -> SectionOutput:
        affinity = found.affinity[n]
        if self.steps.further:
            assert found.current is not None
            if linked and found.previous is not None:
                self._earlier.appendleft(found.previous[n : n + 1].clone())  # not a view of the whole batch
            earlier = dict(enumerate(self._earlier, start=1))
            affinity = torch.cat([affinity, *self.steps.further_affinities(found.current[n : n + 1], earlier)])
        full, half = self.part(1), self.part(2)
        return SectionOutput(
            self.steps.transfer.host(affinity[:, *full]),
            self.steps.embedding_of(found, n, full),
            None if found.joined is None else found.joined[n][:, *half].contiguous(),  # not a view of the halo too
            None if found.logits is None else found.logits[n][:, *half],
        )


class SectionRegion(WholeSections):
    """Process one region of every section, given as its normalised pixels; results are those of its core."""

    def __init__(self, steps: Steps, batch: int, region: Tile, section: tuple[int, int]) -> None:
        """Start before the first section.

        Args:
            steps: shared by all modes.
            batch: maximum number of sections at once.
            region: the region.
            section: (H, W) of the sections that contain it.
        """
        self._region, self._whole = region, section
        super().__init__(steps, batch)

    def correction(self, section: NDArray[Any]) -> Correction:
        """Return the correction of normalised pixels, which changes nothing."""
        if self.steps.normaliser != UNCHANGED:
            raise DistillError("section: found a region of it, expected one that is normalised already")
        return super().correction(section)

    def decode(self, previous: Maps, current: Maps, linked: Tensor, size: tuple[int, int]) -> Decoded:
        """Decode pairs of the region, as within whole sections."""
        return self.steps.backend.decode(previous, current, linked, *self.steps.inside(self._region, self._whole))

    def part(self, scale: int) -> tuple[slice, ...]:
        """Return the core of the region."""
        return self._region.inside(scale)


class TiledSections(_Mode):
    """Process sections tile by tile; keeps the previous sections as recorded, and encodes them again in every tile."""

    def __init__(self, steps: Steps, side: int, halo: tuple[int, int]) -> None:
        """Start before the first section.

        Args:
            steps: shared by all modes.
            side: of a tile in pixels.
            halo: (y, x) pixels around a tile on which its results depend.
        """
        super().__init__(steps)
        self._side, self._halo = side, halo
        self.reset()

    def reset(self) -> None:
        """Discard the previous sections."""
        self._size = None
        self._raw: deque[_Recorded] = deque(maxlen=self.steps.reach)  # sections z - 1, z - 2, ...

    def prime(self, section: NDArray[Any], correction: Correction | None = None) -> None:
        """Set the previous section; see `SectionRunner.prime`."""
        self.check(section[None])
        self._raw.appendleft(self._recorded(section, correction))

    def push(self, sections: NDArray[Any], corrections: Sequence[Correction] | None = None) -> list[SectionOutput]:
        """Process the next sections; see `SectionRunner.push`."""
        size = self.check(sections)
        given = [self.correction(section) for section in sections] if corrections is None else list(corrections)
        return [assembled(self.tiles(*pair), size) for pair in zip(sections, given, strict=True)]

    def tiles(
        self, section: NDArray[Any], correction: Correction | None = None
    ) -> Iterator[tuple[slice, slice, SectionOutput]]:
        """Process the next section tile by tile; see `SectionRunner.tiles`."""
        size = self.check(section[None])
        pieces = cut(size, self._side, self._halo, self.steps.stride)
        return self._pieces(self._recorded(section, correction), pieces)

    def _recorded(self, section: NDArray[Any], correction: Correction | None) -> _Recorded:
        return _Recorded(section, correction or self.correction(section))

    def _pieces(self, section: _Recorded, pieces: list[Tile]) -> Iterator[tuple[slice, slice, SectionOutput]]:
        for piece in pieces:
            yield (*piece.core, self._piece(section, piece))
        self._raw.appendleft(section)

    def _piece(self, section: _Recorded, tile: Tile) -> SectionOutput:
        steps = self.steps
        size, samples = steps.inside(tile, section.size)

        def decoded(previous: _Recorded | None, current: _Recorded) -> Decoded:
            given = (current,) if previous is None else (previous, current)
            with steps.timed("encode"):
                maps = [
                    steps.backend.encode(steps.transfer.sections(one.region(tile)[None], [_NORMALISED]))
                    for one in given
                ]
            linked = torch.full((1, 1, 1, 1), float(previous is not None), device="cpu")
            with steps.timed("decode and affinity"):
                return steps.backend.decode(maps[0], maps[-1], linked, size, samples)

        found = decoded(self._raw[0] if self._raw else None, section)
        earlier = {1: found.previous} if self._raw else {}
        for step in {-z for z, _, _ in steps.further if 1 < -z <= len(self._raw)}:
            earlier[step] = decoded(self._raw[step - 1], self._raw[step - 2]).previous
        further = [] if found.current is None else list(steps.further_affinities(found.current, earlier))
        full, half = tile.inside(1), tile.inside(2)
        output = SectionOutput(
            steps.transfer.host(torch.cat([found.affinity[0], *further])[:, *full]),
            steps.embedding_of(found, 0, full),
            None if found.joined is None else found.joined[0][:, *half],
            None if found.logits is None else found.logits[0][:, *half],
        )
        steps.transfer.wait()
        return output


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
