"""Choose sections of a source from which the precision `int8` takes its ranges.

Legend: N pairs, H W = y x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.core.errors import DecoderError, ShapeError, SourceError
from distill.core.normalisation import Normaliser
from distill.inference.streaming.sections.sources import Source
from distill.io.volume import Volume
from students.backends.int8 import Calibration, with_digest

_TURNS = (0.618, 0.382)  # of the window's place from one pair to the next, as a part of the section along y and x

Read = Callable[[int], NDArray[Any] | None]  # section by number as recorded; None where it cannot be used


@dataclass(frozen=True)
class Windows:
    """Windows of neighbouring sections, spread over a source.

    Attributes:
        pairs: of sections, at most.
        side: of the window that is taken from each, in pixels.
    """

    pairs: int = 8
    side: int = 384


WINDOWS = Windows()


@dataclass(frozen=True)
class Ranges:
    """Sections of a volume that were chosen, so that every process can choose them again.

    Attributes:
        digest: of the pairs.
        first: first section of the range that they are spread over.
        depth: number of sections of the range.
        windows: that were taken.
    """

    digest: str
    first: int
    depth: int
    windows: Windows


def from_stream(source: Source, normaliser: Normaliser, stride: int) -> Calibration:
    """Choose sections of a stream.

    Args:
        source: of known length, at the pixel size of the model.
        normaliser: of its sections.
        stride: of the student.

    Raises:
        SourceError: the length is unknown, or no two neighbouring sections can be used.
    """
    if source.total is None:
        raise SourceError(
            f"--precision int8: {source.name} is followed, expected sections that exist when the stream starts, "
            "from which ranges are taken; or use --precision 32-true"
        )

    def read(z: int) -> NDArray[Any] | None:
        section = source.read(z)
        return None if section is None or section.flaw is not None else section.image

    return with_digest(source.name, _stacked(source.name, read, source.total, normaliser, stride, WINDOWS), stride)


def from_volume(
    volume: Volume, first: int, depth: int, normaliser: Normaliser, stride: int
) -> tuple[Calibration, Ranges]:
    """Choose sections of a part of a volume; arguments as of `from_stream`.

    Returns:
        The calibration, and what other processes need to choose the same sections.

    Raises:
        SourceError: no two neighbouring sections can be used.
    """
    calibration = _of_volume(volume, first, depth, normaliser, stride, WINDOWS)
    return calibration, Ranges(calibration.digest, first, depth, WINDOWS)


def again(ranges: Ranges, volume: Volume, normaliser: Normaliser, stride: int) -> Calibration:
    """Return the calibration of another process, whose sections are read only if its models are not in the cache."""

    def pairs() -> NDArray[np.float32]:
        found = _of_volume(volume, ranges.first, ranges.depth, normaliser, stride, ranges.windows)
        if found.digest != ranges.digest:
            raise SourceError(f"{volume.source}: differs from what the segmentation was begun with, expected the same")
        return found.pairs()

    return Calibration(ranges.digest, volume.source, pairs)


def int8_line(difference: float, calibration: Calibration) -> str:
    """Return the line that says how much `int8` differs from float32."""
    return (
        f"int8: affinities differ from float32 by {difference:.4f} on average (windows of {calibration.source}, others "
        "than those that gave the ranges)"
    )


def _of_volume(
    volume: Volume, first: int, depth: int, normaliser: Normaliser, stride: int, windows: Windows
) -> Calibration:
    def read(z: int) -> NDArray[Any] | None:
        with suppress(SourceError):
            return next(iter(volume.sections(first + z, first + z + 1)))
        return None

    name = volume.source
    return with_digest(name, _stacked(name, read, depth, normaliser, stride, windows), stride)


def _stacked(
    name: str, read: Read, depth: int, normaliser: Normaliser, stride: int, windows: Windows
) -> NDArray[np.float32]:
    pairs = list(_pairs(name, read, depth, normaliser, windows))
    if not pairs or min(pairs[0].shape[1:]) < 2 * stride:
        raise SourceError(
            f"--precision int8: {name}: found no two neighbouring sections of at least {2 * stride} pixels a side that "
            "can be used to take ranges from, expected one such pair or more; or use --precision 32-true"
        )
    return np.stack(pairs)


def _pairs(
    name: str, read: Read, depth: int, normaliser: Normaliser, windows: Windows
) -> Iterator[NDArray[np.float32]]:
    """Iterate over windows (2, H, W) of neighbouring sections, normalised as whole sections are."""
    count = min(windows.pairs, depth - 1)
    for number in range(count):
        z = (2 * number + 1) * (depth - 1) // (2 * count)
        try:
            images = [read(z), read(z + 1)]
        except DecoderError:
            raise
        except SourceError:
            continue
        window = [_window(image, number, normaliser, name, windows.side) for image in images if image is not None]
        if len(window) == 2 and window[0].shape == window[1].shape and min(float(one.std()) for one in window) > 0:
            yield np.stack(window)


def _window(image: NDArray[Any], number: int, normaliser: Normaliser, name: str, most: int) -> NDArray[np.float32]:
    places = []
    for length, turn in zip(image.shape, _TURNS, strict=True):
        side = min(most, length)
        start = int((number * turn) % 1 * (length - side))
        places.append(slice(start, start + side))
    try:
        correction = normaliser.of(image)
        found = correction.apply(image[places[0], places[1]], (places[0].start, places[1].start))
    except ShapeError as error:
        raise SourceError(f"{name}: {error}") from None
    return np.asarray(found, np.float32)
