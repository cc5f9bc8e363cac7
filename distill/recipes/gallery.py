"""`distill gallery`: what each augmentation of the training makes of a piece of a volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.augment import augment, misaligned_crop
from distill.config import AugmentConfig, load_pair
from distill.errors import DistillError
from distill.geometry import Box, Nanometres
from distill.recipes.outputs import check_place
from distill.sampling import as_unit_range
from distill.volume import Volume, open_volume
from viz.gallery import Example, gallery_figure
from viz.layout import figure_suffix

_CROP = 104  # pixels in y and x
_SIDE = 60  # pixels of y that the side view is high
_DRAWS = 200
_WHAT = {
    "flips": "mirrored in z, y, x",
    "transposes": "y and x swapped",
    "grey": "contrast, brightness, gamma",
    "grey_section": "the same, section by section",
    "noise": "Gaussian noise",
    "blur": "Gaussian blur in the section",
    "missing": "a blank section",
    "misalign": "sections shifted by up to {misalign_pixels} pixels",
}


@dataclass(frozen=True)
class Gallery:
    """What the figure shows.

    Attributes:
        section: number of the section.
        box: the piece of the volume.
        shown: configuration keys in order.
        off: keys that the configuration switches off.
    """

    section: int
    box: Box
    shown: tuple[str, ...]
    off: tuple[str, ...]


def gallery(
    source: str,
    out: Path,
    section: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resolution: Nanometres | None = None,
) -> Gallery:
    """Make the figure.

    Args:
        source: the volume.
        out: .png, .svg or .pdf.
        section: number of the section; the middle one by default.
        seed: same seed, same figure.
        folder: holds the teacher.yaml and student.yaml whose augmentation to show; the defaults by default.
        resolution: for files without one.

    Raises:
        DistillError: bad input, a section that is not there, or no augmentation that is on.
    """
    check_place(out)
    figure_suffix(out)
    config = load_pair(folder / "teacher.yaml", folder / "student.yaml").student.augment if folder else AugmentConfig()
    switches = [name for name, value in config if isinstance(value, bool | float)]
    shown = [name for name in switches if getattr(config, name)]
    if "misalign" in shown and not config.misalign_pixels:
        shown.remove("misalign")
    if not shown:
        raise DistillError(f"{folder}: found student.augment with everything off, expected one augmentation at least")
    volume = open_volume(source, resolution=resolution)
    if volume.channels is not None:
        raise DistillError(f"{source}: found {volume.channels} channels, expected one grey-value volume z, y, x")
    depth = volume.size[0]
    section = depth // 2 if section is None else section
    if not 0 <= section < depth:
        raise DistillError(f"--section: found {section}, expected 0 to {depth - 1} for {source}")
    box = _piece(volume, section, config.misalign_pixels)
    raw = as_unit_range(volume.read(box))
    at = section - box.start[0]
    examples = [
        _example(raw, config, name, at, np.random.default_rng((seed, number))) for number, name in enumerate(shown)
    ]
    gallery_figure(examples, volume.resolution, out)
    return Gallery(section, box, tuple(shown), tuple(name for name in switches if name not in shown))


def _piece(volume: Volume, section: int, margin: int) -> Box:
    """Sections around one, cut from the middle of the plane, with a margin for shifts."""
    depth, height, width = volume.size
    deep = min(depth, max(8, round(_SIDE * volume.resolution[1] / volume.resolution[0])))
    tall, wide = (min(_CROP + 2 * margin, size) for size in (height, width))
    if min(tall, wide) <= 2 * margin:
        raise DistillError(
            f"{volume.source}: found sections of {height} x {width}, expected more than {2 * margin} pixels: twice "
            "student.augment.misalign_pixels"
        )
    z, y, x = min(max(0, section - deep // 2), depth - deep), (height - tall) // 2, (width - wide) // 2
    return Box((z, y, x), (z + deep, y + tall, x + wide))


def _example(
    raw: NDArray[np.float32], config: AugmentConfig, name: str, section: int, rng: np.random.Generator
) -> Example:
    """The augmentation alone, drawn until the section shown has changed."""
    margin = config.misalign_pixels
    alone = _only(config, name)
    labels = np.zeros(raw.shape, np.int64)
    before, inner = misaligned_crop(raw, labels, margin, rng, probability=0)
    for _ in range(_DRAWS):
        after = before
        if alone.misalign:
            after, _ = misaligned_crop(raw, labels, margin, rng, probability=1)
        after, _ = augment(after, inner, alone, rng)
        if not np.array_equal(after[section], before[section]):
            break
    value = getattr(config, name)
    odds = "" if isinstance(value, bool) else f"; p\u00a0=\u00a0{value:g}"  # stays on one line
    note = _WHAT.get(name, "").format(**config.model_dump()) + odds
    return Example(f"augment.{name}", _grey(before), _grey(after), section, note)


def _only(config: AugmentConfig, name: str) -> AugmentConfig:
    off: dict[str, Any] = {key: type(value)(0) for key, value in config if isinstance(value, bool | float)}
    return config.model_copy(update={**off, name: type(getattr(config, name))(1)})


def _grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grey
