"""Clusters of embeddings: separated ones are found, every voxel gets the nearest centre."""

from __future__ import annotations

import numpy as np
import pytest

from distill.core.errors import ShapeError
from distill.segmentation.clustering import cluster_embedding


def separated(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embedding around one of five means 3 apart and more, within 0.5 of it, and the number of the mean."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (3, 20, 22))
    means = 3 * np.eye(5, 6)
    noise = rng.normal(size=(*truth.shape, 6))
    noise *= 0.45 / np.linalg.norm(noise, axis=-1, keepdims=True)
    return np.moveaxis(means[truth] + noise, -1, 0).astype(np.float32), truth


@pytest.mark.parametrize("samples", [100, 2000])
def test_separated_clusters_are_found(samples: int) -> None:
    embedding, truth = separated()
    found = cluster_embedding(embedding, bandwidth=1.5, samples=samples)
    assert found.shape == truth.shape
    pairs = np.unique(np.stack([found.ravel(), truth.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(truth)) == found.max()
    assert found.min() == 1


def test_the_result_depends_on_the_seed_only() -> None:
    embedding, _ = separated(1)
    one, two = (cluster_embedding(embedding, bandwidth=1.0, samples=50, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    strided = np.asfortranarray(embedding)
    np.testing.assert_array_equal(cluster_embedding(strided, bandwidth=1.0, samples=50, seed=3), one)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 0, 4, 4), (3, 1, 5, 4)])
def test_small_blocks(shape: tuple[int, ...]) -> None:
    found = cluster_embedding(np.zeros(shape, np.float32), bandwidth=1.0)
    assert found.shape == shape[1:]
    assert (found == 1).all()


def test_bad_embeddings_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected channels, z, y, x"):
        cluster_embedding(np.zeros((2, 3, 4), np.float32), bandwidth=1.0)
    with pytest.raises(ShapeError, match="not finite"):
        cluster_embedding(np.full((2, 1, 3, 4), np.nan, np.float32), bandwidth=1.0)
