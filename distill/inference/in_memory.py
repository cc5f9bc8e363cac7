"""Apply trained networks to volumes in memory: affinities and, with the query decoder, instances.

Legend: D H W = z y x, h w half resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cc3d
import numpy as np
from numpy.typing import NDArray

from distill.config import DecoderConfig
from distill.core.affinity import NEAREST
from distill.core.affinity_conventions import from_uint8
from distill.core.geometry import Box, Triple
from distill.core.labels import compact
from distill.decoder.instances import absorb
from distill.inference.assembly import Affinity, Assembly, Piece, slabs
from distill.inference.decode import decode_slab, decode_tile, decoder_overlap, decoder_tiles
from distill.inference.options import Runtime
from distill.models.load import TrainedStudent, TrainedTeacher
from distill.segmentation.clustering import cluster_embedding
from students.streaming.runner import EmbeddingType, SectionOutput, SectionRunner
from teachers.sliding_window import head_embedding, run_teacher
from teachers.teacher import TeacherOutput

Ids = NDArray[np.uint64]
OnSections = Callable[[int, int], None]  # sections done and their number


def student_sections(
    model: TrainedStudent,
    sections: Iterable[NDArray[np.generic]],
    runtime: Runtime,
    *,
    with_slab: bool,
    offsets: Sequence[Triple] = NEAREST,
    embedding: EmbeddingType | None = None,
) -> Iterator[SectionOutput]:
    """Stream sections (H, W) through the student, with one output per section."""
    runner = SectionRunner(
        model.network,
        model.slab if with_slab else None,
        device=runtime.device,
        precision=runtime.precision,
        backend=runtime.backend,
        calibration=runtime.calibration,
        offsets=offsets,
        embedding=embedding,
        normaliser=model.normaliser,
    )
    together = iter(sections)
    while group := list(itertools.islice(together, runner.batch)):
        yield from runner.push(np.stack(group))


@dataclass(frozen=True)
class SegmentedVolume:
    """A volume in memory before its final ids are computed."""

    supervoxels: NDArray[np.uint64]  # (D, H, W)
    assembly: Assembly
    affinity: Affinity  # (3, D, H, W)

    def labels(self, threshold: float | None) -> NDArray[np.uint64]:
        """Return (D, H, W) ids 1..n after merging above `threshold` (see `Assembly.finish`)."""
        return self.assembly.finish(threshold).apply(self.supervoxels)


def student_volume(
    model: TrainedStudent,
    sections: Iterable[NDArray[np.generic]],
    shape: Triple,
    runtime: Runtime,
    on_sections: OnSections | None = None,
) -> SegmentedVolume:
    """Segment a volume that fits in memory with the student and the query decoder; see `student_volumes`."""
    return student_volumes(model, sections, shape, runtime, [model.decoding], on_sections)[0]


def student_volumes(
    model: TrainedStudent,
    sections: Iterable[NDArray[np.generic]],
    shape: Triple,
    runtime: Runtime,
    decodings: Sequence[DecoderConfig],
    on_sections: OnSections | None = None,
) -> list[SegmentedVolume]:
    """Segment a volume as `student_volume` does, once per decoder configuration; the student runs only once.

    Args:
        model: its own decoder configuration is not used.
        sections: (H, W) each.
        shape: (D, H, W).
        runtime: device and precision.
        decodings: configurations with the same blocks.
        on_sections: called with the sections done and their number.
    """
    ways = [replace(model, decoding=decoding) for decoding in decodings]
    volume = _Volume(shape, decodings)
    for slab in slabs(student_sections(model, sections, runtime, with_slab=True), decodings[0].block[0]):
        affinity = slab.affinity()
        volume.add(slab.first, affinity, [decode_slab(way, slab, runtime) for way in ways])
        if on_sections is not None:
            on_sections(slab.first + affinity.shape[1], shape[0])
    return volume.segmented()


def student_affinity(
    model: TrainedStudent, sections: Iterable[NDArray[np.generic]], shape: Triple, runtime: Runtime
) -> Affinity:
    """Compute the student's affinities (3, D, H, W) of a volume that fits in memory."""
    affinity = np.zeros((3, *shape), dtype=np.float32)
    for z, result in enumerate(student_sections(model, sections, runtime, with_slab=False)):
        affinity[:, z] = from_uint8(result.affinity)
    return affinity


def teacher_volume(
    model: TrainedTeacher, raw: NDArray[np.generic], runtime: Runtime, on_sections: OnSections | None = None
) -> SegmentedVolume:
    """Segment a volume that fits in memory with the teacher and the query decoder; see `teacher_volumes`."""
    return teacher_volumes(model, raw, runtime, [model.config.decoder], on_sections)[0]


def teacher_volumes(
    model: TrainedTeacher,
    raw: NDArray[np.generic],
    runtime: Runtime,
    decodings: Sequence[DecoderConfig],
    on_sections: OnSections | None = None,
) -> list[SegmentedVolume]:
    """Segment a volume as `teacher_volume` does, once per decoder configuration; the teacher runs only once.

    Args:
        model: its own decoder configuration is not used.
        raw: (D, H, W), whole sections, grey values as recorded.
        runtime: device and precision.
        decodings: configurations with the same blocks.
        on_sections: called with the sections done and their number.
    """

    def decode(box: Box, output: TeacherOutput, decoding: DecoderConfig) -> Ids:
        return decode_tile(model.decoder, output.decoder_input, box, decoding, runtime)

    return _teacher_blocks(model, raw, runtime, decodings, decode, on_sections)


