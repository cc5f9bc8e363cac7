"""Augmentation: geometry on both volumes, grey values and defects on raw alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.augment import augment, grey_values, misaligned_crop
from distill.config import AugmentConfig

OFF: dict[str, Any] = {
    "flips": False,
    "transposes": False,
    "grey": 0,
    "grey_section": 0,
    "noise": 0,
    "blur": 0,
    "missing": 0,
    "misalign": 0,
}
GREY = ("grey", "grey_section", "noise", "blur", "missing")


def numbered(*shape: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Every voxel has its own label, and a grey value that tells which."""
    labels = np.arange(np.prod(shape)).reshape(shape)
    return (labels / 2**14).astype(np.float32), labels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 6, 6), (2, 4, 7), (1, 1, 1)]))
def test_geometry_moves_raw_and_labels_together(seed: int, shape: tuple[int, int, int]) -> None:
    raw, labels = numbered(*shape)
    config = AugmentConfig(**{**OFF, "flips": True, "transposes": True})
    found, moved = augment(raw, labels, config, rng(seed))
    assert found.shape == moved.shape == shape
    np.testing.assert_array_equal(found * 2**14, moved)
    np.testing.assert_array_equal(np.sort(moved, axis=None), labels.ravel())


def test_geometry_is_the_16_symmetries_of_a_stack() -> None:
    raw, labels = numbered(2, 3, 3)
    config = AugmentConfig(**{**OFF, "flips": True, "transposes": True})
    seen = {augment(raw, labels, config, rng(seed))[1].tobytes() for seed in range(300)}
    wanted = {
        np.flip(turned, axes).tobytes()
        for turned in (labels, labels.transpose(0, 2, 1))
        for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    }
    assert len(wanted) == 16
    assert seen == wanted


def test_oblong_sections_are_not_transposed() -> None:
    raw, labels = numbered(2, 3, 4)
    config = AugmentConfig(**{**OFF, "transposes": True})
    for seed in range(10):
        np.testing.assert_array_equal(augment(raw, labels, config, rng(seed))[1], labels)


@pytest.mark.parametrize("name", GREY)
def test_grey_augmentations_leave_labels_and_stay_in_range(name: str) -> None:
    raw = rng(1).random((4, 8, 8), dtype=np.float32)
    labels = rng(2).integers(0, 9, (4, 8, 8))
    config = AugmentConfig(**{**OFF, name: 1})
    for seed in range(10):
        found, same = augment(raw, labels, config, rng(seed))
        np.testing.assert_array_equal(same, labels)
        assert found.dtype == np.float32
        assert found.shape == raw.shape
        assert 0 <= found.min() <= found.max() <= 1
        assert not np.array_equal(found, raw)


def test_a_missing_section_is_one_blank_section() -> None:
    raw = rng(1).random((4, 8, 8), dtype=np.float32)
    config = AugmentConfig(**{**OFF, "missing": 1})
    blanks = set()
    for seed in range(40):
        found, _ = augment(raw, np.zeros((4, 8, 8), np.int64), config, rng(seed))
        other = [z for z in range(4) if not np.array_equal(found[z], raw[z])]
        assert len(other) == 1
        assert len(np.unique(found[other[0]])) == 1
        blanks.add(other[0])
    assert blanks == {0, 1, 2, 3}


def test_blur_and_noise_do_not_cross_sections() -> None:
    raw = np.zeros((3, 9, 9), np.float32)
    raw[1, 4, 4] = 1
    found, _ = augment(raw, np.zeros((3, 9, 9), np.int64), AugmentConfig(**{**OFF, "blur": 1}), rng())
    assert not found[[0, 2]].any()
    assert 0 < found[1, 4, 4] < 1
    assert found[1].sum() == pytest.approx(1, rel=1e-3)


def test_sections_change_their_grey_values_one_by_one() -> None:
    raw = np.full((4, 2, 2), 0.5, np.float32)
    found, _ = augment(raw, np.zeros((4, 2, 2), np.int64), AugmentConfig(**{**OFF, "grey_section": 1}), rng())
    assert len(np.unique(found[:, 0, 0])) == 4
    whole, _ = augment(raw, np.zeros((4, 2, 2), np.int64), AugmentConfig(**{**OFF, "grey": 1}), rng())
    assert len(np.unique(whole)) == 1


