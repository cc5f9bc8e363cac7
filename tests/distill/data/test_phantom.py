"""The phantom is repeatable, looks like tissue to a measurement, and keeps its sizes in nm."""

from __future__ import annotations

import itertools

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.registration import phase_cross_correlation

from distill.core.errors import DistillError
from distill.data.phantom import Phantom, make_phantom

SHAPE, RESOLUTION = (24, 192, 192), (30.0, 6.0, 6.0)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SHAPE, RESOLUTION, seed=1)


def foreground(labels: np.ndarray) -> np.ndarray:
    ids = np.unique(labels)
    return ids[ids > 0]


def profile_areas(labels: np.ndarray) -> np.ndarray:
    """Areas in pixels of all connected profiles of all sections."""
    per_section = (np.bincount(cc3d.connected_components(section, connectivity=4).ravel())[1:] for section in labels)
    return np.concatenate(list(per_section))


def test_same_seed_gives_the_same_bytes() -> None:
    one, two, other = (make_phantom((6, 64, 64), seed=seed) for seed in (3, 3, 4))
    assert one.raw.tobytes() == two.raw.tobytes()
    assert one.labels.tobytes() == two.labels.tobytes()
    assert one.raw.tobytes() != other.raw.tobytes()
    assert one.labels.tobytes() != other.labels.tobytes()


def test_drawing_leaves_the_global_random_state_alone() -> None:
    np.random.seed(0)  # noqa: NPY002 - the legacy state is what must stay untouched
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    make_phantom((1, 32, 32))
    assert np.random.random() == expected  # noqa: NPY002


def test_types_shape_and_resolution(phantom: Phantom) -> None:
    assert phantom.raw.dtype == np.uint8
    assert phantom.labels.dtype == np.uint64
    assert phantom.raw.shape == phantom.labels.shape == SHAPE
    assert phantom.resolution == RESOLUTION


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(32, 75), st.integers(32, 75)),
    resolution=st.tuples(st.floats(5, 60), st.floats(3, 16), st.floats(3, 16)),
    seed=st.integers(0, 2**40),
)
def test_any_shape_and_resolution(
    shape: tuple[int, int, int], resolution: tuple[float, float, float], seed: int
) -> None:
    drawn = make_phantom(shape, resolution, seed)
    assert drawn.raw.shape == drawn.labels.shape == shape
    assert np.array_equal(foreground(drawn.labels), np.arange(1, drawn.labels.max() + 1))
    assert drawn.raw.std() > 5


def test_labels_are_compact_and_without_specks(phantom: Phantom) -> None:
    ids = foreground(phantom.labels)
    assert len(ids) >= 10
    assert np.array_equal(ids, np.arange(1, len(ids) + 1))
    pieces = np.bincount(cc3d.connected_components(phantom.labels, connectivity=6).ravel())[1:]
    assert pieces.min() * 30 * 6 * 6 >= 9e5
    assert profile_areas(phantom.labels).min() * 36 >= 3400


def test_tissue_is_dense(phantom: Phantom) -> None:
    assert 0.12 < (phantom.labels == 0).mean() < 0.35


def test_different_neurons_never_touch(phantom: Phantom) -> None:
    labels = phantom.labels
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[:, :, 1:], labels[:, :, :-1])):
        assert not np.any((a != b) & (a > 0) & (b > 0))


def test_membranes_are_darker_than_what_they_enclose(phantom: Phantom) -> None:
    for raw, labels in zip(phantom.raw, phantom.labels, strict=True):
        assert raw[labels > 0].mean() - raw[labels == 0].mean() > 35


def test_grey_values_do_not_give_the_segmentation_away(phantom: Phantom) -> None:
    """Organelles, noise and oblique membranes: the best single threshold must miss many pixels."""
    inside, between = (np.bincount(phantom.raw[m], minlength=256) for m in (phantom.labels > 0, phantom.labels == 0))
    balanced = (np.cumsum(between) / between.sum() + 1 - np.cumsum(inside) / inside.sum()) / 2
    assert 0.7 < balanced.max() < 0.95


