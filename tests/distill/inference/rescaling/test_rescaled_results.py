"""Grids of two pixel sizes: what lies where, and affinities carried over, against loops over single edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.affinity import NEAREST, affinity_targets
from distill.core.errors import DistillError
from distill.core.geometry import Box
from distill.inference.rescaling.results import Rescaling, rescaling_of

FACTORS = (0.4, 0.5, 2 / 3, 6 / 7, 1.0, 1.2, 1.5, 2.0, 2.7)


def grids(recorded: tuple[int, int], factor: tuple[float, float]) -> Rescaling:
    height, width = (max(1, int(n / f + 0.5)) for n, f in zip(recorded, factor, strict=True))
    return Rescaling(recorded, (height, width), factor)


def pixel(rescaling: Rescaling, axis: int, at: int) -> int:
    """The model's pixel whose extent holds the centre of a pixel as recorded."""
    return min(int((at + 0.5) / rescaling.factor[axis]), rescaling.model[axis] - 1)


def edge(found: NDArray[Any], channel: int, z: int, y: int, x: int, rescaling: Rescaling) -> int:
    """One affinity as recorded, by walking over the model's grid."""
    here = [pixel(rescaling, 0, y), pixel(rescaling, 1, x)]
    if channel == 0:
        return int(found[0, z, here[0], here[1]])
    axis, at = channel - 1, [y, x]
    if rescaling.recorded[axis] == 1:
        return 255
    if at[axis] == 0:
        at[axis] = min(2, rescaling.recorded[axis] - 1)
    start = pixel(rescaling, axis, at[axis])
    stop = pixel(rescaling, axis, at[axis] - 1)
    here[axis] = start
    least = 255
    while here[axis] > stop:
        least = min(least, int(found[channel, z, here[0], here[1]]))
        here[axis] -= 1
    if start != stop:
        return least
    own = []
    for k in (0, 1):
        if here[k] > 0:
            own.append(int(found[k + 1, z, here[0], here[1]]))
        if here[k] + 1 < rescaling.model[k]:
            there = [here[n] + (n == k) for n in (0, 1)]
            own.append(int(found[k + 1, z, there[0], there[1]]))
    return max(own, default=0)


@settings(max_examples=40)
@given(
    recorded=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    factor=st.tuples(st.sampled_from(FACTORS), st.sampled_from(FACTORS)),
    seed=st.integers(0, 1000),
)
def test_affinities_are_those_of_walks_over_the_models_grid(
    recorded: tuple[int, int], factor: tuple[float, float], seed: int
) -> None:
    rescaling, rng = grids(recorded, factor), np.random.default_rng(seed)
    found = rng.integers(0, 256, (3, 2, *rescaling.model), np.uint8)
    whole, model = Box.of_shape((2, *recorded)), Box.of_shape((2, *rescaling.model))
    carried = rescaling.affinity(found, NEAREST, whole, model)
    assert carried.shape == (3, 2, *recorded)
    assert carried.dtype == np.uint8
    for place in np.ndindex(carried.shape):
        channel, z, y, x = place
        assert carried[place] == edge(found, channel, z, y, x, rescaling), place


@settings(max_examples=40)
@given(
    recorded=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    factor=st.tuples(st.sampled_from(FACTORS), st.sampled_from(FACTORS)),
    seed=st.integers(0, 1000),
)
def test_a_part_is_what_the_whole_has_there(recorded: tuple[int, int], factor: tuple[float, float], seed: int) -> None:
    rescaling, rng = grids(recorded, factor), np.random.default_rng(seed)
    found = rng.integers(0, 256, (3, 3, *rescaling.model), np.uint8)
    ids = rng.integers(0, 9, (3, *rescaling.model), np.uint64)
    whole, model = Box.of_shape((3, *recorded)), Box.of_shape((3, *rescaling.model))
    (y, y_stop), (x, x_stop) = (sorted(rng.choice(n + 1, 2, replace=False).tolist()) for n in recorded)
    box = Box((1, y, x), (3, y_stop, x_stop))
    within = rescaling.model_box(box)
    assert model.contains(within)
    np.testing.assert_array_equal(
        rescaling.affinity(found[:, *within.slices], NEAREST, box, within),
        rescaling.affinity(found, NEAREST, whole, model)[:, *box.slices],
    )
    np.testing.assert_array_equal(
        rescaling.nearest(ids[within.slices], box, within), rescaling.nearest(ids, whole, model)[box.slices]
    )


