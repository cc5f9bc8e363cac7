"""The basis of an embedding, its alignment with another, and the colour image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from distill.core.errors import DistillError
from viz.embeddings.pca import Basis, align_basis, colour_limits, fit_basis, fit_palettes, scores, to_rgb

SCALES = np.array([5.0, 3.0, 2.0, 0.3, 0.2, 0.1])


def field(seed: int = 0, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    """Smooth (6, Y, X) field whose channels have distinct spreads."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([gaussian_filter(rng.normal(size=shape), 3) for _ in SCALES])
    mixing = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    flat = (smooth / smooth.std(axis=(1, 2), keepdims=True) * SCALES[:, None, None]).reshape(6, -1)
    return (mixing @ flat).reshape(6, *shape).astype(np.float32)


def test_basis_equals_the_eigenvectors_of_the_covariance() -> None:
    pixels = field().reshape(6, -1).astype(float)
    basis = fit_basis(pixels, n_sample=10**6)
    values, vectors = np.linalg.eigh(np.cov(pixels))
    assert np.allclose(basis.mean, pixels.mean(axis=1), atol=1e-6)
    assert np.allclose(basis.explained, values[::-1][:3] / values.sum(), rtol=1e-6)
    assert np.allclose(basis.deviation, np.sqrt(values[::-1][:3]), rtol=1e-6)
    assert np.allclose(np.abs((basis.components * vectors[:, ::-1][:, :3].T).sum(axis=1)), 1, atol=1e-6)


def test_largest_loading_is_positive() -> None:
    for values in (field(), -field()):
        components = fit_basis(values).components
        assert (components[range(3), np.abs(components).argmax(axis=1)] > 0).all()


def test_same_seed_same_basis_and_sample_is_enough() -> None:
    one, two = (fit_basis(field(), n_sample=900, seed=4) for _ in range(2))
    assert np.array_equal(one.components, two.components)
    other = fit_basis(field(), n_sample=900, seed=5)
    assert not np.array_equal(one.components, other.components)
    assert np.allclose(np.abs((one.components * other.components).sum(axis=1)), 1, atol=0.05)


def test_scores_are_standardised_projections() -> None:
    values = field()
    basis = fit_basis(values, n_sample=10**6)
    score = scores(values, basis)
    assert score.shape == (3, 40, 48)
    oracle = np.einsum("ke,eyx->kyx", basis.components, values - basis.mean[:, None, None])
    assert np.allclose(score, oracle / basis.deviation[:, None, None], atol=1e-4)
    assert np.allclose(score.mean(axis=(1, 2)), 0, atol=1e-4)
    assert np.allclose(score.std(axis=(1, 2)), 1, atol=1e-2)


def test_channel_permutation_and_rotation_give_the_same_colours() -> None:
    values = field()
    basis = fit_basis(values)
    expected = to_rgb(values, basis).astype(int)
    turns = [np.eye(6)[[3, 0, 5, 1, 4, 2]], np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0], -np.eye(6)]
    for turn in turns:
        turned = np.einsum("fe,eyx->fyx", turn, values).astype(np.float32)
        other = fit_basis(turned)
        rotation = align_basis(other, turned, scores(values, basis))
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.abs(to_rgb(turned, other, rotation).astype(int) - expected).max() <= 1


def test_alignment_is_the_best_of_many_rotations() -> None:
    a, b = field(0), field(0) + 0.8 * field(1)
    reference, basis = scores(a, fit_basis(a)), fit_basis(b)
    target = reference.reshape(3, -1)
    target = (target - target.mean(axis=1, keepdims=True)) / target.std(axis=1, keepdims=True)

    def agreement(rotation: np.ndarray) -> float:
        return float((scores(b, basis, rotation).reshape(3, -1) * target).mean())

    best = agreement(align_basis(basis, b, reference))
    rng = np.random.default_rng(2)
    assert all(agreement(np.linalg.qr(rng.normal(size=(3, 3)))[0]) <= best + 1e-3 for _ in range(200))
    assert agreement(np.eye(3)) <= best + 1e-3


