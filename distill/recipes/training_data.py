"""What a training reads: sections with labels in memory, and crops of them and of volumes without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.checkpoint import Kind
from distill.config import Pair
from distill.errors import ConfigError, ShapeError
from distill.geometry import Box, Nanometres, of_another_shape
from distill.recipes.models import weights_normalisation
from distill.sampling import Crops, MixedCrops
from distill.volume import Volume, check_pair, every_section, open_labels, open_volume


@dataclass(frozen=True)
class Parts:
    """Training and validation sections in memory."""

    train_raw: NDArray[Any]  # as recorded
    train_labels: NDArray[np.uint64]
    validation_raw: NDArray[np.float32]  # normalised
    validation_labels: NDArray[np.uint64]
    resolution: Nanometres


def open_data(config: Pair) -> tuple[Volume, Volume]:
    """Image and labels, checked against each other and against the sections that the configuration names.

    Raises:
        DistillError: anything that does not fit, naming the file.
    """
    data = config.student.data
    raw = every_section(open_volume(data.raw, resolution=data.resolution), data.every)
    labels = every_section(open_labels(data.labels, resolution=data.resolution), data.every)
    check_pair(raw, labels)
    for name, (_, last) in data.parts.items():
        if last > raw.size[0]:
            raise ConfigError(f"student.data.{name}: ends at section {last}, but {data.raw} has {raw.size[0]} sections")
    return raw, labels


def open_parts(config: Pair) -> Parts:
    """Open the volumes, check that they go together and that the sections exist, read the parts.

    Raises:
        DistillError: anything that does not fit, naming the file.
    """
    raw, labels = open_data(config)
    data, crop = config.student.data, config.student.training.crop
    room = (data.train[1] - data.train[0], *raw.size[1:])
    if any(c > r for c, r in zip(crop, room, strict=True)):
        raise ConfigError(
            f"student.training.crop: {list(crop)} is larger than the training part {list(room)} (z, y, x)"
        )
    return Parts(
        read_sections(raw, data.train),
        read_sections(labels, data.train).astype(np.uint64),
        data.normaliser.sections(read_sections(raw, data.validation)),
        read_sections(labels, data.validation).astype(np.uint64),
        raw.resolution,
    )


def check_normalisation(config: Pair, note: Callable[[str], None]) -> None:
    """Compare the normalisation of the training data with that of the weights that networks start from.

    Args:
        config: of the run.
        note: called where a network that is trained further meets another scale of grey values.

    Raises:
        ConfigError: a frozen teacher would meet another scale.
    """
    wanted = config.student.data.normalisation
    started: list[tuple[Kind, str | None, bool]] = [
        ("teacher", config.teacher.weights, config.teacher_runs),
        ("student", config.student.weights, config.student_runs),
    ]
    for kind, weights, runs in started:
        found = None if weights is None or not runs else weights_normalisation(weights, kind)
        if found is None or found == wanted:
            continue
        if kind == "teacher" and config.teacher.frozen:
            raise ConfigError(
                f"student.data.normalisation: found '{wanted}', but the frozen teacher {weights} was trained with "
                f"'{found}'; expected the same"
            )
        note(
            f"{kind}.weights: {weights} was trained with the normalisation '{found}', this run has '{wanted}'; "
            "it has to adapt to other grey values"
        )


def read_sections(volume: Volume, span: tuple[int, int]) -> NDArray[Any]:
    """Whole sections, first to last (exclusive)."""
    return volume.read(Box((span[0], 0, 0), (span[1], *volume.size[1:])))


def training_crops(config: Pair, parts: Parts, ranks: int, note: Callable[[str], None]) -> Crops:
    """Crops of the training part and, where the configuration names some, of unlabelled volumes.

    Args:
        config: of the run.
        parts: the labelled volume.
        ranks: processes that share every step.
        note: called where voxels of an unlabelled volume are of another shape.

    Raises:
        DistillError: a volume that cannot be read or is too small for the crop.
    """
    training, augmentation = config.student.training, config.student.augment
    normaliser = config.student.data.normaliser
    labelled = Crops(parts.train_raw, parts.train_labels, training, augmentation, normaliser)
    others = []
    for k, entry in enumerate(config.student.data.unlabelled):
        volume = every_section(open_volume(entry.raw, resolution=entry.resolution), entry.every)
        first, last = entry.sections or (0, volume.size[0])
        if last > volume.size[0]:
            raise ConfigError(
                f"student.data.unlabelled.{k}.sections: ends at section {last}, but {entry.raw} has {volume.size[0]} "
                "sections"
            )
        if of_another_shape(volume.resolution, parts.resolution):
            nm = [" x ".join(f"{n:g}" for n in voxel) for voxel in (volume.resolution, parts.resolution)]
            note(
                f"student.data.unlabelled.{k}: {entry.raw} has voxels of {nm[0]} nm, the labelled volume of {nm[1]} nm "
                "(z, y, x); trained on as they are"
            )
        try:
            others.append(Crops(read_sections(volume, (first, last)), None, training, augmentation, normaliser))
        except ShapeError as error:
            raise ConfigError(f"student.data.unlabelled.{k}: {entry.raw}: {error}") from None
    return MixedCrops(labelled, others, config.unlabelled_at, ranks=ranks) if others else labelled
