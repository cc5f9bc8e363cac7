"""Affinities against plain loops, and their converters there and back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import (
    MULTI,
    NEAREST,
    affinity_targets,
    as_label_tensor,
    class_balance,
    edge_slices,
    embedding_affinity,
    half_resolution,
    pair_affinity,
    section_affinity,
    section_labels,
    unit,
    widen_borders,
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
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple

SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")

shapes = st.tuples(*[st.integers(1, 4)] * 3)
offsets = st.tuples(*[st.integers(-5, 5)] * 3)
seeds = st.integers(0, 2**32 - 1)


def partner(point: Triple, offset: Triple, shape: Triple) -> Triple | None:
    """The voxel at the other end of an edge; None outside the array."""
    z, y, x = (p + o for p, o in zip(point, offset, strict=True))
    inside = 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]
    return (z, y, x) if inside else None


def points(shape: Triple) -> list[Triple]:
    return list(itertools.product(*(range(n) for n in shape)))


def target_oracle(labels: NDArray[Any], offset: Triple, background_connects: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    target, valid = np.zeros(labels.shape, np.float32), np.zeros(labels.shape, bool)
    for point in points(labels.shape):
        other = partner(point, offset, labels.shape)
        if other is None:
            continue
        valid[point] = True
        a, b = int(labels[point]), int(labels[other])
        target[point] = a == b and (a != 0 or background_connects)
    return target, valid


def random_labels(seed: int, shape: tuple[int, ...], dtype: str = "int64", ids: int = 3) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, ids, shape).astype(dtype)


@settings(deadline=None)
@given(seeds, shapes, st.lists(offsets, max_size=4), st.booleans())
def test_targets_equal_a_loop_over_voxels(seed: int, shape: Triple, edges: list[Triple], background: bool) -> None:
    labels = random_labels(seed, shape)
    found = affinity_targets(torch.from_numpy(labels), edges, background_connects=background)
    assert found.target.shape == found.valid.shape == (len(edges), *shape)
    for k, offset in enumerate(edges):
        target, valid = target_oracle(labels, offset, background)
        np.testing.assert_array_equal(found.target[k], target)
        np.testing.assert_array_equal(found.valid[k], valid)


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED)
def test_targets_take_every_integer_type(dtype: str) -> None:
    labels = random_labels(1, (3, 4, 5), dtype)
    for tensor in (as_label_tensor(labels), torch.from_numpy(labels)):
        found = affinity_targets(tensor, MULTI)
        for k, offset in enumerate(MULTI):
            target, valid = target_oracle(labels, offset, False)
            np.testing.assert_array_equal(found.target[k], target)
            np.testing.assert_array_equal(found.valid[k], valid)


def test_targets_keep_leading_axes_apart() -> None:
    labels = torch.from_numpy(random_labels(2, (2, 3, 3, 4, 5)))
    found = affinity_targets(labels)
    assert found.target.shape == (2, 3, 3, 3, 4, 5)
    for a, b in itertools.product(range(2), range(3)):
        alone = affinity_targets(labels[a, b])
        assert torch.equal(found.target[a, b], alone.target)
        assert torch.equal(found.valid[a, b], alone.valid)


def test_targets_of_strided_labels() -> None:
    labels = torch.from_numpy(random_labels(3, (6, 5, 4))).permute(2, 1, 0)[:, ::2]
    found, plain = affinity_targets(labels), affinity_targets(labels.contiguous())
    assert torch.equal(found.target, plain.target)


def test_section_of_targets_is_the_slice_pair() -> None:
    labels = torch.from_numpy(random_labels(4, (4, 5, 6)))
    found = affinity_targets(labels)
    pair = affinity_targets(labels[1:3])
    assert torch.equal(found.section(2).target, pair.target[:, 1])
    assert torch.equal(found.section(2).valid, pair.valid[:, 1])


@settings(deadline=None)
@given(seeds, st.integers(1, 4))
def test_section_labels_compare_with_a_section_further_back(seed: int, distance: int) -> None:
    labels = random_labels(seed, (2, 4, 3, 3))
    found = section_labels(torch.from_numpy(labels), distance)
    for b in range(2):
        target, valid = target_oracle(labels[b], (-distance, 0, 0), False)
        np.testing.assert_array_equal(found.target[b], target)
        np.testing.assert_array_equal(found.valid[b], valid)


@settings(deadline=None)
@given(seeds, shapes, offsets)
def test_targets_do_not_depend_on_the_names_of_the_ids(seed: int, shape: Triple, offset: Triple) -> None:
    labels = random_labels(seed, shape, ids=4)
    names = np.array([0, 900, -7, 2**62])
    renamed = affinity_targets(torch.from_numpy(names[labels]), [offset])
    assert torch.equal(renamed.target, affinity_targets(torch.from_numpy(labels), [offset]).target)


@settings(deadline=None)
@given(seeds, shapes, offsets, st.booleans())
def test_the_inverse_offset_is_the_same_edge_from_its_other_end(
    seed: int, shape: Triple, offset: Triple, background: bool
) -> None:
    labels = torch.from_numpy(random_labels(seed, shape))
    z, y, x = offset
    forth = affinity_targets(labels, [offset], background_connects=background)
    back = affinity_targets(labels, [(-z, -y, -x)], background_connects=background)
    at, other = edge_slices(offset, shape)
    assert torch.equal(forth.target[0][at], back.target[0][other])
    assert bool(forth.valid[0][at].all())
    assert bool(back.valid[0][other].all())
    assert int(forth.valid.sum()) == int(back.valid.sum()) == forth.target[0][at].numel()


@pytest.mark.parametrize("labels", [torch.zeros(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.bool)])
def test_targets_refuse_labels_that_are_no_integers(labels: Tensor) -> None:
    with pytest.raises(ShapeError, match="expected an integer type"):
        affinity_targets(labels)


def test_targets_refuse_a_single_section_without_depth() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 5\), expected \(\.\.\., D, H, W\)"):
        affinity_targets(torch.zeros(4, 5, dtype=torch.int64))


def test_large_ids_stay_distinct() -> None:
    labels = np.array([0, 1, 2**63, 2**63 + 1, 2**64 - 3, 2**64 - 3], np.uint64).reshape(1, 1, 6)
    tensor = as_label_tensor(labels)
    assert len(tensor.unique()) == 5
    assert affinity_targets(tensor, [(0, 0, -1)]).target.flatten().tolist() == [0, 0, 0, 0, 0, 1]
    neighbours = np.array([2**53, 2**53 + 1], np.uint64).reshape(1, 1, 2)
    assert not affinity_targets(as_label_tensor(neighbours), [(0, 0, -1)]).target.any()


@pytest.mark.parametrize("order", [">u8", ">i4", "<u2"])
def test_label_tensors_of_any_byte_order_and_layout(order: str) -> None:
    labels = random_labels(5, (3, 4, 5)).astype(order).transpose(2, 0, 1)[::-1]
    assert as_label_tensor(labels).tolist() == labels.astype(np.int64).tolist()


@pytest.mark.usefixtures("every_warning")
def test_label_tensors_of_read_only_arrays() -> None:
    labels = random_labels(6, (2, 2, 2))
    labels.flags.writeable = False
    assert as_label_tensor(labels).tolist() == labels.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64"])
def test_label_tensors_refuse_other_types(dtype: str) -> None:
    with pytest.raises(ShapeError, match=f"labels: found {dtype}"):
        as_label_tensor(np.zeros((2, 2, 2), dtype))


@settings(deadline=None)
@given(shapes, offsets)
def test_edge_slices_hold_the_edges_that_lie_inside(shape: Triple, offset: Triple) -> None:
    at, other = edge_slices(offset, shape)
    grid = np.arange(np.prod(shape)).reshape(shape)
    found = set(zip(grid[at].ravel().tolist(), grid[other].ravel().tolist(), strict=True))
    wanted = {
        (int(grid[point]), int(grid[there]))
        for point in points(shape)
        if (there := partner(point, offset, shape)) is not None
    }
    assert found == wanted
    assert grid[at].shape == grid[other].shape


@settings(deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 6), st.sampled_from(["int64", "int32", "uint8"]))
def test_widened_borders_equal_a_loop(seed: int, height: int, width: int, dtype: str) -> None:
    labels = random_labels(seed, (2, height, width), dtype)
    wanted = labels.copy()
    for z, y, x in points(labels.shape):
        window = labels[z, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if len(set(window[window != 0].tolist())) > 1:
            wanted[z, y, x] = 0
    found = widen_borders(torch.from_numpy(labels))
    assert found.dtype == torch.from_numpy(labels).dtype
    np.testing.assert_array_equal(found, wanted)


def test_widened_borders_of_the_extreme_ids() -> None:
    for id_ in (2**63, 2**63 - 1, 2**64 - 3):
        alone = np.array([[id_, id_, 0]], np.uint64)
        assert torch.equal(widen_borders(as_label_tensor(alone)), as_label_tensor(alone))
        assert not widen_borders(as_label_tensor(np.array([[id_, 5]], np.uint64))).any()


def balance_oracle(target: list[float], valid: list[bool]) -> list[float]:
    counted = [t > 0.5 for t, v in zip(target, valid, strict=True) if v]
    share = min(0.99, max(0.05, sum(counted) / max(1, len(counted))))
    positive, negative = (1.0, share / (1 - share)) if share > 0.5 else ((1 - share) / share, 1.0)
    return [(positive if t > 0.5 else negative) * v for t, v in zip(target, valid, strict=True)]


@settings(deadline=None)
@given(seeds, st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.7, 0.999, 1.0]))
def test_class_balance_is_the_published_formula_for_each_sample(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    target = (rng.random((2, 3, 40)) < share).astype(np.float32)
    target[1] = (rng.random((3, 40)) < 0.5) * rng.random((3, 40))
    valid = rng.random((2, 3, 40)) < 0.8
    found = class_balance(torch.from_numpy(target), torch.from_numpy(valid))
    for b in range(2):
        wanted = balance_oracle(target[b].ravel().tolist(), valid[b].ravel().tolist())
        np.testing.assert_allclose(found[b].flatten(), wanted, rtol=1e-5)


def test_class_balance_gives_both_classes_the_same_say() -> None:
    target = (torch.arange(200).view(2, 100) % 100 < torch.tensor([[20], [80]])).float()
    weight = class_balance(target, torch.ones(2, 100, dtype=torch.bool))
    for b in range(2):
        assert float(weight[b][target[b] > 0].sum()) == pytest.approx(float(weight[b][target[b] == 0].sum()))


@pytest.mark.parametrize(("positives", "wanted"), [(0, (19.0, 1.0)), (1000, (1.0, 99.0))])
def test_class_balance_is_clipped(positives: int, wanted: tuple[float, float]) -> None:
    target = torch.zeros(1, 1000)
    target[:, :positives] = 1
    weight = class_balance(target, torch.ones(1, 1000, dtype=torch.bool))
    assert weight[0].tolist() == pytest.approx([wanted[positives == 0]] * 1000, rel=1e-4)


def test_class_balance_without_a_valid_edge_is_zero() -> None:
    assert not class_balance(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).any()


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
