"""Trained networks over volumes: affinities and, through the shared query decoder, instances.

Legend: D H W = z y x, h w half resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from distill.config import DecoderConfig
from distill.core.affinity import NEAREST, from_uint8
from distill.core.errors import DistillError
from distill.core.geometry import Box, Triple, tiles
from distill.core.hardware import AUTO, computing
from distill.core.labels import Relabelling, sum_pairs
from distill.decoder.decoder import DecoderInput, QueryDecoder
from distill.decoder.instances import block_instances
from distill.models.load import TrainedStudent, TrainedTeacher, seed_rule
from distill.segmentation.agglomeration import RegionGraph, agglomerate_graph, region_graph
from distill.segmentation.stitching import Stitcher, largest_overlap
from students.backends.choose import settled
from students.streaming.runner import EmbeddingType, SectionOutput, SectionRunner
from teachers.sliding_window import run_teacher
from teachers.teacher import TeacherOutput

Affinity = NDArray[np.float32]


@dataclass(frozen=True)
class Runtime:
    """Where and how networks run; what is `auto` is settled as it is made.

    Attributes:
        device: where to compute.
        precision: see `distill.core.hardware`.
        backend: of the student, see `students.backends.choose`; others than `eager` are worth their start for long
            streams.
    """

    device: torch.device
    precision: str = AUTO
    backend: str = "eager"

    def __post_init__(self) -> None:
        """Settle what is `auto`."""
        backend, precision = settled(self.backend, self.precision, self.device)
        object.__setattr__(self, "backend", backend)
        object.__setattr__(self, "precision", precision)


@dataclass(frozen=True)
class Slab:
    """Consecutive sections that are decoded together."""

    first: int  # section number of the first
    sections: list[SectionOutput]

    @property
    def stop(self) -> int:
        """One past the last section."""
        return self.first + len(self.sections)

    def affinity(self) -> Affinity:
        """(3, D, H, W) of the slab's sections: the nearest offsets."""
        return from_uint8(np.stack([s.affinity[:3] for s in self.sections], 1))


@dataclass(frozen=True)
class Piece:
    """A segmented block with its own ids."""

    box: Box
    labels: NDArray[np.uint64]


def student_sections(
    model: TrainedStudent,
    sections: Iterable[NDArray[np.generic]],
    runtime: Runtime,
    *,
    with_slab: bool,
    offsets: Sequence[Triple] = NEAREST,
    embedding: EmbeddingType | None = None,
) -> Iterator[SectionOutput]:
    """Stream sections (H, W) through the student, one result a section."""
    runner = SectionRunner(
        model.student,
        model.slab if with_slab else None,
        device=runtime.device,
        precision=runtime.precision,
        backend=runtime.backend,
        offsets=offsets,
        embedding=embedding,
        normaliser=model.normaliser,
    )
    together = iter(sections)
    while group := list(itertools.islice(together, runner.batch)):
        yield from runner.push(np.stack(group))


def slabs(results: Iterable[SectionOutput], depth: int) -> Iterator[Slab]:
    """Group a stream into slabs of `depth` sections; neighbouring slabs share one section.

    The last slab may be thinner, but never repeats only what is already there.
    """
    held: list[SectionOutput] = []
    first = 0
    fresh = 0
    for result in results:
        held.append(result)
        fresh += 1
        if len(held) == depth:
            yield Slab(first, held)
            first += depth - 1
            held, fresh = held[-1:], 0
    if fresh:
        yield Slab(first, held)


