"""Configuration of training data: labelled volumes with their parts, and volumes without labels.

`data.volumes` lists labelled volumes; `raw`, `labels`, `train`, `validation` and `test` in their place are the short
form for a single one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from distill.core.geometry import Box, Span, Triple
from distill.core.normalisation import Normalisation, Normaliser

PartExtent = Span | tuple[Span, Span, Span]  # sections, or a box z, y, x; ends excluded
PartName = Literal["train", "validation", "test"]
_SHORT = {"raw", "labels", "resolution", "every", "train", "validation", "test"}  # keys of the short form
PARTS: tuple[PartName, ...] = ("train", "validation", "test")


class Strict(BaseModel):
    """A frozen group of keys that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UnlabelledVolume(Strict):
    """A raw volume for the loss terms that need no labels."""

    raw: str
    sections: tuple[int, int] | None = None  # from, to (exclusive); default: all
    resolution: tuple[float, float, float] | None = None  # nm z, y, x, if the file has none
    every: int = Field(1, ge=1)  # take every n-th section; section numbers count the sections taken

    @model_validator(mode="after")
    def _in_order(self) -> UnlabelledVolume:
        if self.sections is not None and not 0 <= self.sections[0] < self.sections[1]:
            raise ValueError(f"sections: found {list(self.sections)}, expected 0 <= first < last section")
        return self


class LabelledVolume(Strict):
    """A raw volume, its labels, and its training, validation and test parts.

    Labels and mask may be smaller than the image. They are placed by their resolution and offset, and voxels that they
    do not cover are unknown (`distill.core.known`).
    """

    raw: str
    labels: str
    resolution: tuple[float, float, float] | None = None  # nm z, y, x, if a file has none
    every: int = Field(1, ge=1)  # take every n-th section of an isotropic volume; section numbers count those taken
    train: PartExtent | None = None
    validation: PartExtent | None = None
    test: PartExtent | None = None  # for the scores of `distill ablate`; used neither for training nor for selection
    weight: float | None = Field(None, gt=0)  # share of the crops; default: by voxels of `train`
    mask: str | None = None  # volume that is non-zero where the labels are valid
    ignore: int | None = Field(None, ge=-(2**63), lt=2**64)  # label that means unknown
    zero: Literal["background", "unknown", "other"] = "background"  # meaning of label 0

    @field_validator(*PARTS, mode="before")
    @classmethod
    def _sections_or_box(cls, found: Any) -> Any:
        if found is None or _is_span(found) or (_is_row(found, 3) and all(map(_is_span, found))):
            return found
        raise ValueError(
            f"found {found!r}, expected sections [first, last] or a box [[z0, z1], [y0, y1], [x0, x1]], ends excluded"
        )

    @property
    def parts(self) -> dict[PartName, PartExtent]:
        """Return the parts that are set, by name."""
        named: dict[PartName, PartExtent | None] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        return {name: part for name, part in named.items() if part is not None}

    @model_validator(mode="after")
    def _apart(self) -> LabelledVolume:
        if not self.parts:
            raise ValueError("found none of train, validation and test, expected one at least")
        _check_parts(self.parts)
        if self.weight is not None and self.train is None:
            raise ValueError(f"weight: found {self.weight:g} without train, expected it with a part to train on")
        return self