def test_no_augmentation_copies() -> None:
    raw, labels = numbered(2, 3, 3)
    found, same = augment(raw, labels, AugmentConfig(**OFF), rng())
    np.testing.assert_array_equal(found, raw)
    np.testing.assert_array_equal(same, labels)
    assert not np.shares_memory(found, raw)


def test_augmentation_leaves_its_input_and_repeats_with_its_generator() -> None:
    raw, labels = numbered(3, 6, 6)
    before = raw.copy(), labels.copy()
    config = AugmentConfig(**dict.fromkeys(GREY, 1))
    first, again = augment(raw, labels, config, rng(3)), augment(raw, labels, config, rng(3))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(raw, before[0])
    np.testing.assert_array_equal(labels, before[1])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0]))
def test_grey_values_keep_their_order(seed: int, strength: float) -> None:
    raw = np.linspace(0, 1, 50, dtype=np.float32)
    found = grey_values(raw, rng(seed), strength)
    assert found.dtype == np.float32
    assert bool((np.diff(found) >= 0).all())
    assert 0 <= found[0] <= found[-1] <= 1
    np.testing.assert_allclose(grey_values(raw, rng(seed), 0.0), raw, atol=1e-7)


def shifts(cut: NDArray[np.int64], whole: NDArray[np.int64], margin: int) -> list[tuple[int, int]]:
    """Shift of every section against the middle, from the label of its first voxel; checks the rest of it."""
    found = []
    for section, full in zip(cut, whole, strict=True):
        y, x = (int(n[0]) for n in np.nonzero(full == section[0, 0]))
        np.testing.assert_array_equal(section, full[y : y + section.shape[0], x : x + section.shape[1]])
        found.append((y - margin, x - margin))
    return found


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(2, 6))
def test_a_misalignment_is_a_translation_from_a_section_on_or_a_slip_of_one(seed: int, margin: int, depth: int) -> None:
    raw, labels = numbered(depth, 5 + 2 * margin, 4 + 2 * margin)
    image, cut = misaligned_crop(raw, labels, margin, rng(seed), 1.0)
    assert image.shape == cut.shape == (depth, 5, 4)
    np.testing.assert_array_equal(image * 2**14, cut)
    found = shifts(cut, labels, margin)
    assert all(-margin <= n <= margin for shift in found for n in shift)
    assert found[0] == (0, 0)
    moved = [z for z, shift in enumerate(found) if shift != (0, 0)]
    if moved:
        assert len({found[z] for z in moved}) == 1
        assert len(moved) == 1 or moved == list(range(moved[0], depth))


def test_every_shift_and_both_kinds_of_misalignment_occur() -> None:
    raw, labels = numbered(4, 6, 6)
    found = [shifts(misaligned_crop(raw, labels, 1, rng(seed), 1.0)[1], labels, 1) for seed in range(300)]
    assert len({shift for sections in found for shift in sections}) == 9
    moved = {tuple(shift != (0, 0) for shift in sections) for sections in found}
    assert moved == {
        (False, False, False, False),
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
        (False, True, False, False),
        (False, False, True, False),
    }


@pytest.mark.parametrize(("depth", "margin", "probability"), [(3, 2, 0.0), (1, 2, 1.0), (3, 0, 1.0)])
def test_no_misalignment_is_the_middle(depth: int, margin: int, probability: float) -> None:
    raw, labels = numbered(depth, 7, 8)
    image, cut = misaligned_crop(raw, labels, margin, rng(), probability)
    middle = (slice(None), slice(margin, 7 - margin), slice(margin, 8 - margin))
    np.testing.assert_array_equal(cut, labels[middle])
    np.testing.assert_array_equal(image, raw[middle])


def test_a_volume_without_labels_is_changed_like_one_with_them() -> None:
    raw, labels = numbered(4, 9, 9)
    config = AugmentConfig(**dict.fromkeys(OFF, 1))
    image, moved = augment(raw, None, config, rng(7))
    np.testing.assert_array_equal(image, augment(raw, labels, config, rng(7))[0])
    assert moved is None
    image, moved = misaligned_crop(raw, None, 2, rng(7), 1.0)
    np.testing.assert_array_equal(image, misaligned_crop(raw, labels, 2, rng(7), 1.0)[0])
    assert moved is None
