"""Blocks of slabs become one volume again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label

from distill.config import DecoderConfig
from distill.core.geometry import Triple
from distill.inference.assembly import Assembly, Piece, slabs
from distill.inference.decode import decode_slab, decoder_overlap, decoder_tiles
from distill.inference.in_memory import (
    student_affinity,
    student_sections,
    student_volume,
    student_volumes,
    teacher_volume,
    teacher_volumes,
)
from distill.inference.options import Runtime
from distill.io.volume import open_volume
from distill.models.load import load_student, load_teacher
from distill.segmentation.supervoxels import supervoxels
from students.streaming.runner import SectionOutput

Ids = NDArray[np.uint64]
CPU = Runtime(torch.device("cpu"), "32-true")


def results(depth: int) -> list[SectionOutput]:
    """Sections that carry their number."""
    return [SectionOutput(np.full((3, 1, 1), z, np.uint8), None, None, None) for z in range(depth)]


@pytest.mark.parametrize(("length", "depth"), [*itertools.product(range(12), range(2, 7))])
def test_slabs_share_one_section_and_end_with_something_fresh(length: int, depth: int) -> None:
    found = list(slabs(results(length), depth))
    owned: list[int] = []
    for slab in found:
        own = np.rint(slab.affinity()[0, :, 0, 0] * 255)
        assert own.tolist() == list(range(slab.first, slab.stop))
        owned += range(slab.first + (slab.first > 0), slab.stop)
    assert owned == list(range(length))
    assert [slab.first for slab in found] == [k * (depth - 1) for k in range(len(found))]
    assert all(len(slab.sections) == depth for slab in found[:-1])
    if length > 1:
        assert all(len(slab.sections) >= 2 for slab in found)


def test_slabs_are_given_as_soon_as_they_are_full() -> None:
    taken: list[int] = []

    def stream() -> Iterator[SectionOutput]:
        for z, result in enumerate(results(8)):
            taken.append(z)
            yield result

    assert next(iter(slabs(stream(), 3))).stop == 3
    assert taken == [0, 1, 2]


def perfect(labels: Ids) -> NDArray[np.float32]:
    affinity = np.zeros((3, *labels.shape), np.float32)
    for axis in range(3):
        here, there = [slice(None)] * 3, [slice(None)] * 3
        here[axis], there[axis] = slice(1, None), slice(None, -1)
        a, b = labels[tuple(here)], labels[tuple(there)]
        affinity[(axis, *here)] = (a == b) & (a > 0)
    return affinity


def same_partition(a: Ids, b: Ids) -> bool:
    pairs = {(int(x), int(y)) for x, y in np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).T}
    zeros = all((x == 0) == (y == 0) for x, y in pairs)
    return zeros and len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def assembled(labels: Ids, config: DecoderConfig, threshold: float | None, rng: np.random.Generator) -> Ids:
    """Cut labels as the decoder would, rename the pieces of every block, and put them together."""
    depth, height, width = labels.shape
    affinity, supervoxels = perfect(labels), np.zeros(labels.shape, np.uint64)
    assembly = Assembly(decoder_overlap((depth, height, width), config))
    for slab in slabs(results(depth), config.block[0]):
        pieces = []
        for tile in decoder_tiles((len(slab.sections), height, width), config):
            box = tile.shift((slab.first, 0, 0))
            there, own = np.unique(labels[box.slices], return_inverse=True)
            names = rng.permutation(len(there)) + 1
            names[there == 0] = 0
            pieces.append(Piece(box, names[own].reshape(box.shape).astype(np.uint64)))
        edges = affinity[:, slab.first : slab.stop].copy()
        edges[0, 0] = 0.5  # the edge into the slab before: known there, never counted here
        ids = assembly.add(pieces, edges)
        skip = int(slab.first > 0)
        supervoxels[slab.first + skip : slab.stop] = ids[skip:]
    return assembly.finish(threshold).apply(supervoxels)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(3, 45), st.integers(3, 45)),
    block=st.tuples(st.integers(2, 5), st.integers(16, 21), st.integers(16, 21)),
    overlap=st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
    kinds=st.integers(2, 6),
    seed=st.integers(0, 9999),
)
def test_assembly_gives_the_original_back(shape: Triple, block: Triple, overlap: Triple, kinds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, kinds, tuple(-(-n // k) for n, k in zip(shape, (2, 5, 5), strict=True)))
    grown = coarse.repeat(2, 0).repeat(5, 1).repeat(5, 2)[: shape[0], : shape[1], : shape[2]]
    labels = label(grown, connectivity=1).astype(np.uint64)
    config = DecoderConfig(block=block, overlap=overlap)
    for threshold in (None, 0.3, 0.9):
        assert same_partition(assembled(labels, config, threshold, rng), labels), threshold


@pytest.mark.parametrize("depth", [5, 6, 7, 8, 9])
def test_assembly_of_a_last_slab_with_one_fresh_section(depth: int) -> None:
    """Slabs of 4: a stack of 5 or 8 ends with one section of its own."""
    rng = np.random.default_rng(depth)
    labels = label(rng.integers(0, 2, (depth, 5, 5)).repeat(7, 1).repeat(7, 2), connectivity=1).astype(np.uint64)
    config = DecoderConfig(block=(4, 16, 16), overlap=(1, 3, 3))
    assert same_partition(assembled(labels, config, None, rng), labels)


def test_assembly_merges_above_the_threshold_only() -> None:
    """Two halves that no voxel joins, with a contact of mean affinity 0.6."""
    labels = np.ones((2, 16, 16), np.uint64)
    labels[..., 8:] = 2
    assembly = Assembly((1, 1, 1))
    box = decoder_tiles((2, 16, 16), DecoderConfig(block=(2, 16, 16)))[0]
    ids = assembly.add([Piece(box, labels)], np.full((3, 2, 16, 16), 0.6, np.float32))
    for threshold, objects in ((None, 2), (0.7, 2), (0.59, 1)):
        assert len(np.unique(assembly.finish(threshold).apply(ids))) == objects


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70)),
    block=st.tuples(st.just(4), st.integers(16, 33), st.integers(16, 33)),
    overlap=st.tuples(st.just(1), st.integers(0, 15), st.integers(0, 15)),
)
def test_decoder_tiles_cover_from_even_starts(shape: Triple, block: Triple, overlap: Triple) -> None:
    covered = np.zeros(shape, bool)
    for box in decoder_tiles(shape, DecoderConfig(block=block, overlap=overlap)):
        assert (box.start[0], box.stop[0]) == (0, shape[0])
        assert box.start[1] % 2 == box.start[2] % 2 == 0
        assert all(n <= b + 1 for n, b in zip(box.shape[1:], block[1:], strict=True))
        assert all(stop <= n for stop, n in zip(box.stop, shape, strict=True))
        covered[box.slices] = True
    assert covered.all()


@pytest.mark.parametrize("shape", [(1, 40, 40), (2, 33, 51), (5, 61, 70), (9, 96, 31)])
def test_networks_cover_every_voxel(run: Path, phantom: Path, shape: Triple) -> None:
    """`fill` gives every voxel to a query, over tiles, slabs and odd sizes."""
    z, y, x = shape
    raw = open_volume(phantom).read()[:z, :y, :x]
    student, teacher = load_student(str(run), CPU.device), load_teacher(str(run), CPU.device)
    assert student.decoding.fill
    for found in (student_volume(student, iter(raw), shape, CPU), teacher_volume(teacher, raw, CPU)):
        assert found.affinity.shape == (3, *shape)
        assert 0 <= found.affinity.min() <= found.affinity.max() <= 1
        for threshold in (None, 0.5):
            labels = found.labels(threshold)
            assert labels.shape == shape
            assert labels.min() > 0
        assert len(np.unique(found.labels(None))) >= len(np.unique(found.labels(0.5)))


def test_several_ways_to_decode_share_one_run_of_the_network(run: Path, phantom: Path) -> None:
    shape = (5, 61, 70)
    raw = open_volume(phantom).read()[:5, :61, :70]
    student, teacher = load_student(str(run), CPU.device), load_teacher(str(run), CPU.device)
    ways = [with_thresholds(student.decoding, t) for t in (0.5, 0.8, 0.97)]
    read: list[int] = []

    def counted() -> Iterator[Ids]:
        for z, section in enumerate(raw):
            read.append(z)
            yield section

    students = student_volumes(student, counted(), shape, CPU, ways)
    assert read == list(range(5))
    calls: list[int] = []
    hook = teacher.teacher.register_forward_hook(lambda *_: calls.append(1))
    teachers = teacher_volumes(teacher, raw, CPU, ways)
    together = len(calls)
    for way, one, other in zip(ways, students, teachers, strict=True):
        calls.clear()
        alone = student_volume(replace(student, decoding=way), iter(raw), shape, CPU)
        taught = replace(teacher, config=teacher.config.model_copy(update={"decoder": way}))
        for found, expected in ((one, alone), (other, teacher_volume(taught, raw, CPU))):
            np.testing.assert_array_equal(found.supervoxels, expected.supervoxels)
            np.testing.assert_array_equal(found.affinity, expected.affinity)
            np.testing.assert_array_equal(found.labels(0.5), expected.labels(0.5))
        assert len(calls) == together > 0
    hook.remove()
    assert len({len(np.unique(found.supervoxels)) for found in students}) > 1


def with_thresholds(decoding: DecoderConfig, threshold: float) -> DecoderConfig:
    """The same decoding with seeds cut at another affinity."""
    return decoding.model_copy(update={"seeds": decoding.seeds.model_copy(update={"thresholds": (threshold,) * 3})})


def test_student_affinity_needs_no_decoder(run: Path, phantom: Path) -> None:
    raw = open_volume(phantom).read()[:6, :41, :50]
    student = load_student(str(run), CPU.device)
    whole = student_volume(student, iter(raw), (6, 41, 50), CPU).affinity
    np.testing.assert_array_equal(student_affinity(student, iter(raw), (6, 41, 50), CPU), whole)
    assert (whole[0, 0] == 0).all()
    assert (whole[0, 1:] > 0).any()


def test_decoding_without_a_decoder_floods(run: Path, phantom: Path) -> None:
    raw = open_volume(phantom).read()[:2]
    bare = replace(load_student(str(run), CPU.device), slab=None, decoder=None)
    slab = next(slabs(student_sections(bare, raw, CPU, with_slab=False), 2))
    for piece in decode_slab(bare, slab, CPU):
        wanted = supervoxels(slab.stored()[(slice(None), *piece.box.slices)])
        np.testing.assert_array_equal(piece.labels, wanted)
