"""Geometric augmentation: all transformations of one crop combined into a single resampling of raw and labels.

Random parameters are drawn first (`draw_warp`) and applied later on any device (`warp_volume`). A voxel (z, p) of the
result takes the value, in the flipped and transposed window, at

    centre + A (p - centre + u(z, p)) + s(z)

where A is rotation and scale, u a free-form deformation (cubic B-splines over control points; Rueckert et al., IEEE TMI
18:712, 1999) and s the misalignment of the section. Raw is interpolated bilinearly, labels take the nearest voxel, both
at the same position. If only flips, transposes and shifts were drawn, both are copied exactly.

Legend: D H W = z y x of the result, h w = y x of the window from which it is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distill.config import AugmentConfig
from distill.core.devices import to_device
from distill.core.geometry import Triple

TwoInts = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Bend:
    """Control points of an elastic deformation.

    Attributes:
        values: (Z, 2, Y, X) float32, displacement in y and x, pixels; no voxel moves further than the largest of them.
        spacing: pixels between control points in y and x.
        sections: sections between control points in z.
    """

    values: NDArray[np.float32]
    spacing: int
    sections: int


@dataclass(frozen=True, eq=False)
class Warp:
    """Parameters of one geometric transformation; the defaults change nothing.

    Attributes:
        shape: of the result.
        flips: of the window along z, y, x.
        transpose: of y and x, after the flips; needs H = W.
        matrix: A, (2, 2), from offsets of the result to offsets of the window (y, x).
        bend: u.
        shift: s, (D, 2) whole pixels y, x.
    """

    shape: Triple
    flips: tuple[bool, bool, bool] = (False, False, False)
    transpose: bool = False
    matrix: NDArray[np.float64] | None = None
    bend: Bend | None = None
    shift: NDArray[np.int64] | None = None


def draw_warp(shape: Triple, config: AugmentConfig, rng: np.random.Generator) -> Warp:
    """Draw flips, transposition, rotation, scale, elastic deformation and misalignment.

    Args:
        shape: (D, H, W) of the result; sections that are not square are not transposed.
        config: which transformations, their probabilities and strengths.
        rng: the only source of randomness.
    """
    z, y, x = (bool(config.flips and rng.random() < 0.5) for _ in range(3))
    transpose = config.transposes and rng.random() < 0.5 and shape[1] == shape[2]
    matrix = np.eye(2)
    if rng.random() < config.rotate:
        matrix = rotation(rng.uniform(-config.rotate_degrees, config.rotate_degrees))
    if rng.random() < config.rescale:
        matrix = matrix / (1 + config.rescale_by) ** rng.uniform(-1, 1)
    bend = _draw_bend(shape, config, rng) if rng.random() < config.elastic else None
    shift = _draw_shift(shape[0], config.misalign_pixels, rng) if rng.random() < config.misalign else None
    changed = not np.array_equal(matrix, np.eye(2))
    return Warp(shape, (z, y, x), transpose, matrix if changed else None, bend, shift)


def rotation(degrees: float) -> NDArray[np.float64]:
    """Return the matrix that rotates the result by `degrees`, from y towards x as `numpy.rot90` does."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, s], [-s, c]])