@pytest.mark.parametrize("factor", [1.2, 1.5, 2.0, 3.0])
def test_affinities_of_a_labelling_are_those_of_the_labelling_carried_over(factor: float) -> None:
    """To smaller pixels, where every object is wider than a pixel; membranes (0) are connected to nothing."""
    coarse = np.random.default_rng(1).integers(0, 4, (2, 6, 7)).repeat(2, 1).repeat(2, 2)
    recorded = round(12 * factor), round(14 * factor)
    rescaling = Rescaling(recorded, (12, 14), (factor, factor))
    whole, model = Box.of_shape((2, *recorded)), Box.of_shape(coarse.shape)
    found = affinity_targets(torch.from_numpy(coarse)).target.numpy()
    carried = rescaling.affinity(found, NEAREST, whole, model)
    own = affinity_targets(torch.from_numpy(rescaling.nearest(coarse, whole, model)))
    valid = own.valid.numpy()
    np.testing.assert_array_equal(carried[valid], own.target.numpy()[valid])
    assert 0.1 < carried[valid].mean() < 0.9


def test_an_edge_over_a_membrane_is_low_where_pixels_are_larger_than_the_models() -> None:
    labels = torch.tensor([[[1, 1, 0, 2, 2, 2, 2, 1]]])
    found = affinity_targets(labels).target.numpy()
    rescaling = Rescaling((1, 4), (1, 8), (1.0, 0.5))
    carried = rescaling.affinity(found, NEAREST, Box.of_shape((1, 1, 4)), Box.of_shape((1, 1, 8)))
    np.testing.assert_array_equal(carried[2, 0, 0, 1:], [0, 1, 0])


def test_used_pixels_are_those_that_some_pixel_takes() -> None:
    rescaling = grids((7, 12), (0.5, 1.5))
    np.testing.assert_array_equal(rescaling.used(0, 0, 14), [1, 3, 5, 7, 9, 11, 13])
    np.testing.assert_array_equal(rescaling.used(0, 3, 8), [3, 5, 7])
    np.testing.assert_array_equal(rescaling.used(1, 2, 8), [2, 3, 4, 5, 6, 7])


def test_grid_of_a_model() -> None:
    found = rescaling_of("brain.h5", (600, 601), (30, 5, 7), (6, 6))
    assert found == Rescaling((600, 601), (500, 701), (1.2, 6 / 7))
    assert rescaling_of("brain.h5", (600, 601), (30, 6, 6.001), (6, 6)) is None
    assert rescaling_of("brain.h5", (1, 1), (30, 1, 1), (6, 6)) == Rescaling((1, 1), (1, 1), (6.0, 6.0))
    assert rescaling_of("brain.h5", (60, 60), (30, 6.001, 4), (6, 6)) == Rescaling((60, 60), (60, 40), (1.0, 1.5))


@pytest.mark.parametrize("nm", [0.006, 6000.0])
def test_sizes_far_apart_are_refused(nm: float) -> None:
    with pytest.raises(DistillError, match=r"--rescale: brain.h5 has pixels of .* nm, the model's are 6 x 6 nm"):
        rescaling_of("brain.h5", (600, 600), (30, nm, nm), (6, 6))


def test_further_offsets_are_carried_along_z_alone() -> None:
    rescaling = grids((6, 6), (1.5, 1.5))
    box, model = Box.of_shape((1, 6, 6)), Box.of_shape((1, 4, 4))
    found = np.random.default_rng(0).integers(0, 256, (4, 1, 4, 4), np.uint8)
    carried = rescaling.affinity(found, [*NEAREST, (-2, 0, 0)], box, model)
    np.testing.assert_array_equal(carried[3], rescaling.nearest(found[3], box, model))
    with pytest.raises(DistillError, match=r"--offset 0,-9,0: found --rescale, expected further offsets along z"):
        rescaling.affinity(found, [*NEAREST, (0, -9, 0)], box, model)
