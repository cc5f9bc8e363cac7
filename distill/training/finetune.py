"""Continue the training of a student on a few labelled sections of another volume (`distill finetune`).

Network, decoder and normalisation are those of the model. The student is trained alone, without the 3D teacher, unless
a teacher is named.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.config import Pair, StudentNetwork, checked_pair, with_overrides
from distill.core.errors import CheckpointError, ConfigError, DistillError, ShapeError
from distill.core.geometry import Nanometres, Span, Triple
from distill.core.notes import note
from distill.io.selection import Selection
from distill.io.volume import Volume, check_pair, every_section, open_grey, open_labels, voxel_shift
from distill.models.checkpoint import Weights, read_weights
from distill.models.load import find_weights

FEWEST = 4  # labelled sections of which some are set aside for validation
_ASIDE = 5  # one of so many is
_CROP: Triple = (6, 160, 160)
_STRIDE = 16  # pixels; sides of crops are multiples of it where the volume allows
_MINUTES = 10.0  # of a training whose length is not given
_STEPS = 1000  # the length that `lr_warmup` is written for; where the time decides, it keeps its share
_LIGHT = {"width": 32, "depth": 2, "learned": 20, "norm_momentum": 0.1}  # the decoder of a model that has none


@dataclass(frozen=True)
class FineTuning:
    """What a fine-tuning does.

    Attributes:
        config: of the run.
        plan: what was decided, in lines for the user.
    """

    config: Pair
    plan: tuple[str, ...]


def plan_finetune(
    model: str,
    raw: str,
    labels: str,
    *,
    sections: Span | None = None,
    validation: Span | None = None,
    minutes: float | None = None,
    teacher: str | None = None,
    resolution: Nanometres | None = None,
    overrides: Sequence[str] = (),
) -> FineTuning:
    """Configure the training of a trained student on labelled sections.

    Args:
        model: run folder, weights file or bundled model that holds a student.
        raw: source of the sections.
        labels: source of their neuron ids, 0 = not labelled.
        sections: labelled sections to use; default from the first to the last that holds a label.
        validation: sections that are not trained on; default the last fifth of `sections`, at least two, none of fewer
            than `FEWEST`.
        minutes: of the training; default 10, and none where the overrides give `student.training.steps`.
        teacher: run folder or weights file of a 3D teacher that is to teach the student, frozen.
        resolution: nm z, y, x, for files without one.
        overrides: `student.KEY=VALUE` or `teacher.KEY=VALUE`.

    Raises:
        DistillError: no student, labels that do not fit the sections or hold nothing, too few sections, a bad value.
    """
    weights = read_weights(find_weights(model, "student"))
    if weights.kind != "student":
        raise CheckpointError(f"{model}: {weights.path} holds a {weights.kind}, expected a student")
    data: dict[str, Any] = {"raw": raw, "labels": labels, "resolution": resolution}
    student, teaching = _student_values(weights, model, data), _teacher_values(weights)
    if teacher is not None:
        _teach(student, teaching, teacher)
    names = {"teacher": "distill finetune", "student": "distill finetune"}
    values = with_overrides({"teacher": teaching, "student": student}, overrides, names)
    data = values["student"]["data"]
    volume, truth = _open(data)
    asked = sections or _span_of(data, "train")
    used = asked or labelled_span(truth)
    _check_span("--sections", used, volume)
    split = split_sections(used, validation or _span_of(data, "validation"))
    for name, span in (("--sections", split.train), ("--validation", split.validation)):
        _check_span(name, span, volume)
        _check_labelled(name, truth, span)
    data |= {"train": list(split.train), "validation": list(split.validation)}
    training = values["student"]["training"]
    _set_length(training, minutes)
    training.setdefault("crop", list(crop_of((split.train[1] - split.train[0], *volume.size[1:]))))
    if not split.held_out:
        training |= {"validations": 1, "patience": 0}
    config = checked_pair(values, names)
    if config.teacher_runs and config.teacher.weights is None:
        raise ConfigError(
            "distill finetune: found a loss that needs a 3D teacher and no teacher; expected --teacher MODEL"
        )
    return FineTuning(config, _plan(config, weights, volume, split, model, teacher))


@dataclass(frozen=True)
class SectionSplit:
    """Sections to train on and to validate on; the same ones where there are too few to set any aside."""

    train: Span
    validation: Span

    @property
    def held_out(self) -> bool:
        """Return whether the validation sections are not trained on."""
        return self.train != self.validation


def split_sections(used: Span, validation: Span | None = None) -> SectionSplit:
    """Set sections aside for validation.

    Args:
        used: all labelled sections.
        validation: those to set aside; at an end of `used` or outside of it. Default: the last fifth, rounded down,
            but at least two; all sections are trained and validated on where there are fewer than `FEWEST`.

    Raises:
        DistillError: fewer than two sections on either side, or a gap in the training sections.
    """
    first, last = used
    if last - first < 2:
        raise DistillError(
            f"--sections: found {max(0, last - first)} labelled section ({first}:{last}), expected at least 2: the "
            "student sees pairs of neighbouring sections"
        )
    if validation is None:
        if last - first < FEWEST:
            return SectionSplit(used, used)
        aside = max(2, (last - first) // _ASIDE)
        return SectionSplit((first, last - aside), (last - aside, last))
    begin, end = validation
    if end - begin < 2:
        raise DistillError(f"--validation: found {begin}:{end}, expected at least 2 sections")
    train = used
    if begin < last and first < end:
        if begin > first and end < last:
            raise DistillError(
                f"--validation: {begin}:{end} lies in the middle of the sections {first}:{last}, expected one of their "
                "ends or other sections"
            )
        train = (end, last) if begin <= first else (first, begin)
    if train[1] - train[0] < 2:
        raise DistillError(
            f"--validation: {begin}:{end} leaves {max(0, train[1] - train[0])} of the sections {first}:{last} to train "
            "on, expected at least 2"
        )
    return SectionSplit(train, validation)


def labelled_span(labels: Volume) -> Span:
    """Return the span from the first to the last section with a label other than 0.

    Raises:
        ShapeError: none does.
    """
    found = [z for z, section in enumerate(labels.sections()) if section.any()]
    if not found:
        raise ShapeError(f"{labels.source}: found no label other than 0, expected neuron ids")
    return found[0], found[-1] + 1


def crop_of(shape: Triple, largest: Triple = _CROP) -> Triple:
    """Return the training crop for a volume of this size: at most `largest`, sides multiples of 16 where possible."""
    depth, *sides = (min(most, size) for most, size in zip(largest, shape, strict=True))
    y, x = (side // _STRIDE * _STRIDE or side for side in sides)
    return depth, y, x


def _student_values(weights: Weights, model: str, data: dict[str, Any]) -> dict[str, Any]:
    """student.yaml: the network and normalisation of the weights, the rest for a short training on few sections."""
    network = {name: weights.config[name] for name in StudentNetwork.model_fields if name in weights.config}
    data = {**data, "normalisation": weights.config.get("normalisation", "none")}  # older weights know none
    return {
        **network,
        "weights": model,
        "data": data,
        "loss": {"cross": 0.0, "graft": 0.0},
        "training": {
            "warmup": 0,
            "batch": 1,
            "lr": 5e-4,
            "schedule": "cosine",
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "clip": 1.0,
            "ema": 0.98,
            "workers": 1,
            "log_every": 10,
            "validations": 8,
            "patience": 3,
        },
    }


def _set_length(training: dict[str, Any], minutes: float | None) -> None:
    """Fill in steps, minutes and warm-up of the learning rate that the overrides left open.

    Raises:
        ConfigError: both a time and a number of steps.
    """
    if "steps" not in training:
        training.setdefault("minutes", _MINUTES if minutes is None else minutes)
    elif minutes is not None:
        raise ConfigError(
            f"--minutes: found {minutes:g} and student.training.steps={training['steps']}, expected one of them"
        )
    steps = training.setdefault("steps", _STEPS)
    training.setdefault("lr_warmup", steps // 20 if isinstance(steps, int) and steps > 0 else 0)


def _teacher_values(weights: Weights) -> dict[str, Any]:
    """Return teacher.yaml without a teacher: the decoder of the weights, and no loss that needs the 3D network."""
    return {
        "fused": weights.config.get("fused", 32),
        "decoder": weights.config.get("decoder") or _LIGHT,
        "loss": {"multi_offset": 0.0, "affinity": 0.0},
        "queries": {"teacher": 0.0, "detach_student": True, "every": 8},
    }


def _teach(student: dict[str, Any], teaching: dict[str, Any], teacher: str) -> None:
    """Add a frozen teacher and what it teaches.

    Raises:
        CheckpointError: no teacher there, or one whose features the decoder cannot take.
    """
    weights = read_weights(find_weights(teacher, "teacher"))
    if weights.kind != "teacher":
        raise CheckpointError(f"--teacher: {weights.path} holds a {weights.kind}, expected a teacher")
    if weights.config.get("fused") != teaching["fused"]:
        raise CheckpointError(
            f"--teacher: {weights.path} has {weights.config.get('fused')} fused channels, expected "
            f"{teaching['fused']} as the student's decoder"
        )
    left_out = ("resolution", "normalisation", "decoder", "loss", "queries")
    network = {key: value for key, value in weights.config.items() if key not in left_out}
    teaching |= {**network, "weights": teacher, "frozen": True}
    cosines = weights.config.get("loss", {}).get("multi_offset", 1.0) > 0  # that the embedding was trained by
    graft = cosines and network.get("embedding") == student["embedding"]
    student["loss"] = {"cross": 1.0, "graft": 1.0 if graft else 0.0}
    if not network.get("embedding"):
        student["loss"]["cross_from"] = "logits"


def _open(data: MutableMapping[str, Any]) -> tuple[Volume, Volume]:
    """Open sections and labels, and check that they match."""
    every, resolution = data.get("every", 1), data.get("resolution")
    if not isinstance(every, int) or every < 1:
        raise ConfigError(f"student.data.every: found {every!r}, expected a whole number from 1")
    nm = None if resolution is None else tuple(resolution)
    image, ids = open_grey(data["raw"], resolution=nm), open_labels(data["labels"], resolution=nm)
    if image.size != ids.size:
        _crop_to_labels(data, image, ids)
        image, ids = open_grey(data["raw"], resolution=nm), open_labels(data["labels"], resolution=nm)
    raw, labels = every_section(image, every), every_section(ids, every)
    check_pair(raw, labels)
    apart = np.abs(np.array(raw.offset) - labels.offset) / raw.resolution
    if (apart >= raw.size).any():
        raise ShapeError(
            f"{labels.source}: lies at {labels.offset} nm and does not overlap {raw.source} at {raw.offset} nm; "
            "expected labels of the same place"
        )
    return raw, labels


def _crop_to_labels(data: MutableMapping[str, Any], raw: Volume, labels: Volume) -> None:
    """Take the part of the sections that labels cover, and the part of the labels that lies in the sections.

    Raises:
        ShapeError: voxels of another size, part of a voxel between them, or nothing in common.
    """
    shift = voxel_shift(labels, raw)
    shared = raw.box.intersect(labels.box.shift(shift))
    if not shared.voxels:
        raise ShapeError(
            f"{labels.source}: has size {labels.size} and covers nothing of {raw.source}, of size {raw.size}; expected "
            "resolution and offset (nm) that place it there"
        )
    for key, box in (("raw", shared), ("labels", shared.relative_to(shift))):
        data[key] = f"{data[key]}{Selection(box=box)}"
    share = 100 * shared.voxels / raw.box.voxels
    note(f"{labels.source}: covers {share:.3g} % of {raw.source}; only that is used, its sections count from 0")


def _span_of(data: Mapping[str, Any], name: str) -> Span | None:
    """Return the sections given by an override."""
    found = data.get(name)
    if found is None:
        return None
    if not (isinstance(found, list | tuple) and len(found) == 2 and all(isinstance(n, int) for n in found)):
        raise ConfigError(f"student.data.{name}: found {found!r}, expected [FIRST, LAST]")
    return found[0], found[1]


def _check_span(name: str, span: Span, volume: Volume) -> None:
    if not 0 <= span[0] < span[1] <= volume.size[0]:
        raise DistillError(f"{name}: found {span[0]}:{span[1]}, expected sections within 0:{volume.size[0]}")


def _check_labelled(name: str, labels: Volume, span: Span) -> None:
    empty = [z for z, section in enumerate(labels.sections(*span), span[0]) if not section.any()]
    if empty:
        shown = ", ".join(map(str, empty[:5])) + (" ..." if len(empty) > 5 else "")
        raise DistillError(
            f"{name}: {labels.source} holds no label in sections {shown} of {span[0]}:{span[1]}, expected some in each"
        )


def _plan(
    config: Pair, weights: Weights, volume: Volume, split: SectionSplit, model: str, teacher: str | None
) -> tuple[str, ...]:
    """Return the lines that describe the training."""
    training, (first, last) = config.student.training, split.train
    begin, end = split.validation
    lines = [f"{model}: {weights.path}" if config.student.weights else f"network of {model}, random weights"]
    trained = weights.config.get("resolution")
    own = " x ".join(f"{n:g}" for n in volume.resolution)
    if trained is not None and not np.allclose(trained, volume.resolution, rtol=1e-3):
        theirs = " x ".join(f"{n:g}" for n in trained)
        lines.append(f"voxels: {own} nm, the model was trained on {theirs} nm (z, y, x); it has to adapt to that too")
    else:
        lines.append(f"voxels: {own} nm (z, y, x), as the model's")
    if split.held_out:
        stop = f"; ends early after {training.patience} without a better VOI" if training.patience else ""
        lines.append(
            f"trains on sections {first}:{last}, validates on {begin}:{end} (--validation FIRST:LAST for others), "
            f"{training.validations or 'some'} times{stop}; the best weights are kept"
        )
    else:
        lines.append(
            f"trains on sections {first}:{last}; {last - first} are too few to set any aside, so that the scores "
            "printed are of the training sections and the last weights are kept"
        )
    lines.append(f"normalisation of grey values: {config.student.data.normalisation}")
    taught = f"with the frozen teacher {teacher}" if teacher else "the student alone, without a teacher"
    lines.append(f"{taught}; learning rate {training.lr:g}, crops of {' x '.join(map(str, training.crop))}")
    return tuple(lines)
