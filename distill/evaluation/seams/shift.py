"""Shift score: disagreement of two runs over the same section that differ only in the position of their windows.

The angle between the two embeddings of a pixel, after rotating one run onto the other (orthogonal Procrustes), is
divided by the angle between unrelated pixels.

Shapes: E embedding channels, N pixels, Y X = rows, columns of one section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.core.errors import DistillError, ShapeError
from distill.evaluation.seams.bootstrap import SHUFFLES, Floats, bootstrap_sums, student_interval

_CHUNK = 1 << 18  # pixels at a time; limits the memory for a large section
_PAIRS = 20_000


@dataclass(frozen=True)
class ShiftScore:
    """Disagreement of two runs with windows at different positions.

    Attributes:
        ratio: mean angle between the runs over the mean angle between unrelated pixels: dimensionless, 0 = the same
            embedding, 1 = no more similar than two random pixels.
        low: lower end of its 95 % interval, by a bootstrap over square blocks.
        high: upper end.
        degrees: mean angle between the runs.
        unrelated: mean angle between unrelated pixels, degrees.
        excess: the mean near a border of either run minus that elsewhere, over `unrelated`; 0 = no effect of borders.
        excess_low: lower end of its 95 % interval.
        excess_high: upper end.
        null: mean excess of random border positions, about 0.
        null_low: 2.5th percentile of those.
        null_high: 97.5th percentile.
        n: number of blocks.
    """

    ratio: float
    low: float
    high: float
    degrees: float
    unrelated: float
    excess: float
    excess_low: float
    excess_high: float
    null: float
    null_low: float
    null_high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields by name, for JSON."""
        return asdict(self)


def shift_score(
    one: npt.NDArray[Any],
    other: npt.NDArray[Any],
    borders_y: Sequence[int],
    borders_x: Sequence[int],
    exclude: npt.NDArray[np.bool_] | None = None,
    reach: int = 4,
    block: int = 64,
    seed: int = 0,
) -> ShiftScore:
    """Compute the mean angle between two runs' embeddings of the same pixels, and its excess at the borders.

    The interval resamples blocks of the section and is Student's t with the bootstrap's standard error. The null moves
    the borders to random positions, at least 2 * reach + 1 pixels from every true one.

    Args:
        one: (E, Y, X) float, the first run; pixels are scaled to unit length internally.
        other: the second run, rotated onto the first.
        borders_y: rows at which a window of either run begins, 0 < b < Y.
        borders_x: columns, the same.
        exclude: (Y, X) pixels to exclude.
        reach: a pixel is near a border b where it lies in b - reach <= y < b + reach.
        block: side of a bootstrap block in pixels.
        seed: of the random pairs, the bootstrap and the shuffles.

    Returns:
        The score; its ratio increases with the part of the embedding that depends on the windows.

    Raises:
        DistillError: shapes do not match, a border lies outside the section, there is no border, values are not finite,
            fewer than two blocks have pixels, or the borders are so dense that no pixel lies away from them.
    """
    size = one.shape[1:]
    if one.ndim != 3 or one.shape != other.shape or {one.dtype.kind, other.dtype.kind} != {"f"} or 0 in one.shape:
        raise ShapeError(
            f"shift_score: found {one.shape} {one.dtype} and {other.shape} {other.dtype}, "
            "expected two embeddings (E, Y, X) of floats at the same pixels"
        )
    if exclude is not None and (exclude.shape != size or exclude.dtype != np.bool_):
        raise ShapeError(f"exclude: found {exclude.shape} {exclude.dtype}, expected {size} bool")
    borders = [np.unique(np.asarray(b, np.int64)) for b in (borders_y, borders_x)]
    if all(b.size == 0 for b in borders) or any(np.any((b < 1) | (b >= n)) for b, n in zip(borders, size, strict=True)):
        raise DistillError(
            f"borders: found {list(borders_y)} and {list(borders_x)}, expected some, inside 1..{size[0] - 1} and "
            f"1..{size[1] - 1}"
        )
    if reach < 1 or block < 1:
        raise DistillError(f"shift_score: found reach {reach} and block {block}, expected 1 or more of both")
    keep = np.ones(size, bool) if exclude is None else ~exclude
    if not keep.any():
        raise DistillError("shift_score: found no pixel that is not excluded")
    rng = np.random.default_rng(seed)
    turn = _procrustes(one, other, keep)
    angle, unrelated = _angles(one, other, turn, keep, rng)
    near = _near(borders[0], size[0], reach)[:, None] | _near(borders[1], size[1], reach)
    sums = np.stack([_blocks(a, block) for a in (angle, keep, angle * near, keep & near)])
    sums = sums[:, sums[1] > 0]
    count = sums.shape[1]
    if count < 2 or unrelated <= 0:
        raise DistillError(
            f"shift_score: found {count} blocks of {block} pixels and a mean angle of {unrelated:g} between unrelated "
            "pixels, expected at least 2 and more than 0"
        )
    draws = bootstrap_sums(sums.T, rng)
    total = sums.sum(axis=1)
    ratio, excess = float(_mean(total) / unrelated), float(_excess(total) / unrelated)
    if np.isnan(excess):
        raise DistillError(f"borders: no pixel lies next to or away from them (reach {reach}); expected wider windows")
    low, high = student_interval(ratio, _mean(draws) / unrelated, count)
    excess_low, excess_high = student_interval(excess, _excess(draws) / unrelated, count)
    null = _null(angle, keep, near, borders, reach, rng) / unrelated
    null_low, null_high = np.percentile(null, (2.5, 97.5))
    degree = 180 / np.pi
    return ShiftScore(
        ratio=ratio,
        low=max(0.0, low),
        high=high,
        degrees=float(_mean(total) * degree),
        unrelated=float(unrelated * degree),
        excess=excess,
        excess_low=excess_low,
        excess_high=excess_high,
        null=float(null.mean()),
        null_low=float(null_low),
        null_high=float(null_high),
        n=count,
    )


