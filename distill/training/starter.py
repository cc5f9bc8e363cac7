"""Write a pair of configurations that fits a labelled volume (`distill init`).

The values come from the volume: its labelled sections are split into training, validation and test sections, the crop
fits into the training sections, isotropic volumes are thinned, and bright membranes are detected from the labels. The
networks and the schedule are those of `configs/phantom_cpu` and `configs/ac4_cpu` without a GPU, those of
`configs/ac4_gpu` with one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from distill.config import checked_pair
from distill.config.data import PartExtent, shown, spans
from distill.core.atomic import replacing
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Box, Nanometres, Span, Triple
from distill.core.known import counted_truth
from distill.io.selection import split_selection
from distill.io.truth import Truth
from distill.io.volume import LABELS_DATASET, Volume, open_grey, open_labels
from distill.io.writers.output import check_folder
from distill.io.writers.target import check_file
from distill.training.data import open_data, place_labels
from distill.training.finetune import crop_of, split_sections

_SPLIT_FROM = 8  # labelled sections; fewer have no test sections
_HELD_OUT = 0.15  # of the labelled sections, for validation and for testing each
_JUDGED = 16 * 2**20  # voxels that validation and test hold at most
_WINDOW = 1024  # pixels; side of validation and test in sections of more than half of `_JUDGED` pixels
_ISOTROPIC = 2.0  # voxels less elongated than this along z are thinned ...
_ELONGATED = 4.0  # ... to this, about that of serial sections
_BRIGHT = 0.25  # standard deviations by which bright membranes exceed the inside of neurons


@dataclass(frozen=True)
class StarterPair:
    """Configurations that were written.

    Attributes:
        teacher: teacher.yaml.
        student: student.yaml.
        lines: what was found and decided, for the user.
    """

    teacher: Path
    student: Path
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    """What the configuration takes from the data."""

    raw: str
    labels: str
    image: Volume  # the sections used
    resolution: Nanometres | None  # as given by the user
    every: int
    train: PartExtent
    validation: PartExtent
    test: PartExtent | None
    invert: bool


def write_pair(
    folder: Path,
    raw: str,
    labels: str | None = None,
    *,
    resolution: Nanometres | None = None,
    gpu: bool = False,
    overwrite: bool = False,
) -> StarterPair:
    """Write teacher.yaml and student.yaml for a labelled volume.

    Args:
        folder: made if it does not exist.
        raw: source of the image.
        labels: source of its neuron ids, 0 = not labelled; default: `volumes/labels/neuron_ids` in the file of `raw`.
        resolution: nm z, y, x, for files without one.
        gpu: use networks and schedule for a GPU.
        overwrite: replace files that exist.

    Raises:
        DistillError: a file exists, a source cannot be read, the labels do not fit the image, or fewer than two
            sections are labelled; nothing is written in these cases.
    """
    check_folder(folder)
    files = folder / "teacher.yaml", folder / "student.yaml"
    for file in files:
        check_file(file, overwrite)
    image = open_grey(_absolute(raw), resolution=resolution)
    fit = _fit(image, _absolute(raw), _absolute(labels or _labels_next_to(raw)), resolution)
    command = f"distill train {files[0]} {files[1]}"
    texts = _GPU_TEACHER if gpu else _CPU_TEACHER, _student_text(fit, gpu, command)
    values: dict[str, Any] = {name: yaml.safe_load(text) for name, text in zip(_NAMES, texts, strict=True)}
    open_data(checked_pair(values, {name: str(file) for name, file in zip(_NAMES, files, strict=True)}))
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in zip(files, texts, strict=True):
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return StarterPair(*files, _said(fit))


_NAMES = ("teacher", "student")


def _fit(image: Volume, raw: str, labels: str, resolution: Nanometres | None) -> _Fit:
    every = _every(image)
    used, placed = place_labels(image, open_labels(labels, resolution=resolution), every)
    span = labelled_sections(used, placed)
    train, validation, test = split(span, used.size)
    invert = has_bright_membranes(*_middle(used, placed, span))
    return _Fit(raw, labels, used, resolution, every, train, validation, test, invert)


def _labels_next_to(raw: str) -> str:
    """Return the source of the labels in the file of an image in CREMI layout.

    Raises:
        DistillError: there are none.
    """
    path, colon, _ = split_selection(raw)[0].rpartition(":")
    found = f"{path if colon else split_selection(raw)[0]}:{LABELS_DATASET}"
    try:
        return open_labels(found).source
    except DistillError:
        raise DistillError(
            f"--labels: not given, and {found} cannot be read; expected --labels SOURCE, the neuron ids of {raw}"
        ) from None


def _absolute(source: str) -> str:
    """Make a source independent of the folder that the training is started in."""
    return source if "://" in source else os.path.abspath(os.path.expanduser(source))


def _every(image: Volume) -> int:
    """Return which n-th sections to take: all, or of isotropic volumes about as thick as serial sections."""
    z, y, x = image.resolution
    if z >= _ISOTROPIC * max(y, x):
        return 1
    wanted = round(_ELONGATED * max(y, x) / z)
    return max(1, min(wanted, image.size[0] // _SPLIT_FROM))


def labelled_sections(image: Volume, truth: Truth) -> Span:
    """Return the span from the first to the last section of an image with a labelled neuron.

    Sections are read from both ends, so that only two are read of a volume that is labelled throughout.

    Raises:
        ShapeError: none is labelled.
    """
    box = truth.box.intersect(image.box)

    def labelled(z: int) -> bool:
        section = Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))
        return bool(counted_truth(truth.read(section)).any())

    between = range(box.start[0], box.stop[0])
    first = next((z for z in between if labelled(z)), None)
    if first is None:
        raise ShapeError(
            f"{truth.labels.volume.source}: found no neuron id in any section, expected labels other than 0"
        )
    return first, 1 + next(z for z in reversed(between) if labelled(z))


def split(labelled: Span, size: Triple) -> tuple[PartExtent, PartExtent, PartExtent | None]:
    """Split labelled sections into training, validation and test parts, in this order along z.

    Args:
        labelled: first and last section, the last one excluded.
        size: of the volume; very large sections are validated and tested in a window in their middle.

    Returns:
        The three parts; no test part of fewer than 8 sections, and the same sections for training and validation of
        fewer than 4.

    Raises:
        DistillError: fewer than two sections.
    """
    first, last = labelled
    if last - first < _SPLIT_FROM:
        few = split_sections(labelled)
        return few.train, _window(few.validation, size), None
    pixels = min(size[1] * size[2], _JUDGED // 2)
    held = max(2, min(int(_HELD_OUT * (last - first)), _JUDGED // pixels))
    validation, test = (last - 2 * held, last - held), (last - held, last)
    return (first, last - 2 * held), _window(validation, size), _window(test, size)


def _window(sections: Span, size: Triple) -> PartExtent:
    if size[1] * size[2] <= _JUDGED // 2:
        return sections
    middles = [(max(0, (side - _WINDOW) // 2), min(side, (side + _WINDOW) // 2)) for side in size[1:]]
    return sections, middles[0], middles[1]


def _middle(image: Volume, truth: Truth, span: Span) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Read up to 1024 x 1024 pixels of the middle labelled section, and their labels."""
    z, box = (span[0] + span[1]) // 2, truth.box.intersect(image.box)
    corner = [max(low, (low + high - _WINDOW) // 2) for low, high in zip(box.start[1:], box.stop[1:], strict=True)]
    end = [min(high, low + _WINDOW) for low, high in zip(corner, box.stop[1:], strict=True)]
    part = Box((z, corner[0], corner[1]), (z + 1, end[0], end[1]))
    return image.read(part)[0], counted_truth(truth.read(part))[0]


def has_bright_membranes(section: NDArray[Any], labels: NDArray[np.uint64]) -> bool:
    """Tell whether borders of neurons are brighter than their inside.

    Args:
        section: (H, W) grey values.
        labels: (H, W) neuron ids, 0 = not labelled.
    """
    grey = section.astype(np.float64)
    border = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= across
    border[:, :-1] |= across
    inside = (labels > 0) & ~border
    if not border.any() or not inside.any():
        return False
    return bool(grey[border].mean() - grey[inside].mean() > _BRIGHT * grey[inside].std())


def _said(fit: _Fit) -> tuple[str, ...]:
    size, nm = (" x ".join(f"{n:g}" for n in numbers) for numbers in (fit.image.size, fit.image.resolution))
    thinned = f"; one of {fit.every} sections is taken, as distill copy --every {fit.every} does for later volumes"
    parts = {"training": fit.train, "validation": fit.validation, "test": fit.test}
    named = [f"{name} {_ranges(part)}" for name, part in parts.items() if part is not None]
    lines = [f"{fit.raw}: {size} voxels of {nm} nm (z, y, x)" + (thinned if fit.every > 1 else "")]
    lines.append("sections: " + ", ".join(named))
    if fit.train == fit.validation:
        lines.append("too few labelled sections to set any aside: validation scores are those of the training sections")
    if fit.invert:
        lines.append("borders of neurons are brighter than their inside: data.invert is set")
    return tuple(lines)


def _ranges(part: PartExtent) -> str:
    first, *window = (f"{first}:{last}" for first, last in spans(part))
    return f"{first} (rows {window[0]}, columns {window[1]})" if window else first


def _student_text(fit: _Fit, gpu: bool, command: str) -> str:
    """Format student.yaml."""
    (first, last), *_ = spans(fit.train)
    crop = crop_of((last - first, *fit.image.size[1:]), (9, 160, 160) if gpu else (6, 160, 160))
    crop_line = _commented(f"  crop: {list(crop)}", "published 18 x 160 x 160; fits into the training sections")
    training = (_GPU_TRAINING if gpu else _CPU_TRAINING).format(crop=crop_line)
    return f"# The 2D student, its data and its training. Train it with its teacher:\n#   {command}\n" + (
        _STUDENT.format(data="\n".join(_data_lines(fit)), training=training)
    )


def _data_lines(fit: _Fit) -> list[str]:
    """Format the group `data`, as a list of one volume where a part is a box."""
    size, nm = (" x ".join(f"{n:g}" for n in numbers) for numbers in (fit.image.size, fit.image.resolution))
    keys = [
        (f"# {size} voxels of {nm} nm (z, y, x), {fit.image.dtype}", ""),
        (f"raw: {json.dumps(fit.raw, ensure_ascii=False)}", ""),
        (f"labels: {json.dumps(fit.labels, ensure_ascii=False)}", "neuron ids, 0 = not labelled"),
    ]
    if fit.resolution is not None:
        keys.append((f"resolution: [{', '.join(f'{n:g}' for n in fit.resolution)}]", "nm z, y, x"))
    if fit.every > 1:
        keys.append((f"every: {fit.every}", f"use one of {fit.every} sections; those used are numbered from 0"))
    keys.append((f"train: {shown(fit.train)}", "sections, the last one excluded"))
    keys.append((f"validation: {shown(fit.validation)}", "the best weights and the thresholds are selected here"))
    if fit.test is not None:
        keys.append((f"test: {shown(fit.test)}", "for final scores: not used for training or selection"))
    if len(spans(fit.validation)) > 1:
        marks = ["- ", *["  "] * len(keys)]
        keys = [("volumes:", ""), *((f"  {mark}{key}", why) for mark, (key, why) in zip(marks, keys, strict=False))]
    keys.append(("normalisation: mean-std", "mean and standard deviation of each section become 0.5 and 0.2"))
    found = "borders of neurons are brighter than their inside" if fit.invert else "membranes are dark"
    keys.append((f"invert: {str(fit.invert).lower()}", f"exchange dark and bright; {found}"))
    return [_commented(f"  {key}", why) for key, why in keys]


def _commented(key: str, why: str) -> str:
    """Format a line of the file with its comment in the common column."""
    return f"{key:31}  # {why}" if why else key


_STUDENT = """kind: smp                        # or cad, the network of Liu et al., CVPR 2024 (docs/results/students.md)
# weights: ac4                   # start from the bundled model or another run instead of random weights
data:
{data}
loss:                            # weights of the terms, 0 = off; distill ablate measures what each of them gains
  slice: 1.0                     # affinities of the labels
  cross: 1.0                     # the teacher's affinities
  graft: 1.0                     # the teacher's embedding
# augment: {{missing: 0.1}}        # probability of a blank section; docs/explanation/augmentation.md lists the others
training:
{training}"""

_CPU_TRAINING = """  steps: 1000                    # a first result on a few cores; more steps give better scores
  warmup: 300                    # steps before the teacher is distilled
  teacher_every: 2               # teacher and distillation cost more than the student's own step
{crop}
  batch: 1                       # published 2
  lr: 2.0e-3                     # short runs need larger steps than the published 1e-4
  lr_warmup: 50
  schedule: cosine
  optimizer: adamw
  weight_decay: 0.01
  clip: 1.0
  ema: 0.99
  precision: auto
  workers: 1
  validate_every: 500
  save_every: 250                # distill train --resume continues from the last save
"""

_GPU_TRAINING = """  steps: 8000                    # a first result; more steps give better scores
  warmup: 1000                   # steps before the teacher is distilled
{crop}
  batch: 4
  lr: 1.0e-3
  lr_warmup: 200
  schedule: cosine
  optimizer: adamw
  weight_decay: 0.01
  clip: 1.0
  ema: 0.999
  precision: auto
  workers: 8
  validate_every: 2000
  save_every: 1000               # distill train --resume continues from the last save
"""

_CPU_TEACHER = """# A narrow 3D teacher for a few cores, and the query decoder that teacher and student share.
kind: superhuman                 # docs/explanation/method.md lists the other kinds; agq is the published one
filters: [16, 20, 24, 32, 40]    # published 28, 36, 48, 64, 80
fused: 32                        # published 64
embedding: 16                    # as published
decoder:
  width: 32                      # published 64
  depth: 2                       # published 4
  learned: 20                    # published 100
  prior: flood                   # seeds shape the first masks, so minutes of training suffice
  norm_momentum: 0.1             # published 0.01, which needs more than some hundred steps
  block: [17, 272, 272]          # voxels that are segmented at a time
  overlap: [1, 32, 32]
queries:
  detach_student: true           # the student's affinities are trained by the affinity losses only
  start: 150                     # seeds carry no information before affinities are learnt
  every: 3
"""

_GPU_TEACHER = """# The published AGQ teacher (Chen et al., ICLR 2025), and the decoder that it shares with the student.
kind: agq
filters: [32, 64, 96, 128, 160]
embedding: 16                    # head for the distillation terms (Liu et al., CVPR 2024)
decoder:
  learned: 100
  prior: flood                   # seeds shape the first masks, so minutes of training suffice
  block: [9, 272, 272]           # voxels that are segmented at a time
  overlap: [1, 32, 32]
queries:
  detach_student: true           # the student's affinities are trained by the affinity losses only
  start: 500                     # seeds carry no information before affinities are learnt
"""