def _draw_bend(shape: Triple, config: AugmentConfig, rng: np.random.Generator) -> Bend | None:
    if not config.elastic_pixels:
        return None
    steps = (config.elastic_sections, config.elastic_spacing, config.elastic_spacing)
    z, y, x = ((n - 1) // step + 4 for n, step in zip(shape, steps, strict=True))
    reach = config.elastic_pixels * rng.uniform(0.3, 1)
    values = rng.uniform(-reach, reach, (z, 2, y, x)).astype(np.float32)
    return Bend(values, config.elastic_spacing, config.elastic_sections)


def _draw_shift(depth: int, pixels: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Draw a shift of all sections from one onwards (translation) or of one (slip); the first section is never
    shifted.
    """
    if not pixels or depth < 2:
        return None
    shift = np.zeros((depth, 2), dtype=np.int64)
    first = int(rng.integers(1, depth))
    last = depth if rng.random() < 0.5 else first + 1
    shift[first:last] = rng.integers(-pixels, pixels + 1, 2)
    return shift


def warp_margin(warp: Warp) -> TwoInts:
    """Return the pixels y, x by which the window must extend beyond the result, so that every position lies inside
    it.
    """
    centre = (np.array(warp.shape[1:]) - 1) / 2
    bend = np.zeros(2) if warp.bend is None else np.abs(warp.bend.values).max(axis=(0, 2, 3))
    matrix = np.eye(2) if warp.matrix is None else warp.matrix
    reach = np.abs(matrix) @ (centre + bend) - centre
    if warp.shift is not None:
        reach = reach + np.abs(warp.shift).max(axis=0)
    y, x = (max(0, math.ceil(n - 1e-9)) for n in reach)
    return (max(y, x), max(y, x)) if warp.transpose else (y, x)


def warp_volume(raw: Tensor, labels: Tensor | None, warp: Warp, origin: TwoInts) -> tuple[Tensor, Tensor | None]:
    """Apply a warp.

    Args:
        raw: (D, h, w) float32.
        labels: (D, h, w) of any integer type, on the same device; None without labels.
        warp: the transformation.
        origin: position y, x of the untransformed result in the window. Positions beyond the window are mirrored at its
            outermost voxels, in raw and labels alike.

    Returns:
        (D, H, W) each, possibly views of the input; labels contain only ids of the window.
    """
    depth, height, width = warp.shape
    y, x = (
        size - n - first if flip else first
        for size, n, first, flip in zip(raw.shape[1:], warp.shape[1:], origin, warp.flips[1:], strict=True)
    )
    axes = [axis for axis in range(3) if warp.flips[axis]]
    volumes = [volume.flip(axes) for volume in (raw, labels) if volume is not None]
    if warp.transpose:
        volumes, y, x = [volume.transpose(1, 2) for volume in volumes], x, y
    size = (volumes[0].shape[1], volumes[0].shape[2])
    shift = np.zeros((depth, 2), dtype=np.int64) if warp.shift is None else warp.shift
    low, high = (np.array([y, x]) + extreme for extreme in (shift.min(axis=0), shift.max(axis=0)))
    inside = bool((low >= 0).all() and (high + np.array([height, width]) <= size).all())
    if warp.matrix is None and warp.bend is None and inside:
        moved = [_cut(volume, (y, x), warp) for volume in volumes]
    else:
        places = _places(warp, (y, x), raw.device)
        if any(margin > room for margin, room in zip(warp_margin(warp), _room((y, x), warp, size), strict=True)):
            places = (_mirror(places[0], size[0]), _mirror(places[1], size[1]))
        moved = [_bilinear(volumes[0], *places), *(_nearest(volume, *places) for volume in volumes[1:])]
    return moved[0], None if labels is None else moved[1]


def _cut(volume: Tensor, origin: TwoInts, warp: Warp) -> Tensor:
    (y, x), (_, height, width) = origin, warp.shape
    if warp.shift is None:
        return volume[:, y : y + height, x : x + width]
    rows = zip(volume, warp.shift.tolist(), strict=True)
    return torch.stack([one[y + dy : y + dy + height, x + dx : x + dx + width] for one, (dy, dx) in rows])


def _room(origin: TwoInts, warp: Warp, size: TwoInts) -> TwoInts:
    """Return the smaller margin on the two sides of the result, y and x."""
    y, x = (min(o, n - length - o) for o, length, n in zip(origin, warp.shape[1:], size, strict=True))
    return y, x


def _places(warp: Warp, origin: TwoInts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute source positions y and x in the oriented window, (D, H, W) or, if equal for all sections, (1, H, W)."""
    _, height, width = warp.shape
    middle = ((height - 1) / 2, (width - 1) / 2)
    y = (torch.arange(height, device=device) - middle[0]).view(1, -1, 1)
    x = (torch.arange(width, device=device) - middle[1]).view(1, 1, -1)
    if warp.bend is not None:
        bent = _bent(warp.bend, warp.shape, device)
        y, x = bent[:, 0] + y, bent[:, 1] + x
    if warp.matrix is not None:
        (yy, yx), (xy, xx) = warp.matrix.tolist()
        y, x = yy * y + yx * x, xy * y + xx * x
    if warp.shift is not None:
        moved = to_device(warp.shift, device).float()
        y, x = y + moved[:, 0].view(-1, 1, 1), x + moved[:, 1].view(-1, 1, 1)
    n = max(len(y), len(x))
    y, x = y + (origin[0] + middle[0]), x + (origin[1] + middle[1])
    return y.expand(n, height, width), x.expand(n, height, width)


def _bent(bend: Bend, shape: Triple, device: torch.device) -> Tensor:
    """Compute displacements (D, 2, H, W) in pixels."""
    z, y, x = (
        to_device(splines(n, step), device)
        for n, step in zip(shape, (bend.sections, bend.spacing, bend.spacing), strict=True)
    )
    values = to_device(bend.values, device)
    deep = (z @ values.flatten(1)).view(-1, *values.shape[1:])
    return y @ deep @ x.T


def splines(length: int, step: int) -> NDArray[np.float32]:
    """Return uniform cubic B-splines (length, control points): non-negative, rows sum to 1."""
    at = np.arange(length)
    k, t = at // step, at % step / step
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((length, (length - 1) // step + 4), dtype=np.float32)
    np.put_along_axis(basis, k[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    return basis


def _mirror(place: Tensor, size: int) -> Tensor:
    """Mirror positions beyond 0 .. size - 1 at the outermost voxels, repeatedly if necessary."""
    if size == 1:
        return torch.zeros_like(place)
    turn = size - 1
    return turn - (place.remainder(2 * turn) - turn).abs()


def _bilinear(volume: Tensor, y: Tensor, x: Tensor) -> Tensor:
    sections, height, width = volume.shape
    grid = torch.empty((*y.shape, 2), device=volume.device)
    for channel, place, size in ((0, x, width), (1, y, height)):
        torch.mul(place, 2 / max(1, size - 1), out=grid[..., channel])
    grid -= 1
    # With one grid for all sections, they form the channels of one image, and the weights are computed once.
    images = volume[None] if len(y) == 1 else volume[:, None]
    sampled = functional.grid_sample(images, grid, padding_mode="border", align_corners=True)
    return sampled.view(sections, *y.shape[1:])


def _nearest(volume: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample the nearest voxel by index, so that ids of 64 bits stay exact."""
    sections, height, width = volume.shape
    row, column = ((place + 0.5).int().clamp_(0, size - 1) for place, size in ((y, height), (x, width)))
    flat = (row * width + column).long().flatten(1)
    volume = volume.reshape(sections, -1)
    found = volume.index_select(1, flat[0]) if len(flat) == 1 else volume.gather(1, flat)
    return found.view(sections, *y.shape[1:])
