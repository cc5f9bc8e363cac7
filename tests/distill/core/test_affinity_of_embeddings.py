"""Affinities from embeddings against loops, and conversions that come back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from affinity_loops import offsets, partner, points, seeds, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.affinity import (
    MULTI,
    NEAREST,
    embedding_affinity,
    half_resolution,
    pair_affinity,
    section_affinity,
    unit,
)
from distill.core.affinity_conventions import (
    attributes,
    from_mwatershed,
    from_torch_em,
    from_uint8,
    reversed_offsets,
    stored_offsets,
    to_mwatershed,
    to_torch_em,
    to_uint8,
    to_waterz,
)
from distill.core.errors import DistillError
from distill.core.geometry import Triple


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


@settings(max_examples=25, deadline=None)
@given(seeds, shapes, st.lists(offsets, max_size=3), st.booleans())
def test_embedding_affinity_equals_a_loop(seed: int, shape: Triple, edges: list[Triple], clamp: bool) -> None:
    embedding = np.random.default_rng(seed).normal(0, 5, (2, 3, *shape))
    found = embedding_affinity(torch.from_numpy(embedding), edges, clamp=clamp)
    wanted = np.zeros((2, len(edges), *shape))
    for b, (k, offset), point in itertools.product(range(2), enumerate(edges), points(shape)):
        other = partner(point, offset, shape)
        if other is not None:
            wanted[(b, k, *point)] = cosine(embedding[(b, slice(None), *point)], embedding[(b, slice(None), *other)])
    np.testing.assert_allclose(found, wanted.clip(0, 1) if clamp else wanted, atol=1e-6)


def test_embedding_affinity_has_a_gradient() -> None:
    embedding = torch.randn(1, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: embedding_affinity(e, [(-1, 1, 0), (0, 0, 5)], clamp=False), embedding)


def test_unit_vectors() -> None:
    embedding = torch.randn(2, 4, 3, 3)
    embedding[:, :, 0] = 0
    found = unit(embedding)
    assert not found[:, :, 0].any()
    torch.testing.assert_close(found[:, :, 1:], torch.nn.functional.normalize(embedding[:, :, 1:], dim=1))


def test_a_zero_embedding_has_a_finite_gradient() -> None:
    embedding = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    embedding_affinity(embedding).sum().backward()
    assert embedding.grad is not None
    assert bool(embedding.grad.isfinite().all())


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(3, 6), st.integers(3, 6))
def test_pair_affinity_equals_a_loop(seed: int, height: int, width: int) -> None:
    before, now = np.random.default_rng(seed).normal(0, 2, (2, 2, 4, height, width))
    found = pair_affinity(torch.from_numpy(before), torch.from_numpy(now))
    assert found.shape == (2, 3, height, width)
    for b, y, x in points((2, height, width)):
        at = now[b, :, y, x]
        up = cosine(now[b, :, 2, x], now[b, :, 1, x]) if y == 0 else cosine(at, now[b, :, y - 1, x])
        left = cosine(now[b, :, y, 2], now[b, :, y, 1]) if x == 0 else cosine(at, now[b, :, y, x - 1])
        wanted = np.clip([cosine(before[b, :, y, x], at), up, left], 0, 1)
        np.testing.assert_allclose(found[b, :, y, x], wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1), (2, 5), (5, 2), (2, 2)])
def test_pair_affinity_of_narrow_sections(size: tuple[int, int]) -> None:
    now = torch.randn(1, 4, *size, dtype=torch.float64)
    found = pair_affinity(now, now)
    assert found.shape == (1, 3, *size)
    torch.testing.assert_close(found[:, 0], torch.ones_like(found[:, 0]))
    for axis in (1, 2):
        along = found[0, axis].movedim(axis - 1, 0)
        if size[axis - 1] == 1:
            assert bool((along == 1).all())
        if size[axis - 1] == 2:
            assert torch.equal(along[0], along[1])


def test_pair_affinity_lies_between_zero_and_one() -> None:
    before, now = torch.randn(1, 2, 20, 20) * 1e3, torch.randn(1, 2, 20, 20) * 1e-3
    found = pair_affinity(before, now)
    assert float(found.min()) == 0
    assert 0.99 < float(found.max()) <= 1


@settings(deadline=None)
@given(seeds, st.integers(2, 4))
def test_pairs_of_one_embedding_are_its_volume_affinity(seed: int, depth: int) -> None:
    embedding = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, depth, 4, 5)))
    sections = embedding.transpose(1, 2)
    found = pair_affinity(sections[:, :-1].flatten(0, 1), sections[:, 1:].flatten(0, 1))
    wanted = embedding_affinity(embedding)[:, :, 1:].transpose(1, 2).flatten(0, 1)
    assert found.shape == wanted.shape == (2 * (depth - 1), 3, 4, 5)
    torch.testing.assert_close(found[:, 0], wanted[:, 0])
    torch.testing.assert_close(found[:, 1, 1:], wanted[:, 1, 1:])
    torch.testing.assert_close(found[:, 2, :, 1:], wanted[:, 2, :, 1:])


@settings(max_examples=30)
@given(
    seed=seeds,
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    step=st.tuples(st.integers(-6, 6), st.integers(-6, 6)),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_section_affinity_equals_a_loop(seed: int, size: tuple[int, int], step: tuple[int, int], scale: float) -> None:
    rng = np.random.default_rng(seed)
    now, other = (rng.normal(size=(2, 3, *size)).astype(np.float32) for _ in range(2))
    found = section_affinity(scale * torch.from_numpy(now), torch.from_numpy(other) / scale, step)
    wanted = np.zeros((2, *size), np.float32)
    for b, y, x in np.ndindex(2, *size):
        there = partner((0, y, x), (0, *step), (1, *size))
        if there is not None:
            one, two = now[b, :, y, x], other[b, :, there[1], there[2]]
            wanted[b, y, x] = np.clip(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)), 0, 1)
    assert found.shape == (2, *size)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_section_affinity_continues_the_nearest_ones() -> None:
    before, now = torch.randn(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    nearest = pair_affinity(before, now)
    torch.testing.assert_close(section_affinity(now, before, (0, 0)), nearest[:, 0])
    torch.testing.assert_close(section_affinity(now, now, (-1, 0))[:, 1:], nearest[:, 1, 1:])
    torch.testing.assert_close(section_affinity(now, now, (0, -1))[..., 1:], nearest[:, 2, :, 1:])
    assert not section_affinity(now, now, (-1, 0))[:, 0].any()  # the frame is not filled


def test_section_affinity_of_zero_vectors_is_zero_and_of_strided_ones_the_same() -> None:
    now = torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    dense = now.contiguous()
    assert torch.equal(section_affinity(now, now, (2, -1)), section_affinity(dense, dense, (2, -1)))
    assert not section_affinity(now, torch.zeros_like(now), (0, 1)).any()


@settings(deadline=None)
@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_half_resolution_is_the_mean_of_what_a_window_holds(seed: int, height: int, width: int) -> None:
    values = np.random.default_rng(seed).random((2, 3, height, width))
    found = half_resolution(torch.from_numpy(values))
    assert found.shape == (2, 3, -(-height // 2), -(-width // 2))
    for y, x in itertools.product(range(found.shape[2]), range(found.shape[3])):
        wanted = values[..., 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3))
        np.testing.assert_allclose(found[..., y, x], wanted)


def test_half_resolution_of_an_even_size_is_the_trilinear_resize() -> None:
    values = torch.rand(1, 3, 4, 6, 8)
    wanted = torch.nn.functional.interpolate(values, (4, 3, 4), mode="trilinear", align_corners=False)
    torch.testing.assert_close(half_resolution(values), wanted)


def test_every_stored_grey_value_comes_back() -> None:
    stored = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(torch.from_numpy(from_uint8(stored))), stored)
    assert to_uint8(torch.tensor([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 2.0])).tolist() == [0, 0, 0, 1, 255, 255]
    assert from_uint8(stored).dtype == np.float32
    assert float(from_uint8(stored)[-1]) == 1


@settings(deadline=None)
@given(seeds)
def test_uint8_is_off_by_half_a_step_at_most(seed: int) -> None:
    affinity = torch.from_numpy(np.random.default_rng(seed).random(50, dtype=np.float32))
    back = from_uint8(to_uint8(affinity).numpy())
    assert float(np.abs(back - affinity.numpy()).max()) <= 0.5 / 255 + 1e-6


def test_attributes_name_the_offsets_that_are_read_back() -> None:
    written = attributes(MULTI)
    assert stored_offsets(written, "a.zarr") == MULTI
    assert stored_offsets({"neighborhood": written["neighborhood"]}, "a.zarr") == MULTI
    assert (written["scale"], attributes(NEAREST, "float32")["scale"]) == (255, 1)
    assert written["polarity"] == "1 = same object"


def test_an_array_without_offsets_is_refused() -> None:
    with pytest.raises(DistillError, match=r"a\.zarr: no attribute 'offsets'"):
        stored_offsets({"scale": 1}, "a.zarr")


def affinities(seed: int, channels: int, shape: Triple) -> NDArray[np.float32]:
    """In steps of 1/256, so that 1 - a and a - 0.5 are exact."""
    return (np.random.default_rng(seed).integers(0, 257, (channels, *shape)) / 256).astype(np.float32)


@settings(deadline=None)
@given(seeds, shapes, st.permutations(range(3)))
def test_waterz_channels_are_put_in_order(seed: int, shape: Triple, order: list[int]) -> None:
    wanted = affinities(seed, 3, shape)
    listed = [NEAREST[k] for k in order]
    mixed = np.concatenate([wanted[order], affinities(seed + 1, 1, shape)])
    found = to_waterz(mixed, [*listed, (-2, 0, 0)])
    np.testing.assert_array_equal(found, wanted)
    assert found.flags.c_contiguous
    assert found.dtype == np.float32


def test_waterz_needs_the_nearest_offsets() -> None:
    with pytest.raises(DistillError, match=r"waterz: offset \(0, 0, -1\) is missing"):
        to_waterz(np.zeros((3, 1, 1, 1), np.float32), [(-1, 0, 0), (0, -1, 0), (0, 0, 1)])


@settings(deadline=None)
@given(seeds, shapes, st.sampled_from([0.5, 0.25, 0.0]))
def test_mwatershed_there_and_back(seed: int, shape: Triple, bias: float) -> None:
    affinity = affinities(seed, 3, shape)
    signed = to_mwatershed(affinity, bias)
    assert signed.dtype == np.float64
    np.testing.assert_array_equal(signed > 0, affinity > bias)
    np.testing.assert_array_equal(from_mwatershed(signed, bias), affinity)


@settings(deadline=None)
@given(seeds, shapes)
def test_torch_em_there_and_back(seed: int, shape: Triple) -> None:
    affinity = affinities(seed, 3, shape)
    boundary = to_torch_em(affinity)
    np.testing.assert_array_equal(boundary + affinity, np.ones_like(affinity))
    np.testing.assert_array_equal(from_torch_em(boundary), affinity)


@settings(deadline=None)
@given(seeds, shapes, st.lists(offsets, min_size=1, max_size=3))
def test_edges_reversed_twice_are_the_same_edges(seed: int, shape: Triple, edges: list[Triple]) -> None:
    affinity = affinities(seed, len(edges), shape)
    turned, negated = reversed_offsets(affinity, edges)
    back, again = reversed_offsets(turned, negated)
    assert again == tuple(edges)
    for k, offset in enumerate(edges):
        for point in points(shape):
            there = partner(point, offset, shape)
            assert back[(k, *point)] == (affinity[(k, *point)] if there is not None else 0)
            if there is not None:
                assert turned[(k, *there)] == affinity[(k, *point)]
