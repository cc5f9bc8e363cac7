"""Augmentation: drawn from one generator, carried out alike on arrays, crops and devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.config import AUGMENTATIONS, AugmentConfig
from distill.data.augmentation.augment import apply, augment, draw_plan

ALL = AugmentConfig(elastic_spacing=16, elastic_pixels=6).only(*AUGMENTATIONS)
GEOMETRY = ("flips", "transposes", "rotate", "rescale", "elastic", "misalign")


def numbered(*shape: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Every voxel has its own label, and a grey value that tells which."""
    labels = np.arange(np.prod(shape)).reshape(shape)
    return (labels / 2**14).astype(np.float32), labels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=40)
@given(st.sampled_from(AUGMENTATIONS), st.integers(0, 2**32 - 1), st.sampled_from([(3, 6, 6), (2, 4, 7), (1, 1, 1)]))
def test_every_augmentation_alone(name: str, seed: int, shape: tuple[int, int, int]) -> None:
    raw, labels = numbered(*shape)
    before = raw.copy(), labels.copy()
    image, target = augment(raw, labels, AugmentConfig().only(name), rng(seed))
    assert target is not None
    assert image.shape == target.shape == shape
    assert (image.dtype, target.dtype) == (np.float32, np.int64)
    assert 0 <= image.min() <= image.max() <= 1
    assert set(target.flat) <= set(labels.flat)
    if name not in GEOMETRY:
        np.testing.assert_array_equal(target, labels)
    np.testing.assert_array_equal(raw, before[0])
    np.testing.assert_array_equal(labels, before[1])
    assert not np.shares_memory(image, raw)
    assert not np.shares_memory(target, labels)


def test_without_any_it_copies() -> None:
    raw, labels = numbered(2, 3, 3)
    found, same = augment(raw, labels, AugmentConfig().only(), rng())
    np.testing.assert_array_equal(found, raw)
    assert same is not None
    np.testing.assert_array_equal(same, labels)
    assert not np.shares_memory(found, raw)
    assert not np.shares_memory(same, labels)


def test_the_generator_decides() -> None:
    raw, labels = numbered(3, 12, 12)
    first, again, other = (augment(raw, labels, ALL, rng(seed)) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert a is not None
        assert b is not None
        assert c is not None
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_a_volume_without_labels_is_changed_like_one_with_them() -> None:
    raw, labels = numbered(4, 9, 9)
    image, none = augment(raw, None, ALL, rng(7))
    np.testing.assert_array_equal(image, augment(raw, labels, ALL, rng(7))[0])
    assert none is None


def test_carrying_out_draws_nothing() -> None:
    raw, labels = (torch.from_numpy(volume) for volume in numbered(4, 20, 20))
    plan = draw_plan((4, 12, 12), ALL, rng(2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = apply(raw, labels, plan, (4, 4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - nothing here may depend on it
    for a, b in zip(first, apply(raw, labels, plan, (4, 4)), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_other_integer_types_of_labels_stay() -> None:
    raw, labels = (torch.from_numpy(volume) for volume in numbered(3, 9, 9))
    plan = draw_plan((3, 9, 9), ALL, rng(2))
    wanted = apply(raw, labels, plan, (0, 0))[1]
    for dtype in (torch.int32, torch.int16):
        found = apply(raw, labels.to(dtype), plan, (0, 0))[1]
        assert wanted is not None
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found.long(), wanted)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_has_a_switch_that_turns_it_off(name: str) -> None:
    on, off = AugmentConfig().only(name), AugmentConfig().only()
    assert getattr(on, name) == 1
    assert getattr(off, name) == 0
    assert on.model_copy(update={name: getattr(off, name)}) == off
    raw = rng().random((4, 20, 20), dtype=np.float32)
    changed = [not np.array_equal(augment(raw, None, on, rng(seed))[0], raw) for seed in range(12)]
    assert any(changed)
