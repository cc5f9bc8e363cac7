"""Apply each augmentation of the training to part of a volume (`distill gallery`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.config import AUGMENTATIONS, AugmentConfig, load_pair
from distill.core.errors import DistillError
from distill.core.geometry import Box, Nanometres
from distill.data.augmentation.augment import AugmentationPlan, apply, draw_plan
from distill.data.augmentation.intensity import IntensityChanges
from distill.data.augmentation.warp import Warp
from distill.data.crops import as_unit_range
from distill.io.volume import Volume, open_grey
from viz.gallery.figure import Example, gallery_figure
from viz.style import check_figure

_CROP = 104  # pixels in y and x
_SIDE = 60  # height of the side view in pixels of y
_DRAWS = 400
_CHOICE = 5  # draws that change the section shown, of which the most pronounced is used
_LINED = ("rotate", "rescale", "elastic", "misalign")
_LINES = 26  # pixels between lines
_WHAT = {
    "flips": "mirrored in z, y, x; p\u00a0=\u00a00.5 each",
    "transposes": "y and x swapped; p\u00a0=\u00a00.5",
    "rotate": "turned by up to {rotate_degrees:g}° in the section",
    "rescale": "larger or smaller by up to {rescale_by:.0%}",
    "elastic": "places moved by up to {elastic_pixels:g} pixels",
    "misalign": "sections shifted by up to {misalign_pixels} pixels",
    "grey": "contrast, brightness, gamma",
    "grey_section": "the same, section by section",
    "contrast_jump": "the same, in one section",
    "noise": "Gaussian noise, sigma up to {noise_sigma:g}",
    "blur": "Gaussian blur in the section, sigma up to {blur_sigma:g}",
    "out_of_focus": "a section blurred by up to {out_of_focus_pixels:g} pixels all round",
    "motion_blur": "a section smeared by up to {motion_blur_pixels:g} pixels",
    "missing": "a blank section",
    "missing_part": "a section blank in part",
    "local_contrast": "contrast and brightness that vary within every section",
}


@dataclass(frozen=True)
class Gallery:
    """Contents of the figure.

    Attributes:
        section: number of the section.
        box: the part of the volume.
        shown: configuration keys in order.
        off: keys disabled in the configuration.
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
    """Draw the gallery.

    Args:
        source: the volume.
        out: .png, .svg or .pdf.
        section: number of the section; the middle one by default.
        seed: of all random draws.
        folder: folder of the teacher.yaml and student.yaml that define the augmentation; by default every augmentation
            is shown with its default strength.
        resolution: for files without one.

    Raises:
        DistillError: bad input, a section that does not exist, or no enabled augmentation.
    """
    check_figure(out)
    config = load_pair(folder / "teacher.yaml", folder / "student.yaml").student.augment if folder else AugmentConfig()
    shown = [name for name in AUGMENTATIONS if getattr(config, name) or folder is None]
    if "misalign" in shown and not config.misalign_pixels:
        shown.remove("misalign")
    if not shown:
        raise DistillError(f"{folder}: found student.augment with everything off, expected one augmentation at least")
    volume = open_grey(source, resolution=resolution)
    if volume.channels is not None:
        raise DistillError(f"{source}: found {volume.channels} channels, expected one grey-value volume z, y, x")
    depth = volume.size[0]
    section = depth // 2 if section is None else section
    if not 0 <= section < depth:
        raise DistillError(f"--section: found {section}, expected 0 to {depth - 1} for {source}")
    box = _piece(volume, section)
    at = section - box.start[0]
    around = _around(volume, box)
    raw = torch.from_numpy(as_unit_range(volume.read(around)))
    examples = [
        _example(raw, around, box, config, name, at, np.random.default_rng((seed, number)))
        for number, name in enumerate(shown)
    ]
    gallery_figure(examples, volume.resolution, out)
    return Gallery(section, box, tuple(shown), tuple(name for name in AUGMENTATIONS if name not in shown))


def _piece(volume: Volume, section: int) -> Box:
    """Return a box of sections around one, in the middle of the plane."""
    depth, height, width = volume.size
    deep = min(depth, max(8, round(_SIDE * volume.resolution[1] / volume.resolution[0])))
    tall, wide = min(_CROP, height), min(_CROP, width)
    z, y, x = min(max(0, section - deep // 2), depth - deep), (height - tall) // 2, (width - wide) // 2
    return Box((z, y, x), (z + deep, y + tall, x + wide))


def _around(volume: Volume, box: Box) -> Box:
    """Extend the box by a margin of its own size, within the volume; beyond it, data are mirrored."""
    (z, *start), (last, *stop) = box.start, box.stop
    top, left = (max(0, a - _CROP) for a in start)
    bottom, right = (min(b + _CROP, size) for b, size in zip(stop, volume.size[1:], strict=True))
    return Box((z, top, left), (last, bottom, right))


def _example(
    raw: Tensor, around: Box, box: Box, config: AugmentConfig, name: str, section: int, rng: np.random.Generator
) -> Example:
    """Apply one augmentation alone: of the first draws that change the section shown, use the most pronounced."""
    _, top, left = box.relative_to(around.start).start
    if name in _LINED:
        raw = _with_lines(raw, top, left)
    before, _ = apply(raw, None, AugmentationPlan(Warp(box.shape), IntensityChanges()), (top, left))
    after, largest, seen = before, 0.0, 0
    for _ in range(_DRAWS):
        changed, _labels = apply(raw, None, draw_plan(box.shape, config.only(name), rng), (top, left))
        pairs = ((changed[section], before[section]), (changed, before))
        shown, whole = (float((a - b).abs().mean()) for a, b in pairs)
        seen += shown > 0
        if shown and shown + whole > largest:
            largest, after = shown + whole, changed
        if seen == _CHOICE:
            break
    value = getattr(config, name)
    odds = "" if isinstance(value, bool) else f"; p\u00a0=\u00a0{value:g}"  # stays on one line
    note = _WHAT[name].format(**config.model_dump()) + odds
    return Example(f"augment.{name}", _grey(before.numpy()), _grey(after.numpy()), section, note)


def _with_lines(raw: Tensor, top: int, left: int) -> Tensor:
    """Draw white lines at fixed positions, which the augmentation then moves."""
    y, x = (
        (torch.arange(size) - first) % _LINES == _LINES // 2
        for size, first in zip(raw.shape[1:], (top, left), strict=True)
    )
    return raw.masked_fill(y[:, None] | x, 1)


def _grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grey
