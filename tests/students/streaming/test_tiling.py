"""Tiles: what they cover, and that they give what the whole section gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.affinity import NEAREST
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple
from distill.models.checkpoint import load_module, read_published
from students.slab_adapter import SlabAdapter
from students.smp import SmpYShape
from students.streaming.runner import SectionOutput, SectionRunner
from students.streaming.tiling import cut, halo
from students.student import Student, join_samples, pad_to_stride, tile_samples
from students.yshape import YShape

Build = Callable[..., Student]
CPU = torch.device("cpu")
FURTHER: tuple[Triple, ...] = ((0, 4, -7), (-1, -3, 2), (-2, 0, 9), (-3, 5, 0))


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile=st.integers(1, 70).map(lambda n: 2 * n),
    around=st.tuples(st.integers(0, 90), st.integers(0, 90)),
    stride=st.sampled_from([8, 16, 32]),
)
def test_cores_cover_a_section_once_and_halos_fit(
    size: tuple[int, int], tile: int, around: tuple[int, int], stride: int
) -> None:
    covered = np.zeros(size, int)
    found = cut(size, tile, around, stride)
    for piece in found:
        covered[piece.core] += 1
        for axis in range(2):
            padded = -(-size[axis] // stride) * stride
            start, stop = piece.origin[axis], piece.origin[axis] + piece.size[axis]
            assert start % stride == stop % stride == 0
            assert 0 <= start < stop <= padded
            assert start <= max(0, piece.start[axis] - around[axis])
            assert stop >= min(padded, piece.stop[axis] + around[axis])
    assert (covered == 1).all()
    assert len({piece.size for piece in found}) == 1
    assert [piece.start for piece in found] == sorted(piece.start for piece in found)


@pytest.mark.parametrize("tile", [0, 1, 33, -2])
def test_odd_tiles_are_refused(tile: int) -> None:
    with pytest.raises(DistillError, match=f"--tile: found {tile}, expected an even number"):
        cut((64, 64), tile, (4, 4), 16)


@given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_a_tile_takes_its_pixels_from_the_padded_section(size: tuple[int, int]) -> None:
    section = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    padded = pad_to_stride(torch.from_numpy(section), 16).numpy()
    for piece in cut(size, 20, (5, 3), 16):
        (y, x), (height, width) = piece.origin, piece.size
        np.testing.assert_array_equal(
            piece.filled(section[piece.window(section.shape)], section.shape), padded[y : y + height, x : x + width]
        )


@settings(max_examples=30)
@given(total=st.integers(1, 400), start=st.integers(0, 399), length=st.integers(1, 60), dtype=st.sampled_from([32, 64]))
def test_a_tile_samples_where_the_whole_map_does(total: int, start: int, length: int, dtype: int) -> None:
    start = min(start, total - 1)
    length = min(length, total - start)
    kind = torch.float32 if dtype == 32 else torch.float64
    deep = torch.rand(1, 2, 3, total, generator=torch.Generator().manual_seed(total), dtype=kind)
    whole = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=True)
    (samples,) = tile_samples((0, 2 * start), (6, 2 * length), (6, 2 * total), 1, CPU)
    skip = torch.zeros(1, 0, 6, 2 * length, dtype=kind)
    found = join_samples(skip, deep[..., start : start + length], samples)
    inner = slice(1 if start else 0, 2 * length - (1 if start + length < total else 0))
    wanted = whole[..., 2 * start : 2 * (start + length)]
    torch.testing.assert_close(found[..., inner], wanted[..., inner], rtol=0, atol=1e-6 if dtype == 32 else 1e-4)


def runner(student: Student, tile: int | None, **more: object) -> SectionRunner:
    options = {"precision": "32-true", "backend": "eager", "embedding": "float32", **more}
    return SectionRunner(student, None, device=CPU, tile=tile, **options)  # type: ignore[arg-type]


def sections(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width), dtype=np.uint8)


def agree(found: SectionOutput, wanted: SectionOutput) -> None:
    """Embeddings within 1e-5; affinities as near as uint8 can tell."""
    assert found.embedding is not None
    assert wanted.embedding is not None
    np.testing.assert_allclose(found.embedding, wanted.embedding, rtol=0, atol=1e-5)
    difference = np.abs(found.affinity.astype(int) - wanted.affinity)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # on the edge between two values


@pytest.mark.parametrize(
    ("name", "size", "tile"),
    [
        ("cad", (331, 365), 70),  # odd, tile no multiple of the stride
        ("cad", (34, 700), 98),
        ("cad", (50, 33), 64),  # smaller than a tile
        ("tu-resnet10t", (347, 421), 90),
        ("tu-resnet10t", (16, 500), 64),
        ("tu-resnet10t", (2, 300), 64),
    ],
)
def test_tiles_equal_the_whole_section(student: Build, name: str, size: tuple[int, int], tile: int) -> None:
    given = sections(2, *size)
    whole, tiled = runner(student(name), None), runner(student(name), tile)
    for found, wanted in zip(tiled.push(given), whole.push(given), strict=True):
        agree(found, wanted)


@pytest.mark.parametrize("build", [YShape, SmpYShape])
def test_tiles_of_the_presets_at_their_own_width(build: Callable[[], Student]) -> None:
    torch.manual_seed(0)
    network = build().eval()
    given = sections(2, 300, 45)
    whole, tiled = runner(network, None), runner(network, 40)
    for found, wanted in zip(tiled.push(given), whole.push(given), strict=True):
        agree(found, wanted)


def test_tiles_of_the_published_network_need_the_whole_sections_coordinates(checkpoints: Callable[[str], Path]) -> None:
    network = YShape()
    tensors = read_published(checkpoints("cad/AC34.ckpt")).tensors
    load_module(network, {key.removeprefix("student."): value for key, value in tensors.items()}, "AC34")
    network.eval()
    given = sections(2, 20, 501)
    whole, tiled, astray = runner(network, None), runner(network, 64), runner(network, 64)
    astray._steps.levels = 0
    wanted = whole.push(given)[1]
    agree(tiled.push(given)[1], wanted)
    found = astray.push(given)[1].embedding
    assert found is not None
    assert wanted.embedding is not None
    assert np.abs(found - wanted.embedding).max() > 1e-3


@pytest.mark.parametrize("name", ["cad", "tu-resnet10t"])
def test_tiles_with_further_offsets(student: Build, name: str) -> None:
    given, offsets = sections(5, 40, 310), (*NEAREST, *FURTHER)
    whole, tiled = runner(student(name), None, offsets=offsets), runner(student(name), 60, offsets=offsets)
    for found, wanted in zip(tiled.push(given), whole.push(given), strict=True):
        agree(found, wanted)


def test_what_the_decoder_takes_is_that_of_the_section_and_pieces_meet_at_half_resolution(student: Build) -> None:
    network, given = student("tu-resnet10t"), sections(2, 67, 331)
    torch.manual_seed(0)
    slab = SlabAdapter(half=network.half_channels, full=network.full_channels, features=16).eval()
    whole, tiled = (
        SectionRunner(network, slab, device=CPU, precision="32-true", backend="eager", tile=tile) for tile in (None, 50)
    )
    for found, wanted in zip(tiled.push(given), whole.push(given), strict=True):
        assert found.logits is not None
        assert found.joined is not None
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-3, atol=1e-2)
        assert found.joined.shape[1:] == (34, 166)
        torch.testing.assert_close(found.joined, wanted.joined, rtol=1e-3, atol=1e-3)


def test_pieces_come_in_order_and_the_last_one_moves_the_stream_on(student: Build) -> None:
    network, given = student("tu-resnet10t"), sections(3, 90, 130)
    one, other = runner(network, 64), runner(network, 64)
    wanted = other.push(given)
    one.prime(given[0])
    next(iter(one.tiles(given[2])))  # left early: the stream stays where it was
    for section, result in itertools.islice(zip(given, wanted, strict=True), 1, None):
        places = []
        for rows, columns, piece in one.tiles(section):
            places.append((rows.start, columns.start))
            np.testing.assert_array_equal(piece.affinity, result.affinity[:, rows, columns])
        assert places == [(y, x) for y in (0, 64) for x in (0, 64, 128)]


def test_a_primed_stream_of_tiles_goes_on_as_an_unbroken_one(student: Build) -> None:
    given, offsets = sections(5, 40, 70), (*NEAREST, *FURTHER)
    unbroken, resumed = (runner(student("cad"), 32, offsets=offsets) for _ in range(2))
    wanted = unbroken.push(given)[-1]
    for section in given[1:4]:
        resumed.prime(section)
    np.testing.assert_array_equal(resumed.push(given[4:])[0].affinity, wanted.affinity)


def test_an_encoder_that_sees_everything_has_no_tiles(student: Build) -> None:
    with pytest.raises(DistillError, match="--tile: this student's encoder pools or attends over the whole section"):
        halo(student("efficientnet-b0"), NEAREST)


def test_tiles_need_a_tile_and_sections_of_one_size(student: Build) -> None:
    with pytest.raises(DistillError, match="tile: found none"):
        runner(student("cad"), None).tiles(sections(1, 20, 20)[0])
    tiled = runner(student("cad"), 32)
    tiled.prime(sections(1, 20, 20)[0])
    with pytest.raises(ShapeError, match=r"found size \(20, 21\), expected \(20, 20\)"):
        tiled.tiles(sections(1, 20, 21)[0])
