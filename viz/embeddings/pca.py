"""Embeddings as colours: the first three principal components as red, green and blue.

Shapes: E embedding channels, N pixels, Y X = rows, columns of one section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError, ShapeError

Floats = npt.NDArray[np.float64]
_CHUNK = 1 << 18  # pixels projected at a time; limits the memory for a large section


@dataclass(frozen=True)
class Basis:
    """Three principal directions of an embedding; with fewer than three, the missing ones are zero.

    Attributes:
        mean: (E,) mean of the sampled pixels.
        components: (3, E) orthonormal directions, the loading of largest magnitude positive in each.
        explained: (3,) fraction of the variance, 0..1, descending.
        deviation: (3,) standard deviation of the sample along each direction, in embedding units.
        normalised: whether pixels are scaled to unit length over the channels before they are projected.
    """

    mean: Floats
    components: Floats
    explained: Floats
    deviation: Floats
    normalised: bool

    @property
    def note(self) -> str:
        """Return the explained variance as a caption, such as `PC1-3: 41 + 22 + 12 % of variance`."""
        shares = " + ".join(f"{100 * share:.0f}" for share in self.explained if share > 0)
        count = int(np.count_nonzero(self.explained))
        return f"PC1{f'–{count}' if count > 1 else ''}: {shares} % of variance"


def fit_basis(
    embedding: npt.NDArray[Any] | Sequence[npt.NDArray[Any]],
    n_sample: int = 20_000,
    seed: int = 0,
    normalise: bool = False,
) -> Basis:
    """Fit principal directions to a random sample of pixels.

    Args:
        embedding: (E, N) or (E, Y, X) float, or several of them, which then share one basis with equal weight.
        n_sample: total number of pixels to draw, without replacement.
        seed: of the draw.
        normalise: scale each pixel to unit length first; `scores` and `to_rgb` then do the same.

    Returns:
        The basis; the same for the same input and seed.

    Raises:
        DistillError: there are no pixels, channel counts differ, a value is not finite, or all pixels are equal.
    """
    from sklearn.decomposition import PCA

    parts = [_flat(part) for part in ([embedding] if isinstance(embedding, np.ndarray) else embedding)]
    if not parts or len({part.shape[0] for part in parts}) != 1 or n_sample < 2:
        raise ShapeError(
            f"fit_basis: found channel counts {[p.shape[0] for p in parts]} and n_sample {n_sample}, "
            "expected one or more embeddings of equal channel count and at least 2 samples"
        )
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(p.shape[1])[: max(1, n_sample // len(parts))] for p in parts]
    sample = np.concatenate([_pixels(p[:, pick], normalise) for p, pick in zip(parts, picks, strict=True)], axis=1).T
    mean = sample.mean(axis=0)
    if len(sample) < 2 or np.abs(sample - mean).max() <= 1e-12 * max(1.0, float(np.abs(mean).max())):
        raise DistillError(
            f"embedding: all of {len(sample)} sampled pixels are the same, so there is no component to show"
        )
    count = min(3, sample.shape[1])
    fit = PCA(n_components=count, svd_solver="covariance_eigh").fit(sample)
    components = np.zeros((3, sample.shape[1]))
    components[:count] = fit.components_ * _signs(fit.components_)[:, None]
    explained, deviation = np.zeros(3), np.zeros(3)
    explained[:count] = fit.explained_variance_ratio_
    deviation[:count] = np.sqrt(fit.explained_variance_)
    return Basis(mean, components, explained, deviation, normalise)


def scores(embedding: npt.NDArray[Any], basis: Basis, rotation: Floats | None = None) -> npt.NDArray[np.float32]:
    """Compute standardised component scores, rotated if a rotation is given.

    Args:
        embedding: (E, N) or (E, Y, X) float.
        basis: from `fit_basis`.
        rotation: (3, 3) orthogonal, from `align_basis`.

    Returns:
        (3, N) or (3, Y, X): about mean 0 and deviation 1 on the data of the fit; 0 along a missing direction.

    Raises:
        DistillError: the channels do not match the basis, the rotation is not (3, 3), or a value is not finite.
    """
    flat = _flat(embedding)
    if flat.shape[0] != basis.mean.size or (rotation is not None and rotation.shape != (3, 3)):
        raise ShapeError(
            f"scores: found {flat.shape[0]} channels and rotation {None if rotation is None else rotation.shape}, "
            f"expected {basis.mean.size} channels and a rotation of (3, 3)"
        )
    # A direction with almost no variance would only show amplified rounding errors, so it is set to zero.
    seen = basis.deviation > 1e-6 * basis.deviation.max()
    project = basis.components * np.where(seen, 1 / np.where(seen, basis.deviation, 1), 0)[:, None]
    if rotation is not None:
        project = rotation @ project
    out = np.empty((3, flat.shape[1]), np.float32)
    for start in range(0, flat.shape[1], _CHUNK):
        part = _pixels(flat[:, start : start + _CHUNK], basis.normalised)
        out[:, start : start + _CHUNK] = project @ (part - basis.mean[:, None])
    return out.reshape(3, *embedding.shape[1:])


def align_basis(basis: Basis, values: npt.NDArray[Any], reference: npt.NDArray[Any]) -> Floats:
    """Find the rotation (with reflections) that makes the colours of one panel comparable with another's: orthogonal
    Procrustes.

    Args:
        basis: basis of the embedding to rotate.
        values: (E, N) or (E, Y, X) that embedding.
        reference: (3, N) or (3, Y, X) `scores` of the reference embedding at the same pixels.

    Returns:
        (3, 3) orthogonal R: among all of them, R @ scores(values, basis) correlates best with the reference, both
        standardised. Pass it to `to_rgb`.

    Raises:
        DistillError: the pixels do not correspond, or as `scores`.
    """
    if reference.shape[0] != 3 or reference.shape[1:] != values.shape[1:]:
        raise ShapeError(
            f"align_basis: found reference {reference.shape} for values {values.shape}, "
            "expected (3, ...) at the same pixels"
        )
    own = _standardise(_flat(scores(values, basis)))
    target = _standardise(_flat(reference))
    left, _, right = np.linalg.svd(target @ own.T)
    return np.asarray(left @ right, dtype=np.float64)


def colour_limits(score: npt.NDArray[Any], percentiles: tuple[float, float] = (1, 99)) -> Floats:
    """Return the range of each component that is mapped to 0 to 255.

    Args:
        score: (3, N) or (3, Y, X) from `scores`.
        percentiles: of each component's scores; what lies beyond is clipped.

    Returns:
        (2, 3): lower and upper ends. Kept over several sections, they keep colours comparable.

    Raises:
        DistillError: not three components, or percentiles not 0 <= low < high <= 100.
    """
    low, high = percentiles
    if len(score) != 3 or score.size == 0 or not 0 <= low < high <= 100:
        raise ShapeError(
            f"colour_limits: found scores {score.shape} and percentiles {percentiles}, "
            "expected (3, ...), not empty, and 0 <= low < high <= 100"
        )
    return np.asarray(np.percentile(score.reshape(3, -1), percentiles, axis=1), dtype=np.float64)


def to_rgb(
    embedding: npt.NDArray[Any], basis: Basis, rotation: Floats | None = None, limits: Floats | None = None
) -> npt.NDArray[np.uint8]:
    """Convert one section of an embedding to a colour image.

    Args:
        embedding: (E, Y, X) float.
        basis: from `fit_basis`.
        rotation: (3, 3) from `align_basis`, or none.
        limits: (2, 3) from `colour_limits`; none = this image's own.

    Returns:
        (Y, X, 3) uint8; a constant component is 128 everywhere.

    Raises:
        DistillError: embedding not (E, Y, X), limits not (2, 3), or as `scores`.
    """
    if embedding.ndim != 3 or (limits is not None and limits.shape != (2, 3)):
        raise ShapeError(
            f"to_rgb: found embedding {embedding.shape} and limits {None if limits is None else limits.shape}, "
            "expected (E, Y, X) and (2, 3)"
        )
    score = scores(embedding, basis, rotation)
    ends = colour_limits(score) if limits is None else limits
    image = np.full((*embedding.shape[1:], 3), 128, np.uint8)
    for channel, (bottom, top) in enumerate(ends.T):
        if top - bottom > 1e-6:
            image[..., channel] = np.rint(np.clip((score[channel] - bottom) / (top - bottom), 0, 1) * 255)
    return image


@dataclass(frozen=True)
class Palette:
    """Fixed colours of one network's embedding: the same vector has the same colour in every section.

    Attributes:
        basis: its principal components.
        rotation: (3, 3) that makes its colours comparable with another palette's.
        limits: (2, 3) range of each component.
    """

    basis: Basis
    rotation: Floats
    limits: Floats

    def rgb(self, embedding: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Convert (E, Y, X) float to (Y, X, 3) uint8.

        Raises:
            DistillError: as `to_rgb`.
        """
        return to_rgb(embedding, self.basis, self.rotation, self.limits)