def test_normalised_basis_ignores_the_length_of_a_pixel() -> None:
    values = field()
    length = np.random.default_rng(3).uniform(0.5, 2, values.shape[1:]).astype(np.float32)
    basis = fit_basis(values, normalise=True)
    assert np.abs(to_rgb(values * length, basis).astype(int) - to_rgb(values, basis)).max() <= 1
    unit = values / np.linalg.norm(values, axis=0)
    assert np.allclose(fit_basis(unit).components, basis.components, atol=1e-5)


def test_several_embeddings_share_a_basis() -> None:
    a, b = field(0), field(1)
    shared = fit_basis([a, b], n_sample=10**6)
    joined = fit_basis(np.concatenate([a.reshape(6, -1), b.reshape(6, -1)], axis=1), n_sample=10**6)
    assert np.allclose(shared.components, joined.components, atol=1e-5)


def test_percentiles_set_the_ends_of_the_colour_range() -> None:
    values = field()
    basis = fit_basis(values)
    image = to_rgb(values, basis, limits=colour_limits(scores(values, basis), (10, 90)))
    assert image.shape == (40, 48, 3)
    assert image.dtype == np.uint8
    for channel in range(3):
        assert np.mean(image[..., channel] == 0) == pytest.approx(0.1, abs=0.02)
        assert np.mean(image[..., channel] == 255) == pytest.approx(0.1, abs=0.02)


def test_fixed_limits_give_a_vector_one_colour_in_every_section() -> None:
    values = field()
    basis = fit_basis(values)
    limits = colour_limits(scores(values, basis))
    whole = to_rgb(values, basis, limits=limits)
    assert np.array_equal(whole, to_rgb(values, basis))
    assert np.array_equal(to_rgb(values[:, :7, :9], basis, limits=limits), whole[:7, :9])
    assert not np.array_equal(to_rgb(values[:, :7, :9], basis), whole[:7, :9])


def test_palettes_of_turned_embeddings_agree() -> None:
    values = field()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    turned = np.einsum("fe,eyx->fyx", turn, values).astype(np.float32)
    one, two = fit_palettes([values.reshape(6, -1), turned.reshape(6, -1)])
    assert np.array_equal(one.rotation, np.eye(3))
    assert np.array_equal(one.rgb(values), to_rgb(values, one.basis))
    assert np.abs(one.rgb(values).astype(int) - two.rgb(turned)).max() <= 1


@pytest.mark.parametrize("channels", [1, 2])
def test_missing_components_are_mid_grey(channels: int) -> None:
    values = field()[:channels]
    basis = fit_basis(values)
    assert basis.components.shape == (3, channels)
    assert (basis.explained[channels:] == 0).all()
    image = to_rgb(values, basis)
    assert (image[..., channels:] == 128).all()
    assert np.ptp(image[..., 0]) == 255


def test_flat_section_of_a_varied_basis_is_grey() -> None:
    assert (to_rgb(np.ones((6, 5, 5)), fit_basis(field())) == 128).all()


def test_note_names_the_variance() -> None:
    basis = Basis(np.zeros(4), np.eye(3, 4), np.array([0.412, 0.2, 0.05]), np.ones(3), False)
    assert basis.note == "PC1–3: 41 + 20 + 5 % of variance"
    assert fit_basis(field()[:1]).note == "PC1: 100 % of variance"


def test_bad_input_is_refused() -> None:
    values = field()
    basis = fit_basis(values)
    holed = values.copy()
    holed[2, 0, 0] = np.nan
    with pytest.raises(DistillError, match="1 of 1920 pixels"):
        fit_basis(holed)
    with pytest.raises(DistillError, match="NaN"):
        to_rgb(holed, basis)
    with pytest.raises(DistillError, match="the same"):
        fit_basis(np.ones((6, 100)))
    with pytest.raises(DistillError, match="channel"):
        fit_basis([values, values[:4]])
    with pytest.raises(DistillError, match="channel"):
        fit_basis([])
    with pytest.raises(DistillError, match="floats"):
        fit_basis(np.zeros((3, 10), np.int64))
    with pytest.raises(DistillError, match="expected 6 channels"):
        scores(values[:4], basis)
    with pytest.raises(DistillError, match="percentiles"):
        colour_limits(scores(values, basis), (99, 1))
    with pytest.raises(DistillError, match="limits"):
        to_rgb(values, basis, limits=np.zeros((3, 2)))
    with pytest.raises(DistillError, match="same pixels"):
        align_basis(basis, values, np.zeros((3, 10)))
