"""Detect bad sections from their content and from the few sections before them.

The verdict depends only on the section and the `PAST` positions before it, so a resumed stream, or a process that
starts in the middle, reaches the same verdicts. Thumbnails of at most 256 x 256 pixels are compared.

Positions: phase correlation, Kuglin and Hines, The Phase Correlation Image Alignment Method, 1975.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.normalisation import Correction

PAST = 8  # positions that a section is compared with
DEFECT_KINDS = ("missing", "corrupt", "size", "blank", "saturated", "contrast", "position")
POLICIES = ("fail", "skip", "bridge")

_SIDE = 256
_FEWEST = 3  # sections that a verdict by comparison needs
_BLANK = 0.995  # fraction of pixels with the most frequent grey value
_SATURATED = 0.5  # fraction of pixels at an end of the range, with an excess over recent sections of half of it
_MEAN_JUMP, _SPREAD_JUMP = 0.12, 1.6  # of the range; ratio
_STRONG = 5.0  # multiples of the usual scatter of recent sections
_SHIFT = 0.06  # relative to the shorter side
_CLEAR = 8.0  # height of a correlation peak relative to its scatter
_LOST = 0.25  # relative to the usual height of recent peaks; small sections have low peaks and are exempt


@dataclass(frozen=True)
class Flaw:
    """Kind of defect of a section, and its description."""

    kind: str
    why: str


@dataclass(frozen=True)
class Look:
    """Thumbnail and intensity statistics of a section."""

    mean: float  # grey values of the pixels within the range, 0 to 1
    spread: float
    extreme: float  # fraction of pixels at an end of the range
    size: tuple[int, int]  # of the thumbnail
    spectrum: NDArray[np.complex64]  # of the thumbnail
    scale: int  # pixels of the section per pixel of the thumbnail


class Inspector:
    """Inspects sections in order."""

    def __init__(self) -> None:
        self._past: deque[Look | None] = deque(maxlen=PAST)
        self._moves: deque[Move | None] = deque(maxlen=PAST - 1)  # relative to the previous readable one

    def look(self, image: NDArray[Any] | None, known: Flaw | None, correction: Correction | None = None) -> Flaw | None:
        """Inspect the next section.

        Args:
            image: (H, W), None if there is none.
            known: a defect already found while reading.
            correction: of its grey values; brightness and contrast are judged as the network sees them. None: as
                recorded.

        Returns:
            The defect; None for a good section.
        """
        if known is not None or image is None:
            self._remember(None, None)
            return known
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            self._remember(None, None)
            return Flaw("corrupt", "holds values that are no numbers")
        seen = look_at(image, correction)
        flaw = _blank(image, seen)
        if flaw is not None:
            self._remember(None, None)
            return flaw
        past = [one for one in self._past if one is not None]
        flaw = _saturated(seen, past)
        # Each section alone decides whether it counts; earlier verdicts would make the past unbounded.
        alike = [one for one in past if abs(one.extreme - seen.extreme) < _SATURATED / 2] or past
        near = [displacement(one, seen) for one in alike[-2:] if one.size == seen.size]
        follows = bool(alike) and alike[-1] is self._past[-1]
        usual = [move for move in self._moves if move is not None]
        self._remember(seen, near[-1] if near and flaw is None else None)
        return flaw or _contrast(seen, alike) or (_position(seen, near, usual) if follows else None)

    def _remember(self, look: Look | None, move: Move | None) -> None:
        self._past.append(look)
        self._moves.append(move)


def look_at(image: NDArray[Any], correction: Correction | None = None) -> Look:
    """Compute thumbnail and intensity statistics of a section (H, W), after the correction if one is given."""
    scale = max(1, -(-max(image.shape) // _SIDE))
    down, across = (min(scale, n) for n in image.shape)
    height, width = image.shape[0] // down, image.shape[1] // across
    low, high = _range(image) if correction is None else (float(image.min()), float(image.max()))
    cut = image[: height * down, : width * across].reshape(height, down, width, across).mean((1, 3), dtype=np.float32)
    small = (
        ((cut - low) / (high - low)).astype(np.float32) if correction is None else _corrected(cut, correction, scale)
    )
    coarse = image[::scale, ::scale]
    ends = (coarse <= low) | (coarse >= high)
    inside = small[(small > 0.004) & (small < 0.996)]
    inside = inside if inside.size else small.ravel()
    mean = float(inside.mean())
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    spectrum = np.fft.rfft2((small - mean) * window).astype(np.complex64)
    spectrum /= np.maximum(np.abs(spectrum), 1e-12)
    return Look(mean, float(inside.std()), float(ends.mean()), (height, width), spectrum, scale)


def _unit(cut: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    return ((cut - low) / (high - low)).astype(np.float32)


def _corrected(cut: NDArray[np.float32], correction: Correction, scale: int) -> NDArray[np.float32]:
    """Normalise a thumbnail of recorded grey values; one of its pixels covers `scale` pixels of the section."""
    return replace(correction, tile=correction.tile / scale).apply(cut)


def _range(image: NDArray[Any]) -> tuple[float, float]:
    if image.dtype.kind in "iu":
        return 0.0, float(np.iinfo(image.dtype).max)
    return 0.0, 1.0


def _blank(image: NDArray[Any], seen: Look) -> Flaw | None:
    flat = image[:: seen.scale, :: seen.scale].ravel()
    value, count = np.unique(flat, return_counts=True)
    most = int(count.argmax())
    if count[most] >= _BLANK * flat.size:
        return Flaw("blank", f"{100 * count[most] / flat.size:.1f} % of its pixels are {value[most]:g}")
    return None


def _saturated(seen: Look, past: Sequence[Look]) -> Flaw | None:
    if len(past) < _FEWEST:
        return None
    usual = float(np.median([one.extreme for one in past]))
    if seen.extreme >= _SATURATED and seen.extreme - usual >= _SATURATED / 2:
        return Flaw(
            "saturated",
            f"{100 * seen.extreme:.0f} % of its pixels are black or white, {100 * usual:.0f} % in those before it",
        )
    return None


def _contrast(seen: Look, past: Sequence[Look]) -> Flaw | None:
    """Detect a brightness or contrast that differs from recent sections and from the previous one."""
    if len(past) < _FEWEST:
        return None
    for name, value, usual, last, least in (
        ("brightness", seen.mean, [one.mean for one in past], past[-1].mean, _MEAN_JUMP),
        (
            "contrast",
            float(np.log(max(seen.spread, 1e-4))),
            [float(np.log(max(one.spread, 1e-4))) for one in past],
            float(np.log(max(past[-1].spread, 1e-4))),
            float(np.log(_SPREAD_JUMP)),
        ),
    ):
        middle = float(np.median(usual))
        scatter = 1.4826 * float(np.median(np.abs(np.array(usual) - middle)))
        limit = max(least, _STRONG * scatter)
        if abs(value - middle) > limit and abs(value - last) > limit:
            shown = (value, middle) if name == "brightness" else (float(np.exp(value)), float(np.exp(middle)))
            return Flaw("contrast", f"{name} {shown[0]:.3f}, {shown[1]:.3f} in those before it (of a range of 1)")
    return None


def _position(seen: Look, near: Sequence[Move], usual: Sequence[Move]) -> Flaw | None:
    """Detect a section displaced against both previous ones by more than recent displacements, or not similar to
    either.
    """
    if len(near) < 2 or len(usual) < _FEWEST:
        return None
    found = [move.pixels for move in usual if move.height > _CLEAR]
    middle = float(np.median(found)) if found else 0.0
    scatter = 1.4826 * float(np.median(np.abs(np.array(found) - middle))) if found else 0.0
    limit = max(_SHIFT * min(seen.size) * seen.scale, middle + _STRONG * scatter)
    peak = float(np.median([move.height for move in usual]))
    far = [move.height > _CLEAR and move.pixels > limit for move in near]
    lost = [move.height <= min(_CLEAR, _LOST * peak) for move in near]
    if not all(a or b for a, b in zip(far, lost, strict=True)):
        return None
    if far[-1]:
        return Flaw("position", f"moved by {near[-1].pixels:.0f} pixels against the section before it")
    return Flaw("position", "shows another place than the two sections before it")


@dataclass(frozen=True)
class Move:
    """Displacement of one section relative to another."""

    pixels: float  # of the section
    height: float  # height of the correlation peak relative to its scatter


def displacement(before: Look, after: Look) -> Move:
    """Measure the displacement of a section relative to another of the same size."""
    height, width = after.size
    cross = after.spectrum * np.conj(before.spectrum)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    cross *= np.exp(-((fy**2 + fx**2) / (2 * 0.1**2)))  # neighbouring sections have coarse structures in common
    surface = np.fft.irfft2(cross, (height, width))
    at = int(surface.argmax())
    y, x = divmod(at, width)
    y, x = (y - height if y > height // 2 else y), (x - width if x > width // 2 else x)
    peak = (surface.flat[at] - surface.mean()) / max(float(surface.std()), 1e-12)
    return Move(float(np.hypot(y, x)) * after.scale, float(peak))
