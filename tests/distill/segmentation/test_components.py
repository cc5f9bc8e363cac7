"""Components by propagation against cc3d, nearest labels against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cc3d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, sparse
from torch import Tensor

from distill.segmentation.components import (
    compact_blocks,
    edge_components,
    label_components,
    mask_components,
    nearest_labels,
)

Shape = tuple[int, int, int]
shapes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32 - 1)
densities = st.sampled_from([0.0, 0.03, 0.1, 0.2, 0.5, 0.9, 1.0])


def by_first_voxel(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers 1..n in the order of the components' first voxels; 0 stays 0."""
    ids, first, where = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(ids == 0, -1, first))
    rank = np.zeros(len(ids), np.int64)
    rank[order] = np.arange(len(ids)) + (0 not in ids)
    return rank[where].reshape(labels.shape)


def wanted_of(labels: NDArray[Any]) -> Tensor:
    return torch.from_numpy(
        np.stack([by_first_voxel(cc3d.connected_components(block, connectivity=26)) for block in labels])
    )


def spiral(size: int) -> NDArray[np.bool_]:
    """One path of width one that winds inwards, with a gap of one to its last turn: about half of the voxels."""
    mask = np.zeros((size, size), bool)
    point, step, stuck = np.array([0, 0]), np.array([0, 1]), 0
    mask[0, 0] = True
    while stuck < 2:
        ahead = [tuple(point + k * step) for k in (1, 2)]
        inside = [min(p) >= 0 and max(p) < size for p in ahead]
        if inside[0] and not mask[ahead[0]] and not (inside[1] and mask[ahead[1]]):
            point, stuck = point + step, 0
            mask[ahead[0]] = True
        else:
            step, stuck = np.array([step[1], -step[0]]), stuck + 1
    return mask


def snake(depth: int, size: int) -> NDArray[np.bool_]:
    """One path to and fro through every second row of every second section."""
    mask = np.zeros((depth, size, size), bool)
    mask[::2, ::2] = True
    for row in range(1, size, 2):
        mask[::2, row, -1 if row % 4 == 1 else 0] = True
    for z in range(1, depth, 2):
        end = (size - 1, -1 if size % 4 == 1 else 0) if z % 4 == 1 else (0, 0)
        mask[(z, *end)] = True
    return mask


@settings(deadline=None, max_examples=60)
@given(seeds, shapes, st.lists(densities, min_size=1, max_size=3))
def test_masks_have_the_components_of_cc3d(seed: int, shape: Shape, shares: list[float]) -> None:
    rng = np.random.default_rng(seed)
    masks = np.stack([rng.random(shape) < share for share in shares])
    found = mask_components(torch.from_numpy(masks)).numbers
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted_of(masks))


@settings(deadline=None, max_examples=40)
@given(seeds, shapes, st.integers(1, 4), st.booleans())
def test_labels_have_the_components_of_cc3d(seed: int, shape: Shape, ids: int, large: bool) -> None:
    labels = np.random.default_rng(seed).integers(0, ids, (2, *shape))
    found = label_components(torch.from_numpy(labels * (2**40 if large else 1))).numbers
    assert torch.equal(found, wanted_of(labels.astype(np.uint32)))


@settings(deadline=None, max_examples=40)
@given(seeds, shapes, densities)
def test_edges_have_the_components_of_their_graph(seed: int, shape: Shape, share: float) -> None:
    joined = np.random.default_rng(seed).random((2, 3, *shape)) < share
    found = edge_components(torch.from_numpy(joined)).numbers
    number = np.arange(np.prod(shape)).reshape(shape)
    for block, edges in zip(found, joined, strict=True):
        ends = [
            (np.delete(number, 0, axis)[np.delete(edges[axis], 0, axis)],
             np.delete(number, -1, axis)[np.delete(edges[axis], 0, axis)])
            for axis in range(3)
        ]  # fmt: skip
        u, v = (np.concatenate(side) for side in zip(*ends, strict=True))
        graph = sparse.coo_array((np.ones(len(u)), (u, v)), shape=(number.size, number.size))
        pieces = sparse.csgraph.connected_components(graph, directed=False)[1].reshape(shape) + 1
        assert torch.equal(block, torch.from_numpy(by_first_voxel(pieces)))


def test_full_empty_and_one_voxel_blocks() -> None:
    masks = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    masks[1] = True
    masks[2, 1, 2, 2] = True
    masks[3, 0, 0, 0] = masks[3, 1, 2, 2] = True
    found = mask_components(masks).numbers
    assert found.flatten(1).amax(1).tolist() == [0, 1, 1, 2]
    assert torch.equal(found > 0, masks)
    single = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert mask_components(single).numbers.item() == 1
    assert mask_components(~single).numbers.item() == 0
    assert label_components(single.long() * 9).numbers.item() == 1
    assert edge_components(torch.ones(1, 3, 1, 1, 1, dtype=torch.bool)).numbers.item() == 1


TURNS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "as it is": lambda m: m,
    "from inside": lambda m: m[..., ::-1, ::-1],
    "mirrored": lambda m: m[..., ::-1],
    "across": lambda m: m.swapaxes(-1, -2),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("winding", [spiral(129)[None], snake(9, 65)], ids=["spiral", "snake"])