class Assembly:
    """Segmented blocks on their way to one volume: supervoxel ids at once, final ids at the end.

    Blocks of one slab are decoded independently; what they share decides which of their instances are one (`Stitcher`).
    Beside that, the mean affinity along every contact is collected, so that `finish` can also merge what the queries
    left split. Memory: faces of the last slab, one entry per supervoxel and per contact; no voxels.
    """

    def __init__(self, overlap: Triple) -> None:
        """Start empty.

        Args:
            overlap: most voxels per axis that two neighbouring blocks share.
        """
        self._stitcher = Stitcher(overlap)
        self._contacts: list[RegionGraph] = []
        self._next = 0

    def add(self, pieces: Sequence[Piece], affinity: Affinity) -> NDArray[np.uint64]:
        """Take the blocks of one slab in; slabs come in z order and share one section, which the earlier one owns.

        Args:
            pieces: blocks that cover the slab, in z, y, x order, all of the same depth.
            affinity: (3, D, H, W) of the slab.

        Returns:
            (D, H, W) supervoxel ids of the slab, unique in the whole volume.
        """
        origin = pieces[0].box.start
        shape: Triple = affinity.shape[1], affinity.shape[2], affinity.shape[3]
        numbers = range(self._next, self._next + len(pieces))
        ids = lay_blocks(self._stitcher, pieces, numbers, shape).ids
        self._next += len(pieces)
        self._stitcher.retire(origin[0])
        counted = np.ones(affinity.shape, dtype=bool)
        if origin[0] > 0:
            counted[1:, 0] = False  # in-plane contacts of the shared section are the earlier slab's
        self._contacts.append(region_graph(ids, affinity, counted))
        return ids

    def finish(self, threshold: float | None) -> Relabelling:
        """Final ids.

        Args:
            threshold: merge objects whose contact has a mean affinity above this; None = go by shared voxels alone.

        Returns:
            For every supervoxel id its final id, 1..n.
        """
        stitched = self._stitcher.finish()
        if threshold is None or not self._contacts:
            return stitched
        return merge_contacts(stitched, self._contacts, threshold)


@dataclass(frozen=True)
class Laid:
    """Blocks of a slab under ids that are unique in the whole volume."""

    ids: NDArray[np.uint64]  # (D, H, W): a shared voxel belongs to the first block
    blocks: list[NDArray[np.uint64]]  # (D, h, w) of each block


def lay_blocks(stitcher: Stitcher, pieces: Sequence[Piece], numbers: Iterable[int], shape: Triple) -> Laid:
    """Number the blocks of a slab, compare them, and lay them into one array.

    Args:
        stitcher: takes the blocks in.
        pieces: blocks that cover the slab, in z, y, x order.
        numbers: of the blocks, ascending.
        shape: (D, H, W) of the slab.
    """
    origin = pieces[0].box.start
    ids = np.zeros(shape, dtype=np.uint64)
    free = np.ones(shape, dtype=bool)
    blocks = []
    for number, piece in zip(numbers, pieces, strict=True):
        unique = stitcher.add(number, piece.box, piece.labels)
        here = piece.box.relative_to(origin).slices
        np.copyto(ids[here], unique, where=free[here])
        free[here] = False
        blocks.append(unique)
    return Laid(ids, blocks)


def merge_contacts(stitched: Relabelling, contacts: Sequence[RegionGraph], threshold: float) -> Relabelling:
    """Merge objects whose contact has a mean affinity above a threshold, strongest first.

    Args:
        stitched: final ids by shared voxels alone.
        contacts: of supervoxels; those of one pair add up.
        threshold: mean affinity that a contact must exceed.

    Returns:
        For every supervoxel id its final id, 1..n.
    """
    u, v, total, count = (
        np.concatenate([getattr(graph, name) for graph in contacts]) for name in ("u", "v", "total", "count")
    )
    u, v = stitched.apply(u), stitched.apply(v)
    apart = u != v
    low, high = np.minimum(u, v)[apart], np.maximum(u, v)[apart]
    pairs = sum_pairs(low, high, count=count[apart], values=total[apart])
    merged = agglomerate_graph(RegionGraph(pairs.u, pairs.v, pairs.total, pairs.count), threshold)
    roots = stitched.new.copy()
    touched = np.isin(roots, merged.old)
    roots[touched] = merged.new[np.searchsorted(merged.old, roots[touched])]
    return Relabelling(stitched.old, np.unique(roots, return_inverse=True)[1].astype(np.uint64) + np.uint64(1))


