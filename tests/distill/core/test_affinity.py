"""Affinities against plain loops, and their converters there and back."""

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
from torch import Tensor

from distill.core.affinity import (
    MULTI,
    affinity_targets,
    as_label_tensor,
    class_balance,
    edge_slices,
    section_labels,
    widen_borders,
)
from distill.core.errors import ShapeError
from distill.core.geometry import Triple

SIGNED = ("int8", "int16", "int32", "int64")


UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


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