def _procrustes(one: npt.NDArray[Any], other: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> Floats:
    """Return (E, E) orthogonal: rotates unit vectors of `other` onto those of `one` with the least squared distance."""
    product = np.zeros((len(one), len(one)))
    for here in _chunks(keep):
        product += _unit(one, here) @ _unit(other, here).T
    left, _, right = np.linalg.svd(product)
    return np.asarray(left @ right, dtype=np.float64)


def _angles(
    one: npt.NDArray[Any],
    other: npt.NDArray[Any],
    turn: Floats,
    keep: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[Floats, float]:
    """Return the angle in radians per pixel (0 where excluded), and the mean angle of random pairs of pixels."""
    angle = np.zeros(keep.size)
    for here in _chunks(keep):
        angle[here] = _between(_unit(one, here), turn @ _unit(other, here))
    kept = np.flatnonzero(keep)
    a, b = rng.choice(kept, (2, _PAIRS))
    return angle.reshape(keep.shape), float(_between(_unit(one, a), turn @ _unit(other, b)).mean())


def _chunks(keep: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    kept = np.flatnonzero(keep)
    return [kept[start : start + _CHUNK] for start in range(0, len(kept), _CHUNK)]


def _unit(embedding: npt.NDArray[Any], here: npt.NDArray[np.int64]) -> Floats:
    pixels = np.stack([channel.reshape(-1)[here] for channel in embedding]).astype(np.float64)
    if not np.isfinite(pixels).all():
        raise DistillError("embedding: found NaN or infinite values in pixels that are not excluded, expected none")
    return np.asarray(pixels / np.maximum(np.linalg.norm(pixels, axis=0), 1e-12))


def _between(a_EN: Floats, b_EN: Floats) -> Floats:
    """Compute angles from half the chord, which is accurate where the arc cosine loses digits."""
    return np.asarray(2 * np.arcsin(np.minimum(np.linalg.norm(a_EN - b_EN, axis=0) / 2, 1)))


def _near(borders: npt.NDArray[np.int64], extent: int, reach: int) -> npt.NDArray[np.bool_]:
    near = np.zeros(extent, bool)
    for border in borders:
        near[max(0, border - reach) : border + reach] = True
    return near


def _blocks(values: npt.NDArray[Any], block: int) -> Floats:
    rows, columns = (np.arange(0, n, block) for n in values.shape)
    return np.asarray(
        np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=0), columns, axis=1).reshape(-1)
    )


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def _excess(sums: Floats) -> Floats:
    """Return the mean near the borders minus the mean elsewhere from sums (angle, pixels, angle near, pixels near)."""
    total, count, close, closest = (sums[..., i] for i in range(4))
    near: Floats = np.full(np.shape(total), np.nan)
    away = near.copy()
    np.divide(close, closest, out=near, where=closest > 0)
    np.divide(total - close, count - closest, out=away, where=count > closest)
    return np.asarray(near - away)


def _null(
    angle: Floats,
    keep: npt.NDArray[np.bool_],
    near: npt.NDArray[np.bool_],
    borders: Sequence[npt.NDArray[np.int64]],
    reach: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the excess, in radians, of the same number of random borders, among the pixels away from the true ones."""
    values = [np.where(near, 0, angle), (keep & ~near).astype(np.float64)]
    free = []
    for border, extent in zip(borders, keep.shape, strict=True):
        position = np.arange(1, extent)
        away = np.abs(position[:, None] - border).min(axis=1, initial=extent) > 2 * reach
        if not away.any():
            raise DistillError(f"borders: no pixel lies more than {2 * reach} from all of them; expected wider windows")
        free.append(position[away])
    rows = [v.sum(axis=1) for v in values]
    columns = [v.sum(axis=0) for v in values]
    found = []
    for _ in range(SHUFFLES):
        y, x = (
            np.flatnonzero(_near(rng.choice(f, b.size), n, reach))
            for f, b, n in zip(free, borders, keep.shape, strict=True)
        )
        close = [r[y].sum() + c[x].sum() - v[np.ix_(y, x)].sum() for r, c, v in zip(rows, columns, values, strict=True)]
        found.append([rows[0].sum(), rows[1].sum(), *close])
    excess = _excess(np.array(found))
    return excess[np.isfinite(excess)]