@dataclass(frozen=True)
class Segmented:
    """A volume in memory whose final ids are still open."""

    supervoxels: NDArray[np.uint64]  # (D, H, W)
    assembly: Assembly
    affinity: Affinity  # (3, D, H, W)

    def labels(self, threshold: float | None) -> NDArray[np.uint64]:
        """(D, H, W) ids 1..n after merging above `threshold` (see `Assembly.finish`)."""
        return self.assembly.finish(threshold).apply(self.supervoxels)


def decode_slab(model: TrainedStudent, slab: Slab, runtime: Runtime, tiles: Sequence[Box] | None = None) -> list[Piece]:
    """Instances of a slab, in tiles of the decoder's block size, boxes in volume coordinates.

    Args:
        model: with a decoder.
        slab: sections, whole or one region of them.
        runtime: where and how.
        tiles: places in the slab; by default those that cover it.

    Raises:
        DistillError: the model has no decoder.
    """
    if model.slab is None or model.decoder is None:
        raise DistillError(f"{model.path}: has no query decoder; expected --no-segment, or --method waterz")
    height, width = slab.sections[0].affinity.shape[-2:]
    joined = torch.stack([s.joined for s in slab.sections if s.joined is not None])
    logits = torch.stack([s.logits for s in slab.sections if s.logits is not None], 1)
    depth = len(slab.sections)
    pieces = []
    for tile in decoder_tiles((depth, height, width), model.decoding) if tiles is None else tiles:
        z, y, x = tile.slices
        half = tuple(slice(s.start // 2, -(-s.stop // 2)) for s in (y, x))
        with _computing(runtime):
            mixed = model.slab.mix(joined[z, :, *half]).transpose(0, 1)
            given = model.slab.slab(mixed[None], logits[:, z, *half][None])
        labels = decode_tile(model.decoder, given, tile, model.decoding, runtime)
        pieces.append(Piece(tile.shift((slab.first, 0, 0)), labels))
    return pieces


def decoder_tiles(shape: Triple, config: DecoderConfig) -> list[Box]:
    """Tiles of the decoder over a slab, whole depth; they begin at even y and x, for it works at half resolution."""
    block, overlap = config.block[1:], config.overlap[1:]
    stride = [max(2, (b - o) - (b - o) % 2) for b, o in zip(block, overlap, strict=True)]
    found = []
    for tile in tiles(Box.of_shape(shape), (shape[0], *block), (shape[0], stride[0], stride[1])):
        z, y, x = tile.start
        found.append(Box((z, y - y % 2, x - x % 2), tile.stop))
    return found


def decoder_overlap(shape: Triple, config: DecoderConfig) -> Triple:
    """Most voxels that two blocks share when a volume is cut into slabs and tiles."""
    _, y, x = largest_overlap(decoder_tiles((1, *shape[1:]), config))
    return 1, y, x


def _computing(runtime: Runtime) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(torch.inference_mode())
    stack.enter_context(computing(runtime.device, runtime.precision))
    return stack


def decode_tile(
    decoder: QueryDecoder, given: DecoderInput, tile: Box, config: DecoderConfig, runtime: Runtime
) -> NDArray[np.uint64]:
    """Instances (D, h, w) of one tile of the decoder, given what it takes of the tile."""
    with _computing(runtime):
        output = decoder.last(given, rule=seed_rule(config), background=not config.fill)
        return block_instances(
            output,
            0,
            tile.shape[1:],
            min_voxels=config.min_instance,
            min_piece=config.min_piece,
            fill=config.fill,
        )


def student_volume(
    model: TrainedStudent, sections: Iterable[NDArray[np.generic]], shape: Triple, runtime: Runtime
) -> Segmented:
    """Segment a volume that fits in memory with the student and the query decoder."""
    return student_volumes(model, sections, shape, runtime, [model.decoding])[0]


def student_volumes(
    model: TrainedStudent,
    sections: Iterable[NDArray[np.generic]],
    shape: Triple,
    runtime: Runtime,
    decodings: Sequence[DecoderConfig],
) -> list[Segmented]:
    """Segment a volume as `student_volume` does, once for each way to decode; the student runs once for all.

    Args:
        model: its own way to decode does not count.
        sections: (H, W) each.
        shape: (D, H, W).
        runtime: device and precision.
        decodings: they cut the volume into the same blocks.
    """
    ways = [replace(model, decoding=decoding) for decoding in decodings]
    volume = _Volume(shape, decodings)
    for slab in slabs(student_sections(model, sections, runtime, with_slab=True), decodings[0].block[0]):
        volume.add(slab.first, slab.affinity(), [decode_slab(way, slab, runtime) for way in ways])
    return volume.segmented()


def student_affinity(
    model: TrainedStudent, sections: Iterable[NDArray[np.generic]], shape: Triple, runtime: Runtime
) -> Affinity:
    """The student's affinities (3, D, H, W) of a volume that fits in memory."""
    affinity = np.zeros((3, *shape), dtype=np.float32)
    for z, result in enumerate(student_sections(model, sections, runtime, with_slab=False)):
        affinity[:, z] = from_uint8(result.affinity)
    return affinity


def teacher_volume(model: TrainedTeacher, raw: NDArray[np.generic], runtime: Runtime) -> Segmented:
    """Segment a volume that fits in memory with the teacher and the query decoder, block by block."""
    return teacher_volumes(model, raw, runtime, [model.config.decoder])[0]


def teacher_volumes(
    model: TrainedTeacher, raw: NDArray[np.generic], runtime: Runtime, decodings: Sequence[DecoderConfig]
) -> list[Segmented]:
    """Segment a volume as `teacher_volume` does, once for each way to decode; the teacher runs once for all.

    Args:
        model: its own way to decode does not count.
        raw: (D, H, W), whole sections, grey values as recorded.
        runtime: device and precision.
        decodings: they cut the volume into the same blocks.
    """
    unit = model.normaliser.sections(raw)
    z, y, x = raw.shape
    depth = min(decodings[0].block[0], z)
    volume = _Volume((z, y, x), decodings)
    for first in range(0, max(1, z - 1), max(1, depth - 1)):
        stop = min(z, first + depth)
        pieces: list[list[Piece]] = [[] for _ in decodings]

        def decode(
            box: Box, output: TeacherOutput, own: Affinity, first: int = first, into: list[list[Piece]] = pieces
        ) -> None:
            for decoding, found in zip(decodings, into, strict=True):
                labels = decode_tile(model.decoder, output.decoder_input, box, decoding, runtime)
                found.append(Piece(box.shift((first, 0, 0)), labels))

        slab = run_teacher(
            model.teacher,
            unit[first:stop],
            decoder_tiles((stop - first, y, x), decodings[0]),
            device=runtime.device,
            precision=runtime.precision,
            on_block=decode,
        )
        volume.add(first, slab.affinity, pieces)
    return volume.segmented()


class _Volume:
    """Slabs in z order on their way to one segmentation in memory for each way to decode, affinities shared."""

    def __init__(self, shape: Triple, decodings: Sequence[DecoderConfig]) -> None:
        self._affinity = np.zeros((3, *shape), dtype=np.float32)
        self._supervoxels = [np.zeros(shape, dtype=np.uint64) for _ in decodings]
        self._assemblies = [Assembly(decoder_overlap(shape, decoding)) for decoding in decodings]

    def add(self, first: int, affinity: Affinity, pieces: Sequence[Sequence[Piece]]) -> None:
        """Take in the slab that begins with section `first`: (3, D, H, W) affinities, its pieces by way to decode."""
        skip = int(first > 0)  # the shared section is the earlier slab's
        owned = slice(first + skip, first + affinity.shape[1])
        self._affinity[:, owned] = affinity[:, skip:]
        for supervoxels, assembly, found in zip(self._supervoxels, self._assemblies, pieces, strict=True):
            supervoxels[owned] = assembly.add(found, affinity)[skip:]

    def segmented(self) -> list[Segmented]:
        """One for each way to decode."""
        together = zip(self._supervoxels, self._assemblies, strict=True)
        return [Segmented(supervoxels, assembly, self._affinity) for supervoxels, assembly in together]