def teacher_clusters(
    model: TrainedTeacher, raw: NDArray[np.generic], runtime: Runtime, *, bandwidth: float, seed: int = 0
) -> SegmentedVolume:
    """Segment a volume that fits in memory by clustering the teacher's embedding, block by block.

    Clusters of a block are split into connected components, and components below the decoder's `min_piece` are assigned
    to the nearest larger one; blocks are assembled as those of the query decoder.

    Args:
        model: a teacher with an embedding that is not normalised, such as `ml-de`.
        raw: (D, H, W), whole sections, grey values as recorded.
        runtime: device and precision.
        bandwidth: see `distill.segmentation.clustering`.
        seed: of the voxels that are clustered.
    """

    def decode(box: Box, output: TeacherOutput, decoding: DecoderConfig) -> Ids:
        embedding = head_embedding(output).float().cpu().numpy()
        clusters = cluster_embedding(embedding, bandwidth=bandwidth, seed=seed)
        pieces = cc3d.connected_components(clusters, connectivity=26)
        return compact(absorb(pieces, decoding.min_piece))

    return _teacher_blocks(model, raw, runtime, [model.config.decoder], decode)[0]


def teacher_affinity(
    model: TrainedTeacher,
    raw: NDArray[np.generic],
    runtime: Runtime,
    on_sections: OnSections | None = None,
) -> Affinity:
    """Compute the teacher's affinities (3, D, H, W) of a volume that fits in memory.

    Args:
        model: windows are the blocks of its decoder.
        raw: (D, H, W), whole sections, grey values as recorded.
        runtime: device and precision.
        on_sections: called with the sections done and their number.
    """
    affinity = np.zeros((3, *raw.shape), dtype=np.float32)
    for first, found in _teacher_slabs(model, raw, runtime, model.config.decoder, None):
        skip = int(first > 0)  # the shared section belongs to the earlier slab
        affinity[:, first + skip : first + found.shape[1]] = found[:, skip:]
        if on_sections is not None:
            on_sections(first + found.shape[1], len(raw))
    return affinity


def _teacher_slabs(
    model: TrainedTeacher,
    raw: NDArray[np.generic],
    runtime: Runtime,
    decoding: DecoderConfig,
    on_block: Callable[[Box, TeacherOutput, Affinity], None] | None,
) -> Iterator[tuple[int, Affinity]]:
    """Run the teacher over slabs that share a section, each with its first section and its affinities (3, D, H, W).

    `on_block` is called with every window, in voxels of the volume, the output for it and its own affinities.
    """
    unit = model.normaliser.sections(raw)
    z, y, x = raw.shape
    depth = min(decoding.block[0], z)
    for first in range(0, max(1, z - 1), max(1, depth - 1)):
        stop = min(z, first + depth)

        def placed(box: Box, output: TeacherOutput, own: Affinity, first: int = first) -> None:
            assert on_block is not None
            on_block(box.shift((first, 0, 0)), output, own)

        found = run_teacher(
            model.teacher,
            unit[first:stop],
            decoder_tiles((stop - first, y, x), decoding),
            device=runtime.device,
            precision=runtime.precision,
            orientations=model.config.orientations,
            on_block=None if on_block is None else placed,
        )
        yield first, found.affinity


def _teacher_blocks(
    model: TrainedTeacher,
    raw: NDArray[np.generic],
    runtime: Runtime,
    decodings: Sequence[DecoderConfig],
    decode: Callable[[Box, TeacherOutput, DecoderConfig], Ids],
    on_sections: OnSections | None = None,
) -> list[SegmentedVolume]:
    """Run the teacher over a volume and turn its output for each block into ids, once per decoder configuration."""
    z, y, x = raw.shape
    volume = _Volume((z, y, x), decodings)
    pieces: list[list[Piece]] = [[] for _ in decodings]

    def on_block(box: Box, output: TeacherOutput, own: Affinity) -> None:
        for decoding, found in zip(decodings, pieces, strict=True):
            found.append(Piece(box, decode(box, output, decoding)))

    for first, affinity in _teacher_slabs(model, raw, runtime, decodings[0], on_block):
        volume.add(first, affinity, pieces)
        for found in pieces:
            found.clear()
        if on_sections is not None:
            on_sections(first + affinity.shape[1], z)
    return volume.segmented()


class _Volume:
    """Assembles slabs in z order into one segmentation in memory per decoder configuration, with common affinities."""

    def __init__(self, shape: Triple, decodings: Sequence[DecoderConfig]) -> None:
        self._affinity = np.zeros((3, *shape), dtype=np.float32)
        self._supervoxels = [np.zeros(shape, dtype=np.uint64) for _ in decodings]
        self._assemblies = [Assembly(decoder_overlap(shape, decoding)) for decoding in decodings]

    def add(self, first: int, affinity: Affinity, pieces: Sequence[Sequence[Piece]]) -> None:
        """Add the slab that begins with section `first`: (3, D, H, W) affinities, and its pieces by decoder
        configuration.
        """
        skip = int(first > 0)  # the shared section belongs to the earlier slab
        owned = slice(first + skip, first + affinity.shape[1])
        self._affinity[:, owned] = affinity[:, skip:]
        for ids, assembly, found in zip(self._supervoxels, self._assemblies, pieces, strict=True):
            ids[owned] = assembly.add(found, affinity)[skip:]

    def segmented(self) -> list[SegmentedVolume]:
        """Return one segmented volume per decoder configuration."""
        together = zip(self._supervoxels, self._assemblies, strict=True)
        return [SegmentedVolume(supervoxels, assembly, self._affinity) for supervoxels, assembly in together]
