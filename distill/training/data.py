"""Data of a training: crops of labelled and unlabelled volumes, and the validation parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.config import DataConfig, LabelledVolume, Pair
from distill.config.data import PartName, check_apart, part_box
from distill.core.errors import ConfigError, ShapeError
from distill.core.geometry import Box, Nanometres, Triple, of_another_shape
from distill.core.known import counted_truth
from distill.core.normalisation import Normaliser
from distill.core.notes import note
from distill.data.crop_source import CropSource, FileSource, section_corrections
from distill.data.crops import Crops, Items, MixedCrops, PooledCrops
from distill.io.truth import Truth, note_offset, open_truth
from distill.io.volume import Volume, check_pair, every_section, on_grid, open_grey, open_labels, open_volume
from distill.models.header import NetworkKind
from distill.models.load import weights_normalisation

_VALIDATION_BYTES = 64  # bytes per voxel: image, labels, affinities, supervoxels of all decoder configurations


@dataclass(frozen=True)
class Labelled:
    """An image restricted to the sections used, its labels, and its configuration."""

    key: str  # of the entry, for messages
    raw: Volume
    truth: Truth
    entry: LabelledVolume

    def box(self, name: PartName) -> Box:
        """Return one of its parts, in voxels of the image."""
        return part_box(self.entry.parts[name], self.raw.size)


@dataclass(frozen=True)
class LabelledPart:
    """A labelled part in memory.

    Attributes:
        raw: (D, H, W) grey values, normalised or as recorded.
        labels: (D, H, W) with the values of `distill.core.known`.
        volume: the image.
        box: position, in voxels of the image.
        name: of the image, for tables.
    """

    raw: NDArray[Any]
    labels: NDArray[np.uint64]
    volume: Volume
    box: Box
    name: str

    @property
    def counted(self) -> NDArray[np.uint64]:
        """Return labels with 0 where they are ignored by segmentation scores."""
        return counted_truth(self.labels)


@dataclass(frozen=True)
class TrainingParts:
    """Training and validation data."""

    training: tuple[CropSource, ...]
    weights: tuple[float, ...]  # of the training sources
    validation: tuple[LabelledPart, ...]
    resolution: Nanometres  # of the first volume that is trained on


def open_data(config: Pair) -> list[Labelled]:
    """Open images and labels, and check them against each other and against the configured parts.

    Raises:
        DistillError: data do not match; the message names the file or the key.
    """
    data = config.student.data
    found = [_open(data, number, entry) for number, entry in enumerate(data.labelled)]
    others = [open_grey(entry.raw, resolution=entry.resolution) for entry in data.unlabelled]
    try:
        check_apart(data, [_identity(one.raw) for one in found], [_identity(one) for one in others])
    except ValueError as error:
        raise ConfigError(f"student.data: {error}") from None
    return found


def _open(data: DataConfig, number: int, entry: LabelledVolume) -> Labelled:
    key = data.key(number)
    raw = open_grey(entry.raw, resolution=entry.resolution)
    if raw.channels is not None:
        raise ShapeError(f"{raw.source}: found {raw.channels} channels, expected an image z, y, x")
    labels = open_labels(entry.labels, resolution=entry.resolution, ignore=entry.ignore)
    if data.volumes:
        mask = None if entry.mask is None else open_volume(entry.mask, resolution=entry.resolution, grey=False)
        if mask is not None and mask.channels is not None:
            raise ShapeError(f"{mask.source}: found {mask.channels} channels, expected a mask z, y, x")
        image, truth = open_truth(
            raw, labels, mask, every=entry.every, zero=entry.zero, ignores=entry.ignore is not None
        )
    else:
        image, truth = place_labels(raw, labels, entry.every)
        shared = image.box.intersect(truth.box)
        if shared != image.box:
            share = 100 * shared.voxels / image.box.voxels
            note(f"{labels.source}: covers {share:.3g} % of {raw.source}, which counts as labelled there alone")
    opened = Labelled(key, image, truth, entry)
    for name in entry.parts:
        box = opened.box(name)
        if box.stop[0] > image.size[0]:
            raise ConfigError(
                f"{key}.{name}: ends at section {box.stop[0]}, but {entry.raw} has {image.size[0]} sections"
            )
        if not image.box.contains(box):
            raise ConfigError(
                f"{key}.{name}: reaches to {list(box.stop)} (z, y, x), but {entry.raw} has {list(image.size)} voxels"
            )
        if not truth.box.intersect(box).voxels:
            raise ConfigError(
                f"{key}.{name}: voxels {list(box.start)} to {list(box.stop)} (z, y, x) of {entry.raw} have no labels; "
                f"those of {entry.labels} cover {list(truth.box.start)} to {list(truth.box.stop)}"
            )
    return opened


def place_labels(raw: Volume, labels: Volume, every: int) -> tuple[Volume, Truth]:
    """Place the labels of a single volume on its image, by the rules of `data.raw` and `data.labels`.

    Args:
        raw: the image.
        labels: of other voxels, they are taken at the centres of those of the image; of the same size, they coincide
            with the image.
        every: take every n-th section.

    Returns:
        The image restricted to the sections used, and its labels.

    Raises:
        ShapeError: the two do not fit.
    """
    stored, labels = labels, on_grid(labels, raw)
    if labels is not stored:
        theirs, own = (" x ".join(f"{n:g}" for n in one.resolution) for one in (stored, raw))
        note(f"{labels.source}: labels of {theirs} nm are taken at the centres of voxels of {raw.source}, {own} nm")
    if labels.size == raw.size:
        check_pair(every_section(raw, every), every_section(labels, every))
        labels = _as_lies(labels, raw)
    return open_truth(raw, labels, every=every, ignores=False)


def _as_lies(labels: Volume, raw: Volume) -> Volume:
    """Place labels of the same size as their image on the image; `check_pair` refuses two different offsets."""
    note_offset(labels, raw)
    return replace(labels, offset=raw.offset, resolution=raw.resolution)


def open_parts(config: Pair) -> TrainingParts:
    """Open and check the volumes, and read the data kept in memory.

    Training volumes are kept in memory if all of them, including those without labels, take at most `data.memory`.

    Raises:
        DistillError: data do not match; the message names the file or the key.
    """
    opened = open_data(config)
    data, crop = config.student.data, config.student.training.crop
    files, weights = [], []
    for one in opened:
        if one.entry.train is None:
            continue
        room = one.box("train").shape
        if any(c > r for c, r in zip(crop, room, strict=True)):
            raise ConfigError(
                f"student.training.crop: {list(crop)} is larger than the training part {list(room)} (z, y, x)"
                + (f" of {one.key}" if data.volumes else "")
            )
        box = _worth_drawing(one.box("train"), one.truth, crop)
        _check_image(one)
        files.append(FileSource(one.raw, one.truth, box))
        weights.append(one.entry.weight or float(one.box("train").voxels))
    kept = keeps_in_memory(config, files)
    for one in opened:
        if one.entry.validation is not None:
            _check_room(f"{one.key}.validation", one.box("validation"))
    first = next(one for one in opened if one.entry.train is not None)
    return TrainingParts(
        tuple(source.held() if kept else source for source in files),
        tuple(weights),
        tuple(read_part(one, "validation", data.normaliser) for one in opened if one.entry.validation is not None),
        first.raw.resolution,
    )


def _check_image(one: Labelled) -> None:
    """Refuse a training part whose first, middle and last section have a single grey value."""
    box = one.box("train")
    (first, *corner), (stop, *end) = box.start, box.stop
    for z in {first, (first + stop) // 2, stop - 1}:
        section = one.raw.read(Box((z, corner[0], corner[1]), (z + 1, end[0], end[1])))
        if section.min() != section.max():
            return
    raise ConfigError(
        f"{one.key}.train: found the single grey value {section.flat[0]} in sections {first}, {(first + stop) // 2} "
        f"and {stop - 1} of {one.entry.raw}, expected an image"
    )


def keeps_in_memory(config: Pair, files: Sequence[FileSource]) -> bool:
    """Return whether all training data, including volumes without labels, fit into `data.memory`."""
    others = [source for _, source in _unlabelled(config)]
    return sum(source.held_bytes for source in [*files, *others]) <= config.student.data.memory * 2**20


def read_part(one: Labelled, name: PartName, normaliser: Normaliser | None = None) -> LabelledPart:
    """Read a part that is processed as a whole.

    Args:
        one: the volume.
        name: of the part.
        normaliser: normalises the image by its whole sections; None: as recorded.

    Raises:
        ConfigError: it contains no neuron to score.
    """
    box = one.box(name)
    raw = one.raw.read(box)
    if normaliser is not None:
        corrections = section_corrections(FileSource(one.raw, None, box), normaliser)
        corner = box.start[1], box.start[2]
        raw = np.stack([each.apply(section, corner) for each, section in zip(corrections, raw, strict=True)])
    part = LabelledPart(raw, one.truth.read(box), one.raw, box, one.entry.raw)
    if not part.counted.any():
        raise ConfigError(f"{one.key}.{name}: found no labelled neuron there, expected some to score")
    return part


def check_normalisation(config: Pair, note: Callable[[str], None]) -> None:
    """Compare the normalisation of the training data with that of the initial weights.

    Args:
        config: of the run.
        note: called with a message if a network that continues to learn gets another normalisation.

    Raises:
        ConfigError: a frozen teacher would get another normalisation.
    """
    wanted = config.student.data.normalisation
    started: list[tuple[NetworkKind, str | None, bool]] = [
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


def _worth_drawing(box: Box, truth: Truth, crop: Triple) -> Box:
    """Return the part of a box from which crops contain labels: their centre lies among them, or as near as
    possible.
    """
    near = truth.box.grow((crop[0] // 2, crop[1] // 2, crop[2] // 2), box)
    start, stop = [], []
    for low, high, first, last, length in zip(near.start, near.stop, box.start, box.stop, crop, strict=True):
        missing = max(0, length - (high - low))
        low = max(first, low - missing)
        start.append(low)
        stop.append(min(last, max(high, low + length)))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _check_room(key: str, box: Box) -> None:
    """Check that a validation part fits into the memory of this machine."""
    needed = box.voxels * _VALIDATION_BYTES
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"{key}: {' x '.join(map(str, box.shape))} voxels (z, y, x) take about {needed / 2**30:.0f} GB while they "
            f"are judged, this machine has {there / 2**30:.0f} GB; expected fewer sections, or a box "
            "[[z0, z1], [y0, y1], [x0, x1]]"
        )


def _identity(volume: Volume) -> str:
    """Return a name of an array that does not depend on how its path is written."""
    path, colon, dataset = volume.source.rpartition(":")
    if "://" in volume.source or not colon:
        return volume.source if "://" in volume.source else os.path.realpath(volume.source)
    return f"{os.path.realpath(path)}:{dataset}"


def _unlabelled(config: Pair) -> list[tuple[str, FileSource]]:
    """Return volumes without labels, and their names for messages."""
    found = []
    for k, entry in enumerate(config.student.data.unlabelled):
        volume = every_section(open_grey(entry.raw, resolution=entry.resolution), entry.every)
        first, last = entry.sections or (0, volume.size[0])
        if last > volume.size[0]:
            raise ConfigError(
                f"student.data.unlabelled.{k}.sections: ends at section {last}, but {entry.raw} has {volume.size[0]} "
                "sections"
            )
        source = FileSource(volume, None, Box((first, 0, 0), (last, *volume.size[1:])))
        found.append((f"student.data.unlabelled.{k}: {entry.raw}", source))
    return found


def training_crops(config: Pair, parts: TrainingParts, ranks: int, note: Callable[[str], None]) -> Items:
    """Build crops of the training parts and, if configured, of unlabelled volumes.

    Args:
        config: of the run.
        parts: the labelled volumes.
        ranks: number of processes that share every step.
        note: called with a message if the voxel size of a volume differs.

    Raises:
        DistillError: a volume cannot be read or is too small for the crop.
    """
    training, augmentation = config.student.training, config.student.augment
    normaliser = config.student.data.normaliser
    each = [Crops.of(source, training, augmentation, normaliser) for source in parts.training]
    labelled: Items = each[0] if len(each) == 1 else PooledCrops(each, parts.weights)
    for (number, entry, _), source in zip(config.student.data.having("train"), parts.training, strict=True):
        assert source.volume is not None
        _note_shape(f"{config.student.data.key(number)}: {entry.raw}", source.volume, parts, note)
    others = []
    kept = not any(isinstance(source, FileSource) for source in parts.training)
    for name, file in _unlabelled(config):
        assert file.volume is not None
        _note_shape(name, file.volume, parts, note)
        try:
            others.append(Crops.of(file.held() if kept else file, training, augmentation, normaliser))
        except ShapeError as error:
            raise ConfigError(f"{name}: {error}") from None
    return MixedCrops(labelled, others, config.unlabelled_at, ranks=ranks) if others else labelled


def _note_shape(name: str, volume: Volume, parts: TrainingParts, note: Callable[[str], None]) -> None:
    if of_another_shape(volume.resolution, parts.resolution):
        nm = [" x ".join(f"{n:g}" for n in voxel) for voxel in (volume.resolution, parts.resolution)]
        note(f"{name} has voxels of {nm[0]} nm, the labelled volume of {nm[1]} nm (z, y, x); used without resampling")
