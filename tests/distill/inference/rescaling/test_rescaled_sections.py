"""Sections on other pixels: against torch's resizing, and the same in parts as in the whole, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.core.geometry import Box
from distill.inference.rescaling.results import Rescaling
from distill.inference.rescaling.sections import resample_section, resampled
from distill.io.volume import volume_from_array

SIZES = [((24, 30), (16, 20)), ((24, 24), (12, 8)), ((12, 12), (24, 16)), ((14, 12), (12, 14)), ((9, 9), (9, 18))]


def grids(recorded: tuple[int, int], model: tuple[int, int]) -> Rescaling:
    return Rescaling(recorded, model, (recorded[0] / model[0], recorded[1] / model[1]))


def torch_resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    given = torch.from_numpy(image)[None, None]
    return F.interpolate(given, size=size, mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize(("recorded", "model"), SIZES)
def test_sections_are_resized_as_torch_does(recorded: tuple[int, int], model: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(recorded, np.float32)
    found = resample_section(image, grids(recorded, model))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_resized(image, model), atol=3e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_the_type_stays(dtype: type[np.number[Any]]) -> None:
    top = 1.0 if np.issubdtype(dtype, np.floating) else float(np.iinfo(dtype).max)
    image = (np.random.default_rng(0).random((24, 30)) * top).astype(dtype)
    image[:12] = np.array(top).astype(dtype)
    found = resample_section(image, grids((24, 30), (16, 20)))
    assert found.dtype == dtype
    np.testing.assert_allclose(found[:7], image[0, 0], rtol=1e-15 if top == 1 else 0)
    wanted = torch_resized(image.astype(np.float64), (16, 20))
    np.testing.assert_allclose(found.astype(np.float64), wanted, atol=0.5 + 1e-4 if top > 1 else 1e-6)


def test_pixels_of_one_size_stay_what_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (11, 12), np.uint8)
    np.testing.assert_array_equal(resample_section(image, grids((11, 12), (11, 12))), image)


@settings(max_examples=40)
@given(
    recorded=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    factor=st.tuples(st.floats(0.3, 4), st.floats(0.3, 4)),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    seed=st.integers(0, 1000),
)
def test_a_part_is_what_the_whole_has_there(
    recorded: tuple[int, int], factor: tuple[float, float], dtype: type[np.number[Any]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = tuple(max(1, int(n / f + 0.5)) for n, f in zip(recorded, factor, strict=True))
    rescaling = Rescaling(recorded, (model[0], model[1]), factor)
    raw = (rng.random((3, *recorded)) * (1 if dtype == np.float32 else 255)).astype(dtype)
    view = resampled(volume_from_array(raw, (30, 4, 4), (0, 8, 8)), rescaling)
    whole = np.stack([resample_section(section, rescaling) for section in raw])
    assert view.size == whole.shape
    assert view.offset == (0, 8, 8)
    assert view.resolution == pytest.approx((30, 4 * factor[0], 4 * factor[1]))
    np.testing.assert_array_equal(view.read(), whole)
    np.testing.assert_array_equal(np.stack(list(view.sections(1))), whole[1:])
    (y, y_stop), (x, x_stop) = (sorted(rng.integers(0, n + 1, 2).tolist()) for n in rescaling.model)
    box = Box((1, y, x), (3, y_stop, x_stop))
    np.testing.assert_array_equal(view.read(box), whole[box.slices])


def test_channels_are_resampled_one_by_one() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 9), np.uint8)
    rescaling = grids((12, 9), (8, 6))
    found = resampled(volume_from_array(raw, (30, 4, 4)), rescaling).read()
    np.testing.assert_array_equal(found[1, 2], resample_section(raw[1, 2], rescaling))