class DataConfig(Strict):
    """Volumes and their training, validation and test parts."""

    volumes: tuple[LabelledVolume, ...] = ()
    raw: str | None = None  # the keys up to `test` describe a single volume, instead of `volumes`
    labels: str | None = None
    resolution: tuple[float, float, float] | None = None  # nm z, y, x, if the file has none
    every: int = Field(1, ge=1)  # take every n-th section of an isotropic volume; section numbers count those taken
    train: tuple[int, int] | None = None  # sections from, to (exclusive)
    validation: tuple[int, int] | None = None
    test: tuple[int, int] | None = None  # for `distill ablate`; not used for training or selection
    unlabelled: tuple[UnlabelledVolume, ...] = ()
    normalisation: Normalisation = Normalisation()  # normalisation of grey values by section; stored with the weights
    invert: bool = False  # exchange dark and bright, for sections with bright membranes
    memory: int = Field(512, ge=0)  # MB for training volumes; if they need more, crops are read on demand

    @property
    def normaliser(self) -> Normaliser:
        """Return the normaliser of the sections of these volumes."""
        return Normaliser(self.normalisation, self.invert)

    @property
    def labelled(self) -> tuple[LabelledVolume, ...]:
        """Return all labelled volumes, given in the list form or in the short form."""
        if self.volumes:
            return self.volumes
        assert self.raw is not None
        assert self.labels is not None
        return (
            LabelledVolume.model_construct(  # checked by `_one_form`
                raw=self.raw,
                labels=self.labels,
                resolution=self.resolution,
                every=self.every,
                train=self.train,
                validation=self.validation,
                test=self.test,
            ),
        )

    def key(self, number: int) -> str:
        """Return the key of a labelled volume, for messages."""
        return f"student.data.volumes.{number}" if self.volumes else "student.data"

    def having(self, name: PartName) -> Iterator[tuple[int, LabelledVolume, PartExtent]]:
        """Iterate over the labelled volumes that have a part, as (number, volume, part)."""
        for number, volume in enumerate(self.labelled):
            if name in volume.parts:
                yield number, volume, volume.parts[name]

    @model_serializer(mode="wrap")
    def _own_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialise only the keys of the form in use."""
        left_out = _SHORT if self.volumes else {"volumes"}
        return {key: value for key, value in dump(self).items() if key not in left_out}

    @model_validator(mode="after")
    def _one_form(self) -> DataConfig:
        given = self.model_fields_set & _SHORT
        if self.volumes and given:
            raise ValueError(f"{min(given)}: set with volumes, expected it inside their entries, or no volumes")
        if not self.volumes:
            for name in ("raw", "labels", "train", "validation"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: missing, expected raw, labels, train and validation, or volumes")
            _check_parts(self.labelled[0].parts)
        if not any(volume.train for volume in self.labelled):
            raise ValueError("volumes: no entry has train, expected one at least")
        if not any(volume.validation for volume in self.labelled):
            raise ValueError("volumes: no entry has validation, expected one at least")
        weights = [volume.weight is not None for volume in self.volumes if volume.train is not None]
        if any(weights) and not all(weights):
            raise ValueError(
                "volumes: found a weight in some entries with train, expected one in each of them or in none"
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> DataConfig:
        check_apart(self, [volume.raw for volume in self.labelled], [volume.raw for volume in self.unlabelled])
        return self


def _check_parts(parts: Mapping[PartName, PartExtent]) -> None:
    for name, part in parts.items():
        for axis, (first, last) in zip("zyx", spans(part), strict=False):
            if not 0 <= first < last:
                what = "section" if isinstance(part[0], int) else axis
                raise ValueError(f"{name}: found {shown(part)}, expected 0 <= first < last {what}")
    for one, other in itertools.combinations(parts, 2):
        if (one, other) == ("train", "validation") and parts[one] == parts[other]:
            continue  # intended for volumes with too few labelled sections to set any aside
        if meet(parts[one], parts[other]):
            raise ValueError(f"{other}: {shown(parts[other])} overlaps {one} {shown(parts[one])}")


def check_apart(data: DataConfig, labelled: list[str], unlabelled: list[str]) -> None:
    """Check that no training data is validation or test data of another entry.

    Args:
        data: the entries.
        labelled: names of their raw volumes; equal names mean the same volume.
        unlabelled: the same for the entries without labels.

    Raises:
        ValueError: parts of one raw volume overlap; the message begins with the key.
    """

    def key(number: int) -> str:
        return f"volumes.{number}." if data.volumes else ""

    for (one, first), (other, second) in itertools.combinations(enumerate(data.labelled), 2):
        if labelled[one] != labelled[other]:
            continue
        for a, b in itertools.product(first.parts, second.parts):
            if a != b and meet(in_file(first.parts[a], first.every), in_file(second.parts[b], second.every)):
                raise ValueError(
                    f"{key(other)}{b}: {shown(second.parts[b])} overlaps {key(one)}{a} {shown(first.parts[a])} of the "
                    "same raw"
                )
    for k, volume in enumerate(data.unlabelled):
        for number, entry in enumerate(data.labelled):
            if labelled[number] != unlabelled[k]:
                continue
            if volume.every != entry.every:
                raise ValueError(
                    f"unlabelled.{k}.every: found {volume.every}, expected {entry.every} as of the same raw"
                )
            for name in entry.parts.keys() - {"train"}:
                part = entry.parts[name]
                if volume.sections is None or meet(volume.sections, part):
                    found = "all" if volume.sections is None else list(volume.sections)
                    raise ValueError(
                        f"unlabelled.{k}.sections: {found} of the same raw overlap {key(number)}{name} {shown(part)}"
                    )


def spans(part: PartExtent) -> tuple[Span, ...]:
    """Return the span of sections, or the spans of all three axes."""
    first = part[0]
    return (part,) if isinstance(first, int) else part  # type: ignore[return-value]


def part_box(part: PartExtent, size: Triple) -> Box:
    """Convert a part to a box of voxels; sections alone cover the full section.

    Args:
        part: of a volume.
        size: extent of the volume z, y, x, for what the part leaves open.
    """
    z, y, x = (*spans(part), (0, size[1]), (0, size[2]))[:3]
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def in_file(part: PartExtent, every: int) -> PartExtent:
    """Convert a part to section numbers of the file, of which every `every`-th is used."""
    (first, last), *rest = spans(part)
    sections = (first * every, (last - 1) * every + 1)
    return (sections, *rest) if rest else sections  # type: ignore[return-value]


def meet(one: PartExtent, other: PartExtent) -> bool:
    """Return whether two parts of a volume share a voxel."""
    return all(a[0] < b[1] and b[0] < a[1] for a, b in zip(spans(one), spans(other), strict=False))


def shown(part: PartExtent) -> str:
    """Format a part as it is written in the configuration."""
    return str([list(span) for span in spans(part)] if len(spans(part)) > 1 else list(part))


def _is_row(found: Any, length: int) -> bool:
    return isinstance(found, list | tuple) and len(found) == length


def _is_span(found: Any) -> bool:
    return _is_row(found, 2) and all(re.fullmatch(r"-?\d+", str(n)) for n in found)