def test_neurites_run_through_the_stack(phantom: Phantom) -> None:
    spans = [int(np.ptp(np.flatnonzero((phantom.labels == i).any((1, 2))))) + 1 for i in foreground(phantom.labels)]
    mass = np.bincount(phantom.labels.ravel().astype(np.int64))[1:]
    assert mass[np.array(spans) >= SHAPE[0] // 2].sum() > 0.6 * mass.sum()


def test_neighbouring_sections_continue_each_other(phantom: Phantom) -> None:
    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([((a == i) & (b == i)).sum() / ((a == i) | (b == i)).sum() for i in foreground(a)]))

    labels = phantom.labels
    near = np.mean([overlap(labels[z], labels[z + 1]) for z in range(0, 20, 4)])
    far = np.mean([overlap(labels[z], labels[z + 4]) for z in range(0, 20, 4)])
    assert 0.55 < near < 0.9
    assert far < near - 0.15


def test_labels_and_raw_slide_together() -> None:
    """A membrane in the labels sits on dark pixels; moved by a few pixels it does not."""
    drawn = make_phantom((8, 96, 96), seed=5)
    for raw, labels in zip(drawn.raw, drawn.labels, strict=True):
        wall = labels == 0
        shifted = [raw[np.roll(wall, step, axis)].mean() for step in (-6, 6) for axis in (0, 1)]
        assert raw[wall].mean() < min(shifted) - 5


def test_sections_slide_against_each_other(phantom: Phantom) -> None:
    """Tissue alone moves by about 0.4 pixels from section to section; the knife adds more than that."""
    walls = (phantom.labels == 0).astype(np.float32)
    moved = [
        phase_cross_correlation(a, b, upsample_factor=4, normalization=None)[0]
        for a, b in itertools.pairwise(walls[:13])
    ]
    assert 0.8 < np.std(moved) < 3


def test_brightness_and_contrast_jump_between_sections(phantom: Phantom) -> None:
    """Tissue alone changes both by about 4 grey values from section to section."""
    pairs = [(raw[labels > 0], raw[labels == 0]) for raw, labels in zip(phantom.raw, phantom.labels, strict=True)]
    assert np.std(np.diff([np.median(inside) for inside, _ in pairs])) > 7
    assert np.std(np.diff([inside.mean() - wall.mean() for inside, wall in pairs])) > 5


def test_sizes_are_in_nm() -> None:
    """The same tissue at half the pixel size: profiles twice as wide."""
    coarse = profile_areas(make_phantom((8, 80, 80), (30, 12, 12), 2).labels)
    fine = profile_areas(make_phantom((8, 160, 160), (30, 6, 6), 2).labels)
    assert np.sqrt(fine).mean() / np.sqrt(coarse).mean() == pytest.approx(2, rel=0.2)
    assert len(fine) == pytest.approx(len(coarse), rel=0.25)


def test_neurons_branch_and_return(phantom: Phantom) -> None:
    def profiles(section: np.ndarray) -> int:
        return int(cc3d.connected_components(section, connectivity=4).max())

    assert any(profiles(section) > len(foreground(section)) for section in phantom.labels)


def test_profile_sizes_are_those_of_cortex(phantom: Phantom) -> None:
    across = 2 * np.sqrt(profile_areas(phantom.labels) * 36 / np.pi)
    assert 120 < np.median(across) < 350
    assert np.percentile(across, 95) > 1.6 * np.median(across)


def test_progress_counts_every_section() -> None:
    seen: list[tuple[int, int]] = []
    make_phantom((3, 32, 32), on_section=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("shape", [(0, 64, 64), (4, 31, 64), (4, 64, 31), (4, 64.5, 64), (64, 64)])
def test_bad_shape_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(DistillError, match=r"shape: found .*expected three whole numbers z, y, x of at least \(1, 32"):
        make_phantom(shape)


@pytest.mark.parametrize("resolution", [(0, 6, 6), (30, -6, 6), (30, 6, float("nan")), (30, 6, 1000), (30, 6)])
def test_bad_resolution_is_refused(resolution: tuple[float, float, float]) -> None:
    with pytest.raises(DistillError, match=r"resolution: found .*expected three numbers of nm"):
        make_phantom((4, 32, 32), resolution)


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_bad_seed_is_refused(seed: int) -> None:
    with pytest.raises(DistillError, match=rf"seed: found {seed}, expected a whole number of 0 or above"):
        make_phantom((4, 32, 32), seed=seed)