def test_long_ways_need_few_rounds(winding: NDArray[np.bool_], turn: str) -> None:
    mask = torch.from_numpy(TURNS[turn](winding).copy()).unsqueeze(0)
    length = int(mask.sum())
    assert length > 8000
    edges = torch.stack([mask & mask.roll(1, axis) for axis in (1, 2, 3)], 1)
    for found in (mask_components(mask), label_components(mask.long())):
        assert torch.equal(found.numbers, mask.long())
        assert found.rounds <= math.log2(length)
    joined = edge_components(edges)
    assert joined.rounds <= math.log2(length)
    assert int(joined.numbers.max()) == 1 + int((~mask).sum())  # the path and every other voxel by itself


def test_rounds_grow_with_the_logarithm_of_the_way() -> None:
    rounds = [mask_components(torch.from_numpy(spiral(n)).view(1, 1, n, n)).rounds for n in (33, 65, 129, 257)]
    assert max(rounds) - min(rounds) <= 6  # a way 64 times as long


def test_blocks_of_any_memory_layout() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((6, 5, 4, 2)) < 0.3).permute(3, 2, 1, 0)
    assert not masks.is_contiguous()
    assert torch.equal(mask_components(masks).numbers, mask_components(masks.contiguous()).numbers)
    labels = masks.long() * 3
    assert torch.equal(label_components(labels).numbers, label_components(labels.contiguous()).numbers)
    joined = torch.stack([masks, masks, masks], 1)
    assert torch.equal(edge_components(joined).numbers, edge_components(joined.contiguous()).numbers)


@settings(deadline=None, max_examples=30)
@given(seeds, shapes)
def test_compact_blocks_keep_the_partition_and_the_order(seed: int, shape: Shape) -> None:
    labels = np.random.default_rng(seed).integers(0, 9, (2, *shape))
    found = compact_blocks(torch.from_numpy(labels)).numpy()
    for block, new in zip(labels, found, strict=True):
        ids = [int(i) for i in np.unique(block) if i]
        table = {0: 0, **{old: n for n, old in enumerate(ids, 1)}}
        np.testing.assert_array_equal(new, np.vectorize(table.get)(block))


@settings(deadline=None, max_examples=40)
@given(
    seeds,
    shapes,
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    st.sampled_from([(2.5, 1.0, 1.0), (1, 1, 1), (0.7, 3.1, 1.3)]),
)
def test_nearest_labels_are_as_far_as_scipy_says(
    seed: int, shape: Shape, share: float, sampling: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((2, *shape)) < share, rng.integers(1, 5, (2, *shape)), 0)
    nearest, distance = nearest_labels(torch.from_numpy(labels), sampling)
    assert nearest.dtype == torch.int64
    assert distance.dtype == torch.float32
    for block, label, far in zip(labels, nearest.numpy(), distance.numpy(), strict=True):
        if not block.any():
            assert not label.any()
            assert not far.any()
            continue
        np.testing.assert_allclose(far, ndimage.distance_transform_edt(block == 0, sampling=sampling), rtol=1e-5)
        for id_ in range(5):  # the label named is indeed that far
            here = label == id_
            if here.any():
                wanted = ndimage.distance_transform_edt(block != id_, sampling=sampling)
                np.testing.assert_allclose(far[here], wanted[here], rtol=1e-5)
        assert (label > 0).all()


@settings(deadline=None, max_examples=40)
@given(seeds, shapes, st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([(5.0, 1.0, 1.0), (2.5, 1, 1), (1, 1, 1)]))
def test_ties_go_to_the_label_that_scipy_takes(
    seed: int, shape: Shape, share: float, sampling: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(shape) < share, rng.integers(1, 50, shape), 0)
    labels.flat[0] = 1
    index = ndimage.distance_transform_edt(labels == 0, sampling, return_distances=False, return_indices=True)
    np.testing.assert_array_equal(nearest_labels(torch.from_numpy(labels)[None], sampling)[0][0], labels[tuple(index)])


def test_lines_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (2, 5, 20, 30)) // 37)
    whole = nearest_labels(labels, (2.5, 1, 1))
    monkeypatch.setattr("distill.segmentation.components._ENTRIES", 2000)  # two lines along x, more along y and z
    parts = nearest_labels(labels, (2.5, 1, 1))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same() -> None:
    rng = np.random.default_rng(2)
    mask = torch.from_numpy(rng.random((2, 9, 65, 65)) < 0.1)
    joined = torch.from_numpy(rng.random((2, 3, 9, 65, 65)) < 0.3)
    labels = torch.from_numpy(rng.integers(0, 4, (2, 9, 65, 65)))
    for found, given_ in ((mask_components, mask), (edge_components, joined), (label_components, labels)):
        assert torch.equal(found(given_.cuda()).numbers.cpu(), found(given_).numbers)
    assert torch.equal(compact_blocks(labels.cuda()).cpu(), compact_blocks(labels))
    few = torch.where(mask, labels, 0)
    far = nearest_labels(few.cuda(), (2.5, 1, 1))[1]
    torch.testing.assert_close(far.cpu(), nearest_labels(few, (2.5, 1, 1))[1], rtol=1e-5, atol=0)
