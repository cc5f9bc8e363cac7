"""Local shape descriptors against a direct implementation by sums over all voxels of an object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.core.known import UNKNOWN
from distill.training.objective.descriptors import descriptor_loss, local_shape_descriptors

RESOLUTION = (30.0, 6.0, 8.0)
SIGMA = 20.0


def direct(labels: NDArray[np.int64], sigma: float, resolution: tuple[float, float, float]) -> NDArray[np.float64]:
    """Sums over the voxels of the object, each weighted by a Gaussian of its distance, truncated at three sigmas."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"), -1).reshape(-1, 3)
    reach = [int(3 * sigma / size + 0.5) for size in resolution]
    sums = []
    for size, radius in zip(resolution, reach, strict=True):
        steps = np.arange(-radius, radius + 1) * size
        sums.append(np.exp(-(steps**2) / (2 * sigma**2)).sum())
    found = np.zeros((10, *labels.shape))
    for place in places:
        label = labels[tuple(place)]
        if label <= 0:
            continue
        mine = places[labels[tuple(places.T)] == label]
        near = mine[(np.abs(mine - place) <= reach).all(1)]
        away = (near - place) * np.asarray(resolution)
        weight = np.exp(-(away**2).sum(1) / (2 * sigma**2)) / np.prod(sums)
        share = weight / weight.sum()
        centre = share @ away
        covariance = (share[:, None] * (away - centre)).T @ (away - centre)
        variance = np.maximum(np.diag(covariance), 1e-3)
        correlations = [covariance[a, b] / np.sqrt(variance[a] * variance[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        values = [*(centre / sigma * 0.5 + 0.5), *(variance / sigma**2), *(np.array(correlations) * 0.5 + 0.5)]
        found[(slice(None), *place)] = np.clip([*values, weight.sum()], 0, 1)
    return found


@pytest.mark.parametrize("shape", [(3, 9, 8), (1, 12, 5), (4, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("lowest", [0, 1])
def test_descriptors_equal_direct_sums(shape: tuple[int, int, int], lowest: int) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(lowest, 4, [-(-n // 2) for n in shape])
    labels = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]].astype(np.int64)
    labels[0, 0, 0] = UNKNOWN if lowest == 0 else labels[0, 0, 0]
    found = local_shape_descriptors(labels, sigma=SIGMA, resolution=RESOLUTION)
    np.testing.assert_allclose(found, direct(labels, SIGMA, RESOLUTION), rtol=1e-4, atol=2e-5)
    assert not found[:, labels <= 0].any()


def test_a_large_object_has_the_descriptors_of_the_gaussian_in_its_middle() -> None:
    labels = np.full((41, 41, 41), 5, np.int64)
    found = local_shape_descriptors(labels, sigma=5.0, resolution=(1.0, 1.0, 1.0))[:, 20, 20, 20]
    np.testing.assert_allclose(found[:3], 0.5, atol=1e-6)
    np.testing.assert_allclose(found[3:6], 1, rtol=0.04)  # less the tails beyond three sigmas
    np.testing.assert_allclose(found[6:9], 0.5, atol=1e-6)
    np.testing.assert_allclose(found[9], 1, rtol=1e-6)


def test_large_ids_and_relabelling_change_nothing() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (2, 6, 6)).repeat(2, 2).astype(np.int64)
    moved = np.where(labels > 0, labels + 2**62, 0)
    one, two = (local_shape_descriptors(each, sigma=SIGMA, resolution=RESOLUTION) for each in (labels, moved))
    np.testing.assert_array_equal(one, two)


def test_the_loss_counts_object_voxels_only() -> None:
    labels = torch.zeros(2, 2, 4, 4, dtype=torch.int64)
    labels[:, :, 1:3] = 7
    wanted = torch.from_numpy(
        np.stack([local_shape_descriptors(block, sigma=SIGMA, resolution=RESOLUTION) for block in labels.numpy()])
    )
    assert float(descriptor_loss(wanted, labels, sigma=SIGMA, resolution=RESOLUTION)) == 0
    off = wanted + 0.1
    off[:, :, :, 0] += 5  # outside objects
    assert float(descriptor_loss(off, labels, sigma=SIGMA, resolution=RESOLUTION)) == pytest.approx(0.01, rel=1e-4)
    nothing = torch.zeros_like(labels)
    assert float(descriptor_loss(off, nothing, sigma=SIGMA, resolution=RESOLUTION)) == 0