def fit_palettes(samples: Sequence[npt.NDArray[Any]]) -> list[Palette]:
    """Fit comparable colours for several networks.

    Args:
        samples: (E, N) float of each network at the same N pixels; E may differ.

    Returns:
        One palette each; the first with its own components, the others rotated onto it (`align_basis`).

    Raises:
        DistillError: as `fit_basis` and `align_basis`.
    """
    bases = [fit_basis(sample) for sample in samples]
    reference = scores(samples[0], bases[0])
    rotations = [np.eye(3), *(align_basis(b, s, reference) for b, s in zip(bases[1:], samples[1:], strict=True))]
    return [
        Palette(basis, rotation, colour_limits(scores(sample, basis, rotation)))
        for basis, rotation, sample in zip(bases, rotations, samples, strict=True)
    ]


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind != "f":
        raise ShapeError(
            f"embedding: found {array.shape} {array.dtype}, expected floats (E, N) or (E, Y, X), not empty"
        )
    return array.reshape(array.shape[0], -1)


def _pixels(part_EN: npt.NDArray[Any], normalise: bool) -> Floats:
    part = part_EN.astype(np.float64)
    if not np.isfinite(part).all():
        bad = int(np.count_nonzero(~np.isfinite(part).all(axis=0)))
        raise DistillError(
            f"embedding: found {bad} of {part.shape[1]} pixels with NaN or infinite values, expected none"
        )
    return part / np.maximum(np.linalg.norm(part, axis=0), 1e-12) if normalise else part


def _signs(components: Floats) -> Floats:
    largest = np.argmax(np.abs(components), axis=1)
    return np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)


def _standardise(score_3N: npt.NDArray[Any]) -> Floats:
    centred = score_3N.astype(np.float64) - score_3N.mean(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-12))
